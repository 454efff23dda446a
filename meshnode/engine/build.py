"""From the patched source to a folder of programs: cmake, ninja, install.

The result, `<cache>/engine/<key>/`, holds llama-server, its tools, their libraries (found through $ORIGIN, so the
folder can be moved) and `manifest.json`; it appears complete or not at all. The build tree stays until then, so
that an interrupted build goes on where it was. One build runs at a time; a second node waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
LOCK_POLL_S = 0.5
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
        return (*_FLAGS, f"-DLLAMA_BUILD_COMMIT={self.upstream.mark}", *self.backend.flags)

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
    """Build unless another node just did; returns the folder of the result.

    Raises BuildFailed (its detail is the first compiler error), DiskFull, JobCancelled, and OSError for a cache
    folder that cannot be written.
    """
    if (plan.result / MANIFEST).is_file():
        return plan.result
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


@contextlib.contextmanager
def build_lock(cache: Path, *, report: Report = silent, cancelled: threading.Event | None = None) -> Iterator[None]:
    """Hold the lock under which the source and the engine of this cache are made; wait for whoever has it.

    The kernel frees it when its holder dies. Raises JobCancelled.
    """
    from meshnode.engine.job import JobCancelled

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("a+b") as file:
        waited = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    raise
            report(_others_progress(cache, file.fileno()))
            waited = True
            if cancelled is not None and cancelled.wait(LOCK_POLL_S):
                raise JobCancelled
            if cancelled is None:
                time.sleep(LOCK_POLL_S)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()).encode())
        file.flush()
        if waited:
            report(Progress("engine", "the other build has ended", finished=True))
        yield
