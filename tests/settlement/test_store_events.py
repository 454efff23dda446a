"""Events wait until the audit log has them."""

from __future__ import annotations

import sqlite3

from meshnode.settlement.store_events import MOST_AT_ONCE, Event, put_event, told_events, waiting_events
from meshnode.settlement.store_schema import prepare


def test_they_wait_in_order_with_numbers_that_are_used_once() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    prepare(db)
    assert waiting_events(db) == []
    put_event(db, 1.5, "paid", {"cost_micros": 3, "model": "tiny", "stream": True})
    put_event(db, 2.5, "proven", {})
    first, second = waiting_events(db)
    assert first == Event(1, 1.5, "paid", {"cost_micros": 3, "model": "tiny", "stream": True})
    told_events(db, first.number)
    assert waiting_events(db) == [second]
    told_events(db, second.number)
    put_event(db, 3.5, "paid", {})
    assert [event.number for event in waiting_events(db)] == [3]
    db.close()


def test_no_more_than_some_are_read_at_once() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    prepare(db)
    for number in range(MOST_AT_ONCE + 5):
        put_event(db, 0.0, "paid", {"cost_micros": number})
    assert len(waiting_events(db)) == MOST_AT_ONCE
    told_events(db, MOST_AT_ONCE)
    assert [event.facts["cost_micros"] for event in waiting_events(db)] == list(range(MOST_AT_ONCE, MOST_AT_ONCE + 5))
    db.close()
