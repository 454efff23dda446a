"""Files that survive a crash: written beside, synced, then put in place, and the folder synced as well.

After a return the new content is on the disk; a crash before that leaves the old content, whole. One process at a
time writes into a folder (a node holds the lock of its home), so what a crash has left half done is written over.
"""

from __future__ import annotations

import os
from pathlib import Path

from meshnode.errors import HomeNotWritable

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def write(file: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace the content of `file`, or make it and its folder. Raises HomeNotWritable; the old content then stays."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        try:
            _write_synced(partial, data, mode)
            partial.replace(file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(file.parent)
    except OSError as reason:
        raise HomeNotWritable(f"{file}: {reason.strerror}") from None


def rename(file: Path, target: Path) -> None:
    """Give a file of the same folder another name, in place of what has it. Raises HomeNotWritable."""
    try:
        file.replace(target)
        _sync_folder(target.parent)
    except OSError as reason:
        raise HomeNotWritable(f"{target}: {reason.strerror}") from None


def remove(file: Path) -> None:
    """Remove a file, if it is there. Raises HomeNotWritable."""
    try:
        file.unlink(missing_ok=True)
        if file.parent.is_dir():
            _sync_folder(file.parent)
    except OSError as reason:
        raise HomeNotWritable(f"{file}: {reason.strerror}") from None


def _write_synced(file: Path, data: bytes, mode: int) -> None:
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
