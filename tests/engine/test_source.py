"""The pinned source: fetched, checked, unpacked and patched, or a sentence that says why not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnode.engine import source
from meshnode.engine.packages import fetch_sdist
from meshnode.engine.source import Upstream, patches_folder, prepare_source, read_upstream, source_folder
from meshnode.errors import SourceUnavailable
from meshnode.telemetry import Progress

MakeUpstream = Callable[..., Upstream]
INSIDE = "vendor/llama.cpp"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_pin_of_this_repository_is_complete() -> None:
    upstream = read_upstream()
    assert (upstream.package, upstream.version, len(upstream.sha256)) == ("llama-cpp-python", "0.3.36", 64)
    assert upstream.rpc[0] == 7
    assert upstream.patches_hash in upstream.key and upstream.patches_hash in upstream.mark


def test_a_wheel_carries_the_patches_beside_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site" / "meshnode" / "engine"
    installed.mkdir(parents=True)
    checkout = patches_folder()
    monkeypatch.setattr(source, "__file__", str(installed / "source.py"))
    assert patches_folder() == tmp_path / "site" / "llama.cpp-patches"
    shutil.copytree(checkout, installed / "patches")
    assert patches_folder() == installed / "patches"
    assert read_upstream() == read_upstream(checkout)


def test_the_hash_of_the_patches_knows_content_and_order(tmp_path: Path) -> None:
    shutil.copytree(patches_folder(), tmp_path / "p")
    (tmp_path / "p" / "two.patch").write_text("--- a/x\n")
    names = [patch.name for patch in read_upstream().patches]
    hashes = set()
    for series in ([*names, "two.patch"], ["two.patch", *names], names, []):
        (tmp_path / "p" / "series").write_text("\n".join(series))
        hashes.add(read_upstream(tmp_path / "p").patches_hash)
    (tmp_path / "p" / "two.patch").write_text("--- a/y\n")
    (tmp_path / "p" / "series").write_text("\n".join([*names, "two.patch"]))
    hashes.add(read_upstream(tmp_path / "p").patches_hash)
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("UPSTREAM", "not toml ["),
        ("UPSTREAM", 'package = "x"\n'),
        ("UPSTREAM", 'rpc = "7.x"\n'),
        ("UPSTREAM", "rpc = 7\n"),
        ("series", "absent.patch\n"),
        ("series", "../../../etc/passwd\n"),
    ],
)
def test_a_damaged_pin_is_told(tmp_path: Path, file: str, text: str) -> None:
    shutil.copytree(patches_folder(), tmp_path / "p")
    (tmp_path / "p" / file).write_text(text)
    with pytest.raises(SourceUnavailable, match="does not describe it"):
        read_upstream(tmp_path / "p")


def test_the_source_is_prepared_once(tiny_upstream: Upstream, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[Progress] = []
    folder = prepare_source(cache, tiny_upstream, report=reports.append)
    assert folder == source_folder(cache, tiny_upstream)
    assert "greeting: patched" in (folder / "tiny.cpp").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "CMakeLists.txt",
        "LICENSE",
        "ggml",
        "main.cpp",
        "tiny.cpp",
    ]
    assert reports[0].unit == "bytes" and reports[0].total == tiny_upstream.size_bytes
    assert reports[-1].finished
    monkeypatch.setattr(source, "fetch_sdist", lambda *_, **__: pytest.fail("fetched again"))
    assert prepare_source(cache, tiny_upstream) == folder
    shutil.rmtree(folder)
    assert prepare_source(cache, tiny_upstream) == folder, "the archive is kept"


def test_an_archive_put_there_by_hand_needs_no_network(
    tiny_upstream: Upstream, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "download").mkdir(parents=True)
    name = "tiny_llama_python-1.0.tar.gz"
    (tmp_path / "index" / name).rename(cache / "download" / name)
    assert prepare_source(cache, tiny_upstream).is_dir()


def test_a_damaged_archive_is_fetched_again(tiny_upstream: Upstream, cache: Path) -> None:
    (cache / "download").mkdir(parents=True)
    (cache / "download" / "tiny_llama_python-1.0.tar.gz").write_bytes(b"half a file")
    assert prepare_source(cache, tiny_upstream).is_dir()


def test_offline_is_a_sentence_with_two_ways_out(
    tiny_upstream: Upstream, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(SourceUnavailable) as caught:
        prepare_source(cache, tiny_upstream)
    assert "tiny_llama_python-1.0.tar.gz" in caught.value.message
    assert "pip config list" in caught.value.fix and str(cache / "download") in caught.value.fix


def test_a_changed_file_names_both_hashes(make_upstream: MakeUpstream, cache: Path, tmp_path: Path) -> None:
    upstream = make_upstream()
    other = make_upstream({"vendor/llama.cpp/extra.cpp": "int extra;\n"})
    with pytest.raises(SourceUnavailable) as caught:
        prepare_source(cache, upstream)
    assert upstream.sha256 in caught.value.detail and other.sha256 in caught.value.detail


def test_a_pip_that_does_not_check_is_checked(
    make_upstream: MakeUpstream, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = make_upstream()
    other = make_upstream({"vendor/llama.cpp/extra.cpp": "int extra;\n"})

    def careless(requirement, *, sha256, **options):  # type: ignore[no-untyped-def]
        return fetch_sdist(requirement, sha256=other.sha256, **options)

    monkeypatch.setattr(source, "fetch_sdist", careless)
    with pytest.raises(SourceUnavailable, match=f"{other.sha256}, expected {upstream.sha256}"):
        prepare_source(cache, upstream)
    assert list((cache / "download").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "links", "reason"),
    [
        ({f"{INSIDE}/../../../escaped": "x"}, {}, "it holds the path"),
        ({f"/{INSIDE}/../up": "x"}, {}, "it holds the path"),
        ({f"{INSIDE}/big.bin": "x" * 5000}, {}, "more than a source tree should"),
        ({f"{INSIDE}/{number}.cpp": "x" for number in range(30)}, {}, "more than a source tree should"),
    ],
)
def test_a_hostile_archive_writes_nothing(
    make_upstream: MakeUpstream,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    links: dict[str, str],
    reason: str,
) -> None:
    monkeypatch.setattr(source, "FILE_LIMIT_BYTES", 4000)
    monkeypatch.setattr(source, "FILES_LIMIT", 20)
    upstream = make_upstream(changes)
    _by_hand(tmp_path, cache)
    with pytest.raises(SourceUnavailable, match=reason):
        prepare_source(cache, upstream)
    assert list((cache / "source").iterdir()) == []
    assert not list(tmp_path.rglob("escaped"))


def test_links_in_the_archive_are_left_out(make_upstream: MakeUpstream, cache: Path, tmp_path: Path) -> None:
    upstream = make_upstream(links={"tiny_llama_python-1.0/vendor/llama.cpp/link": "/etc/passwd"})
    _by_hand(tmp_path, cache)
    assert not (prepare_source(cache, upstream) / "link").exists()


def _by_hand(tmp_path: Path, cache: Path) -> None:
    """Past pip, which has checks of its own."""
    (cache / "download").mkdir(parents=True)
    name = "tiny_llama_python-1.0.tar.gz"
    shutil.copy(tmp_path / "index" / name, cache / "download" / name)


def test_an_archive_cut_short_is_told(
    make_upstream: MakeUpstream, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = make_upstream()
    archive = cache / "download" / "tiny_llama_python-1.0.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"\x1f\x8b\x08\x00damaged")
    monkeypatch.setattr(source, "_sha256", lambda _: upstream.sha256)
    with pytest.raises(SourceUnavailable, match="cannot be unpacked"):
        prepare_source(cache, upstream)


def test_an_archive_without_llama_cpp_is_told(make_upstream: MakeUpstream, cache: Path) -> None:
    upstream = make_upstream()
    elsewhere = Upstream(**{field: getattr(upstream, field) for field in Upstream.__slots__} | {"folder": "elsewhere"})
    with pytest.raises(SourceUnavailable, match="holds no elsewhere"):
        prepare_source(cache, elsewhere)


def test_a_patch_that_does_not_fit_is_named(make_upstream: MakeUpstream, cache: Path) -> None:
    upstream = make_upstream({f"{INSIDE}/tiny.cpp": "something else\n"})
    with pytest.raises(SourceUnavailable, match=r"0001-greeting.patch does not fit .* tiny.cpp differs at line 1"):
        prepare_source(cache, upstream)
    assert list((cache / "source").iterdir()) == []


def test_what_an_interruption_left_is_done_again(
    tiny_upstream: Upstream, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "apply_diff", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_source(cache, tiny_upstream)
    assert not source_folder(cache, tiny_upstream).exists()
    monkeypatch.undo()
    assert (prepare_source(cache, tiny_upstream) / "CMakeLists.txt").is_file()


def _interrupt(*_: object) -> list[str]:
    raise KeyboardInterrupt
