"""Transactions in the journal of money: tables of their own in its SQLite file, through the one thread that writes it.

    transactions    a purpose, what it is, and how far it has come
    attempts        the signed bytes of each price that was offered for it; never changed, never removed
    authorizations  deposits that were signed and may still be taken, one a channel
    cursors         how far logs were read, and the last number of what is counted up

Every method is one piece of work for `Store.run`: it returns after the commit. The file itself refuses a nonce that two
open transactions would share, and a second transaction for one purpose.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from meshnode.settlement.contracts import Authorization
from meshnode.settlement.fees import Fees
from meshnode.settlement.transactions import OPEN, Attempt, Transaction

Result = TypeVar("Result")

_OPEN = ", ".join(f"'{state}'" for state in OPEN)
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS transactions (
    purpose TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    chain INTEGER NOT NULL CHECK (chain > 0),
    sender BLOB NOT NULL CHECK (length(sender) = 20),
    nonce INTEGER NOT NULL CHECK (nonce >= 0),
    target BLOB NOT NULL CHECK (length(target) = 20),
    data BLOB NOT NULL,
    gas INTEGER NOT NULL CHECK (gas > 0),
    channels BLOB NOT NULL CHECK (length(channels) % 32 = 0),
    most_micros INTEGER NOT NULL CHECK (most_micros BETWEEN 0 AND (1 << 53) - 1),
    made_at REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ({_OPEN}, 'final', 'failed', 'replaced')),
    block INTEGER NOT NULL,
    block_digest BLOB NOT NULL,
    succeeded INTEGER NOT NULL CHECK (succeeded IN (0, 1)),
    fee_micros INTEGER NOT NULL CHECK (fee_micros BETWEEN 0 AND (1 << 53) - 1),
    ended_at REAL NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_transaction_a_nonce ON transactions (chain, sender, nonce)
    WHERE state IN ({_OPEN});
CREATE TRIGGER IF NOT EXISTS what_has_ended_stays BEFORE UPDATE ON transactions
    WHEN OLD.state NOT IN ({_OPEN})
    BEGIN SELECT RAISE(ABORT, 'a transaction that has ended stays as it is'); END;
CREATE TABLE IF NOT EXISTS attempts (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
    purpose TEXT NOT NULL REFERENCES transactions (purpose),
    place INTEGER NOT NULL,
    raw BLOB NOT NULL,
    most_wei TEXT NOT NULL,
    priority_wei TEXT NOT NULL,
    UNIQUE (purpose, place)
) STRICT;
CREATE TABLE IF NOT EXISTS authorizations (
    channel BLOB PRIMARY KEY CHECK (length(channel) = 32),
    amount_micros INTEGER NOT NULL CHECK (amount_micros BETWEEN 1 AND (1 << 53) - 1),
    valid_after INTEGER NOT NULL,
    valid_before INTEGER NOT NULL,
    salt BLOB NOT NULL CHECK (length(salt) = 32),
    signature BLOB NOT NULL CHECK (length(signature) = 65)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (name TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
_COLUMNS = (
    *("purpose", "kind", "chain", "sender", "nonce", "target", "data", "gas", "channels", "most_micros", "made_at"),
    *("state", "block", "block_digest", "succeeded", "fee_micros", "ended_at"),
)
_CHANGING = ("most_micros", "state", "block", "block_digest", "succeeded", "fee_micros", "ended_at")
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM transactions"
_ID_BYTES = 32


class Run(Protocol):
    """`Store.run`: does work on the connection in a transaction, and returns what it returns after the commit."""

    def __call__(self, work: Callable[[sqlite3.Connection], Result]) -> Awaitable[Result]: ...


class SqliteTransactions:
    """The TransactionStore of a node."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def find(self, purpose: str) -> Transaction | None:
        """The transaction of a purpose."""
        return await self._run(partial(_find, purpose=purpose))

    async def open_ones(self, chain: int, sender: bytes) -> Sequence[Transaction]:
        """Those that have not ended, by nonce."""
        where = f"WHERE chain = ? AND sender = ? AND state IN ({_OPEN}) ORDER BY nonce"
        return await self._run(partial(_all, where=where, values=(chain, sender)))

    async def with_nonce(self, chain: int, sender: bytes, nonce: int) -> Sequence[Transaction]:
        """All that ever had this nonce, the newest first."""
        where = "WHERE chain = ? AND sender = ? AND nonce = ? ORDER BY made_at DESC"
        return await self._run(partial(_all, where=where, values=(chain, sender, nonce)))

    async def newest(self, chain: int, count: int) -> Sequence[Transaction]:
        """The last that were made, newest first."""
        where = "WHERE chain = ? ORDER BY made_at DESC, nonce DESC LIMIT ?"
        return await self._run(partial(_all, where=where, values=(chain, count)))

    async def add(self, transaction: Transaction) -> Transaction:
        """Keep a new one; where its purpose has one already, that is returned and nothing is written."""

        def work(db: sqlite3.Connection) -> Transaction:
            found = _find(db, transaction.purpose)
            if found is not None:
                return found
            marks = ", ".join("?" * len(_COLUMNS))
            db.execute(f"INSERT INTO transactions ({', '.join(_COLUMNS)}) VALUES ({marks})", _row(transaction))
            _add_attempts(db, transaction, 0)
            return transaction

        return await self._run(work)

    async def save(self, transaction: Transaction) -> None:
        """Write its state and its new attempts. One that has ended stays as it is."""

        def work(db: sqlite3.Connection) -> None:
            before = _find(db, transaction.purpose)
            if before is None or not before.is_open:
                return
            values = dict(zip(_COLUMNS, _row(transaction), strict=True))
            changes = ", ".join(f"{name} = ?" for name in _CHANGING)
            db.execute(
                f"UPDATE transactions SET {changes} WHERE purpose = ?",
                (*(values[name] for name in _CHANGING), transaction.purpose),
            )
            _add_attempts(db, transaction, len(before.attempts))

        await self._run(work)

    async def gas(self, chain: int, month: str) -> tuple[int, Mapping[str, int]]:
        """Micro-dollars: what fees came to in a month ("2026-11") and later, and what each open one may cost."""

        def work(db: sqlite3.Connection) -> tuple[int, Mapping[str, int]]:
            (spent,) = db.execute(
                "SELECT COALESCE(SUM(fee_micros), 0) FROM transactions WHERE chain = ? AND ended_at > 0 "
                "AND strftime('%Y-%m', ended_at, 'unixepoch') >= ?",
                (chain, month),
            ).fetchone()
            found = db.execute(
                f"SELECT purpose, most_micros FROM transactions WHERE chain = ? AND state IN ({_OPEN})", (chain,)
            )
            return spent, dict(found.fetchall())

        return await self._run(work)

    async def authorization(self, channel: bytes) -> Authorization | None:
        """The deposit into a channel that the payer has signed and the chain may still take."""
        return await self._run(partial(_authorization, channel=channel))

    async def keep_authorization(self, channel: bytes, given: Authorization) -> Authorization:
        """Keep one before it leaves this node; where the channel has one already, that is returned instead."""

        def work(db: sqlite3.Connection) -> Authorization:
            found = _authorization(db, channel)
            if found is not None:
                return found
            db.execute(
                "INSERT INTO authorizations (channel, amount_micros, valid_after, valid_before, salt, signature) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(channel, given.amount_micros, given.valid_after, given.valid_before),
                    *(given.salt, given.signature),
                ),
            )
            return given

        return await self._run(work)

    async def drop_authorization(self, channel: bytes, salt: bytes) -> None:
        """It was taken, or can be taken no more."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM authorizations WHERE channel = ? AND salt = ?", (channel, salt))

        await self._run(work)

    async def cursor(self, name: str) -> int:
        """A number that was kept under a name; 0 at first."""

        def work(db: sqlite3.Connection) -> int:
            found = db.execute("SELECT number FROM cursors WHERE name = ?", (name,)).fetchone()
            return found[0] if found else 0

        return await self._run(work)

    async def move_cursor(self, name: str, to: int) -> None:
        """Keep it."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO cursors (name, number) VALUES (?, ?)", (name, to))

        await self._run(work)


def _row(transaction: Transaction) -> tuple[object, ...]:
    values = {name: getattr(transaction, name) for name in _COLUMNS}
    values["channels"] = b"".join(transaction.channels)
    values["succeeded"] = int(transaction.succeeded)
    return tuple(values.values())


def _add_attempts(db: sqlite3.Connection, transaction: Transaction, first: int) -> None:
    db.executemany(
        "INSERT INTO attempts (digest, purpose, place, raw, most_wei, priority_wei) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                *(attempt.digest, transaction.purpose, place, attempt.raw),
                *(str(attempt.fees.most_wei), str(attempt.fees.priority_wei)),
            )
            for place, attempt in enumerate(transaction.attempts)
            if place >= first
        ],
    )


def _find(db: sqlite3.Connection, purpose: str) -> Transaction | None:
    found = _all(db, where="WHERE purpose = ?", values=(purpose,))
    return found[0] if found else None


def _authorization(db: sqlite3.Connection, channel: bytes) -> Authorization | None:
    found = db.execute(
        "SELECT amount_micros, valid_after, valid_before, salt, signature FROM authorizations WHERE channel = ?",
        (channel,),
    ).fetchone()
    return Authorization(*found) if found else None


def _all(db: sqlite3.Connection, *, where: str, values: Sequence[object]) -> list[Transaction]:
    return [_read(db, row) for row in db.execute(f"{_SELECT} {where}", tuple(values)).fetchall()]


def _read(db: sqlite3.Connection, row: tuple[object, ...]) -> Transaction:
    values = dict(zip(_COLUMNS, row, strict=True))
    joined = bytes(values.pop("channels"))  # type: ignore[call-overload]
    found = db.execute(
        "SELECT digest, raw, most_wei, priority_wei FROM attempts WHERE purpose = ? ORDER BY place",
        (values["purpose"],),
    )
    return Transaction(
        **values | {"succeeded": bool(values["succeeded"])},  # type: ignore[arg-type]
        channels=tuple(joined[place : place + _ID_BYTES] for place in range(0, len(joined), _ID_BYTES)),
        attempts=tuple(
            Attempt(digest, raw, Fees(int(most), int(priority))) for digest, raw, most, priority in found.fetchall()
        ),
    )
