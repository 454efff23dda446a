"""Real builds of a miniature llama.cpp: installed, moved, interrupted, resumed, broken."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnode.engine import build as build_module
from meshnode.engine.backend import Backend
from meshnode.engine.build import TARGETS, Plan, build, job_count
from meshnode.engine.installed import read_built
from meshnode.engine.job import JobCancelled
from meshnode.engine.source import Upstream, prepare_source
from meshnode.engine.toolchain import Toolchain, find_toolchain
from meshnode.errors import BuildFailed, DiskFull
from meshnode.telemetry import Progress

CPU = Backend("cpu", "cpu-any", (), "")
MakeUpstream = Callable[..., Upstream]


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    return find_toolchain(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def make_plan(tmp_path: Path, make_upstream: MakeUpstream, toolchain: Toolchain) -> Callable[..., Plan]:
    def make(changes: dict[str, str] | None = None, *, flags: tuple[str, ...] = ()) -> Plan:
        upstream = make_upstream({f"vendor/llama.cpp/{name}": text for name, text in (changes or {}).items()})
        cache = tmp_path / "cache"
        source = prepare_source(cache, upstream)
        return Plan(cache, upstream, source, toolchain, Backend("cpu", "cpu-any", flags, ""))

    return make


def test_the_result_is_complete_and_can_be_moved(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    plan = make_plan()
    reports: list[Progress] = []
    folder = build(plan, report=reports.append, jobs=2)
    suffix = "dylib" if sys.platform == "darwin" else "so"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*TARGETS, f"libtiny.{suffix}", "manifest.json"])
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert not plan.tree.exists() and plan.log.is_file()
    assert sorted(path.name for path in folder.parent.iterdir()) == [plan.key]

    moved = tmp_path / "moved to another place"
    folder.rename(moved)
    said = subprocess.check_output([moved / "llama-server"], text=True, env={})
    assert said == f"version: 0.5.0-tiny (build 0, commit {plan.upstream.mark})\ngreeting: patched\n"

    steps = [report for report in reports if report.total]
    assert all(report.task == "engine" and report.unit == "steps" for report in steps)
    assert [report.done for report in steps] == sorted(report.done for report in steps)
    assert steps[-1].done == steps[-1].total and reports[-1].finished
    assert "compiling tiny.cpp" in [report.text for report in steps]


def test_the_manifest_says_what_it_was_made_from(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    folder = build(plan)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["package"] == "tiny-llama-python==1.0" and manifest["patches"] == ["0001-greeting.patch"]
    assert manifest["compiler"] == plan.toolchain.compiler.name and manifest["version"] == "0.5.0-tiny"
    assert manifest["rpc"] == [7, 0, 3] and manifest["seconds"] > 0
    built = read_built(folder)
    assert built is not None and built.flags == plan.flags and built.engine.rpc_version == (7, 0, 3)


def test_source_backend_flags_and_compiler_are_in_the_key(make_plan: Callable[..., Plan]) -> None:
    plan, other = make_plan(), make_plan(flags=("-DGGML_X=ON",))
    assert plan.upstream.key in plan.key and plan.backend.tag in plan.key
    assert plan.toolchain.compiler.name.replace(" ", "") in plan.key
    assert plan.key != other.key and plan.tree != other.tree
    assert len(plan.key.encode()) < 200, "a folder name may have 255 bytes, and some are spent on what is around it"


def test_an_interrupted_build_goes_on_where_it_was(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    cancelled = threading.Event()

    def stop_at_half(progress: Progress) -> None:
        if progress.total and progress.done >= progress.total / 2:
            cancelled.set()

    with pytest.raises(JobCancelled):
        build(plan, report=stop_at_half, cancelled=cancelled, jobs=1)
    assert plan.tree.is_dir() and not plan.result.exists()
    reports: list[Progress] = []
    build(plan, report=reports.append, jobs=1)
    totals = {report.total for report in reports if report.total}
    assert max(totals) < 12, "7 files to compile and 6 to link; half of that was done before"


def test_a_compiler_error_is_told_with_its_place_and_log(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan({"main.cpp": "int main() { return undeclared; }\n"})
    with pytest.raises(BuildFailed) as caught:
        build(plan)
    assert "main.cpp:1:" in caught.value.detail and "undeclared" in caught.value.detail
    assert str(plan.log) in caught.value.detail and caught.value.fix
    assert not plan.result.exists()


def test_a_configure_error_is_told_and_not_remembered(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan({"CMakeLists.txt": 'project(tiny CXX)\nmessage(FATAL_ERROR "Could NOT find Vulkan")\n'})
    with pytest.raises(BuildFailed, match=r"CMakeLists.txt:2: Could NOT find Vulkan") as caught:
        build(plan)
    assert "--backend cpu" in caught.value.fix
    assert not (plan.tree / "CMakeCache.txt").exists()


@pytest.mark.parametrize(
    "main", ["int main() { return 1; }\n", "#include <csignal>\nint main() { std::raise(SIGILL); }\n"]
)
def test_a_server_that_does_not_run_is_not_installed(make_plan: Callable[..., Plan], main: str) -> None:
    plan = make_plan({"main.cpp": main})
    with pytest.raises(BuildFailed, match="the new llama-server does not run"):
        build(plan)
    assert list(plan.result.parent.iterdir()) == []


def test_a_damaged_result_is_replaced(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan()
    plan.result.mkdir(parents=True)
    (plan.result / "left.over").touch()
    assert read_built(build(plan)) is not None
    assert not (plan.result / "left.over").exists()


def test_a_small_disk_is_told_before_anything_is_done(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    monkeypatch.setitem(build_module.NEEDED_BYTES, "cpu", 1 << 60)
    with pytest.raises(DiskFull, match="MiB are free") as caught:
        build(plan)
    assert "MESHNODE_CACHE" in caught.value.fix and not plan.tree.exists()


def test_jobs_follow_cores_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import psutil

    def machine(cores: int, free_bytes: float) -> None:
        memory = psutil.virtual_memory()._replace(available=free_bytes)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)

    monkeypatch.setattr(build_module, "_container_free_bytes", lambda: float("inf"))
    machine(16, 64 << 30)
    assert job_count() == 16
    machine(16, 6 << 30)
    assert job_count() == 4
    machine(4, 100 << 20)
    assert job_count() == 1
    machine(16, 64 << 30)
    monkeypatch.setattr(build_module, "_container_free_bytes", lambda: float(3 << 30))
    assert job_count() == 2


@pytest.mark.parametrize(
    ("limit", "current", "free"),
    [("4096\n", "1000\n", 3096), ("max\n", "1000\n", float("inf")), ("", "", float("inf"))],
)
def test_the_memory_of_a_container(tmp_path: Path, limit: str, current: str, free: float) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(current)
    assert build_module._container_free_bytes(tmp_path) == free
