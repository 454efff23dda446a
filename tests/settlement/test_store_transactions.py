from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.errors import LedgerDamaged
from meshnode.settlement.contracts import Authorization
from meshnode.settlement.fees import Fees
from meshnode.settlement.store import Store
from meshnode.settlement.store_transactions import SCHEMA, SqliteTransactions
from meshnode.settlement.transactions import Attempt, Transaction

pytestmark = pytest.mark.anyio
SENDER, CHAIN = bytes([7]) * 20, 84532
NOVEMBER = 1_795_300_000.0


def made(purpose: str = "claim:1#0", nonce: int = 0, **changes: object) -> Transaction:
    values = {
        "purpose": purpose,
        "kind": "claim",
        "chain": CHAIN,
        "sender": SENDER,
        "nonce": nonce,
        "target": bytes([9]) * 20,
        "data": b"calldata",
        "gas": 100_000,
        "channels": (b"a" * 32, b"b" * 32),
        "attempts": (Attempt(purpose.encode().rjust(32), b"raw", Fees(1 << 200, 3)),),
        "most_micros": 700,
        "made_at": NOVEMBER + nonce,
    }
    return Transaction(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path, more_tables=(SCHEMA,))
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def kept(store: Store) -> SqliteTransactions:
    return SqliteTransactions(store.run)


async def test_what_was_kept_is_there_after_a_restart(store: Store, kept: SqliteTransactions, tmp_path: Path) -> None:
    first = made()
    assert await kept.add(first) == first
    dearer = replace(
        first,
        state="submitted",
        attempts=(*first.attempts, Attempt(b"2" * 32, b"raw2", Fees(9, 4))),
        most_micros=900,
    )
    await kept.save(dearer)
    await store.close()
    again = Store(tmp_path, more_tables=(SCHEMA,))
    await again.start()
    reopened = SqliteTransactions(again.run)
    assert await reopened.find("claim:1#0") == dearer
    assert await reopened.open_ones(CHAIN, SENDER) == [dearer]
    await again.close()


async def test_a_purpose_has_one_transaction(kept: SqliteTransactions) -> None:
    first = await kept.add(made())
    assert await kept.add(made(nonce=5)) == first
    assert await kept.newest(CHAIN, 9) == [first]
    assert await kept.find("claim:2#0") is None


async def test_the_file_refuses_a_nonce_that_two_open_ones_would_share(kept: SqliteTransactions) -> None:
    first = await kept.add(made())
    with pytest.raises(LedgerDamaged):
        await kept.add(made("claim:2#0"))
    await kept.save(replace(first, state="replaced", ended_at=NOVEMBER))
    second = await kept.add(made("claim:2#0", made_at=NOVEMBER + 9))
    assert await kept.with_nonce(CHAIN, SENDER, 0) == [second, replace(first, state="replaced", ended_at=NOVEMBER)]


async def test_what_has_ended_stays_as_it_is(store: Store, kept: SqliteTransactions) -> None:
    ended = replace(await kept.add(made()), state="final", block=3, block_digest=b"d" * 32, succeeded=True)
    await kept.save(ended)
    await kept.save(replace(ended, state="submitted"))
    assert await kept.find(ended.purpose) == ended
    with pytest.raises(LedgerDamaged):
        await store.run(lambda db: db.execute("UPDATE transactions SET state = 'submitted'"))
    assert await kept.open_ones(CHAIN, SENDER) == []


async def test_open_ones_are_of_one_key_and_in_order(kept: SqliteTransactions) -> None:
    for nonce in (4, 2, 3):
        await kept.add(made(f"claim:{nonce}#0", nonce))
    await kept.add(made("other", 1, sender=bytes([8]) * 20))
    assert [one.nonce for one in await kept.open_ones(CHAIN, SENDER)] == [2, 3, 4]
    assert await kept.open_ones(1, SENDER) == []


async def test_fees_are_counted_in_the_month_in_which_they_were_paid(kept: SqliteTransactions) -> None:
    for nonce, (ended_at, fee) in enumerate(
        [(NOVEMBER, 40), (NOVEMBER - 40 * 86_400, 50), (NOVEMBER + 40 * 86_400, 1)]
    ):
        one = await kept.add(made(f"claim:{nonce}#0", nonce))
        await kept.save(replace(one, state="final", fee_micros=fee, ended_at=ended_at))
    await kept.add(made("claim:9#0", 9))
    assert await kept.gas(CHAIN, "2026-11") == (41, {"claim:9#0": 700})
    assert (await kept.gas(CHAIN, "2026-10"))[0] == 91
    assert (await kept.gas(1, "2026-11")) == (0, {})


async def test_a_channel_has_one_authorization_that_is_not_over(kept: SqliteTransactions) -> None:
    channel, first = b"c" * 32, Authorization(500, 0, 99, b"s" * 32, b"x" * 65)
    assert await kept.authorization(channel) is None
    assert await kept.keep_authorization(channel, first) == first
    assert await kept.keep_authorization(channel, replace(first, salt=b"t" * 32)) == first
    await kept.drop_authorization(channel, b"t" * 32)
    assert await kept.authorization(channel) == first
    await kept.drop_authorization(channel, first.salt)
    assert await kept.authorization(channel) is None


async def test_cursors_begin_at_nothing(kept: SqliteTransactions) -> None:
    assert await kept.cursor("logs") == 0
    await kept.move_cursor("logs", 17)
    await kept.move_cursor("logs", 12)
    assert await kept.cursor("logs") == 12


async def test_a_failure_in_the_middle_leaves_nothing(store: Store, kept: SqliteTransactions) -> None:
    """The attempt cannot be written, so the transaction is not there either."""
    first = await kept.add(made())
    with pytest.raises(LedgerDamaged):
        await kept.add(made("claim:2#0", 1, attempts=first.attempts))
    assert await kept.find("claim:2#0") is None
    rows = await store.run(lambda db: db.execute("SELECT count(*) FROM attempts").fetchone())
    assert rows == (1,) and issubclass(sqlite3.IntegrityError, sqlite3.Error)
