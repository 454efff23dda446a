"""What a node may spend, with a wallet in every kind of trouble: it starts, and pays no more than it was told to."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest

from meshnode.api.paying import Progress
from meshnode.core.audit import checked
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import FREE, Price, charge
from meshnode.errors import (
    DiskFull,
    LedgerDamaged,
    MonthlyCapReached,
    NoChannel,
    NoWallet,
    PaymentRefused,
    PaymentRequired,
    PaymentsOff,
    PriceAboveCeiling,
    WalletInUse,
)
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.store import NAME, RETRY_S
from meshnode.settlement.store_events import waiting_events
from meshnode.spending import FUND_WAIT_S
from tests.lab.paying_ends import CHANNEL, DEPOSIT_MICROS, MODEL, NETWORK, PRICE, RECEIVER
from tests.money_stage import (
    NOVEMBER,
    OUTPUT,
    SELLING_NODE,
    Clocks,
    Purse,
    Standing,
    call,
    channel_in,
    open_channel,
    purse,
    quote,
    receipt,
    voucher,
)

pytestmark = pytest.mark.anyio
DAY_S = 86_400.0
MOST = charge(PRICE, 400, 100)
"""What one call may cost."""


def allowed(month_micros: int, **changes: object) -> Standing:
    return Standing(Policy(mode="auto", ceiling=PRICE, month_micros=month_micros, **changes))  # type: ignore[arg-type]


async def bought(payer: Purse, name: str, tokens_out: int = 100) -> int:
    """One whole request, as an honest provider serves it; what it cost."""
    channel = await channel_in(payer.store)
    stated = {"vouched": channel.signed_micros, "signature": channel.signature, "charged": channel.charged_micros}
    payment = await payer.spending.begin(call(name))
    signed = quote(id=name.encode().ljust(16), **stated)  # type: ignore[arg-type]
    await payment.quoted(signed)
    came = Progress(4 * tokens_out, 50, tokens_out)
    for tokens in range(1, tokens_out + 1, 16):
        await payment.received(Progress(4 * tokens, 50, tokens))
    await payment.receipt(receipt(name, signed, 50, tokens_out, charge(PRICE, 50, tokens_out)), came, OUTPUT)
    return await payment.ended("whole", came)


# --- what the policy says -------------------------------------------------------------------------------------


async def test_hosts_are_refused_by_mode_chain_and_ceiling(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        refusal, chain = payer.spending.refusal, NETWORK.chain
        assert refusal(PRICE, chain, MODEL) is None
        assert isinstance(refusal(PRICE, 8453, MODEL), PaymentRefused)
        dear = Price(PRICE.tokens_in, PRICE.tokens_out + 1)
        assert isinstance(refusal(dear, chain, MODEL), PriceAboveCeiling)
        payer.standing.policy = Policy(
            mode="auto", ceiling=PRICE, model_ceilings={MODEL: dear}, month_micros=DEPOSIT_MICROS
        )
        assert refusal(dear, chain, MODEL) is None
        payer.standing.why_not = "MESHNODE_NO_PAY is set"
        refused = refusal(FREE, chain, MODEL)
        assert isinstance(refused, PaymentsOff) and "NO_PAY" in refused.message
        with pytest.raises(PaymentsOff):
            await payer.spending.begin(call())


async def test_the_cap_of_a_month_holds_over_requests_that_run_at_once(tmp_path: Path) -> None:
    async with purse(tmp_path, standing=allowed(10 * MOST + MOST // 2)) as payer:
        found = await asyncio.gather(*(payer.spending.begin(call()) for _ in range(64)), return_exceptions=True)
        refused = [item for item in found if isinstance(item, MonthlyCapReached)]
        assert len(refused) == 54
        assert payer.spending.facts()["reserved_micros"] == 10 * MOST
        for item in found:
            if not isinstance(item, BaseException):
                await item.ended("refused", Progress())
        assert payer.spending.facts()["reserved_micros"] == 0


async def test_a_caller_that_leaves_while_it_is_reserved_leaves_nothing_reserved(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        for turns in range(6):
            begin = asyncio.ensure_future(payer.spending.begin(call()))
            for _ in range(turns):
                await asyncio.sleep(0)
            begin.cancel()
            with pytest.raises(asyncio.CancelledError):
                await begin
        await payer.store.run(lambda _: None)
        assert payer.spending.facts()["reserved_micros"] == 0
        running = "SELECT count(*) FROM requests WHERE state = 'running'"
        assert await payer.store.run(lambda db: db.execute(running).fetchone()) == (0,)


async def test_a_cap_that_is_used_up_refuses_hosts_until_the_month_ends(tmp_path: Path) -> None:
    clocks = Clocks()
    async with purse(tmp_path, standing=allowed(MOST + 20), clocks=clocks) as payer:
        cost = await bought(payer, "a")
        payer.standing.policy = allowed(cost).policy
        assert isinstance(payer.spending.refusal(PRICE, NETWORK.chain, MODEL), MonthlyCapReached)
        clocks.now += 10 * DAY_S
        assert payer.spending.refusal(PRICE, NETWORK.chain, MODEL) is None
        payer.standing.policy = allowed(MOST + 20).policy
        await bought(payer, "b")
        assert payer.spending.facts()["month"] == "2026-12"


async def test_a_clock_that_goes_back_makes_no_room_in_the_cap(tmp_path: Path) -> None:
    """A day or a month off, before or after a restart: what was signed counts."""
    clocks = Clocks(now=NOVEMBER + 10 * DAY_S)
    standing = allowed(MOST + 20)
    async with purse(tmp_path, standing=standing, clocks=clocks) as payer:
        cost = await bought(payer, "a")
        clocks.now = NOVEMBER
        assert payer.spending.facts()["committed_micros"] == cost
        with pytest.raises(MonthlyCapReached):
            await payer.spending.begin(call())
    async with purse(tmp_path, standing=standing, clocks=clocks, micros=0) as payer:
        assert payer.spending.facts()["committed_micros"] == cost
        with pytest.raises(MonthlyCapReached):
            await payer.spending.begin(call())


async def test_a_quote_is_good_whatever_clock_the_provider_has(tmp_path: Path) -> None:
    for off in (-DAY_S, DAY_S):
        async with purse(tmp_path / str(off)) as payer:
            payment = await payer.spending.begin(call())
            assert await payment.quoted(quote(not_after=int(NOVEMBER + off))) is not None


async def test_a_prompt_that_is_dearer_than_may_be_paid_in_advance(tmp_path: Path) -> None:
    async with purse(tmp_path, standing=allowed(DEPOSIT_MICROS, prepay_micros=100)) as payer:
        with pytest.raises(PaymentRequired):
            await payer.spending.begin(call())


# --- channels -------------------------------------------------------------------------------------------------


async def test_without_a_channel_one_is_filled_once_for_all_who_wait(tmp_path: Path) -> None:
    asked: list[tuple[bytes, int]] = []

    async def fund(node: bytes, least_micros: int) -> None:
        asked.append((node, least_micros))
        await asyncio.sleep(0)
        await open_channel(payer.store, "payer", node, payer.spending.take)

    async with purse(tmp_path, micros=0, fund=fund) as payer:
        await asyncio.gather(payer.spending.begin(call()), payer.spending.begin(call()))
        assert asked == [(SELLING_NODE.node_id, MOST)]


async def test_without_money_for_one_the_request_is_refused_in_words(tmp_path: Path) -> None:
    async with purse(tmp_path, micros=0) as payer:
        with pytest.raises(NoChannel) as refused:
            await payer.spending.begin(call())
        assert "deposit" in refused.value.fix

    async def nothing_comes(_: bytes, __: int) -> None:
        raise NoChannel("the wallet is empty")

    async with purse(tmp_path, micros=0, fund=nothing_comes) as payer:
        with pytest.raises(NoChannel, match="empty"):
            await payer.spending.begin(call())


async def test_a_request_does_not_wait_for_a_slow_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.spending.FUND_WAIT_S", FUND_WAIT_S / 1000)
    never = asyncio.Event()

    async def fund(_: bytes, __: int) -> None:
        await never.wait()

    async with purse(tmp_path, micros=0, fund=fund) as payer:
        with pytest.raises(NoChannel, match="on its way"):
            await payer.spending.begin(call())


async def test_a_channel_that_is_used_up_closed_or_somebody_elses_is_not_used(tmp_path: Path) -> None:
    async with purse(tmp_path, micros=MOST - 1) as payer:
        with pytest.raises(NoChannel):
            await payer.spending.begin(call())
        assert payer.book is not None
        more = {"balance_micros": DEPOSIT_MICROS, "claimed_micros": 0, "withdrawable_at": None}
        await payer.book.seen(CHANNEL, usable_micros=DEPOSIT_MICROS, state="open", **more)  # type: ignore[arg-type]
        await payer.spending.begin(call())
        await payer.book.seen(CHANNEL, usable_micros=DEPOSIT_MICROS, state="withdrawing", **more)  # type: ignore[arg-type]
        with pytest.raises(NoChannel):
            await payer.spending.begin(call())
    async with purse(tmp_path / "other", key=lambda: RECEIVER) as payer:  # the voucher key was replaced
        with pytest.raises(NoChannel):
            await payer.spending.begin(call())


async def test_deposits_count_from_before_they_are_signed_until_they_are_seen(tmp_path: Path) -> None:
    standing = allowed(3_000_000, most_deposit_micros=2_000_000)
    async with purse(tmp_path, standing=standing) as payer:
        assert await payer.spending.deposit_wanted(CHANNEL) == 500_000
        await payer.spending.deposit_begins(CHANNEL, 600_000)
        with pytest.raises(PaymentRequired):
            await payer.spending.deposit_begins(CHANNEL, 600_000)
        assert payer.spending.facts()["locked_micros"] == 1_600_000
    async with purse(tmp_path, standing=standing, micros=0) as payer:  # still on its way after a restart
        assert payer.spending.facts()["locked_micros"] == 1_600_000
        book = await open_channel(payer.store, "payer", SELLING_NODE.node_id, payer.spending.take)
        await book.seen(
            CHANNEL,
            balance_micros=1_600_000,
            usable_micros=1_600_000,
            claimed_micros=0,
            state="open",
            withdrawable_at=None,
        )
        assert payer.spending.facts()["locked_micros"] == 1_600_000
        await payer.spending.deposit_begins(CHANNEL, 400_000)
        await payer.spending.deposit_failed(CHANNEL, 400_000)
        assert payer.spending.facts()["locked_micros"] == 1_600_000


async def test_what_the_chain_has_paid_out_was_signed(tmp_path: Path) -> None:
    """A journal from an old backup, and no provider to ask: a claim is proof of a signature."""
    async with purse(tmp_path, standing=allowed(800_000)) as payer:
        assert payer.book is not None
        seen = {"balance_micros": DEPOSIT_MICROS, "usable_micros": DEPOSIT_MICROS, "withdrawable_at": None}
        await payer.book.seen(CHANNEL, claimed_micros=700_000, state="open", **seen)  # type: ignore[arg-type]
        assert payer.spending.facts()["committed_micros"] == 700_000
        assert (await channel_in(payer.store)).signed_micros == 700_000
        with pytest.raises(MonthlyCapReached):
            await payer.spending.begin(call(most_out=200_000))


# --- a wallet in trouble --------------------------------------------------------------------------------------


async def test_without_a_key_nothing_is_paid(tmp_path: Path) -> None:
    def no_key() -> VoucherKey:
        raise NoWallet

    async with purse(tmp_path, key=no_key) as payer:
        with pytest.raises(NoWallet):
            await payer.spending.begin(call())
        assert not payer.spending.facts()["paying"]


async def test_a_damaged_journal_is_said_and_stays(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        await bought(payer, "a")
    (tmp_path / NAME).write_bytes(b"what is this" * 1000)
    async with purse(tmp_path, micros=0) as payer:
        assert isinstance(payer.spending.refusal(PRICE, NETWORK.chain, MODEL), LedgerDamaged)
        with pytest.raises(LedgerDamaged):
            await payer.spending.begin(call())
        assert payer.spending.facts()["damaged"]


async def test_a_voucher_that_does_not_bear_its_signature_is_damage(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        await bought(payer, "a")
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute("UPDATE channels SET signed_micros = signed_micros + 1")
    db.close()
    async with purse(tmp_path, micros=0) as payer:
        with pytest.raises(LedgerDamaged, match="not what was signed"):
            await payer.spending.begin(call())


async def test_two_nodes_with_one_wallet(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        await bought(payer, "a")
        async with purse(tmp_path, micros=0) as other:
            with pytest.raises(WalletInUse):
                await other.spending.begin(call())
            assert not other.spending.facts()["paying"]
        await bought(payer, "b")


async def test_the_second_node_goes_on_when_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.settlement.store.RETRY_S", RETRY_S / 1000)
    async with purse(tmp_path) as payer:
        other = purse(tmp_path, micros=0)
        second = await other.__aenter__()
        cost = await bought(payer, "a")
    await asyncio.sleep(0.01)
    await second.spending.begin(call())
    assert second.spending.facts()["committed_micros"] == cost
    await other.__aexit__(None, None, None)


async def test_a_full_disk_pays_nothing_and_is_got_over(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call())
        first = await payment.quoted(quote())
        assert first is not None
        full: list[DiskFull] = []

        async def fails(_: object) -> None:
            full.append(DiskFull("no room"))
            raise full[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(payer.store, "run", fails)
            with pytest.raises(DiskFull):
                await payment.received(Progress(400, 50, 100))
            with pytest.raises(DiskFull):  # nothing more is taken on these books
                await payment.received(Progress(400, 50, 100))
            with pytest.raises(DiskFull):
                await payer.spending.begin(call())
            assert await payment.ended("broken", Progress(400, 50, 100)) > 0
        assert (await channel_in(payer.store)).signed_micros == first.cumulative
        # Once there is room again, new books are opened, and the request that was cut off is over.
        again = await payer.spending.begin(call())
        channel = await channel_in(payer.store)
        stated = {"vouched": channel.signed_micros, "signature": channel.signature, "charged": channel.charged_micros}
        assert await again.quoted(quote(**stated)) is not None  # type: ignore[arg-type]
        states = await payer.store.run(lambda db: db.execute("SELECT state FROM requests ORDER BY number").fetchall())
        assert states == [("interrupted",), ("running",)]


async def test_an_old_backup_spends_nothing_twice(tmp_path: Path) -> None:
    async with purse(tmp_path / "now") as payer:
        await bought(payer, "a")
    shutil.copytree(tmp_path / "now", tmp_path / "backup")
    async with purse(tmp_path / "now", micros=0) as payer:
        cost = sum([await bought(payer, "b"), await bought(payer, "c")])
        newest = await channel_in(payer.store)
    async with purse(tmp_path / "backup", micros=0) as payer:
        before = payer.spending.facts()["committed_micros"]
        payment = await payer.spending.begin(call("b"))  # the id is free here; the provider would refuse it
        stated = {"vouched": newest.signed_micros, "signature": newest.signature, "charged": newest.charged_micros}
        next_voucher = await payment.quoted(quote(**stated))  # type: ignore[arg-type]
        assert next_voucher is not None and next_voucher.cumulative > newest.signed_micros
        assert payer.spending.facts()["committed_micros"] == before + cost + charge(PRICE, 0, 64)
        assert voucher(next_voucher.cumulative) == next_voucher


async def test_the_audit_log_takes_what_it_is_told(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        await bought(payer, "a")
        payment = await payer.spending.begin(call("b"))
        await payment.quoted(quote(vouched=9_000, signature=voucher(9_000).signature, charged=9_000))
        await payment.ended("broken", Progress())
        events = await payer.store.run(waiting_events)
        assert [event.kind for event in events] == ["paid", "proven", "paid"]
        assert all(checked(event.kind, event.facts) == event.facts for event in events)


async def test_facts_of_a_purse_that_was_never_used(tmp_path: Path) -> None:
    async with purse(tmp_path, standing=Standing(Policy(), why_not="paying is off"), micros=0) as payer:
        facts = payer.spending.facts()
        assert facts == {
            "month": "2026-11",
            "committed_micros": 0,
            "reserved_micros": 0,
            "locked_micros": 0,
            "remaining_micros": 0,
            "is_near_cap": facts["is_near_cap"],
            "paying": False,
            "why_not": "paying is off",
            "damaged": "",
        }
