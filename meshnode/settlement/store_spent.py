"""What was spent, in the journal: by UTC day and channel.

Functions on a connection, to be run by `Store.run`. A voucher is spent when it is signed, for the amount by which it
raises what was signed before. A month is the first seven characters of its days.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

LATEST_S = 253_402_300_799.0
"""The last second of the year 9999."""


def day_of(now: float) -> str:
    """The UTC day of a wall time in seconds, as "2026-11-21"."""
    return datetime.fromtimestamp(min(max(now, 0.0), LATEST_S), UTC).strftime("%Y-%m-%d")


def month_of(day: str) -> str:
    """The month of a day, as "2026-11"."""
    return day[:7]


def spent(db: sqlite3.Connection, day: str, channel: bytes, micros: int) -> None:
    """Count `micros` more."""
    if micros:
        db.execute(
            "INSERT INTO spent (day, channel, micros) VALUES (?, ?, ?) "
            "ON CONFLICT (day, channel) DO UPDATE SET micros = micros + excluded.micros",
            (day, channel, micros),
        )


def spent_by_month(db: sqlite3.Connection, chain: int) -> dict[str, int]:
    """What was spent on the channels of a chain in each month, in micro-USDC."""
    found = db.execute(
        "SELECT substr(s.day, 1, 7), sum(s.micros) FROM spent s JOIN channels c ON c.id = s.channel "
        "WHERE c.chain = ? GROUP BY 1",
        (chain,),
    )
    return {month: int(micros) for month, micros in found}
