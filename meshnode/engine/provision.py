"""The engine of this node: find the built one, build it, or accept one that somebody else built.

`find` only reads files and takes milliseconds; `ensure` does whatever is needed to return a llama-server that works,
or raises the error that says why there is none. Nothing here starts a server that stays.
"""

from __future__ import annotations

import errno
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from meshnode.engine.backend import choose_backend
from meshnode.engine.build import Plan, build
from meshnode.engine.foreign import inspect, locate, on_search_path
from meshnode.engine.installed import BuiltEngine, Engine, built_engines, find_built
from meshnode.engine.lock import build_lock, is_building
from meshnode.engine.source import prepare_source, read_upstream, source_folder
from meshnode.engine.toolchain import find_toolchain
from meshnode.errors import DiskFull, EngineIncompatible, HomeNotWritable, StateError, ToolchainMissing
from meshnode.telemetry import Report, silent

FOLDERS = ("engine", "build", "source", "download", "tools")


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What `meshnode engine status` shows. `engine` is the one a node would use now, None if it must be built."""

    engine: Engine | None
    backend: str
    reason: str
    source: str
    patches: tuple[str, ...]
    source_ready: bool
    building: bool
    others: tuple[BuiltEngine, ...]
    size_bytes: int
    log: Path | None


def status(cache: Path, *, backend: str | None = None) -> EngineStatus:
    """The state of the cache; reads files only. Raises SettingsError and SourceUnavailable."""
    upstream, chosen = read_upstream(), choose_backend(backend)
    built = find_built(cache, upstream, chosen, others=backend is None)
    return EngineStatus(
        engine=built.engine if built else None,
        backend=chosen.tag,
        reason=chosen.reason,
        source=f"{upstream.package}=={upstream.version} (llama.cpp {upstream.llama_cpp})",
        patches=tuple(patch.name for patch in upstream.patches),
        source_ready=source_folder(cache, upstream).is_dir(),
        building=is_building(cache),
        others=tuple(other for other in built_engines(cache) if other != built),
        size_bytes=sum(_size(cache / name) for name in FOLDERS),
        log=max((cache / "build").glob("*.log"), key=lambda log: log.stat().st_mtime, default=None),
    )


def find(cache: Path, *, backend: str | None = None) -> Engine | None:
    """The engine that was built for this machine, source and patches, or None. Raises like `status`."""
    built = find_built(cache, read_upstream(), choose_backend(backend), others=backend is None)
    return built.engine if built else None


def ensure(
    cache: Path,
    *,
    given: Path | None = None,
    backend: str | None = None,
    search_path: bool = False,
    jobs: int | None = None,
    report: Report = silent,
    cancelled: threading.Event | None = None,
) -> Engine:
    """An engine that works: `given`, else the built one, else a new build (minutes, reported as progress).

    A llama-server on PATH is taken with `search_path`, or when there is no compiler to build one.
    Raises EngineIncompatible for `given`, SourceUnavailable, ToolchainMissing, BuildFailed, DiskFull,
    HomeNotWritable, SettingsError for `backend`, and JobCancelled once `cancelled` is set.
    """
    upstream = read_upstream()
    if given is not None:
        return inspect(locate(given), upstream, origin="given", cancelled=cancelled)
    if search_path:
        if (server := on_search_path()) is None:
            raise EngineIncompatible("there is no llama-server on PATH")
        return inspect(server, upstream, origin="path", cancelled=cancelled)
    if (found := find(cache, backend=backend)) is not None:
        return found
    try:
        return _build(cache, backend, jobs, report, cancelled)
    except ToolchainMissing as missing:
        if (server := on_search_path()) is None:
            raise
        try:
            return inspect(server, upstream, origin="path", cancelled=cancelled)
        except EngineIncompatible as error:
            detail = (
                f"{missing.detail or 'no compiler on PATH'}; nor can the llama-server on PATH be used: {error.detail}"
            )
            raise ToolchainMissing(detail, fix=missing.fix) from error
    except OSError as error:
        raise _state_error(cache, error) from error


def _build(
    cache: Path, backend: str | None, jobs: int | None, report: Report, cancelled: threading.Event | None
) -> Engine:
    upstream, chosen = read_upstream(), choose_backend(backend)
    with build_lock(cache, report=report, cancelled=cancelled):
        # Whoever held the lock before may just have built it.
        if (found := find(cache, backend=backend)) is not None:
            return found
        toolchain = find_toolchain(cache, report=report, cancelled=cancelled)
        source = prepare_source(cache, upstream, report=report, cancelled=cancelled)
        plan = Plan(cache, upstream, source, toolchain, chosen, asked=backend is not None)
        build(plan, report=report, cancelled=cancelled, jobs=jobs)
    built = find_built(cache, upstream, chosen)
    assert built is not None, "the build left an engine that cannot be found"
    return built.engine


def clean(cache: Path, *, cancelled: threading.Event | None = None) -> int:
    """Remove every built engine, the source and the tools; returns the bytes freed. Waits for a build in progress.

    Raises HomeNotWritable and JobCancelled.
    """
    freed = sum(_size(cache / name) for name in FOLDERS)
    if not cache.is_dir():
        return 0
    try:
        with build_lock(cache, cancelled=cancelled):
            for name in FOLDERS:
                if (cache / name).is_dir():
                    shutil.rmtree(cache / name)
    except OSError as error:
        raise _state_error(cache, error) from error
    return freed


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total


def _state_error(cache: Path, error: OSError) -> StateError:
    place = error.filename or cache
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{place}: {error.strerror}", fix="free some space, or move the cache with MESHNODE_CACHE")
    return HomeNotWritable(
        f"{place}: {error.strerror}", fix="make the folder writable, or set MESHNODE_CACHE to one that is"
    )
