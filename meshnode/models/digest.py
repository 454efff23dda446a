"""The SHA-256 of a model file, which is how nodes know that they hold the same weights.

The hub's cache names its blobs by that hash, so most files need no reading. Any other is read once; the result is
kept under the file's path, size and time of change, so that the next start is quick and a changed file is read anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from meshnode.models.transfer import write_durably

MAX_KEPT = 512
READ_BYTES = 4 << 20


class DigestStopped(Exception):
    """Whoever asked for the hash does not wait for it any more."""


def content_sha256(file: Path, notes: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """The hash of `file` in hex digits; `notes` is where results are kept. Blocks: a disk's speed for a new file.

    Raises OSError for a file that cannot be read, DigestStopped when `stopped` says so. Notes that cannot be kept or
    are damaged only cost the time.
    """
    key = note_key(file)
    if known := noted(notes, key):
        return known
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            digest.update(buffer[:count])
            if stopped():
                raise DigestStopped
    found = digest.hexdigest()
    note(notes, key, found)
    return found


def note_key(file: Path) -> str:
    """What a file is known by: its path, size and time of change. Raises OSError."""
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


def noted(notes: Path, key: str) -> str:
    """The hash that was noted under `key`; "" when there is none."""
    return _load(notes).get(key, "")


def note(notes: Path, key: str, found: str) -> None:
    """Keep a hash of 64 hex digits. Notes that cannot be kept only cost the time."""
    kept = {**dict(list(_load(notes).items())[-MAX_KEPT + 1 :]), key: found}
    with contextlib.suppress(OSError):
        notes.parent.mkdir(parents=True, exist_ok=True)
        write_durably(notes, json.dumps(kept))


def _load(notes: Path) -> dict[str, str]:
    try:
        found = json.loads(notes.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(key): value for key, value in found.items() if isinstance(value, str) and len(value) == 64}
