"""Paid requests in the journal: what each may cost, what it came to, and the receipt.

Functions on a connection, to be run by `Store.run`. A request is named by its channel and the id that the payer gave
it; that pair is there once, for ever, which is what makes a request that is asked twice cost nothing twice.

    who pays      while it runs, its tokens are those that vouchers cover; at its end, those that are charged
    who is paid   while it runs, its tokens are the mark: so much was delivered when it was last raised, and so much is
                  charged after a crash; at its end, those that were delivered
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Literal

from meshnode.errors import LedgerDamaged
from meshnode.settlement.store_channels import Role

RequestState = Literal["running", "ended", "interrupted"]
KEPT_S = 400 * 24 * 3600.0
"""A year's requests and receipts stay, and the months around it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A line of the table. Prices in micro-USDC per 1,000,000 tokens, times in seconds of wall time (0: not yet).

    At most `most_in` tokens of prompt and `most_out` of answer are ever charged; `unpaid_tokens` may run ahead of the
    vouchers.
    """

    channel: bytes
    id: str
    model: str
    price_in: int
    price_out: int
    most_in: int
    most_out: int
    unpaid_tokens: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    charged_micros: int = 0
    state: RequestState = "running"
    finish: str = ""
    receipt: bytes = b""
    started_at: float = 0.0
    ended_at: float = 0.0


_COLUMNS = tuple(item.name for item in fields(Request))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM requests"


def begin_request(db: sqlite3.Connection, request: Request) -> bool:
    """Write a request before anything is done for it. False when it was there before: nothing is written then."""
    done = db.execute(
        f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
        "ON CONFLICT (channel, id) DO NOTHING",
        [getattr(request, name) for name in _COLUMNS],
    )
    return done.rowcount == 1


def request_of(db: sqlite3.Connection, channel: bytes, request: str) -> Request | None:
    """The request with this id of this channel."""
    found = db.execute(f"{_SELECT} WHERE channel = ? AND id = ?", (channel, request)).fetchone()
    return Request(*found) if found else None


def running_requests(db: sqlite3.Connection, role: Role) -> list[Request]:
    """Those that have no end: after a start, the ones in which this node was stopped."""
    columns = ", ".join(f"r.{name}" for name in _COLUMNS)
    found = db.execute(
        f"SELECT {columns} FROM requests r JOIN channels c ON c.id = r.channel "
        "WHERE r.state = 'running' AND c.role = ? ORDER BY r.number",
        (role,),
    )
    return [Request(*row) for row in found]


def marked(db: sqlite3.Connection, channel: bytes, request: str, tokens_in: int, tokens_out: int) -> None:
    """Raise the mark of a running request."""
    _one(
        db.execute(
            "UPDATE requests SET tokens_in = max(tokens_in, ?), tokens_out = max(tokens_out, ?) "
            "WHERE channel = ? AND id = ? AND state = 'running'",
            (tokens_in, tokens_out, channel, request),
        )
    )


def end_request(db: sqlite3.Connection, ended: Request) -> None:
    """Write how a running request ended: tokens, charge, state, finish, receipt and time of `ended`."""
    _one(
        db.execute(
            "UPDATE requests SET tokens_in = ?, tokens_out = ?, charged_micros = ?, state = ?, "
            "finish = ?, receipt = ?, ended_at = ? WHERE channel = ? AND id = ? AND state = 'running'",
            (
                *(ended.tokens_in, ended.tokens_out, ended.charged_micros, ended.state),
                *(ended.finish, ended.receipt, ended.ended_at, ended.channel, ended.id),
            ),
        )
    )


def forget_requests(db: sqlite3.Connection, now: float) -> int:
    """Drop what ended more than KEPT_S ago; how many those were."""
    return db.execute("DELETE FROM requests WHERE state != 'running' AND ended_at < ?", (now - KEPT_S,)).rowcount


def _one(done: sqlite3.Cursor) -> None:
    if done.rowcount != 1:
        raise LedgerDamaged("an entry for a request that does not run")
