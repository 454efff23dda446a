"""The journal of money: one SQLite file, and the one thread that touches it.

    wallet/ledger.db     the tables of store_schema.py; write-ahead log, synced at every commit; 0600
    wallet/ledger.lock   held while a process pays or earns with this wallet

`run` hands a piece of work to the thread. When it returns, what the work wrote is on the disk: only then may a voucher
be sent, or tokens that a voucher pays for go out. Work that waits at the same moment shares one transaction and so one
sync, each piece inside a savepoint of its own, so that one that fails takes nothing with it (group commit: DeWitt et
al., 1984).

The disk may be full, the file damaged, the wallet in use by another node. None of that stops a node from starting: the
store then says why in `trouble`, and whatever is asked of it raises that. What can pass is tried again by itself;
damage is final until the next start, because what was in memory and what is on the disk may differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from meshnode import durable
from meshnode.errors import DiskFull, HomeNotWritable, LedgerDamaged, MeshnodeError, WalletInUse
from meshnode.settlement.store_schema import prepare

NAME, LOCK = "ledger.db", "ledger.lock"
RETRY_S = 2.0
"""After a failed attempt to open, the next one is made no earlier."""
MOST_TOGETHER = 64
"""Pieces of work in one transaction."""
CLOSE_S = 10.0
LEAST_SQLITE = (3, 37)
"""The first with tables whose columns have the types that they say."""

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]


@dataclass(slots=True)
class _Job:
    """A piece of work that waits, and where its outcome goes."""

    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def tell(self) -> None:
        """Give the outcome to whoever waits, if anyone still does."""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self.loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if self.done.cancelled():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
        else:
            self.done.set_result(self.result)


class Store:
    """The journal in `folder`. Its methods are called on the event loop."""

    def __init__(
        self, folder: Path, *, more_tables: Sequence[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`more_tables` are scripts of `CREATE TABLE IF NOT EXISTS`, of whoever keeps more in the same file."""
        self._folder = folder
        self._more_tables = more_tables
        self._clock = clock
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._db: sqlite3.Connection | None = None
        self._lock = -1
        self._trouble: MeshnodeError | None = None
        self._retry_at = 0.0

    @property
    def trouble(self) -> MeshnodeError | None:
        """Why nothing can be written now, or None."""
        return self._trouble

    async def start(self) -> None:
        """Open the file, make it if there is none. What is in the way is kept in `trouble`, and no error."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="ledger", daemon=True)
            self._thread.start()
        with contextlib.suppress(MeshnodeError):
            await self.run(_nothing)

    async def close(self) -> None:
        """Finish what was handed in, and let the file and the wallet go."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join, CLOSE_S)

    async def run(self, work: Work[Result]) -> Result:
        """What `work` returns, after all that it wrote is on the disk; or what it raises, and nothing is written.

        The work is done in the thread of the store: it touches the connection and values of its own, begins and ends no
        transaction. A caller that is cancelled waits no longer; the work is done all the same.

        Raises WalletInUse, LedgerDamaged, DiskFull or HomeNotWritable.
        """
        if self._thread is None:
            raise self._trouble or LedgerDamaged("it is closed")
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future())
        self._jobs.put(job)
        result: Result = await job.done
        return result

    # --- the thread -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Take what waits, in the order in which it came, until told to end."""
        last = False
        while not last:
            batch = [self._jobs.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < MOST_TOGETHER and batch[-1] is not None:
                    batch.append(self._jobs.get_nowait())
            last = batch[-1] is None
            jobs = [job for job in batch if job is not None]
            if jobs:
                self._do(jobs)
            for job in jobs:
                job.tell()
        self._let_go()

    def _do(self, jobs: list[_Job]) -> None:
        """Do all in one transaction; an outcome in each."""
        try:
            db = self._opened()
            db.execute("BEGIN IMMEDIATE")
            for job in jobs:
                _attempt(db, job)
            db.execute("COMMIT")
        except (MeshnodeError, sqlite3.Error, OSError) as reason:
            error = reason if isinstance(reason, MeshnodeError) else self._meaning(reason)
            self._undo()
            for job in jobs:
                job.result, job.error = None, error
            if isinstance(error, LedgerDamaged):
                self._trouble = error
                self._let_go()

    def _undo(self) -> None:
        """Take back what was not committed."""
        if self._db is not None and self._db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _opened(self) -> sqlite3.Connection:
        """The connection, opened now if it is not. Raises a MeshnodeError, which `trouble` then is."""
        if self._db is not None:
            return self._db
        if self._trouble is not None and (isinstance(self._trouble, LedgerDamaged) or self._clock() < self._retry_at):
            raise self._trouble
        try:
            self._hold()
            self._db = _connect(self._folder / NAME, self._more_tables)
        except (MeshnodeError, sqlite3.Error, OSError) as reason:
            self._let_go()
            self._retry_at = self._clock() + RETRY_S
            self._trouble = reason if isinstance(reason, MeshnodeError) else self._meaning(reason)
            raise self._trouble from None
        self._trouble = None
        return self._db

    def _hold(self) -> None:
        """Keep every other process from this wallet. Raises WalletInUse, OSError."""
        self._folder.mkdir(mode=durable.PRIVATE_FOLDER, parents=True, exist_ok=True)
        lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, durable.PRIVATE_FILE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise WalletInUse(f"{self._folder} (pid {holder})" if holder.isdigit() else str(self._folder)) from None
        self._lock = lock
        with contextlib.suppress(OSError):  # a full disk; the lock itself needs no room
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)

    def _let_go(self) -> None:
        db, self._db = self._db, None
        lock, self._lock = self._lock, -1
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
        if lock >= 0:
            os.close(lock)

    def _meaning(self, reason: sqlite3.Error | OSError) -> MeshnodeError:
        """What a failure of the disk or of SQLite means to a person."""
        file = self._folder / NAME
        if isinstance(reason, OSError):
            return HomeNotWritable(f"{file}: {reason.strerror}")
        # The primary code: extended ones keep it in their low byte (sqlite.org/rescode.html).
        code = getattr(reason, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return DiskFull(str(file), fix="free some disk space; paying and earning go on by themselves then")
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return HomeNotWritable(f"{file}: {reason}")
        if code == sqlite3.SQLITE_BUSY:
            return WalletInUse(f"another program has {file} open")
        return LedgerDamaged(f"{file}: {reason}")


def _attempt(db: sqlite3.Connection, job: _Job) -> None:
    """Do one piece of work; take back what it wrote if it fails. Raises sqlite3.Error, with which all pieces fail."""
    db.execute("SAVEPOINT piece")
    try:
        job.result = job.work(db)
    except sqlite3.IntegrityError as reason:
        # A rule of the file itself was about to be broken, which is a fault of the program: nothing is paid on it.
        job.error = LedgerDamaged(f"it refuses an entry: {reason}")
    except sqlite3.Error:
        raise
    except Exception as reason:
        job.error = reason
    if job.error is not None:
        db.execute("ROLLBACK TO piece")
    db.execute("RELEASE piece")


def _connect(file: Path, more_tables: Sequence[str]) -> sqlite3.Connection:
    """Open, check and prepare the file. Raises sqlite3.Error, OSError, LedgerDamaged."""
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        text = f"this Python has SQLite {sqlite3.sqlite_version}, which cannot read it"
        raise LedgerDamaged(text, fix="use a Python with SQLite 3.37 or newer")
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, durable.PRIVATE_FILE))
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")  # macOS: a sync that reaches the disk and not only its cache
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA trusted_schema = OFF")
        prepare(db)
        for script in more_tables:
            db.executescript(script)
    except BaseException as reason:
        db.close()
        if isinstance(reason, LedgerDamaged):
            raise LedgerDamaged(f"{file}: {reason.detail}", fix=reason.fix) from None
        raise
    return db


def _nothing(_: sqlite3.Connection) -> None:
    """Work for a store that is only to be opened."""
