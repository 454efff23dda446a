"""One paid request against providers of every kind: what they say is signed for only as far as it is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshnode import identity
from meshnode.api.paying import Progress
from meshnode.core.prices import charge
from meshnode.errors import MeshnodeError, PaymentRefused, PaymentsOff, PriceAboveCeiling, ReceiptInvalid
from meshnode.wire import quotes
from meshnode.wire.payments import PayDue
from meshnode.wire.registry import PayCode
from tests.lab.paying_ends import CHANNEL, CONFIG, PRICE, RECEIVER
from tests.money_stage import (
    OUTPUT,
    SELLING_NODE,
    Purse,
    call,
    channel_in,
    purse,
    quote,
    receipt,
    voucher,
)

pytestmark = pytest.mark.anyio


def came(tokens_out: int, tokens_in: int = 50, text_bytes: int | None = None) -> Progress:
    return Progress(4 * tokens_out if text_bytes is None else text_bytes, tokens_in, tokens_out)


async def test_an_answer_is_paid_ahead_by_a_window_and_exactly_in_the_end(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call("r.1"))
        message, early = await payment.ask()
        assert (message.request, message.most_out, message.channel, message.quote) == ("r.1", 100, CONFIG, b"")
        assert early is None and payment.step_tokens == 32
        signed = quote()
        sums = []
        for voucher_or_none in (
            await payment.quoted(signed),
            await payment.received(came(1)),
            await payment.received(came(32)),
            await payment.received(came(33)),
            await payment.received(came(65)),
            await payment.received(came(97)),
        ):
            if voucher_or_none is not None:
                assert voucher_or_none == voucher(voucher_or_none.cumulative)
                sums.append(voucher_or_none.cumulative)
        assert sums == sorted(set(sums)) and sums[0] == charge(PRICE, 0, 64) and sums[-1] == charge(PRICE, 50, 100)
        charged = charge(PRICE, 50, 100)
        text = receipt("r.1", signed, 50, 100, charged)
        assert await payment.receipt(text, came(100), OUTPUT) is None
        assert await payment.ended("whole", came(100)) == charged
        channel = await channel_in(payer.store)
        assert channel.signed_micros == channel.charged_micros == charged
        assert payer.spending.facts()["committed_micros"] == charged
        assert payer.spending.facts()["reserved_micros"] == 0


async def test_a_voucher_is_on_the_disk_before_it_is_handed_on(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call())
        first = await payment.quoted(quote())
        channel = await channel_in(payer.store)
        assert first is not None
        assert (channel.signed_micros, channel.signature) == (first.cumulative, first.signature)
        months = await payer.store.run(lambda db: db.execute("SELECT day, micros FROM spent").fetchall())
        assert months == [("2026-11-21", first.cumulative)]


async def test_a_charge_below_what_was_signed_leaves_headroom_to_the_next_request(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call("r.1"))
        signed = quote()
        first = await payment.quoted(signed)
        assert first is not None
        charged = charge(PRICE, 5, 10)
        await payment.receipt(receipt("r.1", signed, 5, 10, charged), came(10, 5), OUTPUT)
        assert await payment.ended("whole", came(10, 5)) == charged
        payer.clocks.passed += 1
        again = await payer.spending.begin(call("r.2"))
        # The price is known from before: the first voucher goes along with the question.
        message, early = await again.ask()
        assert message.quote == quotes.read(signed).id
        assert early is not None and early.cumulative == charged + charge(PRICE, 0, 64)
        assert payer.spending.facts()["committed_micros"] == early.cumulative


async def test_a_quote_that_is_old_is_not_relied_on(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call("r.1"))
        signed = quote()
        await payment.quoted(signed)
        await payment.receipt(receipt("r.1", signed, 5, 0, 0), came(0, 5), OUTPUT)
        await payment.ended("whole", came(0, 5))
        payer.clocks.passed += 50
        message, early = await (await payer.spending.begin(call("r.2"))).ask()
        assert (message.quote, early) == (b"", None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"price_out": PRICE.tokens_out + 1}, PayCode.PRICE_ABOVE_CEILING),
        ({"price_in": PRICE.tokens_in - 1}, PayCode.PRICE_ABOVE_CEILING),
        ({"model": "other"}, PayCode.BAD_SIGNATURE),
        ({"content_hash": bytes(16)}, PayCode.BAD_SIGNATURE),
        ({"channel": bytes([1]) * 32}, PayCode.BAD_SIGNATURE),
        ({"chain": 1}, PayCode.BAD_SIGNATURE),
        ({"hub": bytes([1]) * 20}, PayCode.UNSUPPORTED_NETWORK),
        ({"token": bytes([1]) * 20}, PayCode.UNSUPPORTED_NETWORK),
        ({"receiver": bytes([1]) * 20}, PayCode.UNKNOWN_CHANNEL),
        ({"receiver_authorizer": bytes([1]) * 20}, PayCode.UNKNOWN_CHANNEL),
        ({"charged": 1, "vouched": 0}, PayCode.CUM_MISMATCH),
        ({"vouched": 10, "signature": bytes(65)}, PayCode.BAD_SIGNATURE),
        ({"vouched": 10, "signature": voucher(11).signature}, PayCode.BAD_SIGNATURE),
        ({"vouched": 10, "signature": voucher(10, key=RECEIVER).signature}, PayCode.BAD_SIGNATURE),
        ({"vouched": 10, "signature": voucher(10, chain=1).signature}, PayCode.BAD_SIGNATURE),
    ],
)
async def test_nothing_is_signed_under_a_quote_that_is_not_what_was_advertised(
    tmp_path: Path, changes: dict[str, Any], code: PayCode
) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call())
        with pytest.raises(PaymentRefused) as refused:
            await payment.quoted(quote(**changes))
        assert refused.value.pay_code == code
        assert await payment.ended("refused", Progress()) == 0
        await nothing_was_spent(payer)


async def nothing_was_spent(payer: Purse) -> None:
    assert (await channel_in(payer.store)).signed_micros == 0
    facts = payer.spending.facts()
    assert (facts["committed_micros"], facts["reserved_micros"]) == (0, 0)


async def test_quotes_of_others_and_bytes_that_are_none(tmp_path: Path) -> None:
    other = identity.ephemeral()
    for bad in (quote(other), quote(other, node=other.node_id), b"", bytes(100), quote()[:-1]):
        async with purse(tmp_path) as payer:
            payment = await payer.spending.begin(call())
            with pytest.raises(PaymentRefused):
                await payment.quoted(bad)
            await payment.ended("refused", Progress())
            await nothing_was_spent(payer)


async def test_a_price_cannot_be_raised_in_the_middle(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call())
        await payment.quoted(quote())
        before = await channel_in(payer.store)
        with pytest.raises(PaymentRefused):
            await payment.quoted(quote(price_out=PRICE.tokens_out + 1))
        await payment.ended("refused", Progress())
        assert (await channel_in(payer.store)).signed_micros == before.signed_micros


@pytest.mark.parametrize(
    "claim", [came(60, text_bytes=30), came(101, text_bytes=4000), came(10, tokens_in=401), came(2**31)]
)
async def test_more_tokens_than_can_have_come_are_not_paid_and_the_node_not_again(
    tmp_path: Path, claim: Progress
) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call())
        first = await payment.quoted(quote())
        assert first is not None
        for attempt in (payment.received(claim), payment.due(PayDue(10**9, claim.tokens_in, 1), claim)):
            with pytest.raises(PaymentRefused):
                await attempt
        assert await payment.ended("refused", claim) <= first.cumulative
        assert (await channel_in(payer.store)).signed_micros == first.cumulative
        with pytest.raises(PaymentRefused, match="not paid for a while"):
            await payer.spending.begin(call())
        payer.clocks.passed += 4000
        await payer.spending.begin(call())


async def test_who_waits_gets_what_is_due_and_the_last_voucher_again(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call())
        assert await payment.due(PayDue(10, 0, 1), Progress()) is None  # before there is a quote
        first = await payment.quoted(quote())
        assert await payment.due(PayDue(5, 0, 500), Progress()) == first  # it was lost
        more = await payment.due(PayDue(10**9, 50, 10), came(10))
        # Whatever is asked for: what came, and a window.
        assert more is not None and more.cumulative == charge(PRICE, 50, 74)


async def test_what_the_policy_no_longer_allows_is_not_signed_in_the_middle(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[MeshnodeError]]] = [
        ({"mode": "off"}, PaymentsOff),
        ({"no_pay": True}, PaymentsOff),
        ({"ceiling": None}, PriceAboveCeiling),
    ]
    for changes, error in cases:
        async with purse(tmp_path) as payer:
            payment = await payer.spending.begin(call())
            await payment.quoted(quote(**await as_it_stands(payer)))
            before = (await channel_in(payer.store)).signed_micros
            policy = payer.standing.policy
            payer.standing.policy = type(policy)(
                **{"mode": "auto", "ceiling": PRICE, "month_micros": policy.month_micros, **changes}
            )
            with pytest.raises(error):
                await payment.received(came(60))
            await payment.ended("refused", came(60))
            assert (await channel_in(payer.store)).signed_micros == before


async def as_it_stands(payer: Purse) -> dict[str, Any]:
    """What an honest provider states of the channel in its quote."""
    channel = await channel_in(payer.store)
    return {"vouched": channel.signed_micros, "signature": channel.signature, "charged": channel.charged_micros}


@pytest.mark.parametrize(
    "changes",
    [
        {"request": "r.9"},
        {"quote": bytes(16)},
        {"model": "other"},
        {"content_hash": bytes(16)},
        {"payer": RECEIVER.address},
        {"channel": bytes(32)},
        {"chain": 1},
        {"hub": bytes([1]) * 20},
        {"output_sha256": bytes(32)},
        {"price_out": PRICE.tokens_out + 10_000_000},
        {"tokens_out": 90},
        {"tokens_in": 401, "charged_micros": 13},
    ],
)
async def test_a_receipt_for_something_else_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call("r.1"))
        signed = quote()
        first = await payment.quoted(signed)
        assert first is not None
        text = receipt("r.1", signed, 5, 10, charge(PRICE, 5, 10), **changes)
        with pytest.raises(ReceiptInvalid):
            await payment.receipt(text, came(10, 5), OUTPUT)
        with pytest.raises(ReceiptInvalid):
            await payment.receipt(text[:-3] + b'0"}', came(10, 5), OUTPUT)
        # What was signed stays spent, and is taken as used until the provider says otherwise.
        assert await payment.ended("broken", came(10, 5)) == first.cumulative
        assert (await channel_in(payer.store)).charged_micros == first.cumulative


async def test_an_old_backup_learns_from_the_provider_what_it_had_signed(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call())
        lost = voucher(5_000)
        # What is left of it is more than the first window costs.
        assert await payment.quoted(quote(vouched=5_000, signature=lost.signature, charged=4_900)) is None
        second = await payment.received(came(80))
        assert second is not None and second.cumulative == 4_900 + charge(PRICE, 50, 100)
        facts = payer.spending.facts()
        # All of it counts against this month: there is no other record of it.
        assert facts["committed_micros"] == second.cumulative


async def test_a_provider_that_forgot_the_last_voucher_gets_it_again(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        payment = await payer.spending.begin(call("r.1"))
        first = await payment.quoted(quote())
        await payment.ended("broken", Progress())
        again = await payer.spending.begin(call("r.2", most_out=1))
        given = await again.quoted(quote(id=bytes([5]) * 16))
        assert first is not None and given is not None
        assert given.cumulative >= first.cumulative


async def test_the_window_grows_with_speed_and_distance_but_not_beyond_the_quote(tmp_path: Path) -> None:
    async with purse(tmp_path) as payer:
        for most, ahead in ((256, 256), (100, 100), (1, 64)):
            payment = await payer.spending.begin(call(most_out=1000, rtt_s=2.0))
            channel = await channel_in(payer.store)
            known = {
                "vouched": channel.signed_micros,
                "signature": channel.signature,
                "charged": channel.charged_micros,
            }
            await payment.quoted(quote(ahead_tokens=max(most, 32), **known))
            await payment.received(came(1))
            payer.clocks.passed += 1.0
            await payment.received(came(101))
            running = await payer.store.run(
                lambda db: db.execute("SELECT tokens_out FROM requests WHERE state = 'running'").fetchone()
            )
            assert running == (101 + ahead,)
            await payment.ended("broken", came(101))


async def test_it_is_the_node_that_signs(tmp_path: Path) -> None:
    assert quotes.read(quote()).node == SELLING_NODE.node_id
    assert quotes.read(quote()).channel == CHANNEL
