"""The rules that the file itself holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from meshnode.errors import LedgerDamaged
from meshnode.settlement.store_schema import APPLICATION_ID, VERSION, prepare
from tests.lab.paying_ends import channel_line


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    prepare(connection)
    yield connection
    connection.close()


def test_it_is_marked_and_preparing_it_again_changes_nothing(db: sqlite3.Connection) -> None:
    def marks() -> tuple[int, ...]:
        names = ("application_id", "user_version", "schema_version")
        return tuple(db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)

    before = marks()
    prepare(db)
    assert marks() == before and before[:2] == (APPLICATION_ID, VERSION)


def test_a_database_of_something_else_is_not_touched() -> None:
    other = sqlite3.connect(":memory:", isolation_level=None)
    other.execute("CREATE TABLE theirs (name TEXT)")
    with pytest.raises(LedgerDamaged, match="another program"):
        prepare(other)
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    other.close()


def test_a_newer_one_is_not_touched(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(LedgerDamaged, match="newer"):
        prepare(db)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("signed_micros", 9),
        ("signed_micros", 1 << 53),
        ("balance_micros", -1),
        ("claimed_micros", 1 << 53),
        ("charged_micros", 11),
        ("state", "gone"),
        ("role", "both"),
        ("signature", b"short"),
        ("node", b"short"),
        ("signed_micros", "ten"),
    ],
)
def test_what_cannot_be_is_refused(db: sqlite3.Connection, column: str, value: object) -> None:
    channel_line(db, signed_micros=10, charged_micros=10)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(f"UPDATE channels SET {column} = ?", (value,))


def test_who_is_paid_may_have_charged_more_than_was_signed(db: sqlite3.Connection) -> None:
    channel_line(db, role="receiver", signed_micros=10, charged_micros=10)
    db.execute("UPDATE channels SET charged_micros = 12, signed_micros = 11")


def test_a_request_belongs_to_a_channel_and_is_there_once(db: sqlite3.Connection) -> None:
    line = "INSERT INTO requests VALUES (NULL, ?, 'r', 'm', 1, 1, 1, 1, 0, 0, 0, 0, 'running', '', x'', 0, 0)"
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(line, (bytes(32),))
    channel = channel_line(db)
    db.execute(line, (channel,))
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(line, (channel,))
