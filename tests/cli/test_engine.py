"""`meshnode engine` against an empty cache, one with an engine in it, and one that cannot be used."""

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshnode.cli.main import root
from meshnode.engine import provision
from meshnode.engine.backend import choose_backend
from meshnode.engine.build import TARGETS, engine_flags
from meshnode.engine.source import read_upstream
from meshnode.errors import BuildFailed
from meshnode.telemetry import Progress


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MESHNODE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MESHNODE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def built(cache: Path) -> Path:
    """A finished engine for the processor of this machine, with empty programs."""
    upstream, backend = read_upstream(), choose_backend("cpu")
    folder = cache / "engine" / "some-key"
    folder.mkdir(parents=True)
    for target in TARGETS:
        (folder / target).touch()
        (folder / target).chmod(stat.S_IRWXU)
    manifest = {
        "schema": 1, "source": upstream.key, "backend": backend.tag, "kind": "cpu", "asked": True, "compiler": "gcc 1",
        "flags": list(engine_flags(upstream, backend)), "version": "0.5.0-dev", "rpc": [7, 0, 0], "seconds": 1,
        "built_at": 1, "files": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["engine", *arguments])


def test_an_empty_cache_says_what_to_do(cache: Path) -> None:
    result = run("status")
    assert result.exit_code == 0 and "not built yet" in result.stdout
    assert result.stderr.rstrip().endswith("meshnode engine build")
    facts = json.loads(run("status", "--json").stdout)
    assert facts["schema"] == 1 and facts["engine"] is None and facts["cache"] == str(cache)
    assert facts["backend"] == choose_backend().tag and facts["patches"]


def test_path_of_an_engine_that_is_not_built_exits_with_6(cache: Path) -> None:
    result = run("path")
    assert result.exit_code == 6 and result.stdout == ""
    assert "meshnode engine build" in result.stderr
    assert json.loads(run("path", "--json").stdout)["error"]["code"] == "engine-not-built"


def test_path_prints_the_folder_alone(built: Path) -> None:
    result = run("path", "--backend", "cpu")
    assert (result.exit_code, result.stdout) == (0, f"{built}\n")
    assert json.loads(run("path", "--json").stdout)["server"] == str(built / "llama-server")


def test_status_of_a_built_engine(built: Path) -> None:
    result = run("status", "--backend", "cpu")
    assert str(built) in result.stdout and "llama.cpp 0.5.0-dev, RPC 7.0.0" in result.stdout
    facts = json.loads(run("status", "--backend", "cpu", "--json").stdout)
    assert facts["engine"]["patched"] is True and facts["building"] is False


def test_the_backend_of_the_settings_counts(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_BACKEND", "cpu")
    assert json.loads(run("status", "--json").stdout)["backend"] == choose_backend("cpu").tag


def test_a_given_engine_is_mentioned(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_ENGINE", "/opt/llama/llama-server")
    assert "/opt/llama/llama-server" in run("status").stderr
    assert json.loads(run("status", "--json").stdout)["given"] == "/opt/llama/llama-server"


def test_build_of_a_built_engine_does_nothing(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "ensure", lambda *_, **__: pytest.fail("built again"))
    result = run("build", "--backend", "cpu")
    assert result.exit_code == 0 and f"already built: {built}" in result.stderr
    assert json.loads(run("build", "--backend", "cpu", "--json").stdout)["already_built"] is True


def test_build_shows_progress_on_stderr_and_the_next_command(
    cache: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = provision.find(cache, backend="cpu")
    asked = {}

    def ensure(cache: Path, *, report, **options):  # type: ignore[no-untyped-def]
        asked.update(options, cache=cache)
        report(Progress("engine", "compiling llama.cpp", 1, 223))
        report(Progress("engine", "the engine is built", finished=True))
        return engine

    monkeypatch.setattr(provision, "find", lambda *_, **__: None)
    monkeypatch.setattr(provision, "ensure", ensure)
    result = run("build", "--backend", "cpu", "--jobs", "3")
    assert result.exit_code == 0 and result.stdout == ""
    assert asked == {"cache": cache, "backend": "cpu", "jobs": 3}
    assert "compiling llama.cpp" in result.stderr
    assert result.stderr.rstrip().endswith("meshnode --model demo")
    facts = json.loads(run("build", "--json").stdout)
    assert facts["already_built"] is False and facts["server"] == str(built / "llama-server")


def test_a_failed_build_is_a_sentence_with_a_fix_and_6(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(*_: object, **__: object) -> None:
        raise BuildFailed("a.cpp:1:1: no such thing", fix="mend it")

    monkeypatch.setattr(provision, "ensure", ensure)
    result = run("build")
    assert result.exit_code == 6
    assert "a.cpp:1:1: no such thing" in result.stderr and "mend it" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"), [(("build", "--backend", "cdua"), "cdua"), (("build", "--jobs", "0"), "0")]
)
def test_wrong_usage_exits_with_2(cache: Path, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.stderr


def test_clean_frees_what_the_engine_took_and_nothing_else(built: Path, cache: Path) -> None:
    (cache / "models").mkdir()
    (cache / "models" / "keep.gguf").touch()
    (cache / "download").mkdir()
    (cache / "download" / "source.tar.gz").write_bytes(bytes(5000))
    facts = json.loads(run("clean", "--json").stdout)
    assert facts["freed_bytes"] >= 5000
    assert not built.exists() and (cache / "models" / "keep.gguf").exists()
    assert run("clean").exit_code == 0
