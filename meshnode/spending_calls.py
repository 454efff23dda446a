"""One request that this node pays for, from the reservation to the receipt: what is believed, and what is signed when.

    ask       names the channel; with a quote that is known from before, the first voucher goes along
    quoted    the quote is what was advertised, or nothing is signed; a voucher in it is believed by its signature
    received  every N tokens: the tokens that came, by our own count, and W more
    due       the provider waits: the same, at once, or the last voucher again
    receipt   its sums are ours, or it is none; what is still missing is signed
    ended     whatever happened: the reservation goes

A provider that counts more than can have come, changes its price, or states what was never signed is paid nothing more,
and is not asked again for a while (`distrust`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.core.counting import TokenCount
from meshnode.core.prices import Price, charge
from meshnode.core.windows import AHEAD_TOKENS, Window, window_for
from meshnode.errors import MeshnodeError, PaymentRefused, ReceiptInvalid
from meshnode.settlement.networks import Network
from meshnode.settlement.store_channels import Channel
from meshnode.spending_books import Books
from meshnode.spending_journal import Outcome
from meshnode.wire import quotes, receipts
from meshnode.wire.payments import PayAsk, PayDue, PayVoucher
from meshnode.wire.quotes import Quote
from meshnode.wire.receipts import Receipt
from meshnode.wire.registry import PayCode
from meshnode.wire.signed import Verify
from meshnode.wire.values import WireError

if TYPE_CHECKING:
    from meshnode.api.paying import PaidCall, Progress

MEASURED_TOKENS = 16
"""From so many on, the speed of an answer is known well enough to choose how far it is paid ahead."""
QUOTE_REUSED_S = 45.0
"""A quote is good for LIMIT_QUOTE_TTL_S; one that is nearly over is not relied on."""


@dataclass(frozen=True, slots=True)
class KnownQuote:
    """A quote that was checked, and when it came (monotonic, s)."""

    quote: Quote
    came_at: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What a paid request is held against: whose vouchers on which network, and how to tell what a node has signed.

    `monotonic` gives seconds, `distrust` says that a node is not to be paid for a while. `quotes` holds the last quote
    of each node and model; `rates` the last measured speed of those (tokens/s).
    """

    network: Network
    verify: Verify
    monotonic: Callable[[], float]
    distrust: Callable[[bytes, str], None]
    quotes: dict[tuple[bytes, str], KnownQuote]
    rates: dict[tuple[bytes, str], float]


class PaidByVouchers:
    """api/paying.py, PaidRequest: for a request that is reserved on `channel`. Never two calls at once."""

    def __init__(self, call: PaidCall, channel: Channel, books: Books, terms: Terms) -> None:
        self._call = call
        self._channel = channel
        self._books = books
        self._terms = terms
        self._key = (call.node, call.model)
        self._quote: Quote | None = None
        self._named = b""
        self._count = TokenCount(call.most_out)
        self._began_at: float | None = None
        self._over = False
        self._cost_micros = 0

    @property
    def step_tokens(self) -> int:
        """Tokens of the answer from one voucher to the next."""
        return self._window().every

    async def ask(self) -> tuple[PayAsk, PayVoucher | None]:
        """The first message, and a voucher where the price is known and nothing about the channel is open."""
        call, channel = self._call, self._channel
        known = self._terms.quotes.get(self._key)
        if known is not None and self._is_good(known) and channel.id not in self._books.unsure:
            self._named = known.quote.id
        message = PayAsk(call.request, call.model, call.most_out, channel.chain, channel.config, self._named)
        if not self._named:
            return message, None
        return message, await self._books.due(call.request, 0, 0, self._window())

    async def quoted(self, quote: bytes) -> PayVoucher | None:
        """Check the quote, and sign the first voucher. Raises PaymentRefused."""
        call, books = self._call, self._books
        if self._quote is not None:
            raise self._cheated("a second quote", PayCode.CUM_MISMATCH)
        found = self._checked(quote)
        if found.id != self._named:  # otherwise it says how the channel stood some time ago
            await self._reconcile(found)
        self._quote = found
        self._terms.quotes[self._key] = KnownQuote(found, self._terms.monotonic())
        voucher = await books.due(call.request, 0, 0, self._window())
        last = books.voucher(self._channel.id)
        if voucher is None and not self._named and last is not None and found.vouched < last.cumulative:
            return last  # it was lost on its way, or the provider has forgotten it
        return voucher

    async def received(self, progress: Progress) -> PayVoucher | None:
        """So much has come: the next voucher, when it is time. Raises PaymentRefused."""
        return await self._due(progress.tokens_in, progress.tokens_out, progress, asked=False)

    async def due(self, due: PayDue, progress: Progress) -> PayVoucher | None:
        """The provider waits: a voucher for what has come, or the last one again, whatever it would like to have.

        It says how long the prompt is; what it says of the answer is not here yet, and no matter.
        """
        if self._quote is None:
            return None
        last = self._books.voucher(self._channel.id)
        tokens_in = max(due.tokens_in, progress.tokens_in)
        return await self._due(tokens_in, progress.tokens_out, progress, asked=True) or last

    async def receipt(self, receipt: bytes, progress: Progress, output_sha256: str) -> PayVoucher | None:
        """Check the receipt and end the request with it; the last voucher, if one is missing. Raises ReceiptInvalid."""
        found = self._checked_receipt(receipt, progress, output_sha256)
        outcome = Outcome(found.tokens_in, found.tokens_out, found.finish, receipt)
        try:
            voucher = await self._books.finished(self._call.request, found.charged_micros, outcome)
        except PaymentRefused as reason:
            raise self._invalid(reason.detail) from None
        self._over = True
        self._cost_micros = found.charged_micros
        return voucher

    async def ended(self, outcome: str, progress: Progress) -> int:
        """The request is over, in whatever way. What it cost, in micro-USDC; at worst, where there is no receipt."""
        if not self._over:
            self._over = True
            self._feed(progress)
            tokens_out = self._count.accept(progress.tokens_out)
            end = Outcome(min(progress.tokens_in, self._call.most_in), tokens_out, outcome)
            running = self._books.ledger.running(self._call.request)
            self._cost_micros = running.covered_micros if running else 0
            with suppress(MeshnodeError):  # the journal takes nothing: the next books end what was cut off
                self._cost_micros = await self._books.release(self._call.request, end)
        return self._cost_micros

    # --- inside ---------------------------------------------------------------------------------------------

    async def _reconcile(self, quote: Quote) -> None:
        """Go by what the provider proves, and by what it states within that. Raises PaymentRefused."""
        line = self._books.ledger.line(self._channel.id)
        try:
            if line is not None and quote.vouched > line.signed_micros:
                await self._books.proven(self._channel.id, quote.vouched, quote.signature)
            await self._books.adopt(self._call.request, quote.charged, quote.vouched)
        except PaymentRefused as reason:
            raise self._cheated(reason.detail, PayCode(reason.pay_code)) from None

    async def _due(self, tokens_in: int, tokens_out: int, progress: Progress, *, asked: bool) -> PayVoucher | None:
        self._feed(progress)
        if self._count.diverges(tokens_out):
            text = f"{tokens_out} tokens are claimed for {self._count.received_bytes} bytes of text"
            raise self._cheated(text, PayCode.CUM_MISMATCH)
        if tokens_in > self._call.most_in:
            text = f"{tokens_in} tokens are claimed for a prompt of at most {self._call.most_in}"
            raise self._cheated(text, PayCode.CUM_MISMATCH)
        if self._quote is None:
            return None
        received = self._count.accept(tokens_out)
        self._measure(received)
        return await self._books.due(self._call.request, tokens_in, received, self._window(), asked=asked)

    def _feed(self, progress: Progress) -> None:
        if (more := progress.text_bytes - self._count.received_bytes) > 0:
            self._count.received_bytes += more

    def _measure(self, tokens: int) -> None:
        now = self._terms.monotonic()
        if self._began_at is None:
            self._began_at = now
        elif tokens >= MEASURED_TOKENS and now > self._began_at:
            self._terms.rates[self._key] = tokens / (now - self._began_at)

    def _window(self) -> Window:
        """As far ahead as keeps the answer going, no further than the provider asks for, and 64 tokens in any case."""
        rate = self._terms.rates.get(self._key, 0.0)
        wanted = window_for(rate, self._call.rtt_s)
        most = max(AHEAD_TOKENS, self._quote.ahead_tokens if self._quote else AHEAD_TOKENS)
        return Window(wanted.every, min(wanted.ahead, most))

    def _is_good(self, known: KnownQuote) -> bool:
        """Whether a quote from before is one for this request."""
        quote = known.quote
        is_new = self._terms.monotonic() - known.came_at < QUOTE_REUSED_S
        same_price = Price(quote.price_in, quote.price_out) == self._call.price
        return is_new and same_price and quote.channel == self._channel.id

    def _checked(self, signed: bytes) -> Quote:
        """The quote, if the provider of the request made it and it says what was advertised. Raises PaymentRefused."""
        call, channel = self._call, self._channel
        try:
            quote = quotes.read_genuine(signed, node=call.node, verify=self._terms.verify)
            quotes.expect(
                quote, model=call.model, content_hash=call.content_hash, chain=channel.chain, channel=channel.id
            )
        except WireError as reason:
            raise self._cheated(str(reason), PayCode.BAD_SIGNATURE) from None
        config = channel.config
        if (quote.hub, quote.token) != (channel.hub, config.token):
            raise self._cheated("the quote is for another contract", PayCode.UNSUPPORTED_NETWORK)
        if (quote.receiver, quote.receiver_authorizer) != (config.receiver, config.receiver_authorizer):
            raise self._cheated("the quote has somebody else paid", PayCode.UNKNOWN_CHANNEL)
        if Price(quote.price_in, quote.price_out) != call.price:
            text = f"it asks {quote.price_in} and {quote.price_out}, and advertised {call.price.tokens_in} and "
            text += f"{call.price.tokens_out} micro-USDC per million tokens"
            raise PaymentRefused(text, pay_code=PayCode.PRICE_ABOVE_CEILING)
        return quote

    def _checked_receipt(self, text: bytes, progress: Progress, output_sha256: str) -> Receipt:
        """The receipt, if it is one of this request and its sums are ours. Raises ReceiptInvalid."""
        call, channel, quote = self._call, self._channel, self._quote
        if quote is None:
            raise self._invalid("there was no quote")
        try:
            receipt = receipts.read_genuine(text, self._terms.verify)
        except WireError as reason:
            raise self._invalid(str(reason)) from None
        ours = (call.node, call.request, quote.id, call.model, quote.content_hash)
        theirs = (receipt.node, receipt.request, receipt.quote, receipt.model, receipt.content_hash)
        if theirs != ours:
            raise self._invalid("it is of another request")
        place = (receipt.payer, receipt.channel, receipt.chain, receipt.hub)
        if place != (channel.config.payer_authorizer, channel.id, channel.chain, channel.hub):
            raise self._invalid("it is of another channel")
        if receipt.output_sha256.hex() != output_sha256:
            raise self._invalid("it is of another answer")
        self._feed(progress)
        if self._count.diverges(receipt.tokens_out) or receipt.tokens_in > call.most_in:
            raise self._invalid(f"{receipt.tokens_in} and {receipt.tokens_out} tokens cannot have come")
        cost = charge(call.price, receipt.tokens_in, receipt.tokens_out)
        if (receipt.price_in, receipt.price_out) != (quote.price_in, quote.price_out) or receipt.charged_micros > cost:
            raise self._invalid("its sum is not that of its tokens")
        return receipt

    def _cheated(self, text: str, code: PayCode) -> PaymentRefused:
        self._terms.distrust(self._call.node, text)
        return PaymentRefused(text, pay_code=code)

    def _invalid(self, text: str) -> ReceiptInvalid:
        self._terms.distrust(self._call.node, text)
        return ReceiptInvalid(text)
