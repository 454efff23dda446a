"""What this node earns from strangers: the Till of the side that answers (api/charging.py).

    open        a channel that holds enough, a request id that was never used, a quote
    terms       on which a channel is opened, for whoever asks before there is one
    stand       how a channel stands, for the node that pays through it
    take        the chain says something new of a channel (settlement/store_book.py)
    withdrawn   its payer takes the money out: nothing more is given on it

What channels hold stands in the journal. The chain is asked here in two cases only, and seldom: for a channel that was
never seen, and for one that holds less than its voucher says. Nothing here keeps a node from starting; while the
journal cannot be written, nothing is sold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from meshnode.core.ledger_entries import MOST_TOKENS
from meshnode.core.prices import Price, charge
from meshnode.earning_accounts import Account, Accounts
from meshnode.earning_sales import SaleByVouchers, Seller
from meshnode.earning_terms import Conditions, Terms
from meshnode.errors import LedgerDamaged, MeshnodeError, PaymentRefused
from meshnode.settlement.contracts import typed
from meshnode.settlement.networks import Network
from meshnode.settlement.store import Store
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.typed_data import channel_id
from meshnode.wire import quotes
from meshnode.wire.payments import ChannelConfig, PayAsk, PayQuote, PayStand, PayState, PayTerms
from meshnode.wire.registry import PayCode
from meshnode.wire.signed import Sign

LOOK_AGAIN_S = 5.0
"""The chain is asked about one channel, and for one node, no more often."""
MOST_LOOKS = 1024

Look = Callable[[ChannelConfig, bytes, bytes], Awaitable[None]]
"""Ask the chain about the channel of this config and id, which a node with this key says it has. If there is money in
it, have it kept in the journal (settlement/store_book.py), else nothing. Raises a MeshnodeError.
"""


class Earning:
    """Sells with the channels of `store` on `network`.

    `node` is the key of this node, whose signatures `sign` makes. `price` says what a model costs strangers, and
    `content_hash` what its weights are (b"" for one that is not served).
    """

    def __init__(
        self,
        store: Store,
        *,
        node: bytes,
        sign: Sign,
        price: Callable[[str], Price],
        content_hash: Callable[[str], bytes],
        conditions: Conditions,
        network: Network,
        look: Look,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._price = price
        self._content_hash = content_hash
        self._network = network
        self._terms = Terms(node, network, conditions, clock)
        self._look_at_chain = look
        self._clock = clock
        self._monotonic = monotonic
        self._seller = Seller(sign, clock, self._look_again)
        self._accounts: Accounts | None = None
        self._opening = asyncio.Lock()
        self._looked: dict[bytes, float] = {}
        self._trouble: MeshnodeError | None = None

    async def start(self) -> None:
        """Open the accounts. What is in the way is said by `open` and `facts`, and no error."""
        await self._try_opening()

    # --- the till -------------------------------------------------------------------------------------------

    def price(self, model: str, /) -> Price:
        """What a model costs strangers; FREE if nothing."""
        return self._price(model)

    async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> SaleByVouchers:
        """Begin a sale to a node, durably. Raises PaymentRefused."""
        price = self._price(model)
        if price.is_free:
            raise PaymentRefused("it costs nothing here", pay_code=PayCode.NOT_SELLING)
        if not content_hash:
            raise PaymentRefused("its weights are not known by a hash yet", pay_code=PayCode.NOT_SELLING)
        if not 1 <= ask.most_out <= MOST_TOKENS:
            raise PaymentRefused("an answer of no length", pay_code=PayCode.BAD_ASK)
        accounts = await self._ready()
        account = await self._account(accounts, node, ask)
        self._terms.check_room(account, node, charge(price, 0, 1))
        async with account.turn:
            await self._begin(accounts, account, ask, price, model)
        # By the name that it was asked for: the two nodes may call it differently, and its hash says what it is.
        quote = self._terms.quote(ask.model, content_hash, price, account, ask.request)
        return SaleByVouchers(ask, node, quote, account, accounts, self._seller)

    async def terms(self, question: PayTerms) -> PayQuote:
        """The terms of a channel, with the price of a model if one is named. Raises PaymentRefused."""
        if question.chain:
            self._terms.check_chain(question.chain)
        content_hash = self._content_hash(question.model) if question.model else b""
        price = self._price(question.model) if content_hash else Price(0, 0)
        if question.model and (not content_hash or price.is_free):
            raise PaymentRefused("it is not sold here", pay_code=PayCode.NOT_SELLING)
        await self._ready()  # who cannot keep a voucher takes no deposit
        return PayQuote(quotes.issue(self._terms.quote(question.model, content_hash, price), self._seller.sign))

    async def stand(self, question: PayState, node: bytes) -> PayStand:
        """How a channel stands, for the node at its other end. Raises PaymentRefused."""
        account = (await self._ready()).account(question.channel)
        if account is None or account.channel.node != node:
            raise PaymentRefused("there is no such channel with you", pay_code=PayCode.UNKNOWN_CHANNEL)
        credit, channel = account.credit, account.channel
        return PayStand(
            min(credit.charged_micros, credit.vouched_micros),
            credit.vouched_micros if channel.signature else 0,
            channel.signature,
            credit.balance_micros,
            credit.claimed_micros,
        )

    # --- channels -------------------------------------------------------------------------------------------

    async def take(self, channel: Channel) -> None:
        """The journal has something new of a channel: another balance or state, or that it is there."""
        mine = (channel.role, channel.chain, channel.hub) == ("receiver", self._network.chain, self._network.hub)
        if mine and self._accounts is not None:
            self._accounts.take(channel)

    def withdrawn(self, channel: bytes) -> None:
        """The payer of a channel withdraws: from this moment nothing is given on it."""
        account = self._accounts.account(channel) if self._accounts is not None else None
        if account is not None:
            account.channel = replace(account.channel, state="withdrawing")

    def is_busy(self, channel: bytes) -> bool:
        """Whether a request runs on a channel."""
        account = self._accounts.account(channel) if self._accounts is not None else None
        return account is not None and account.credit.running > 0

    def facts(self) -> dict[str, Any]:
        """Why nothing is sold, if nothing is."""
        trouble = self._trouble or self._store.trouble
        return {
            "selling": trouble is None,
            "why_not": trouble.message if trouble else "",
            "damaged": trouble.message if isinstance(trouble, LedgerDamaged) else "",
        }

    # --- inside ---------------------------------------------------------------------------------------------

    async def _account(self, accounts: Accounts, node: bytes, ask: PayAsk) -> Account:
        """The account of the channel that an ask names; the chain is asked for a new one. Raises PaymentRefused."""
        self._terms.check_chain(ask.chain)
        config = self._terms.checked(ask.channel)
        channel = channel_id(typed(config), self._network.chain, self._network.hub)
        account = accounts.account(channel)
        if account is None or account.channel.state == "opening":
            await self._look(config, channel, node)
            account = accounts.account(channel)
        if account is None:
            raise PaymentRefused("there is no money in that channel", pay_code=PayCode.UNKNOWN_CHANNEL)
        return account

    async def _begin(self, accounts: Accounts, account: Account, ask: PayAsk, price: Price, model: str) -> None:
        """Write that a request begins. Raises PaymentRefused for an id that was used before."""
        credit = account.credit
        twice = PaymentRefused("a request of this id was asked before", pay_code=PayCode.BAD_ASK)
        if credit.meter(ask.request) is not None:
            raise twice
        opened = credit.open(ask.request, price, credit.unpaid_tokens)
        try:
            is_new = await accounts.begin(account, opened, model, ask.most_out)
        except MeshnodeError as reason:
            credit.ended(ask.request, 0, 0)
            raise self._unkept(reason) from None
        except BaseException:  # whoever asked has left; what was written is ended at the next start
            credit.ended(ask.request, 0, 0)
            raise
        if not is_new:
            credit.ended(ask.request, 0, 0)
            raise twice

    async def _look_again(self, account: Account) -> None:
        await self._look(account.channel.config, account.channel.id, account.channel.node)

    async def _look(self, config: ChannelConfig, channel: bytes, node: bytes) -> None:
        """Have the chain asked about a channel, seldom. Raises PaymentRefused."""
        now = self._monotonic()
        if any(now < self._looked.get(key, -LOOK_AGAIN_S) + LOOK_AGAIN_S for key in (channel, node)):
            raise PaymentRefused("the chain was asked about it just now", pay_code=PayCode.TOO_OFTEN)
        for key in (channel, node):
            self._looked.pop(key, None)
            self._looked[key] = now
        while len(self._looked) > MOST_LOOKS:
            del self._looked[next(iter(self._looked))]
        try:
            await self._look_at_chain(config, channel, node)
        except PaymentRefused:
            raise
        except MeshnodeError as reason:
            raise PaymentRefused(reason.summary, pay_code=PayCode.CHAIN_DOWN) from None

    async def _ready(self) -> Accounts:
        """The accounts, opened now if they are not. Raises PaymentRefused where nothing can be kept."""
        if self._accounts is None or self._accounts.failed is not None:
            await self._try_opening()
        if self._accounts is None:
            raise self._unkept(self._trouble)
        return self._accounts

    async def _try_opening(self) -> None:
        async with self._opening:
            if self._accounts is not None and self._accounts.failed is None:
                return
            self._accounts = None
            try:
                self._accounts = await Accounts.opened(self._store, self._network, self._clock)
                self._trouble = None
            except MeshnodeError as reason:
                self._trouble = reason

    def _unkept(self, reason: MeshnodeError | None) -> PaymentRefused:
        """Nothing can be written here; what is in the way is this node's business, and said by `facts`."""
        self._trouble = reason or self._trouble
        return PaymentRefused("nothing can be sold here now", pay_code=PayCode.NOT_SELLING)
