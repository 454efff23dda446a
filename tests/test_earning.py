"""The till against payers of every kind, and with a journal in trouble."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode import identity
from meshnode.core.prices import FREE, charge
from meshnode.errors import ChainUnreachable, DiskFull, PaymentRefused
from meshnode.identity import verify
from meshnode.settlement.store import NAME
from meshnode.wire import quotes
from meshnode.wire.payments import PayState, PayTerms
from meshnode.wire.registry import PayCode
from tests.lab.paying_ends import CHANNEL, CONFIG, CONTENT_HASH, DEPOSIT_MICROS, MODEL, NETWORK, PRICE, RECEIVER
from tests.money_stage import (
    NOVEMBER,
    OUTPUT,
    PAYING_NODE,
    SELLING_NODE,
    Shop,
    ask,
    channel_in,
    open_channel,
    shop,
    voucher,
)

pytestmark = pytest.mark.anyio
ME = PAYING_NODE.node_id


async def opened(provider: Shop, name: str = "", node: bytes = ME, **changes: Any) -> Any:
    return await provider.earning.open(node, ask(name, **changes), model=MODEL, content_hash=CONTENT_HASH)


async def refusal(provider: Shop, name: str = "", node: bytes = ME, **changes: Any) -> PayCode:
    with pytest.raises(PaymentRefused) as refused:
        await opened(provider, name, node, **changes)
    return PayCode(refused.value.pay_code)


async def test_a_sale_begins_with_a_quote_that_says_how_the_channel_stands(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        assert provider.earning.price(MODEL) == PRICE and provider.earning.price("other") == FREE
        sale = await opened(provider, "r.1")
        quote = quotes.read_genuine(sale.quote, node=SELLING_NODE.node_id, verify=verify)
        quotes.expect(quote, model=MODEL, content_hash=CONTENT_HASH, chain=NETWORK.chain, channel=CHANNEL)
        assert (quote.price_in, quote.price_out) == (PRICE.tokens_in, PRICE.tokens_out)
        assert (quote.receiver, quote.receiver_authorizer) == (CONFIG.receiver, CONFIG.receiver_authorizer)
        assert (quote.charged, quote.vouched, quote.credit_tokens) == (0, 0, 0)
        assert quotes.is_timely(quote, NOVEMBER) and not quotes.is_timely(quote, NOVEMBER + 86_400)
        assert await sale.voucher(voucher(80))
        assert sale.may_emit(5, 10)
        await sale.ended(5, 10, "stop", OUTPUT)
        again = quotes.read((await opened(provider, "r.2")).quote)
        assert (again.charged, again.vouched, again.signature) == (charge(PRICE, 5, 10), 80, voucher(80).signature)
        assert again.id != quote.id


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"chain": 8453}, PayCode.UNSUPPORTED_NETWORK),
        ({"channel": None}, PayCode.UNKNOWN_CHANNEL),
        ({"channel": replace(CONFIG, token=bytes([1]) * 20)}, PayCode.UNSUPPORTED_NETWORK),
        ({"channel": replace(CONFIG, payer_authorizer=bytes(20))}, PayCode.UNSUPPORTED_NETWORK),
        ({"channel": replace(CONFIG, receiver=bytes([1]) * 20)}, PayCode.UNKNOWN_CHANNEL),
        ({"channel": replace(CONFIG, receiver_authorizer=bytes([1]) * 20)}, PayCode.UNKNOWN_CHANNEL),
        ({"channel": replace(CONFIG, withdraw_delay_s=900)}, PayCode.TOO_SMALL),
        ({"channel": replace(CONFIG, salt=bytes([1]) * 32)}, PayCode.UNKNOWN_CHANNEL),
        ({"most_out": 0}, PayCode.BAD_ASK),
        ({"most_out": (1 << 32) - 1}, PayCode.BAD_ASK),
    ],
)
async def test_what_is_no_channel_of_ours_is_refused(tmp_path: Path, changes: dict[str, Any], code: PayCode) -> None:
    async with shop(tmp_path) as provider:
        assert await refusal(provider, **changes) == code
        assert await provider.store.run(lambda db: db.execute("SELECT count(*) FROM requests").fetchone()) == (0,)


async def test_what_costs_nothing_is_not_sold(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        provider.prices.clear()
        assert await refusal(provider) == PayCode.NOT_SELLING


async def test_a_model_is_quoted_by_the_name_it_was_asked_for_at_its_own_price(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        quote = quotes.read((await opened(provider, model="an alias")).quote)
        assert (quote.model, quote.content_hash, quote.price_out) == ("an alias", CONTENT_HASH, PRICE.tokens_out)
        with pytest.raises(PaymentRefused) as refused:
            await provider.earning.open(ME, ask(), model=MODEL, content_hash=b"")
        assert refused.value.pay_code == PayCode.NOT_SELLING


async def test_a_request_is_charged_once_however_often_it_is_asked(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider, "r.1")
        assert await refusal(provider, "r.1") == PayCode.BAD_ASK
        await sale.voucher(voucher(80))
        assert sale.may_emit(5, 10)
        await sale.ended(5, 10, "stop", OUTPUT)
        assert await refusal(provider, "r.1") == PayCode.BAD_ASK
    async with shop(tmp_path, micros=0) as provider:
        assert await refusal(provider, "r.1") == PayCode.BAD_ASK
        assert (await channel_in(provider.store)).charged_micros == charge(PRICE, 5, 10)


async def test_a_channel_that_others_have_paid_on_is_theirs(tmp_path: Path) -> None:
    """Its config is public on the chain: whoever knows it could use up what its payer has vouched for."""
    stranger = identity.ephemeral().node_id
    async with shop(tmp_path) as provider:
        sale = await opened(provider, node=stranger)  # nobody has paid yet, so there is nothing to use up
        assert not sale.may_emit(0, 1)
        await (await opened(provider)).voucher(voucher(80))
        assert not sale.may_emit(50, 100)
        assert await refusal(provider, node=stranger) == PayCode.UNKNOWN_CHANNEL
        with pytest.raises(PaymentRefused):
            await provider.earning.stand(PayState(CHANNEL), stranger)
    async with shop(tmp_path, micros=0) as provider:
        assert (await channel_in(provider.store)).node == ME
        assert await refusal(provider, node=stranger) == PayCode.UNKNOWN_CHANNEL


async def test_a_channel_runs_a_few_requests_at_a_time(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        assert not provider.earning.is_busy(CHANNEL) and not provider.earning.is_busy(bytes(32))
        sales = [await opened(provider) for _ in range(8)]
        assert provider.earning.is_busy(CHANNEL)
        assert await refusal(provider) == PayCode.CHANNEL_BUSY
        await sales[0].ended(0, 0, "broken", OUTPUT)
        await opened(provider)


async def test_a_channel_without_money_or_on_its_way_out(tmp_path: Path) -> None:
    async with shop(tmp_path, micros=99_999) as provider:
        assert await refusal(provider) == PayCode.TOO_SMALL
        book = provider.book
        assert book is not None
        seen = {"balance_micros": DEPOSIT_MICROS, "usable_micros": DEPOSIT_MICROS, "claimed_micros": 0}
        await book.seen(CHANNEL, **seen, state="open", withdrawable_at=None)  # type: ignore[arg-type]
        sale = await opened(provider)
        await sale.voucher(voucher(DEPOSIT_MICROS))
        assert sale.may_emit(0, 100)
        provider.earning.withdrawn(CHANNEL)  # before anything is read from the chain again
        assert not sale.may_emit(0, 101) and not sale.may_start(1)
        assert await refusal(provider) == PayCode.WITHDRAW_PENDING
        await sale.ended(0, 100, "broken", OUTPUT)
        await book.seen(CHANNEL, **seen, state="closed", withdrawable_at=None)  # type: ignore[arg-type]
        assert await refusal(provider) == PayCode.UNKNOWN_CHANNEL


async def test_the_chain_is_asked_for_channels_that_are_new_and_not_often(tmp_path: Path) -> None:
    async with shop(tmp_path, micros=0) as provider:
        assert await refusal(provider) == PayCode.UNKNOWN_CHANNEL
        assert provider.looked == [CHANNEL]
        assert await refusal(provider) == PayCode.TOO_OFTEN
        assert await refusal(provider, channel=replace(CONFIG, salt=bytes([1]) * 32)) == PayCode.TOO_OFTEN
        provider.clocks.passed += 10
        provider.trouble.append(ChainUnreachable("nobody answers"))
        assert await refusal(provider) == PayCode.CHAIN_DOWN
        provider.clocks.passed += 10
        await open_channel(provider.store, "receiver", ME, provider.earning.take)
        await opened(provider)
        assert len(provider.looked) == 2


async def test_who_would_open_a_channel_is_told_the_terms(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        terms = quotes.read_genuine(
            (await provider.earning.terms(PayTerms())).quote, node=SELLING_NODE.node_id, verify=verify
        )
        assert (terms.model, terms.price_in, terms.channel) == ("", 0, b"")
        assert (terms.hub, terms.token, terms.receiver) == (NETWORK.hub, NETWORK.token, RECEIVER.address)
        assert (terms.min_deposit, terms.withdraw_delay_s) == (100_000, 86_400)
        priced = quotes.read((await provider.earning.terms(PayTerms(MODEL, NETWORK.chain))).quote)
        assert (priced.model, priced.price_out, priced.content_hash) == (MODEL, PRICE.tokens_out, CONTENT_HASH)
        for question, code in (
            (PayTerms("other"), PayCode.NOT_SELLING),
            (PayTerms("", 8453), PayCode.UNSUPPORTED_NETWORK),
        ):
            with pytest.raises(PaymentRefused) as refused:
                await provider.earning.terms(question)
            assert refused.value.pay_code == code


async def test_how_a_channel_stands(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        assert (await provider.earning.stand(PayState(CHANNEL), ME)).vouched == 0
        sale = await opened(provider)
        await sale.voucher(voucher(80))
        sale.may_emit(5, 10)
        stand = await provider.earning.stand(PayState(CHANNEL), ME)
        assert (stand.charged, stand.vouched, stand.signature) == (charge(PRICE, 5, 10), 80, voucher(80).signature)
        assert (stand.balance, stand.claimed) == (DEPOSIT_MICROS, 0)
        with pytest.raises(PaymentRefused):
            await provider.earning.stand(PayState(bytes(32)), ME)


# --- a journal in trouble -------------------------------------------------------------------------------------


async def test_a_damaged_journal_sells_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"what is this" * 1000)
    async with shop(tmp_path, micros=0) as provider:
        assert await refusal(provider) == PayCode.NOT_SELLING
        with pytest.raises(PaymentRefused):  # nor does it take a deposit
            await provider.earning.terms(PayTerms())
        facts = provider.earning.facts()
        assert not facts["selling"] and facts["damaged"]


async def test_a_voucher_that_was_changed_on_the_disk_is_damage(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        await (await opened(provider)).voucher(voucher(80))
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute("UPDATE channels SET signed_micros = 1000")
    db.close()
    async with shop(tmp_path, micros=0) as provider:
        assert await refusal(provider) == PayCode.NOT_SELLING
        assert "not what was signed" in provider.earning.facts()["damaged"]


async def test_a_full_disk_gives_nothing_away_and_is_got_over(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        sale = await opened(provider, "r.1")
        assert await sale.voucher(voucher(80))
        assert sale.may_emit(0, 64)

        async def fails(_: object) -> None:
            raise DiskFull("no room")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(provider.store, "run", fails)
            with pytest.raises(DiskFull):
                await sale.voucher(voucher(120))
            assert not sale.may_emit(0, 65)
            with pytest.raises(DiskFull):
                await sale.ended(0, 64, "broken", OUTPUT)
            assert await refusal(provider, "r.2") == PayCode.NOT_SELLING
            assert not provider.earning.facts()["selling"]
        quote = quotes.read((await opened(provider, "r.3")).quote)
        assert (quote.vouched, quote.charged) == (80, 0)  # the mark was to be written with the next voucher
        assert provider.earning.facts()["selling"]


async def test_a_payer_that_hangs_up_while_its_sale_is_written_leaves_nothing_running(tmp_path: Path) -> None:
    async with shop(tmp_path) as provider:
        opening = asyncio.ensure_future(opened(provider, "r.1"))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        for number in range(8):
            await opened(provider, f"s.{number}")
