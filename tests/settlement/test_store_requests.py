"""Lines of requests: there once, ended once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace

import pytest

from meshnode.errors import LedgerDamaged
from meshnode.settlement.store_requests import (
    KEPT_S,
    Request,
    begin_request,
    end_request,
    forget_requests,
    marked,
    request_of,
    running_requests,
)
from meshnode.settlement.store_schema import prepare
from tests.lab.paying_ends import channel_line


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    prepare(connection)
    yield connection
    connection.close()


def request(channel: bytes, name: str = "r.1") -> Request:
    return Request(channel, name, "tiny", 200_000, 600_000, most_in=400, most_out=100, started_at=5.0)


def test_it_is_read_as_it_was_written_and_there_once(db: sqlite3.Connection) -> None:
    one = request(channel_line(db))
    assert begin_request(db, one)
    assert not begin_request(db, replace(one, most_out=7))
    assert request_of(db, one.channel, one.id) == one
    assert request_of(db, one.channel, "other") is None


def test_the_same_id_on_another_channel_is_another_request(db: sqlite3.Connection) -> None:
    one, two = request(channel_line(db, 1)), request(channel_line(db, 2))
    assert begin_request(db, one) and begin_request(db, two)


def test_marks_only_rise_and_end_with_the_request(db: sqlite3.Connection) -> None:
    one = request(channel_line(db))
    begin_request(db, one)
    marked(db, one.channel, one.id, 50, 32)
    marked(db, one.channel, one.id, 50, 31)
    assert request_of(db, one.channel, one.id) == replace(one, tokens_in=50, tokens_out=32)
    with pytest.raises(sqlite3.IntegrityError):
        marked(db, one.channel, one.id, 50, 101)
    ended = replace(one, tokens_in=50, tokens_out=30, charged_micros=28, state="ended", finish="stop", ended_at=9.0)
    end_request(db, replace(ended, receipt=b"{}"))
    assert request_of(db, one.channel, one.id) == replace(ended, receipt=b"{}")
    with pytest.raises(LedgerDamaged):
        marked(db, one.channel, one.id, 50, 40)
    with pytest.raises(LedgerDamaged):
        end_request(db, ended)


def test_those_that_run_are_found_by_role(db: sqlite3.Connection) -> None:
    paid, earned = request(channel_line(db, 1)), request(channel_line(db, 2, role="receiver"))
    over = request(paid.channel, "r.2")
    for one in (paid, earned, over):
        begin_request(db, one)
    end_request(db, replace(over, state="interrupted"))
    assert running_requests(db, "payer") == [paid]
    assert running_requests(db, "receiver") == [earned]


def test_a_year_later_they_are_forgotten_but_for_what_runs(db: sqlite3.Connection) -> None:
    old, new, runs = (request(channel_line(db, 1), f"r.{number}") for number in range(3))
    for one in (old, new, runs):
        begin_request(db, one)
    end_request(db, replace(old, state="ended", ended_at=100.0))
    end_request(db, replace(new, state="ended", ended_at=200.0))
    assert forget_requests(db, 150.0 + KEPT_S) == 1
    assert request_of(db, old.channel, old.id) is None
    assert request_of(db, runs.channel, runs.id) == runs
