"""What the audit log has yet to be told of money: written with the money, removed when the log has it.

Functions on a connection, to be run by `Store.run`. An event is in the same transaction as what it tells of, so that no
crash can part them. One that the log got in the very moment of a crash is told twice, with the same `number`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

MOST_AT_ONCE = 200

Fact = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` and `facts` as the audit log takes them, at wall time `at`."""

    number: int
    at: float
    kind: str
    facts: dict[str, Fact]


def put_event(db: sqlite3.Connection, at: float, kind: str, facts: Mapping[str, Fact]) -> None:
    """Have the audit log told of this."""
    db.execute("INSERT INTO events (at, kind, facts) VALUES (?, ?, ?)", (at, kind, json.dumps(dict(facts))))


def waiting_events(db: sqlite3.Connection) -> list[Event]:
    """The oldest MOST_AT_ONCE that wait."""
    found = db.execute("SELECT number, at, kind, facts FROM events ORDER BY number LIMIT ?", (MOST_AT_ONCE,))
    return [Event(number, at, kind, json.loads(facts)) for number, at, kind, facts in found]


def told_events(db: sqlite3.Connection, last: int) -> None:
    """The log has all up to this number."""
    db.execute("DELETE FROM events WHERE number <= ?", (last,))
