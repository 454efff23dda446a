"""The ledger and its journal move together, whatever fails between them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.windows import Window
from meshnode.errors import (
    GasCapReached,
    HomeNotWritable,
    LedgerDamaged,
    MeshnodeError,
    MonthlyCapReached,
    NoChannel,
    PaymentRefused,
    PaymentRequired,
    PaymentsOff,
    PriceAboveCeiling,
)
from meshnode.settlement.store import Store
from meshnode.spending_books import Books, error_of
from meshnode.spending_journal import Outcome
from tests.lab.paying_ends import CHANNEL, DEPOSIT_MICROS, MODEL, NETWORK, PAYER, PRICE
from tests.money_stage import NOVEMBER, channel_in, open_channel, voucher

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(folder: Path, micros: int = DEPOSIT_MICROS) -> AsyncIterator[tuple[Books, Store]]:
    store = Store(folder)
    await store.start()
    try:
        if micros:
            await open_channel(store, "payer", bytes([7]) * 32, micros=micros)
        policy = Policy(mode="auto", ceiling=PRICE, month_micros=DEPOSIT_MICROS)
        yield await Books.opened(store, lambda: policy, PAYER, NETWORK, lambda: NOVEMBER), store
    finally:
        await store.close()


async def reserved(books: Books, name: str = "r") -> None:
    await books.reserve(name, CHANNEL, MODEL, PRICE, 400, 100)


async def test_each_step_is_in_the_journal_when_it_returns(tmp_path: Path) -> None:
    async with opened(tmp_path) as (books, store):
        await reserved(books)
        rows = "SELECT id, state, tokens_in, tokens_out FROM requests"
        assert await store.run(lambda db: db.execute(rows).fetchall()) == [("r", "running", 0, 0)]
        first = await books.due("r", 0, 0, Window())
        assert first == books.voucher(CHANNEL) == voucher(first.cumulative if first else 0)
        assert await store.run(lambda db: db.execute(rows).fetchall()) == [("r", "running", 0, 64)]
        assert await books.due("r", 0, 1, Window()) is None
        assert await books.finished("r", 20, Outcome(5, 10, "stop", b"{}")) is None
        found = await store.run(
            lambda db: db.execute("SELECT id, state, charged_micros, receipt FROM requests").fetchall()
        )
        assert found == [("r", "ended", 20, b"{}")]
        channel = await channel_in(store)
        assert (channel.charged_micros, channel.signed_micros) == (20, first.cumulative if first else 0)
        kinds = await store.run(lambda db: db.execute("SELECT kind FROM events").fetchall())
        assert kinds == [("paid",)]


async def test_a_restart_finds_what_was_signed_and_ends_what_was_cut_off(tmp_path: Path) -> None:
    async with opened(tmp_path) as (books, _):
        await reserved(books)
        first = await books.due("r", 0, 0, Window())
    async with opened(tmp_path, micros=0) as (books, store):
        assert books.voucher(CHANNEL) == first and first is not None
        assert books.ledger.running("r") is None and CHANNEL in books.unsure
        assert books.ledger.committed("2026-11") == first.cumulative
        # As long as nobody says otherwise, all that was signed is taken as used.
        assert books.settled_micros(CHANNEL) == first.cumulative
        found = await store.run(lambda db: db.execute("SELECT state, charged_micros FROM requests").fetchall())
        assert found == [("interrupted", first.cumulative)]
        with pytest.raises(LedgerDamaged, match="before"):
            await reserved(books)
        assert isinstance(books.failed, LedgerDamaged)


async def test_requests_at_once_share_one_growing_sum(tmp_path: Path) -> None:
    async with opened(tmp_path) as (books, store):
        names = [f"r{number}" for number in range(16)]
        await asyncio.gather(*(reserved(books, name) for name in names))
        vouchers = await asyncio.gather(*(books.due(name, 50, 100, Window()) for name in names))
        sums = [item.cumulative for item in vouchers if item is not None]
        assert len(sums) == 16 and sums == sorted(set(sums))
        assert (await channel_in(store)).signed_micros == sums[-1] == books.ledger.committed("2026-11")


async def test_a_caller_that_leaves_leaves_the_step_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as (books, store):
        await reserved(books)
        signing = asyncio.ensure_future(books.due("r", 0, 0, Window()))
        await asyncio.sleep(0)
        signing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await signing
        await store.run(lambda _: None)
        await asyncio.sleep(0)
        known = books.voucher(CHANNEL)
        assert known is not None and known.cumulative == (await channel_in(store)).signed_micros > 0


async def test_a_write_that_fails_is_the_end_of_these_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as (books, store):
        await reserved(books)

        async def fails(_: object) -> None:
            raise HomeNotWritable("gone")

        with monkeypatch.context() as patch:
            patch.setattr(store, "run", fails)
            with pytest.raises(HomeNotWritable):
                await books.due("r", 0, 0, Window())
        for attempt in (books.due("r", 0, 50, Window()), reserved(books, "s"), books.release("r", Outcome())):
            with pytest.raises(HomeNotWritable):
                await attempt
        assert (await channel_in(store)).signed_micros == 0


async def test_a_voucher_that_somebody_shows_counts_by_its_signature(tmp_path: Path) -> None:
    async with opened(tmp_path) as (books, store):
        with pytest.raises(PaymentRefused):
            await books.proven(CHANNEL, 900, bytes(65))
        await books.proven(CHANNEL, 900, voucher(900).signature)
        await books.proven(CHANNEL, 800, voucher(800).signature)
        assert books.voucher(CHANNEL) == voucher(900)
        assert books.ledger.committed("2026-11") == 900
        assert (await channel_in(store)).signature == voucher(900).signature


async def test_a_journal_that_contradicts_itself_is_not_opened(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, store):

        def spoil(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO spent VALUES ('2026-13-01', ?, 5)", (CHANNEL,))

        await store.run(spoil)
    with pytest.raises(LedgerDamaged):
        async with opened(tmp_path, micros=0):
            raise AssertionError("opened")


@pytest.mark.parametrize(
    ("code", "figures", "error"),
    [
        ("pay_off", {}, PaymentsOff),
        ("no_pay", {}, PaymentsOff),
        ("no_channel", {}, NoChannel),
        (
            "price_above_ceiling",
            dict.fromkeys(("price_in", "price_out", "ceiling_in", "ceiling_out"), 1),
            PriceAboveCeiling,
        ),
        ("monthly_cap_reached", dict.fromkeys(("cap", "committed", "reserved", "wanted"), 1), MonthlyCapReached),
        ("gas_cap_reached", dict.fromkeys(("cap", "committed", "reserved", "wanted"), 1), GasCapReached),
        ("channel_exhausted", dict.fromkeys(("balance", "signed", "reserved", "wanted", "short"), 1), NoChannel),
        ("prepay_too_large", {"prepay": 1, "wanted": 2}, PaymentRequired),
        ("deposit_too_large", {"most": 1, "locked": 1, "wanted": 1}, PaymentRequired),
        ("over_count", {"claimed": 2, "most": 1}, PaymentRefused),
        ("insufficient_balance", {"balance": 1, "wanted": 2}, PaymentRefused),
    ],
)
def test_a_refusal_is_an_error_with_its_figures(code: str, figures: dict[str, int], error: type[MeshnodeError]) -> None:
    refused = Refused(code, figures)  # type: ignore[arg-type]
    found = error_of(refused)
    assert type(found) is error and found.detail == str(refused)
