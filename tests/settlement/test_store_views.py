"""The journal as a person sees it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace

import pytest

from meshnode.settlement import store_views
from meshnode.settlement.store_requests import Request, begin_request, end_request
from meshnode.settlement.store_schema import prepare
from meshnode.settlement.store_spent import spent
from meshnode.settlement.store_views import money_facts, shown_receipts
from tests.lab.paying_ends import channel_line

DAY_S = 86_400.0


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    prepare(connection)
    yield connection
    connection.close()


def ended(db: sqlite3.Connection, channel: bytes, name: str, micros: int, at: float, receipt: bytes = b"{}") -> None:
    request = Request(channel, name, "tiny", 1, 1, most_in=9, most_out=9, started_at=at)
    begin_request(db, request)
    over = replace(request, tokens_in=5, tokens_out=4, charged_micros=micros, state="ended", finish="stop")
    end_request(db, replace(over, receipt=receipt, ended_at=at))


def test_an_empty_journal(db: sqlite3.Connection) -> None:
    nothing = {"vouched_micros": 0, "claimed_micros": 0, "unclaimed_micros": 0, "channels": 0}
    lists: dict[str, object] = {name: [] for name in ("channels", "receipts", "by_day", "by_provider")}
    assert money_facts(db) == lists | {"earning": nothing}


def test_what_was_paid_and_earned(db: sqlite3.Connection) -> None:
    dear, cheap = channel_line(db, 1), channel_line(db, 2)
    again = channel_line(db, 3, node=bytes([1]) * 32)
    earns = channel_line(db, 4, role="receiver", signed_micros=90, charged_micros=70, claimed_micros=30)
    spent(db, "1970-01-02", dear, 40)
    spent(db, "1970-01-02", cheap, 5)
    spent(db, "1970-01-03", again, 2)
    ended(db, dear, "a", 38, DAY_S + 1)
    ended(db, dear, "b", 1, DAY_S + 2)
    ended(db, again, "c", 2, 2 * DAY_S)
    ended(db, earns, "d", 60, 2 * DAY_S + 1)
    begin_request(db, Request(earns, "runs", "tiny", 1, 1, most_in=9, most_out=9))
    facts = money_facts(db)
    json.dumps(facts)
    assert facts["by_day"] == [
        {"day": "1970-01-03", "spent_micros": 2, "earned_micros": 60, "requests": 2},
        {"day": "1970-01-02", "spent_micros": 45, "earned_micros": 0, "requests": 2},
    ]
    assert facts["by_provider"] == [
        {"node": "01" * 32, "spent_micros": 42, "requests": 3, "tokens_out": 12},
        {"node": "02" * 32, "spent_micros": 5, "requests": 0, "tokens_out": 0},
    ]
    assert facts["earning"] == {"vouched_micros": 90, "claimed_micros": 30, "unclaimed_micros": 40, "channels": 1}
    assert [item["request"] for item in facts["receipts"]] == ["d", "c", "b", "a"]
    assert facts["receipts"][0]["role"] == "receiver" and facts["receipts"][1]["node"] == "01" * 32
    channel = facts["channels"][0]
    assert channel["id"] == "0x" + earns.hex() and channel["state"] == "open" and channel["signed_micros"] == 90


def test_receipts_come_with_their_text_where_that_is_asked_for(db: sqlite3.Connection) -> None:
    channel = channel_line(db)
    ended(db, channel, "a", 1, 1.0, receipt='{"sig":"é"}'.encode())
    ended(db, channel, "b", 1, 2.0, receipt=b"")  # it ended without one
    assert "signed" not in shown_receipts(db, 10)[0]
    assert [item["signed"] for item in shown_receipts(db, 10, with_text=True)] == ['{"sig":"é"}']
    assert shown_receipts(db, 0) == []


def test_all_lists_have_an_end(db: sqlite3.Connection) -> None:
    for number in range(1, 256):
        channel = channel_line(db, number)
        ended(db, channel, "r", 1, number * DAY_S)
        spent(db, f"2026-01-{number % 28 + 1:02}", channel, number)
    facts = money_facts(db)
    assert len(facts["channels"]) == store_views.MOST_CHANNELS
    assert len(facts["receipts"]) == store_views.MOST_RECEIPTS
    assert len(facts["by_day"]) == store_views.MOST_DAYS
    assert len(facts["by_provider"]) == store_views.MOST_PROVIDERS
    assert facts["by_provider"][0]["spent_micros"] == 255
