"""What was spent by day, and what a month of that is."""

from __future__ import annotations

import sqlite3

import pytest

from meshnode.settlement.store_schema import prepare
from meshnode.settlement.store_spent import day_of, month_of, spent, spent_by_month
from tests.lab.paying_ends import NETWORK, channel_line


@pytest.mark.parametrize(
    ("now", "day"),
    [
        (0.0, "1970-01-01"),
        (-5.0, "1970-01-01"),
        (1_796_083_199.999, "2026-11-30"),
        (1_796_083_200.0, "2026-12-01"),
        (1e30, "9999-12-31"),
    ],
)
def test_days_are_utc_and_there_is_one_for_every_clock(now: float, day: str) -> None:
    assert day_of(now) == day
    assert month_of(day) == day[:7]


def test_days_add_up_to_months_chain_by_chain() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    prepare(db)
    ours, more, theirs = channel_line(db, 1), channel_line(db, 2), channel_line(db, 3, chain=1)
    for day, channel, micros in (
        ("2026-11-29", ours, 5),
        ("2026-11-29", ours, 2),
        ("2026-11-30", more, 10),
        ("2026-12-01", ours, 1),
        ("2026-12-01", theirs, 100),
        ("2026-12-02", ours, 0),
    ):
        spent(db, day, channel, micros)
    assert spent_by_month(db, NETWORK.chain) == {"2026-11": 17, "2026-12": 1}
    assert spent_by_month(db, 1) == {"2026-12": 100}
    assert db.execute("SELECT count(*) FROM spent").fetchone() == (4,)
    db.close()
