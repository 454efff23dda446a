"""One request that this node is paid for: its quote, the vouchers that come, what they let out, and its receipt.

A token goes out when the channel's voucher covers it with all that was delivered before, on whichever requests. A
voucher that is stale, forged or for another channel is worth nothing and changes nothing. At the end, the tokens that
were given are charged, whatever else was agreed on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from meshnode.core.credit import Charged
from meshnode.core.pay_policy import Refused
from meshnode.earning_accounts import Account, Accounts
from meshnode.errors import PaymentRefused
from meshnode.wire import quotes, receipts
from meshnode.wire.payments import PayAsk, PayDue, PayVoucher
from meshnode.wire.quotes import Quote
from meshnode.wire.receipts import Receipt
from meshnode.wire.registry import PayCode
from meshnode.wire.signed import Sign

MOST_READ_FOR_NOTHING = 4
"""Prompts in a row that are read on trust. Whoever never pays gets no more work than that."""


@dataclass(frozen=True, slots=True)
class Seller:
    """Who signs receipts, at which wall time (s); `look` has the chain asked about a channel, seldom."""

    sign: Sign
    clock: Callable[[], float]
    look: Callable[[Account], Awaitable[None]]


class SaleByVouchers:
    """api/charging.py, Sale: the request that `quote` is for, already written as begun. `node` is the payer's.

    No more tokens are counted than were asked for, should the engine give more.
    """

    def __init__(
        self, ask: PayAsk, node: bytes, quote: Quote, account: Account, accounts: Accounts, seller: Seller
    ) -> None:
        self._request = ask.request
        self._most_out = ask.most_out
        self._node = node
        self._terms = quote
        self._account = account
        self._accounts = accounts
        self._seller = seller
        self._quote = quotes.issue(quote, seller.sign)
        self._charged: Charged | None = None
        self._receipt = b""
        self._is_trusted = False

    @property
    def quote(self) -> bytes:
        """What it costs, signed."""
        return self._quote

    @property
    def charged_micros(self) -> int:
        """What it came to, once it has ended."""
        return self._charged.charged_micros if self._charged is not None else 0

    def may_start(self, tokens_in: int, /) -> bool:
        """Whether a prompt of about so many tokens may be read now: it counts as read from then on."""
        credit = self._account.credit
        if self._is_over or not credit.may_prefill(self._request, tokens_in):
            return False
        if credit.owed(self._request, tokens_in, 0) > credit.vouched_micros:
            if self._account.read_for_nothing >= MOST_READ_FOR_NOTHING:
                return False
            self._is_trusted = True
        credit.prefilled(self._request, tokens_in)
        return True

    def may_emit(self, tokens_in: int, tokens_out: int, /) -> bool:
        """Whether the answer may come to so many tokens now: it counts as delivered up to there from then on."""
        tokens_out = min(tokens_out, self._most_out)
        if self._is_over or not self._account.credit.may_emit(self._request, tokens_in, tokens_out):
            return False
        self._account.credit.deliver(self._request, tokens_in, tokens_out)
        return True

    def due(self, tokens_in: int, tokens_out: int, /) -> PayDue:
        """The least voucher that would let it come to that."""
        tokens_out = min(tokens_out, self._most_out)
        return PayDue(self._account.credit.owed(self._request, tokens_in, tokens_out), tokens_in, tokens_out)

    async def voucher(self, voucher: PayVoucher, /) -> bool:
        """Keep a voucher, durably; False for one that is worth nothing. Raises PaymentRefused where it ends here."""
        account = self._account
        async with account.turn:
            if voucher.channel != account.channel.id or voucher.cumulative <= account.credit.vouched_micros:
                return False
            if not account.is_signed(voucher.cumulative, voucher.signature):
                return False
            if voucher.cumulative > account.credit.balance_micros:
                await self._seller.look(account)
            try:
                account.credit.accept(voucher.cumulative)
            except Refused as reason:
                raise PaymentRefused(str(reason), pay_code=PayCode.INSUFFICIENT_BALANCE) from None
            await self._accounts.hold(account, voucher.cumulative, voucher.signature, self._request, self._node)
        if account.channel.state != "open":
            raise PaymentRefused("the channel is being closed", pay_code=PayCode.WITHDRAW_PENDING)
        return True

    async def ended(self, tokens_in: int, tokens_out: int, finish: str, output_sha256: str, /) -> bytes:
        """So many tokens were given: the receipt, signed and kept. A second call changes nothing."""
        account = self._account
        async with account.turn:
            if self._charged is None:
                self._charged = account.credit.ended(self._request, tokens_in, tokens_out)
                account.read_for_nothing += self._is_trusted and not self._charged.charged_micros
                self._receipt = receipts.write(self._made_out(self._charged, finish, output_sha256), self._seller.sign)
                await self._accounts.end(account, self._charged, self._terms.model, finish, self._receipt)
        return self._receipt

    @property
    def _is_over(self) -> bool:
        is_kept = self._accounts.failed is None
        return self._charged is not None or not is_kept or self._account.channel.state != "open"

    def _made_out(self, charged: Charged, finish: str, output_sha256: str) -> Receipt:
        terms, channel = self._terms, self._account.channel
        return Receipt(
            request=self._request,
            quote=terms.id,
            node=terms.node,
            model=terms.model,
            content_hash=terms.content_hash,
            payer=channel.config.payer_authorizer,
            channel=channel.id,
            chain=channel.chain,
            hub=channel.hub,
            price_in=terms.price_in,
            price_out=terms.price_out,
            tokens_in=charged.meter.tokens_in,
            tokens_out=charged.meter.tokens_out,
            charged_micros=charged.charged_micros,
            channel_charged_micros=charged.settled_micros,
            finish=finish,
            output_sha256=bytes.fromhex(output_sha256),
            at=int(self._seller.clock()),
        )
