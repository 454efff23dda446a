"""One file from the hub to the disk: resumable, verified, cancellable.

`huggingface_hub` 2.4 throws a half file away when a download fails and does not check hashes, so the bytes are
received here: appended to `BLOB.incomplete`, hashed while they pass, renamed to the blob's name only when the hash is
the one the hub announced. A small JSON file beside the half one says which model it will be, so that `ls` can show it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from meshnode.errors import CacheNotWritable, DiskFull, DownloadCorrupt, DownloadStopped, HubUnreachable, MeshnodeError
from meshnode.models.hub import SEGMENT_BYTES, Hub, HubFile

CHUNK_BYTES = 1 << 20
MAX_NOTE_BYTES = 4096
# Consecutive tries that bring no new byte before the transfer gives up, and the longest wait between two.
MAX_TRIES = 5
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 8.0

Cancelled = Callable[[], bool]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Note:
    """What a half file will be."""

    name: str
    size_bytes: int
    commit: str


def incomplete_path(blob: Path) -> Path:
    """Where the bytes of a blob gather."""
    return blob.with_name(f"{blob.name}.incomplete")


def note_path(blob: Path) -> Path:
    """Where it is written what the half file will be."""
    return blob.with_name(f"{blob.name}.incomplete.json")


def read_note(path: Path) -> Note | None:
    """The note at `path`, or None when it is not one."""
    try:
        with path.open("rb") as file:
            raw = json.loads(file.read(MAX_NOTE_BYTES))
        note = Note(str(raw["name"]), int(raw["size_bytes"]), str(raw["commit"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if note.size_bytes >= 0 and len(note.commit) == 40 else None


def bytes_here(blob: Path) -> int:
    """Bytes of a blob that are already on the disk, whole or half."""
    for path in (blob, incomplete_path(blob)):
        try:
            return path.stat().st_size
        except OSError:
            continue
    return 0


def receive(
    hub: Hub,
    repo: str,
    *,
    commit: str,
    file: HubFile,
    blob: Path,
    advance: Advance,
    cancelled: Cancelled,
) -> None:
    """Bring `file` to `blob`, going on where an earlier try stopped.

    `advance` hears of every byte that is new on the disk (negative when bytes had to be thrown away). Raises
    DownloadCorrupt (and removes the bytes), DownloadStopped, DiskFull, CacheNotWritable, and what the hub raises.
    """
    half = incomplete_path(blob)
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        write_durably(note_path(blob), json.dumps({"name": file.name, "size_bytes": file.size_bytes, "commit": commit}))
        with half.open("a+b") as output:
            receiver = _Receiver(hub, repo, commit, file, output, advance, cancelled)
            receiver.run()
            output.flush()
            os.fsync(output.fileno())
        if receiver.digest() != file.oid:
            advance(-file.size_bytes)
            raise DownloadCorrupt(f"{file.name} has the hash {receiver.digest()[:12]}…, announced was {file.oid[:12]}…")
        half.replace(blob)
        note_path(blob).unlink(missing_ok=True)
    except DownloadCorrupt:
        discard(blob)
        raise
    except OSError as error:
        raise disk_error(error, blob.parent) from error


def discard(blob: Path) -> None:
    """Throw the half file and its note away."""
    incomplete_path(blob).unlink(missing_ok=True)
    note_path(blob).unlink(missing_ok=True)


def disk_error(error: OSError, folder: Path) -> MeshnodeError:
    """The sentence for a disk that does not take what is written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(str(folder))
    return CacheNotWritable(f"{folder}: {error.strerror or error}")


def write_durably(path: Path, text: str) -> None:
    """Replace a small file in one step, so that a crash leaves the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Receiver:
    """Appends a file's bytes to an open half file and hashes all of it."""

    def __init__(
        self,
        hub: Hub,
        repo: str,
        commit: str,
        file: HubFile,
        output: BinaryIO,
        advance: Advance,
        cancelled: Cancelled,
    ) -> None:
        self.hub = hub
        self.repo = repo
        self.commit = commit
        self.file = file
        self.output = output
        self.advance = advance
        self.cancelled = cancelled
        self.hash = _new_hash(file)
        self.at = 0

    def digest(self) -> str:
        return self.hash.hexdigest()

    def run(self) -> None:
        self._hash_what_is_here()
        tries = 0
        while self.at < self.file.size_bytes:
            self._stop_if_cancelled()
            before = self.at
            try:
                self._one_range()
            except HubUnreachable:
                tries = 1 if self.at > before else tries + 1
                if tries >= MAX_TRIES:
                    raise
                self._wait(min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1)))
                continue
            tries = 0 if self.at > before else tries + 1
            if tries >= MAX_TRIES:
                raise HubUnreachable("the hub sends no data")

    def _hash_what_is_here(self) -> None:
        self.output.seek(0)
        while chunk := self.output.read(CHUNK_BYTES):
            self._stop_if_cancelled()
            self.hash.update(chunk)
            self.at += len(chunk)
        if self.at > self.file.size_bytes:
            self._start_over()

    def _one_range(self) -> None:
        end = min(self.at + SEGMENT_BYTES, self.file.size_bytes)
        with self.hub.open_range(self.repo, self.commit, self.file.name, self.at, end) as (start, chunks):
            if start != self.at:
                self._start_over()
                if start:
                    raise HubUnreachable("the hub sends another part of the file than asked")
            for chunk in chunks:
                self._stop_if_cancelled()
                room = self.file.size_bytes - self.at
                self._take(chunk[:room])
                if len(chunk) > room or self.at >= self.file.size_bytes:
                    return

    def _take(self, chunk: bytes) -> None:
        # An OSError here is the disk's, but the caller's `with` would take it for the network's.
        try:
            self.output.write(chunk)
        except OSError as error:
            raise disk_error(error, Path(self.output.name).parent) from error
        self.hash.update(chunk)
        self.at += len(chunk)
        self.advance(len(chunk))

    def _start_over(self) -> None:
        self.advance(-self.at)
        self.output.truncate(0)
        self.hash = _new_hash(self.file)
        self.at = 0

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._stop_if_cancelled()
            time.sleep(min(left, 0.1))

    def _stop_if_cancelled(self) -> None:
        if self.cancelled():
            raise DownloadStopped(self.file.name)


def _new_hash(file: HubFile) -> hashlib._Hash:
    """SHA-256 for a large file; for a small one what git calls it: the SHA-1 of `blob SIZE`, a zero byte, the text."""
    if len(file.oid) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
