"""Every event of money gets into the audit log, whatever stops in between."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshnode.money_events import MoneyEvents
from meshnode.settlement.store import Store
from meshnode.settlement.store_events import put_event

pytestmark = pytest.mark.anyio


class Log:
    """An audit log. It is on the disk as far as `kept` says while it is `writable`."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, object]]] = []
        self.kept = 0
        self.writable = True

    def record(self, kind: str, **facts: object) -> None:
        self.records.append((kind, facts))

    async def flush(self) -> bool:
        if self.writable:
            self.kept = len(self.records)
        return self.writable


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    found = Store(tmp_path)
    await found.start()
    yield found
    await found.close()


def put(number: int) -> object:
    def work(db: sqlite3.Connection) -> None:
        put_event(db, 1.0, "paid", {"cost_micros": number})

    return work


async def test_they_are_told_once_and_in_order(store: Store) -> None:
    log = Log()
    events = MoneyEvents(store, log.record, log.flush)
    for number in range(450):
        await store.run(put(number))  # type: ignore[arg-type]
    assert await events.tell() == 450
    assert await events.tell() == 0
    assert log.records == [("paid", {"cost_micros": number}) for number in range(450)]


async def test_they_stay_in_the_journal_until_the_log_has_them(store: Store) -> None:
    log = Log()
    log.writable = False
    events = MoneyEvents(store, log.record, log.flush)
    await store.run(put(1))  # type: ignore[arg-type]
    for _ in range(3):
        assert await events.tell() == 0
    assert len(log.records) == 1
    # A node that is killed here tells it again; one that goes on does not.
    after_a_kill = Log()
    assert await MoneyEvents(store, after_a_kill.record, after_a_kill.flush).tell() == 1
    assert after_a_kill.records == log.records
    log.writable = True
    await store.run(put(2))  # type: ignore[arg-type]
    assert await events.tell() == 1
    assert log.kept == len(log.records) == 2


async def test_what_is_left_is_told_at_the_end(store: Store) -> None:
    log = Log()
    events = MoneyEvents(store, log.record, log.flush)
    events.start()
    await store.run(put(1))  # type: ignore[arg-type]
    await events.close()
    assert log.kept == 1


async def test_a_journal_that_is_closed_is_no_reason_to_fail(tmp_path: Path) -> None:
    log = Log()
    events = MoneyEvents(Store(tmp_path), log.record, log.flush)
    events.start()
    await events.close()
    assert log.records == []
