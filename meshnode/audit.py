"""The audit log of a node, on its disk: every request that went to a stranger, and every stranger that was served.

    audit.log             the records of now, one a line (core/audit.py); 0600
    audit-00000000.log    older ones, by the number of their first record: a log of FILE_BYTES is put away
    audit.head            number and hash of the last record, written after it
    audit.key             makes hashes of address prefixes that nobody else can undo
    audit.reserve         room on the disk for the records of what is under way when the disk is full

A thread of its own writes: records are gathered for GATHER_S, written and synced at once, so that a busy node costs one
sync a batch and the event loop none. Where that fails, `writable` is False until it succeeds again, and a Problem says
so; what was under way meanwhile is kept and written then. A line that was cut off by a crash is taken away at the next
start, and noted. A log that is not what this node wrote is put away as it is, and the chain goes on behind it.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from meshnode import durable
from meshnode.audit_reading import HEAD, NAME, first_number, old_name, read_newest
from meshnode.core.audit import Fact, Head, checked, extended
from meshnode.errors import HomeNotWritable, StateError
from meshnode.telemetry import LOG, ProblemBoard

FILE_BYTES = 16 << 20
GATHER_S = 0.25
RETRY_S = 1.0
RESERVE_BYTES = 256 << 10
"""Some 500 records: more than strangers can have under way."""
MOST_WAITING = 10_000
KEY_BYTES = 32
CLOSE_S = 5.0
STUCK_S = 5.0
"""A disk that takes so long over a batch has failed, whatever it says in the end."""
OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
KEY, RESERVE = "audit.key", "audit.reserve"


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A record that is not written yet."""

    kind: str
    at: float
    facts: dict[str, Fact]


class Audit:
    """Writes the log of one home folder, which the caller holds. `record` may be called from any thread."""

    def __init__(
        self, home: Path, *, problems: ProblemBoard, clock: Callable[[], float] = time.time, gather_s: float = GATHER_S
    ) -> None:
        self._home = home
        self._problems = problems
        self._clock = clock
        self._gather_s = gather_s
        self._head = Head()
        self._size_bytes = 0
        self._descriptor = -1
        self._key = b""
        self._pending: deque[_Waiting] = deque()
        self._writing = 0
        self._changed = threading.Condition()
        self._hurry = self._stop = False
        self._failed = True
        self._dropped = 0
        self._turn_at = math.inf
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Open the log, mend its end, and begin to write. A disk that fails is a Problem and no error."""
        await asyncio.to_thread(self._turn)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Write what is left, for CLOSE_S at most."""
        if self._thread is None:
            return
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join, CLOSE_S)

    @property
    def writable(self) -> bool:
        """Records get to the disk. While they do not, nothing is to be done that needs one."""
        stuck = time.monotonic() - self._turn_at > STUCK_S
        return not self._failed and not stuck and len(self._pending) < MOST_WAITING // 2

    def record(self, kind: str, /, **facts: object) -> None:
        """Keep one more record; it is on the disk within a second. Raises ValueError for facts that are not kept."""
        waiting = _Waiting(kind, self._clock(), checked(kind, facts))
        with self._changed:
            if len(self._pending) >= MOST_WAITING:
                self._dropped += 1
                return
            self._pending.append(waiting)
            if len(self._pending) == 1:  # the thread is gathering already otherwise
                self._changed.notify_all()

    def mask(self, prefix: str, /) -> str:
        """A name for an address prefix that tells nothing of it, the same in the whole log; "" for ""."""
        return blake2b(prefix.encode(), key=self._key, digest_size=8).hexdigest() if prefix and self._key else ""

    async def flush(self) -> bool:
        """Wait until all that was recorded so far is on the disk. False when it cannot be written."""
        return await asyncio.to_thread(self._flushed)

    def facts(self) -> dict[str, Any]:
        """For /api/status."""
        head = self._head
        return {
            "records": head.count,
            "head": head.digest,
            "writable": self.writable,
            "waiting": len(self._pending) + self._writing,
            "dropped": self._dropped,
        }

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                wait_s = RETRY_S if self._failed else None
                self._changed.wait_for(
                    lambda: self._stop or self._hurry or (self._pending and not self._failed), wait_s
                )
                if not (self._stop or self._hurry or self._failed):
                    self._changed.wait_for(lambda: self._stop or self._hurry, self._gather_s)
                stop = self._stop
                self._hurry = False
            self._turn_at = time.monotonic()
            try:
                self._turn()
            except Exception:
                self._failed = True
                LOG.exception("the audit log cannot be written")
            self._turn_at = math.inf
            with self._changed:
                self._changed.notify_all()
            if stop:
                self._end()
                return

    def _turn(self) -> None:
        """One attempt to have everything on the disk."""
        with self._changed:
            batch = list(self._pending)
            self._pending.clear()
            self._writing = len(batch)
        try:
            if self._descriptor < 0:
                batch = self._open() + batch
            if batch:
                self._write(batch)
                batch = []
                self._or_with_reserve(self._write_head)
            self._keep_reserve()
        except (OSError, HomeNotWritable, StateError) as reason:
            self._say_failed(reason)
        else:
            self._say_well()
        finally:
            with self._changed:
                self._pending.extendleft(reversed(batch))
                self._writing = 0

    def _flushed(self) -> bool:
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: self._failed or not (self._pending or self._writing or self._hurry), CLOSE_S
            ) and not (self._failed or self._pending)

    def _end(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # --- the files ------------------------------------------------------------------------------------------

    def _open(self) -> list[_Waiting]:
        """Read the newest file, mend its end, and go on behind it. What is to be noted of that, as records.

        Raises OSError, HomeNotWritable, StateError.
        """
        self._home.mkdir(mode=durable.PRIVATE_FOLDER, parents=True, exist_ok=True)
        self._key = self._key or self._read_key()
        file = self._home / NAME
        newest = read_newest(self._home)
        self._head, self._size_bytes = newest.head, newest.size_bytes
        notes = []
        if newest.findings:
            found = newest.findings[0]
            kept = self._put_away(file, newest.first) if file.exists() else found.file
            reason = f"line {found.line}: {found.text}"
            self._problems.put("audit-broken", kept, path=str(self._home / kept), reason=reason)
            notes = [self._note("broken", file=kept, reason=reason)]
            self._size_bytes = 0
        elif newest.torn_bytes:
            with file.open("r+b") as opened:
                opened.truncate(newest.size_bytes)
                os.fsync(opened.fileno())
            notes = [self._note("repaired", cut_bytes=newest.torn_bytes)]
        self._descriptor = os.open(file, OPEN_FLAGS, durable.PRIVATE_FILE)
        return notes

    def _note(self, kind: str, **facts: object) -> _Waiting:
        return _Waiting(kind, self._clock(), checked(kind, facts))

    def _read_key(self) -> bytes:
        file = self._home / KEY
        try:
            key = file.read_bytes()
        except FileNotFoundError:
            key = b""
        if len(key) != KEY_BYTES:
            key = secrets.token_bytes(KEY_BYTES)
            durable.write(file, key)
        return key

    def _write(self, batch: list[_Waiting]) -> None:
        """Append the records, all or none, and sync. Raises OSError, HomeNotWritable."""
        if self._size_bytes >= FILE_BYTES or self._is_gone():
            self._begin_file()
        head = self._head
        lines = []
        for waiting in batch:
            line, head = extended(head, waiting.kind, waiting.at, waiting.facts)
            lines.append(line)
        data = b"".join(lines)
        self._or_with_reserve(lambda: self._append(data))
        self._size_bytes += len(data)
        self._head = head

    def _write_head(self) -> None:
        durable.write(self._home / HEAD, self._head.encode())

    def _append(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError:
            # What of it is on the disk is not known; what was there before is.
            try:
                os.ftruncate(self._descriptor, self._size_bytes)
            except OSError:
                self._end()  # the next attempt reads the file anew
            raise

    def _or_with_reserve(self, work: Callable[[], None]) -> None:
        """Do it; where that fails, give the reserve up for it once."""
        try:
            work()
        except (OSError, HomeNotWritable):
            reserve = self._home / RESERVE
            if self._descriptor < 0 or not reserve.exists():
                raise
            reserve.unlink()
            work()

    def _begin_file(self) -> None:
        """Put the present file away, and begin the next."""
        self._end()
        file = self._home / NAME
        if file.exists():
            self._put_away(file, first_number(file))
        self._descriptor = os.open(file, OPEN_FLAGS | os.O_EXCL, durable.PRIVATE_FILE)
        self._size_bytes = 0

    def _put_away(self, file: Path, first: int) -> str:
        """Give a file the name of an old one, as it is; that name."""
        target = self._home / old_name(first)
        while target.exists():
            first += 1
            target = self._home / old_name(first)
        durable.rename(file, target)
        return target.name

    def _is_gone(self) -> bool:
        """Somebody took the file away, or another one stands in its place."""
        ours = os.fstat(self._descriptor)
        try:
            there = os.lstat(self._home / NAME)
        except FileNotFoundError:
            return True
        return (ours.st_ino, ours.st_dev) != (there.st_ino, there.st_dev)

    def _keep_reserve(self) -> None:
        """Have RESERVE_BYTES of the disk. Raises HomeNotWritable."""
        reserve = self._home / RESERVE
        if not reserve.exists() or reserve.stat().st_size != RESERVE_BYTES:
            durable.write(reserve, bytes(RESERVE_BYTES))

    def _say_failed(self, reason: OSError | HomeNotWritable | StateError) -> None:
        self._failed = True
        text = reason.detail if isinstance(reason, StateError) else (reason.strerror or type(reason).__name__)
        self._problems.put("audit-not-written", path=str(self._home / NAME), reason=text)

    def _say_well(self) -> None:
        if self._failed:
            self._failed = False
            self._problems.clear("audit-not-written")
