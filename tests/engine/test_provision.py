"""From an empty cache to an engine, with a miniature llama.cpp; and the real engine, where it is built."""

import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from meshnode.engine import provision
from meshnode.engine.foreign import ask_rpc_version, inspect
from meshnode.engine.installed import Engine
from meshnode.engine.job import JobCancelled
from meshnode.engine.lock import build_lock
from meshnode.engine.source import Upstream, read_upstream
from meshnode.errors import BuildFailed, EngineIncompatible, HomeNotWritable, SettingsError, ToolchainMissing
from meshnode.telemetry import Progress

FAKE_SERVER = "#!/bin/sh\necho 'version: 9.9 (build 1, commit abc)'\n"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def foreign_server(tmp_path: Path) -> Path:
    """A FakeServer: answers --version and nothing else."""
    server = tmp_path / "bin" / "llama-server"
    server.parent.mkdir()
    server.write_text(FAKE_SERVER)
    server.chmod(stat.S_IRWXU)
    return server


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH holds the folder of the foreign server and nothing else; the shell it needs is named by its path."""

    def missing(*_: object, **__: object) -> None:
        raise ToolchainMissing(fix="install one")

    monkeypatch.setattr(provision, "find_toolchain", missing)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_build_find_status_clean(tiny_upstream: Upstream, cache: Path) -> None:
    assert provision.find(cache) is None
    assert provision.status(cache).engine is None
    reports: list[Progress] = []
    engine = provision.ensure(cache, backend="cpu", report=reports.append)
    assert subprocess.run([engine.server, "--version"], check=False).returncode == 0
    assert {report.task for report in reports} == {"engine-source", "engine"}
    assert provision.find(cache, backend="cpu") == engine == provision.ensure(cache, backend="cpu")
    assert provision.find(cache) == engine, "asked for once, used from then on"

    status = provision.status(cache)
    assert status.engine == engine and status.patches == ("0001-greeting.patch",)
    assert status.source_ready and not status.building and status.others == ()
    assert status.size_bytes > 0 and status.log is not None

    assert provision.clean(cache) == status.size_bytes
    assert provision.find(cache) is None and provision.clean(cache) == 0


def test_two_nodes_build_once(tiny_upstream: Upstream, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []
    real_build = provision.build
    monkeypatch.setattr(provision, "build", lambda *args, **options: builds.append(1) or real_build(*args, **options))
    engines: list[Engine] = []
    threads = [threading.Thread(target=lambda: engines.append(provision.ensure(cache))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(engines) == 2 and engines[0] == engines[1] and len(builds) == 1


def test_another_series_is_another_engine(make_upstream: Callable[..., Upstream], cache: Path, tmp_path: Path) -> None:
    make_upstream()
    provision.ensure(cache)
    (tmp_path / "patches" / "series").write_text("")
    assert provision.find(cache) is None


def test_a_build_can_be_cancelled_while_it_waits(tiny_upstream: Upstream, cache: Path) -> None:
    cancelled = threading.Event()
    with build_lock(cache), pytest.raises(JobCancelled):
        provision.ensure(cache, report=lambda _: cancelled.set(), cancelled=cancelled)


def test_a_failed_build_is_told_again_until_it_is_mended(make_upstream: Callable[..., Upstream], cache: Path) -> None:
    make_upstream({"vendor/llama.cpp/main.cpp": "int main() { return undeclared; }\n"})
    for _ in range(2):
        with pytest.raises(BuildFailed, match="undeclared"):
            provision.ensure(cache)
    make_upstream()
    assert provision.ensure(cache).version == "0.5.0-tiny"


def test_a_given_engine_is_tried_and_nothing_is_built(foreign_server: Path, cache: Path) -> None:
    engine = provision.ensure(cache, given=foreign_server)
    assert (engine.server, engine.origin, engine.version) == (foreign_server, "given", "9.9")
    assert engine.losses and not engine.patched and not cache.exists()
    with pytest.raises(EngineIncompatible):
        provision.ensure(cache, given=cache / "nowhere")


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_one_on_path_is_taken(
    tiny_upstream: Upstream, foreign_server: Path, cache: Path
) -> None:
    assert provision.ensure(cache).origin == "path"
    foreign_server.write_text("#!/bin/sh\necho nothing of the kind\n")
    with pytest.raises(ToolchainMissing, match="answered 'nothing of the kind'") as caught:
        provision.ensure(cache)
    assert caught.value.fix == "install one"
    foreign_server.unlink()
    with pytest.raises(ToolchainMissing):
        provision.ensure(cache)


def test_the_one_on_path_is_taken_when_asked_for(
    foreign_server: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(foreign_server.parent))
    assert provision.ensure(cache, search_path=True).origin == "path"
    foreign_server.unlink()
    with pytest.raises(EngineIncompatible, match="no llama-server on PATH"):
        provision.ensure(cache, search_path=True)


@pytest.mark.parametrize("place", ["file", "read-only", "/proc/self"])
def test_a_cache_that_cannot_be_written_is_told(tiny_upstream: Upstream, tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    if place == "file":
        folder.touch()
    elif place == "read-only":
        folder.mkdir(mode=0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("nothing is read-only for this user")
    with pytest.raises(HomeNotWritable, match=str(folder)) as caught:
        provision.ensure(folder / "cache")
    assert "MESHNODE_CACHE" in caught.value.fix


def test_a_backend_that_does_not_exist_is_told(cache: Path) -> None:
    with pytest.raises(SettingsError):
        provision.ensure(cache, backend="abacus")


@pytest.fixture(scope="module")
def real_engine() -> Engine:
    """The engine of this checkout from the shared cache, built on first use."""
    cache = Path(os.environ.get("MESHNODE_CACHE") or platformdirs.user_cache_path("meshnode"))
    return provision.ensure(cache)


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_the_real_engine_is_what_the_pin_says(real_engine: Engine) -> None:
    upstream = read_upstream()
    assert real_engine.version == upstream.llama_cpp
    assert real_engine.rpc_server is not None
    assert ask_rpc_version(real_engine.rpc_server) == real_engine.rpc_version == upstream.rpc
    tools = (real_engine.quantize, real_engine.bench, real_engine.fit_params)
    assert all(tool is not None and tool.is_file() for tool in tools)
    assert not any(path.is_symlink() for path in real_engine.folder.iterdir())


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_the_real_engine_given_by_its_path_is_known_as_ours(real_engine: Engine) -> None:
    engine = inspect(real_engine.server, read_upstream(), origin="given")
    assert engine.patched and engine.losses == () and engine.backend == real_engine.backend


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_the_real_engine_is_found_in_20_ms(real_engine: Engine) -> None:
    cache = real_engine.folder.parent.parent
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert provision.find(cache) == real_engine
        times.append(time.perf_counter() - started)
    assert min(times) < 0.02
