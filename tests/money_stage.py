"""A purse and a till over journals in a folder, with the channel of tests/lab/paying_ends.py open between them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from meshnode import identity
from meshnode.api.paying import PaidCall
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import Price
from meshnode.earning import Earning
from meshnode.earning_terms import Conditions
from meshnode.errors import MeshnodeError
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.store import Store
from meshnode.settlement.store_book import Book
from meshnode.settlement.store_channels import Channel, Role, channel_of
from meshnode.settlement.typed_data import voucher_digest
from meshnode.spending import Fund, Spending
from meshnode.wire import quotes, receipts
from meshnode.wire.payments import ChannelConfig, PayAsk, PayVoucher
from meshnode.wire.quotes import Quote
from meshnode.wire.receipts import Receipt
from tests.lab.paying_ends import (
    CHANNEL,
    CONFIG,
    CONTENT_HASH,
    DEPOSIT_MICROS,
    MODEL,
    NETWORK,
    PAYER,
    PRICE,
    RECEIVER,
)

PAYING_NODE, SELLING_NODE = identity.ephemeral(), identity.ephemeral()
NOVEMBER = 1_795_262_400.0
"""Noon of the 21st, 2026."""
OUTPUT = sha256(b"an answer").hexdigest()


@dataclass
class Standing:
    """What the wallet allows; a test may change it."""

    policy: Policy = field(default_factory=lambda: Policy(mode="auto", ceiling=PRICE, month_micros=DEPOSIT_MICROS))
    why_not: str = ""


@dataclass
class Clocks:
    """Wall time and monotonic time, in seconds."""

    now: float = NOVEMBER
    passed: float = 1000.0


async def open_channel(
    store: Store, role: Role, node: bytes, listener: Any = None, micros: int = DEPOSIT_MICROS
) -> Book:
    """Have a channel in the journal that holds so much; the book that says so."""
    book = Book(store, chain=NETWORK.chain, hub=NETWORK.hub, clock=lambda: NOVEMBER)
    if listener is not None:
        book.listeners.append(listener)
    await book.opening(CONFIG, CHANNEL, role, node)
    await book.seen(
        CHANNEL, balance_micros=micros, usable_micros=micros, claimed_micros=0, state="open", withdrawable_at=None
    )
    return book


async def channel_in(store: Store) -> Channel:
    """The channel, as the journal has it."""
    found = await store.run(lambda db: channel_of(db, CHANNEL))
    assert found is not None
    return found


@dataclass
class Purse:
    """A payer, with all that a test may turn."""

    store: Store
    spending: Spending
    standing: Standing
    clocks: Clocks
    book: Book | None = None


@asynccontextmanager
async def purse(
    folder: Path,
    *,
    standing: Standing | None = None,
    clocks: Clocks | None = None,
    fund: Fund | None = None,
    key: Callable[[], VoucherKey] = lambda: PAYER,
    micros: int = DEPOSIT_MICROS,
) -> AsyncIterator[Purse]:
    """A payer with a channel to SELLING_NODE; without one for no `micros`."""
    store, standing, clocks = Store(folder), standing or Standing(), clocks or Clocks()
    spending = Spending(
        store,
        standing=lambda: standing,
        key=key,
        network=NETWORK,
        verify=identity.verify,
        fund=fund,
        clock=lambda: clocks.now,
        monotonic=lambda: clocks.passed,
    )
    await store.start()
    await spending.start()
    found = Purse(store, spending, standing, clocks)
    try:
        if micros and store.trouble is None:
            found.book = await open_channel(store, "payer", SELLING_NODE.node_id, spending.take, micros)
        yield found
    finally:
        await spending.close()
        await store.close()


@dataclass
class Shop:
    """A provider, with all that a test may turn."""

    store: Store
    earning: Earning
    clocks: Clocks
    prices: dict[str, Price]
    looked: list[bytes]
    trouble: list[MeshnodeError]
    book: Book | None = None


@asynccontextmanager
async def shop(folder: Path, *, clocks: Clocks | None = None, micros: int = DEPOSIT_MICROS) -> AsyncIterator[Shop]:
    """A provider with a channel from PAYING_NODE; without one for no `micros`."""
    store, clocks = Store(folder), clocks or Clocks()
    found: Shop

    async def look(config: ChannelConfig, channel: bytes, node: bytes) -> None:
        found.looked.append(channel)
        if found.trouble:
            raise found.trouble[-1]

    earning = Earning(
        store,
        node=SELLING_NODE.node_id,
        sign=SELLING_NODE.sign,
        price=lambda model: found.prices.get(model, Price(0, 0)),
        content_hash=lambda model: CONTENT_HASH if model == MODEL else b"",
        conditions=Conditions(RECEIVER.address, RECEIVER.address),
        network=NETWORK,
        look=look,
        clock=lambda: clocks.now,
        monotonic=lambda: clocks.passed,
    )
    found = Shop(store, earning, clocks, {MODEL: PRICE}, [], [])
    await store.start()
    await earning.start()
    try:
        if micros and store.trouble is None:
            found.book = await open_channel(store, "receiver", PAYING_NODE.node_id, earning.take, micros)
        yield found
    finally:
        await store.close()


# --- what travels ---------------------------------------------------------------------------------------------


def call(request: str = "", **changes: Any) -> PaidCall:
    """A request of 400 tokens in and 100 out at most."""
    first = PaidCall(
        request or secrets.token_hex(8), SELLING_NODE.node_id, MODEL, CONTENT_HASH, PRICE, NETWORK.chain, 400, 100, 0.0
    )
    return replace(first, **changes)


def ask(request: str = "", **changes: Any) -> PayAsk:
    """The same, as it travels."""
    return replace(PayAsk(request or secrets.token_hex(8), MODEL, 100, NETWORK.chain, CONFIG), **changes)


def voucher(
    cumulative: int, *, key: VoucherKey = PAYER, channel: bytes = CHANNEL, chain: int = NETWORK.chain
) -> PayVoucher:
    """A voucher over so much."""
    return PayVoucher(channel, cumulative, key.sign(voucher_digest(channel, cumulative, chain, NETWORK.hub)))


def quote(signer: identity.Identity = SELLING_NODE, **changes: Any) -> bytes:
    """The quote of a provider to which nothing was paid yet, signed."""
    first = Quote(
        id=secrets.token_bytes(16),
        node=SELLING_NODE.node_id,
        model=MODEL,
        content_hash=CONTENT_HASH,
        price_in=PRICE.tokens_in,
        price_out=PRICE.tokens_out,
        every_tokens=32,
        ahead_tokens=256,
        credit_tokens=0,
        unpaid_prefill_tokens=2048,
        not_after=int(NOVEMBER) + 60,
        chain=NETWORK.chain,
        hub=NETWORK.hub,
        token=NETWORK.token,
        receiver=CONFIG.receiver,
        receiver_authorizer=CONFIG.receiver_authorizer,
        withdraw_delay_s=86_400,
        min_deposit=100_000,
        channel=CHANNEL,
    )
    return quotes.issue(replace(first, **changes), signer.sign)


def receipt(request: str, quoted: bytes, tokens_in: int, tokens_out: int, charged: int, /, **changes: Any) -> bytes:
    """The receipt of SELLING_NODE for a request under a quote."""
    terms = quotes.read(quoted)
    first = Receipt(
        request=request,
        quote=terms.id,
        node=SELLING_NODE.node_id,
        model=terms.model,
        content_hash=terms.content_hash,
        payer=PAYER.address,
        channel=CHANNEL,
        chain=NETWORK.chain,
        hub=NETWORK.hub,
        price_in=terms.price_in,
        price_out=terms.price_out,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        charged_micros=charged,
        channel_charged_micros=max(charged, terms.charged + charged),
        finish="stop",
        output_sha256=bytes.fromhex(OUTPUT),
        at=int(NOVEMBER),
    )
    return receipts.write(replace(first, **changes), SELLING_NODE.sign)
