import dataclasses
from pathlib import Path

import pytest

from meshnode.config import GIB, MIB, Settings, find_places, load, setting_fields, settings_facts
from meshnode.errors import SettingsError


def loaded(
    tmp_path: Path, flags: dict[str, object] | None = None, environment: dict[str, str] | None = None, file: str = ""
) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(file, "utf-8")
    return load(flags or {}, environment=environment or {}, file=path)


def test_built_in_values_are_usable_and_marked(tmp_path: Path) -> None:
    settings = load({}, environment={}, file=tmp_path / "none.toml")
    assert settings == Settings()
    assert {source for _, _, source, _ in settings.as_rows()} == {"built-in"}
    assert all(text for _, _, _, text in settings.as_rows())
    assert all(item.metadata["help"] for item in setting_fields())


def test_flag_before_environment_before_file_and_each_value_knows_its_source(tmp_path: Path) -> None:
    file = "port = 1000\nqueue = 1\nparallel = 1\nlog_level = 'debug'\n"
    environment = {"MESHNODE_PORT": "2000", "MESHNODE_QUEUE": "2", "MESHNODE_THREADS": "", "PORT": "9"}
    settings = loaded(tmp_path, {"port": "3000", "queue": None, "model": ()}, environment, file)
    assert (settings.port, settings.queue, settings.parallel, settings.threads) == (3000, 2, 1, None)
    config = str(tmp_path / "config.toml")
    assert settings.sources == {
        "port": "--port",
        "queue": "MESHNODE_QUEUE",
        "parallel": config,
        "log_level": config,
    }


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("model", "a, b ,,c", ("a", "b", "c")),
        ("model", ["a"], ("a",)),
        ("port", "0", 0),
        ("port", 65535, 65535),
        ("listen_all", "off", False),
        ("no_draft", True, True),
        ("no_draft", "YES", True),
        ("max_vram", "8", 8 * GIB),
        ("max_vram", 7.5, int(7.5 * GIB)),
        ("max_vram", "7.5 GB", int(7.5 * GIB)),
        ("max_vram", "512mb", 512 * MIB),
        ("max_vram", "1gib", GIB),
        ("max_body", "1M", MIB),
        ("kv_type", "q8_0", "q8_0"),
        ("bind_host", "127.0.0.1", "127.0.0.1"),
        ("bind_host", "0::1", "::1"),
        ("lan", "false", "off"),
        ("lan", True, "on"),
        ("lan", "auto", "auto"),
        ("name", " studio ", "studio"),
        ("engine", "/opt/llama-server", Path("/opt/llama-server")),
        ("engine", "~/x", Path.home() / "x"),
        ("aliases", "gpt-4=demo,b = auto", {"gpt-4": "demo", "b": "auto"}),
        ("aliases", {"gpt-4": "demo"}, {"gpt-4": "demo"}),
    ],
)
def test_values_are_read(name: str, given: object, wanted: object, tmp_path: Path) -> None:
    key = {"api_key": "k"} if name == "listen_all" else {}
    assert getattr(loaded(tmp_path, {name: given, **key}), name) == wanted


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("port", "x"),
        ("port", "-1"),
        ("port", 65536),
        ("port", True),
        ("port", 1.5),
        ("port", "9" * 5000),
        ("queue", []),
        ("listen_all", "maybe"),
        ("listen_all", 1),
        ("max_vram", "0"),
        ("max_vram", "-1"),
        ("max_vram", "lots"),
        ("max_vram", "nan"),
        ("max_vram", "inf"),
        ("max_vram", "8TB"),
        ("max_vram", "1e300"),
        ("max_vram", True),
        ("bind_host", "example.org"),
        ("lan", "maybe"),
        ("name", "x" * 41),
        ("mesh_name", "a\u202eb"),
        ("kv_type", "q3"),
        ("kv_type", ["f16"]),
        ("log_level", "LOUD"),
        ("model", 5),
        ("model", [5]),
        ("model", ["a", " "]),
        ("draft", "   "),
        ("draft", "a\0b"),
        ("engine", "~nobody-of-that-name/x"),
        ("engine", ["a"]),
        ("aliases", "a"),
        ("aliases", {"a": 1}),
        ("aliases", ["a"]),
    ],
)
def test_values_that_cannot_be_used_name_the_setting_and_the_source(name: str, given: object, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, {name: given})
    assert f"{name} from --{name.replace('_', '-')}: " in str(caught.value)
    assert (caught.value.exit_code, bool(caught.value.fix)) == (2, True)


def test_a_bad_secret_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, environment={"MESHNODE_API_KEY": "canary\0"})
    assert "MESHNODE_API_KEY" in str(caught.value)
    assert "canary" not in str(caught.value.as_dict())
    settings = loaded(tmp_path, environment={"MESHNODE_API_KEY": "canary"})
    assert settings.api_key == "canary"
    assert "canary" not in str(settings.as_rows())


def test_the_facts_of_settings_name_their_sources_and_keep_secrets(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"port": "3000"}, {"MESHNODE_API_KEY": "canary", "MESHNODE_JOIN": "canary"})
    places = find_places({"MESHNODE_HOME": str(tmp_path)})
    facts = settings_facts(settings, places)
    rows = {row["name"]: row for row in facts["settings"]}
    assert set(rows) == {item.name for item in setting_fields()}
    assert (rows["port"]["value"], rows["port"]["source"]) == ("3000", "--port")
    assert rows["api_key"]["secret"] and rows["api_key"]["value"] == "(set)" and not rows["port"]["secret"]
    assert "canary" not in str(facts) and facts["paths"]["home"] == str(tmp_path)


def test_unknown_keys_of_the_file_get_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown key 'ctx_sise'") as caught:
        loaded(tmp_path, file="ctx_sise = 5")
    assert caught.value.fix == "did you mean ctx_size?"
    for key in ("sources", "zzzzzz"):
        with pytest.raises(SettingsError, match="unknown key") as caught:
            loaded(tmp_path, file=f"{key} = 5")
        assert "meshnode config show" in caught.value.fix
    # An unknown variable may belong to something else.
    assert loaded(tmp_path, environment={"MESHNODE_HOME": "/x", "MESHNODE_ZZZ": "1"}) == Settings()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for text in ("port = ", "port = 1\nport = 2", "[port", "\x00"):
        with pytest.raises(SettingsError, match="not valid TOML"):
            loaded(tmp_path, file=text)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load({}, environment={}, file=binary)
    with pytest.raises(SettingsError, match="cannot be read"):
        load({}, environment={}, file=tmp_path)
    with pytest.raises(SettingsError, match="does not exist"):
        load({}, environment={}, file=tmp_path / "none.toml", file_required=True)


def test_combinations_that_contradict_themselves(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="needs an API key") as caught:
        loaded(tmp_path, {"listen_all": True})
    assert "MESHNODE_API_KEY" in caught.value.fix
    assert loaded(tmp_path, {"listen_all": True}, {"MESHNODE_API_KEY": "k"}).listen_all
    with pytest.raises(SettingsError, match="exclude each other"):
        loaded(tmp_path, {"draft": "a", "no_draft": True})
    for contradiction in ({"client": True, "model": ("demo",)}, {"solo": True, "join": "mn1x"}):
        with pytest.raises(SettingsError, match="serves no models|exclude each other"):
            loaded(tmp_path, contradiction)
    with pytest.raises(SettingsError, match="cannot share port 9000"):
        loaded(tmp_path, {"port": "9000", "console": "9000"})
    assert loaded(tmp_path, {"port": "0", "console": "0"}).port == 0


def test_rows_show_values_as_a_person_would_write_them(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        {"model": ("a", "b"), "no_draft": True},
        {"MESHNODE_ALIASES": "x=y", "MESHNODE_API_KEY": "k", "MESHNODE_MAX_VRAM": "8"},
    )
    shown = {name: value for name, value, _, _ in settings.as_rows()}
    assert (shown["model"], shown["aliases"], shown["api_key"]) == ("a, b", "x=y", "(set)")
    assert (shown["no_draft"], shown["listen_all"], shown["draft"]) == ("true", "false", "-")
    assert list(shown) == [item.name for item in setting_fields()]


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    settings = loaded(tmp_path, file="[aliases]\na = 'b'")
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]
    for mapping in (settings.aliases, settings.sources):
        with pytest.raises(TypeError):
            mapping["a"] = "c"  # type: ignore[index]


def test_places_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = find_places({"MESHNODE_HOME": str(tmp_path / "h"), "MESHNODE_CACHE": str(tmp_path / "c")})
    assert (places.home, places.cache) == (tmp_path / "h", tmp_path / "c")
    assert places.config_file == tmp_path / "h" / "config.toml"
    assert {places.runtime_file.parent, places.lock_file.parent, places.logs.parent} == {places.home}
    monkeypatch.chdir(tmp_path)
    assert find_places({"MESHNODE_HOME": "relative"}).home == tmp_path / "relative"
    own = find_places({})
    assert own.home.is_absolute()
    assert own.config_file.name == "config.toml"
    assert len({own.home, own.cache}) == 2
    for variable in ("MESHNODE_HOME", "MESHNODE_CACHE"):
        with pytest.raises(SettingsError, match=variable):
            find_places({variable: "~nobody-of-that-name/x"})


@pytest.mark.parametrize(
    ("text", "micros"),
    [("0", 0), ("0.5", 500_000), ("$2", 2_000_000), ("1.000001", 1_000_001), ("9999999", 9_999_999_000_000)],
)
def test_dollars_are_read_exactly_and_shown_as_they_were_written(text: str, micros: int, tmp_path: Path) -> None:
    settings = load({"price_in": text}, environment={}, file=tmp_path / "none")
    assert settings.price_in == micros
    shown = {name: value for name, value, _, _ in settings.as_rows()}
    assert shown["price_in"] == text.removeprefix("$")


@pytest.mark.parametrize("text", ["-1", "1e3", "0.0000001", "nan", "", "1,5", "12345678", ".5", "٣"])
def test_what_is_no_exact_amount_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dollars"):
        load({"price_in": text}, environment={}, file=tmp_path / "none")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"client": True, "price_out": "1"}, "nobody pays"),
        ({"x402": True}, "--x402"),
        ({"kwh": "0.3"}, "--watts"),
        ({"watts": "300"}, "--kwh"),
        ({"receiver": "0x12"}, "40 hex"),
        ({"rpc": ["ftp://x"]}, "endpoint"),
        ({"rpc": [f"https://{n}" for n in range(5)]}, "at most 4"),
    ],
)
def test_settings_of_money_that_cannot_be_meant(flags: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        load(flags, environment={}, file=tmp_path / "none")


def test_who_sells(tmp_path: Path) -> None:
    def settings(**flags: object) -> Settings:
        return load(flags, environment={}, file=tmp_path / "none")

    assert settings(publish=True, price_out="1").sells
    assert not settings(price_out="1").sells and not settings(publish=True).sells
    by_power = settings(publish=True, kwh="0.3", watts="300")
    assert by_power.sells and by_power.is_priced_by_power
    assert not settings(publish=True, kwh="0.3", watts="300", price_in="1").is_priced_by_power
    rows = {name: value for name, value, _, _ in settings(rpc=["https://key@x"]).as_rows()}
    assert rows["rpc"] == "(set)"
    assert settings(receiver="0x" + "aB" * 20).receiver == "0x" + "ab" * 20
