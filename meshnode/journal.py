"""The last lines of this node's log and of its engines', for the console.

Only files of the log folder are opened, by names that are made here; nothing a caller writes becomes part of a path.
Both logs are free of prompts and answers (telemetry.py, engine/process.py).
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

from meshnode.config import Places
from meshnode.errors import BadRequest, StateError

MOST_LINES = 1000
MOST_BYTES = 256 << 10
SOURCES = {"node": "node.log", "engine": "engine-*.log"}


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
