"""One sale: what is vouched for goes out, what is not does not, and what went out is charged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshnode.core.prices import charge
from meshnode.earning_sales import MOST_READ_FOR_NOTHING
from meshnode.errors import PaymentRefused
from meshnode.identity import verify
from meshnode.wire import quotes, receipts
from meshnode.wire.registry import PayCode
from tests.lab.paying_ends import CHANNEL, CONTENT_HASH, DEPOSIT_MICROS, MODEL, NETWORK, PAYER, PRICE, RECEIVER
from tests.money_stage import OUTPUT, PAYING_NODE, SELLING_NODE, Shop, ask, channel_in, shop, voucher

pytestmark = pytest.mark.anyio


async def opened(provider: Shop, name: str = "") -> object:
    return await provider.earning.open(PAYING_NODE.node_id, ask(name), model=MODEL, content_hash=CONTENT_HASH)


async def test_tokens_go_out_as_far_as_they_are_vouched_for(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider)
        assert sale.may_start(2048) and not sale.may_start(2049)
        assert not sale.may_emit(50, 1)
        due = sale.due(50, 1)
        assert (due.cumulative, due.tokens_in, due.tokens_out) == (charge(PRICE, 50, 1), 50, 1)
        assert await sale.voucher(voucher(due.cumulative))
        assert sale.may_emit(50, 1) and not sale.may_emit(50, 2)
        assert await sale.voucher(voucher(charge(PRICE, 50, 64)))
        assert sale.may_emit(50, 64) and not sale.may_emit(50, 65)


async def test_a_voucher_is_on_the_disk_before_anything_goes_out_for_it(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider, "r.1")
        taking = asyncio.ensure_future(sale.voucher(voucher(80)))
        while not taking.done():
            assert not sale.may_emit(0, 1)
            await asyncio.sleep(0)
        channel = await channel_in(provider.store)
        assert (channel.signed_micros, channel.signature) == (80, voucher(80).signature)


async def test_vouchers_that_are_worth_nothing_change_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider)
        assert await sale.voucher(voucher(80))
        bad = [
            voucher(80),
            voucher(79),
            voucher(0),
            voucher(90, key=RECEIVER),
            voucher(90, chain=1),
            voucher(90, channel=bytes([1]) * 32),
            type(voucher(90))(CHANNEL, 91, voucher(90).signature),
            type(voucher(90))(CHANNEL, 90, bytes(65)),
            type(voucher(90))(CHANNEL, 90, voucher(90).signature[:-1] + b"\0"),
        ]
        assert [await sale.voucher(one) for one in bad] == [False] * len(bad)
        channel = await channel_in(provider.store)
        assert (channel.signed_micros, channel.signature) == (80, voucher(80).signature)
        assert provider.looked == []


async def test_a_voucher_above_the_deposit_ends_the_sale_once_the_chain_was_asked(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider)
        with pytest.raises(PaymentRefused) as refused:
            await sale.voucher(voucher(DEPOSIT_MICROS + 1))
        assert refused.value.pay_code == PayCode.INSUFFICIENT_BALANCE and provider.looked == [CHANNEL]
        provider.clocks.passed += 10

        async def topped_up(*_: object) -> None:
            assert provider.book is not None
            more = {"balance_micros": 2 * DEPOSIT_MICROS, "usable_micros": 2 * DEPOSIT_MICROS, "claimed_micros": 0}
            await provider.book.seen(CHANNEL, **more, state="open", withdrawable_at=None)  # type: ignore[arg-type]

        provider.earning._look_at_chain = topped_up
        assert await sale.voucher(voucher(DEPOSIT_MICROS + 1))


async def test_two_sales_do_not_use_one_voucher_twice(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        one, two = await opened(provider), await opened(provider)
        assert await one.voucher(voucher(charge(PRICE, 0, 100)))
        assert one.may_emit(0, 60)
        assert two.may_emit(0, 39) and not two.may_emit(0, 41)
        assert not one.may_emit(0, 62)
        quote = quotes.read((await opened(provider)).quote)
        assert quote.charged == quote.vouched  # nobody is told that there is something left


async def test_vouchers_that_come_on_two_sales_at_once_are_written_one_after_another(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sales = [await opened(provider) for _ in range(4)]
        sums = [80, 200, 120, 160]
        found = await asyncio.gather(*(sale.voucher(voucher(each)) for sale, each in zip(sales, sums, strict=True)))
        assert found == [True, True, False, False]
        assert (await channel_in(provider.store)).signed_micros == 200


async def test_the_receipt_says_what_was_given_and_is_made_once(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider, "r.1")
        assert sale.charged_micros == 0
        await sale.voucher(voucher(charge(PRICE, 50, 100)))
        assert sale.may_emit(50, 70)
        text = await sale.ended(50, 60, "cancelled", OUTPUT)
        assert text == await sale.ended(50, 70, "stop", OUTPUT)
        found = receipts.read_genuine(text, verify)
        cost = charge(PRICE, 50, 60)
        assert sale.charged_micros == found.charged_micros == found.channel_charged_micros == cost
        assert (found.request, found.node, found.payer) == ("r.1", SELLING_NODE.node_id, PAYER.address)
        assert (found.channel, found.chain, found.hub) == (CHANNEL, NETWORK.chain, NETWORK.hub)
        assert (found.quote, found.model) == (quotes.read(sale.quote).id, MODEL)
        assert (found.tokens_in, found.tokens_out, found.finish) == (50, 60, "cancelled")
        assert found.output_sha256.hex() == OUTPUT
        channel = await channel_in(provider.store)
        assert channel.charged_micros == cost
        assert not sale.may_emit(50, 61)
        # The exact end may still come.
        assert await sale.voucher(voucher(charge(PRICE, 50, 101)))


async def test_what_was_not_given_costs_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider)
        assert sale.may_start(500)
        await sale.voucher(voucher(80))
        found = receipts.read(await sale.ended(0, 0, "broken", OUTPUT))
        assert (found.charged_micros, found.tokens_in, found.tokens_out) == (0, 0, 0)
        assert (await channel_in(provider.store)).charged_micros == 0


async def test_no_more_is_charged_than_was_let_out(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider)
        await sale.voucher(voucher(charge(PRICE, 50, 64)))
        assert sale.may_emit(50, 10)
        await sale.ended(50, 1000, "length", OUTPUT)
        assert sale.charged_micros == charge(PRICE, 50, 10)


async def test_what_is_vouched_for_while_the_payer_withdraws_is_kept_and_nothing_given_for_it(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider)
        provider.earning.withdrawn(CHANNEL)
        with pytest.raises(PaymentRefused) as refused:
            await sale.voucher(voucher(80))
        assert refused.value.pay_code == PayCode.WITHDRAW_PENDING
        assert (await channel_in(provider.store)).signed_micros == 80
        assert not sale.may_emit(0, 1)


async def test_prompts_of_somebody_who_never_pays_are_read_a_few_times(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:

        async def asks() -> bool:
            sale = await opened(provider)
            started = sale.may_start(500)
            await sale.ended(0, 0, "cancelled", OUTPUT)
            return started

        assert [await asks() for _ in range(6)] == [True] * MOST_READ_FOR_NOTHING + [False] * 2
        sale = await opened(provider)
        assert not sale.may_start(500)
        assert await sale.voucher(voucher(charge(PRICE, 500, 0)))
        assert sale.may_start(500)
        await sale.ended(0, 0, "cancelled", OUTPUT)
        assert await asks()


async def test_an_engine_that_gives_more_than_was_asked_for_is_paid_what_was_asked_for(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider)
        most = charge(PRICE, 50, 100)
        assert sale.due(50, 103).cumulative == most
        await sale.voucher(voucher(most))
        assert sale.may_emit(50, 103)
        await sale.ended(50, 103, "length", OUTPUT)
        assert sale.charged_micros == most
