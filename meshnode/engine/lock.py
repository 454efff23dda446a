"""One build at a time: the lock on a cache folder, and what a node that waits for it reports.

The lock is the kernel's (flock), so it is free as soon as its holder is gone, however that happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from meshnode.engine.job import JobCancelled
from meshnode.telemetry import Progress, Report, silent

POLL_S = 0.5
_TAIL_BYTES = 8 << 10
_STEP = re.compile(rb"^\[(\d+)/(\d+)\] ", re.MULTILINE)


@contextlib.contextmanager
def build_lock(cache: Path, *, report: Report = silent, cancelled: threading.Event | None = None) -> Iterator[None]:
    """Hold the lock under which the source and the engine of this cache are made; wait for whoever has it.

    Raises JobCancelled, and OSError for a folder that cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("a+b") as file:
        waited = False
        while not _taken(file.fileno()):
            waited = True
            report(_progress_of_holder(cache))
            if cancelled is not None and cancelled.is_set():
                raise JobCancelled
            time.sleep(POLL_S)
        if waited:
            report(Progress("engine", "the other build has ended", finished=True))
        file.truncate(0)
        file.write(b"%d\n" % os.getpid())
        file.flush()
        yield


def is_building(cache: Path) -> bool:
    """Whether some process holds the lock now."""
    try:
        with (cache / "build.lock").open("rb") as file:
            return not _taken(file.fileno())
    except OSError:
        return False


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _progress_of_holder(cache: Path) -> Progress:
    """The step that the build in progress last wrote to its log."""
    holder, done, total = "", 0.0, None
    with contextlib.suppress(OSError, ValueError):
        holder = f" (process {int((cache / 'build.lock').read_bytes()[:20])})"
    with contextlib.suppress(OSError):
        logs = sorted((cache / "build").glob("*.log"), key=lambda log: log.stat().st_mtime)
        if logs:
            with logs[-1].open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                if steps := _STEP.findall(log.read(_TAIL_BYTES)):
                    done, total = float(steps[-1][0]), float(steps[-1][1])
    return Progress("engine", f"another meshnode{holder} is building the engine; waiting for it", done, total)
