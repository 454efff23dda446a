"""The log of this node: where it goes while the node runs, and its last lines and those of the engines for the console.

Only files of the log folder are opened, by names that are made here; nothing a caller writes becomes part of a path.
Both logs are free of prompts and answers (telemetry.py, engine/process.py).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meshnode import __version__
from meshnode.config import Places, Settings
from meshnode.errors import BadRequest, StateError
from meshnode.telemetry import LOG, ProblemBoard, configure_logging

MOST_LINES = 1000
MOST_BYTES = 256 << 10
SOURCES = {"node": "node.log", "engine": "engine-*.log"}


@contextmanager
def node_log(settings: Settings, places: Places, problems: ProblemBoard) -> Iterator[None]:
    """Write the log for the length of the block; where the disk does not take it, say so and go on."""
    file: Path | None = places.logs / "node.log"
    try:
        places.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as reason:
        problems.put("state-not-written", str(file), path=str(file), reason=str(reason.strerror))
        file = None
    terminal = settings.log_level == "debug"
    end = configure_logging(level=settings.log_level, form=settings.log_format, file=file, terminal=terminal)
    LOG.info("node starting", extra={"facts": {"version": __version__, "pid": os.getpid()}})
    try:
        yield
    finally:
        LOG.info("node stopped")
        end()


async def tail(places: Places, source: str, lines: int) -> dict[str, Any]:
    """`source`, `file` ("" where there is none yet) and its last `lines`, the newest last.

    `source` is "node" or "engine" (the log that was written to last); at most MOST_LINES and MOST_BYTES are read.
    Raises BadRequest for another source, StateError for a file that cannot be read.
    """
    pattern = SOURCES.get(source)
    if pattern is None:
        raise BadRequest(f"there is no log {source[:40]!r}", fix=f"source is one of: {', '.join(SOURCES)}")
    return await asyncio.to_thread(_tail, places.logs, source, pattern, min(max(0, lines), MOST_LINES))


def _tail(folder: Path, source: str, pattern: str, lines: int) -> dict[str, Any]:
    file = _newest(folder, pattern)
    try:
        found = last_lines(file, lines) if file is not None else []
    except FileNotFoundError:
        file, found = None, []  # it was rotated away just now
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None
    return {"source": source, "file": str(file) if file is not None else "", "lines": found}


def _newest(folder: Path, pattern: str) -> Path | None:
    """The regular file of the folder that matches and was written to last."""
    found: list[tuple[float, Path]] = []
    for path in folder.glob(pattern):
        try:
            facts = path.lstat()
        except OSError:
            continue
        if stat.S_ISREG(facts.st_mode):
            found.append((facts.st_mtime, path))
    return max(found, default=(0.0, None))[1]


def last_lines(file: Path, lines: int, most_bytes: int = MOST_BYTES) -> list[str]:
    """The last whole lines of a file; of one that is longer than `most_bytes`, its end. Raises OSError.

    Follows no link, and does not wait for what is no file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as opened:
        start = max(0, opened.seek(0, os.SEEK_END) - most_bytes)
        opened.seek(start)
        data = opened.read(most_bytes)
    if start and (cut := data.find(b"\n") + 1) and cut < len(data):
        data = data[cut:]  # what is left of the line that was cut in two
    # Not splitlines(): a control character inside a line must not make two of it.
    found = data.decode("utf-8", "replace").removesuffix("\n").split("\n") if data else []
    return [line.removesuffix("\r") for line in found[-lines:]] if lines else []
