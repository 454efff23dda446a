"""One request that a payer over plain HTTP makes, on the way of all strangers: it is a peer's request with one voucher.

Asked       the request          (peer_requests.PeerRequest)
OneVoucher  who pays for it      (charging.Payer): one voucher, and no other ever
HttpReply   where it is answered (peer_requests.Reply): events go to a sink, a refusal is kept for the door
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from meshnode.api import x402
from meshnode.api.charging import Sale, Till
from meshnode.api.delivery import Sink
from meshnode.api.x402 import Offer, Payment
from meshnode.core.prices import Price, charge
from meshnode.wire import receipts
from meshnode.wire.payments import PayAsk, PayDue, PayQuote, PayReceipt, PayRefused, PayStand, PayVoucher

MOST_REFUSAL_BYTES = 64 << 10
"""Of our own words or those of the engine."""


class OneVoucher:
    """Pays for the request of this id with the voucher of `payment`. `stand` is how the channel stood before, None
    where that is not known; `transaction` is that of its deposit, if one was sent.
    """

    def __init__(
        self, request_id: str, offer: Offer, payment: Payment, chain: int, stand: PayStand | None, transaction: bytes
    ) -> None:
        self.ask = PayAsk(request_id, offer.model, offer.most_out, chain, payment.config)
        self.refused: PayRefused | None = None
        self.refused_with: PayRefused | None = None
        self.stand = stand
        self.transaction = transaction
        self._payment = payment
        self._voucher: PayVoucher | None = payment.voucher
        self._tokens = 0
        self._receipt = b""

    def send(self, message: PayQuote | PayDue | PayReceipt | PayRefused, /) -> None:
        """What a payer is told: the receipt and a refusal are kept. To quote is done, and to remind is of no use."""
        if isinstance(message, PayReceipt):
            self._receipt = message.receipt
        elif isinstance(message, PayRefused):
            self.refused_with = message

    def counted(self, tokens_in: int, tokens_out: int, /) -> None:
        """So many tokens were given."""
        self._tokens = tokens_in + tokens_out

    async def voucher(self) -> PayVoucher | None:
        """The voucher, once."""
        voucher, self._voucher = self._voucher, None
        return voucher

    @property
    def charged_micros(self) -> int | None:
        """What it came to, once it has ended; None where nobody could write that down."""
        if self._receipt:
            return receipts.read(self._receipt).charged_micros
        return None if self._tokens else 0

    def response(self, *, has_ended: bool) -> str:
        """The PAYMENT-RESPONSE as it can be said now."""
        if not has_ended:
            return x402.header(x402.settled(self._payment, self.stand, transaction=self.transaction))
        total = self.stand.charged if self.stand is not None else 0
        if self._receipt:
            total = receipts.read(self._receipt).channel_charged_micros
        settled = x402.settled(
            self._payment,
            self.stand,
            transaction=self.transaction,
            charged=self.charged_micros,
            total=total,
            receipt=self._receipt,
        )
        return x402.header(settled)


class CappedTill:
    """`till`, for requests of nodes and of payers over HTTP alike. `offer_of` is what the request of this payer may
    cost, None for a node. A channel may have more vouched than that, from requests that came to less than they could.
    """

    def __init__(self, till: Till, offer_of: Callable[[bytes], Offer | None]) -> None:
        self._till = till
        self._offer_of = offer_of

    def price(self, model: str, /) -> Price:
        """See Till."""
        return self._till.price(model)

    async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> Sale:
        """See Till. Raises PaymentRefused."""
        sale = await self._till.open(node, ask, model=model, content_hash=content_hash)
        offer = self._offer_of(node)
        return sale if offer is None else _CappedSale(sale, offer)


class _CappedSale:
    """A Sale that comes to no more than an offer."""

    def __init__(self, sale: Sale, offer: Offer) -> None:
        self._sale = sale
        self._offer = offer
        self.due = sale.due
        self.voucher = sale.voucher
        self.ended = sale.ended

    @property
    def quote(self) -> bytes:
        return self._sale.quote

    @property
    def charged_micros(self) -> int:
        return self._sale.charged_micros

    def may_start(self, tokens_in: int, /) -> bool:
        return self._is_within(tokens_in, 0) and self._sale.may_start(tokens_in)

    def may_emit(self, tokens_in: int, tokens_out: int, /) -> bool:
        return self._is_within(tokens_in, tokens_out) and self._sale.may_emit(tokens_in, tokens_out)

    def _is_within(self, tokens_in: int, tokens_out: int) -> bool:
        return charge(self._offer.price, tokens_in, tokens_out) <= self._offer.amount


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a member's would come through a tunnel; `peer` is x402.payer_id's."""

    path: str
    body: bytes
    peer: bytes
    request_id: str
    payment: OneVoucher
    method: str = "POST"
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error, in llama-server's form. `retry_after` is the header, or empty."""

    status: int
    error: dict[str, Any]
    retry_after: str = ""


class HttpReply:
    """Hands the events of an answer to `sink`, and keeps a refusal. The sink is ended by whoever made this; `begins` is
    called before the first event.
    """

    def __init__(self, sink: Sink, begins: Callable[[], None] = lambda: None) -> None:
        self.sink = sink
        self.refusal: Refusal | None = None
        self._begins: Callable[[], None] | None = begins
        self._status = 0
        self._retry_after = ""
        self._words = bytearray()

    async def head(self, status: int, headers: Sequence[tuple[str, str]], /) -> None:
        """The head; that of an answer goes out with its first event."""
        self._status = status
        self._retry_after = next((value for name, value in headers if name == "retry-after"), "")

    async def body(self, piece: bytes, /) -> None:
        """Some of the events, or of the words of a refusal."""
        if self._status == 200:
            if self._begins is not None:
                self._begins()
                self._begins = None
            await self.sink.take(piece)
        elif len(self._words) < MOST_REFUSAL_BYTES:
            self._words += piece

    async def finish(self) -> None:
        """All of it came."""
        if self._status == 200:
            return
        try:
            error = json.loads(self._words)["error"]
        except (ValueError, KeyError, TypeError):
            error = None
        words = error if isinstance(error, dict) else {"message": "the engine gave no reason"}
        self.refusal = Refusal(self._status, words, self._retry_after)
