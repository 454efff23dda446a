"""From the patched source to a folder of programs: cmake, ninja, install.

The result, `<cache>/engine/<key>/`, holds llama-server, its tools, their libraries (found through $ORIGIN, so the
folder can be moved) and `manifest.json`; it appears complete or not at all. The build tree stays until then, so
that an interrupted build goes on where it was. The tools see this process's environment (CFLAGS and the like count).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from meshnode.engine.backend import Backend
from meshnode.engine.buildlog import failure_from_log
from meshnode.engine.job import JobTimeout, run_job
from meshnode.engine.source import Upstream
from meshnode.engine.toolchain import Toolchain
from meshnode.errors import BuildFailed, DiskFull
from meshnode.telemetry import Progress, Report, silent

TARGETS = ("llama-server", "ggml-rpc-server", "llama-quantize", "llama-bench", "llama-fit-params")
MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1

# Largest compiler process seen is 1.1 GB (server-context.cpp, gcc 12).
JOB_MEMORY_BYTES = 1500 << 20
# Build tree, result and temporary files; CUDA object files are many times larger.
NEEDED_BYTES = {"cpu": 400 << 20, "cuda": 4 << 30, "hip": 4 << 30}
PROOF_TIMEOUT_S = 60.0

_STEP = re.compile(r"^\[(\d+)/(\d+)\] (.*)")
_ORIGIN = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
# What is off: anything that downloads (web UI assets, HTTPS models), and starting programs on a request's behalf
# (LLAMA_SUBPROCESS: the server's own tools and its router mode; the node is the router).
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON",
    f"-DCMAKE_INSTALL_RPATH={_ORIGIN}",
    "-DGGML_RPC=ON",
    "-DGGML_RPC_RDMA=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_SUBPROCESS=OFF",
    "-DLLAMA_BUILD_NUMBER=0",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One build: what, with what, and where its files go."""

    cache: Path
    upstream: Upstream
    source: Path
    toolchain: Toolchain
    backend: Backend
    asked: bool = False
    """Whether somebody named the backend, instead of leaving the choice to meshnode."""

    @property
    def key(self) -> str:
        compiler = self.toolchain.compiler.name.replace(" ", "")
        digest = hashlib.sha256("\0".join(self.flags).encode()).hexdigest()[:6]
        return f"{self.upstream.key}-{self.backend.tag}-{compiler}-{digest}"

    @property
    def flags(self) -> tuple[str, ...]:
        return engine_flags(self.upstream, self.backend)

    @property
    def result(self) -> Path:
        return self.cache / "engine" / self.key

    @property
    def tree(self) -> Path:
        return self.cache / "build" / self.key

    @property
    def log(self) -> Path:
        return self.cache / "build" / f"{self.key}.log"


def build(
    plan: Plan,
    *,
    report: Report = silent,
    cancelled: threading.Event | None = None,
    jobs: int | None = None,
) -> Path:
    """Build, going on with what an interrupted build left; returns the folder of the result.

    The caller holds the lock of the cache.

    Raises BuildFailed (its detail is the first compiler error), DiskFull, JobCancelled, and OSError for a cache
    folder that cannot be written.
    """
    _check_disk(plan)
    plan.tree.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with plan.log.open("wb", buffering=0) as log:
        _configure(plan, log, report, cancelled)
        _compile(plan, log, report, cancelled, jobs or job_count())
    report(Progress("engine", "installing"))
    folder = _install(plan, time.monotonic() - started, cancelled)
    shutil.rmtree(plan.tree, ignore_errors=True)
    report(Progress("engine", "the engine is built", finished=True))
    return folder


def engine_flags(upstream: Upstream, backend: Backend) -> tuple[str, ...]:
    """Every option given to cmake; with the source and the compiler they decide what comes out."""
    return (*_FLAGS, f"-DLLAMA_BUILD_COMMIT={upstream.mark}", *backend.flags)


def job_count() -> int:
    """How many compilers may run at once: one a core, as far as the free memory goes."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free_bytes = min(psutil.virtual_memory().available, _container_free_bytes())
    return max(1, min(cores, int(free_bytes // JOB_MEMORY_BYTES)))


def _container_free_bytes(group: Path = Path("/sys/fs/cgroup")) -> float:
    """What is left of a container's own memory limit (cgroup v2); infinite without one."""
    try:
        limit = (group / "memory.max").read_text().strip()
        return float(limit) - float((group / "memory.current").read_text())
    except (OSError, ValueError):
        return float("inf")


def _check_disk(plan: Plan) -> None:
    needed = NEEDED_BYTES.get(plan.backend.kind, NEEDED_BYTES["cpu"])
    plan.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(plan.cache).free
    if free < needed:
        raise DiskFull(
            f"building the engine needs {needed >> 20} MiB in {plan.cache}, {free >> 20} MiB are free",
            fix="free some space, or move the cache with MESHNODE_CACHE",
        )


def _environment(plan: Plan) -> dict[str, str]:
    path = os.pathsep.join([*plan.backend.path, os.environ.get("PATH", os.defpath)])
    # The ceiling keeps cmake from taking a repository around the cache folder for that of llama.cpp.
    ceiling = {"GIT_CEILING_DIRECTORIES": str(plan.source.parent)}
    return {**os.environ, **ceiling, "PATH": path, "LC_ALL": "C", "NINJA_STATUS": "[%f/%t] "}


def _configure(plan: Plan, log: BinaryIO, report: Report, cancelled: threading.Event | None) -> None:
    report(Progress("engine", f"configuring llama.cpp for {plan.backend.kind}"))
    tools = plan.toolchain
    argv = [tools.cmake, "-S", str(plan.source), "-B", str(plan.tree), "-G", "Ninja"]
    argv += [f"-DCMAKE_MAKE_PROGRAM={tools.ninja}", f"-DCMAKE_C_COMPILER={tools.compiler.cc}"]
    argv += [f"-DCMAKE_CXX_COMPILER={tools.compiler.cxx}", *plan.flags]
    result = run_job(argv, env=_environment(plan), log=log, cancelled=cancelled, low_priority=True)
    if result.returncode != 0:
        # A half-made cmake cache would repeat the same answer after the cause is mended.
        (plan.tree / "CMakeCache.txt").unlink(missing_ok=True)
        raise failure_from_log(plan.log, step="configure", returncode=result.returncode, kind=plan.backend.kind)


def _compile(plan: Plan, log: BinaryIO, report: Report, cancelled: threading.Event | None, jobs: int) -> None:
    def on_line(line: str) -> None:
        if step := _STEP.match(line):
            report(Progress("engine", _step_text(step[3]), int(step[1]), int(step[2])))

    argv = [plan.toolchain.ninja, "-C", str(plan.tree), f"-j{jobs}", *TARGETS]
    result = run_job(argv, env=_environment(plan), log=log, on_line=on_line, cancelled=cancelled, low_priority=True)
    if result.returncode != 0:
        raise failure_from_log(plan.log, step="compile", returncode=result.returncode, kind=plan.backend.kind)


def _step_text(line: str) -> str:
    """ "Building CXX object a/b/c.cpp.o" as "compiling c.cpp"."""
    name = line.split()[-1].rpartition("/")[2] if line.split() else ""
    verb = "compiling" if line.startswith("Building") else "linking" if line.startswith("Linking") else "making"
    return f"{verb} {name.removesuffix('.o')}"[:80]


def _install(plan: Plan, seconds: float, cancelled: threading.Event | None) -> Path:
    plan.result.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=plan.result.parent) as work:
        folder = Path(work) / plan.key
        folder.mkdir()
        for file in sorted((plan.tree / "bin").iterdir()):
            library = file.suffix in (".so", ".dylib", ".metal")
            if (library or file.name in TARGETS) and not file.is_symlink():
                shutil.copy2(file, folder / file.name)
        version = _prove(plan, folder, cancelled)
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "key": plan.key,
            "package": f"{plan.upstream.package}=={plan.upstream.version}",
            "source": plan.upstream.key,
            "sha256": plan.upstream.sha256,
            "patches": [patch.name for patch in plan.upstream.patches],
            "backend": plan.backend.tag,
            "kind": plan.backend.kind,
            "asked": plan.asked,
            "compiler": plan.toolchain.compiler.name,
            "flags": list(plan.flags),
            "version": version,
            "rpc": list(_rpc_version(plan.source)),
            "seconds": round(seconds, 1),
            "built_at": round(time.time()),
            "files": files,
        }
        _write_durably(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        if plan.result.exists():
            plan.result.replace(Path(work) / "damaged")
        folder.replace(plan.result)
    return plan.result


def _prove(plan: Plan, folder: Path, cancelled: threading.Event | None) -> str:
    """Start what was built, in its new place, and return the version it names. Raises BuildFailed."""
    try:
        result = run_job([str(folder / "llama-server"), "--version"], cancelled=cancelled, timeout_s=PROOF_TIMEOUT_S)
    except (OSError, JobTimeout) as error:
        raise BuildFailed(f"the new llama-server does not run: {error} (full log: {plan.log})") from error
    found = re.search(r"^version: (\S+)", result.text, re.MULTILINE)
    if result.returncode != 0 or found is None:
        last = result.tail[-1] if result.tail else f"exit status {result.returncode}"
        raise BuildFailed(
            f"the new llama-server does not run: {last[:200]} (full log: {plan.log})",
            fix="start afresh: meshnode engine clean, then: meshnode engine build",
        )
    return found[1]


def _rpc_version(source: Path) -> tuple[int, ...]:
    """RPC_PROTO_*_VERSION of ggml/include/ggml-rpc.h."""
    header = (source / "ggml/include/ggml-rpc.h").read_text("utf-8", "replace")
    numbers = dict(re.findall(r"#define RPC_PROTO_(MAJOR|MINOR|PATCH)_VERSION\s+(\d+)", header))
    return tuple(int(numbers[part]) for part in ("MAJOR", "MINOR", "PATCH"))


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
