"""Whether a payment that came over plain HTTP is one for this request: by its signature, its sums, and its deposit.

The voucher must name what the channel was charged so far and what the request can cost, no more and no less. So one
that was used, or is older, or was made for another body fits nothing any more. How a channel stands is told to who has
its payer's signature, and to nobody else. A deposit that comes along is submitted and waited for. Protocol:
15-payments, "Plain HTTP".
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from meshnode.api import x402
from meshnode.api.x402 import Payment, Terms
from meshnode.core.prices import Price
from meshnode.errors import MeshnodeError, PaymentRefused, PublicPaused, StrangerLimit
from meshnode.telemetry import LOG
from meshnode.wire.payments import ChannelConfig, PayOpen, PayStand, PayState, PayVoucher
from meshnode.wire.registry import PayCode

LOOK_S = 2.0
DEPOSIT_S = 60.0
"""A deposit that was sent is looked for so often, and waited for so long."""
PAUSE_S = 30.0
"""Where nobody can be paid at the moment."""


class Cashier(Protocol):
    """Whoever keeps channels for this node. What it raises is a MeshnodeError."""

    def terms(self) -> Terms | None:
        """On which terms this node is paid; None while it sells nothing."""
        ...

    def price(self, model: str, /) -> Price:
        """What a model costs strangers."""
        ...

    def channel(self, config: ChannelConfig, /) -> bytes:
        """The id of a channel."""
        ...

    def is_signed(self, config: ChannelConfig, voucher: PayVoucher, /) -> bool:
        """Whether the authorizer of the payer has signed it."""
        ...

    async def stand(self, question: PayState, node: bytes, /) -> PayStand:
        """How a channel stands, for its payer. Raises PaymentRefused: UNKNOWN_CHANNEL where there is none of it."""
        ...

    async def deposit(self, opening: PayOpen, node: bytes, /) -> bytes:
        """Submit a deposit; the hash of the transaction, the same when it is asked again. Raises PaymentRefused."""
        ...

    async def look(self, config: ChannelConfig, channel: bytes, node: bytes, /) -> None:
        """Ask the chain about a channel; `stand` knows it afterwards."""
        ...


class Unpaid(Exception):
    """The request is not answered until it is paid, `why` in the words of x402. `stand` tells the payer how its channel
    stands; `paid` is the PAYMENT-RESPONSE for a deposit that was taken all the same.
    """

    def __init__(
        self, why: str, *, stand: PayStand | None = None, paid: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(why)
        self.why = why
        self.stand = stand
        self.paid = paid
        self.retry_after_s = retry_after_s


def told(reason: MeshnodeError) -> Exception:
    """What went wrong with a payment here, as it is told over HTTP: against the payment (Unpaid), or the moment. What
    ails the chain, the disk or the wallet of this node is for its log.
    """
    code = reason.pay_code if isinstance(reason, PaymentRefused) else PayCode.CHAIN_DOWN
    if code == PayCode.TOO_OFTEN:
        return StrangerLimit(reason.detail, retry_after_s=LOOK_S)
    if code in (PayCode.CHAIN_DOWN, PayCode.NOT_SELLING):
        LOG.warning("a stranger could not pay: %s", reason)
        return PublicPaused("nobody can be paid here now", retry_after_s=PAUSE_S)
    return Unpaid(x402.reason_of(code))


def check_voucher(cashier: Cashier, payment: Payment, terms: Terms, amount: int) -> None:
    """Raise Unpaid for a payment that is not for a request of at most `amount`, or that its payer has not signed."""
    why = x402.objection(payment, terms, amount)
    if not why and cashier.channel(payment.config) != payment.voucher.channel:
        why = x402.WRONG_CHANNEL
    if not why and not cashier.is_signed(payment.config, payment.voucher):
        why = x402.WRONG_SIGNATURE
    if why:
        raise Unpaid(why)


async def taken(cashier: Cashier, payment: Payment, terms: Terms, payer: bytes) -> tuple[PayStand | None, bytes]:
    """Hold a signed voucher against how its channel stands, and have its deposit sent.

    Gives how the channel stands, None where it is not known yet (a deposit that the payer made by itself), and the
    transaction. `payer` is its id; nothing else runs for it meanwhile. Raises Unpaid, and what `told` gives.
    """
    stand = await _stand(cashier, payment, payer)
    charged, balance = (0, 0) if stand is None else (stand.charged, stand.balance)
    if payment.voucher.cumulative != charged + payment.amount:
        raise Unpaid(x402.WRONG_AMOUNT, stand=stand)
    if payment.deposit is None:
        return stand, b""
    if payment.deposit.amount < terms.least_deposit_micros:
        raise Unpaid(x402.SMALL_DEPOSIT)
    if balance + payment.deposit.amount < payment.voucher.cumulative:
        raise Unpaid(x402.TOO_MUCH)
    try:
        # What is begun with money is brought to its end, whether the caller goes on waiting or not.
        opening = payment.opening(terms.chain)
        transaction = await asyncio.shield(asyncio.ensure_future(cashier.deposit(opening, payer)))
    except MeshnodeError as reason:
        raise told(reason) from None
    return await _arrived(cashier, payment, payer, transaction), transaction


async def _stand(cashier: Cashier, payment: Payment, payer: bytes) -> PayStand | None:
    try:
        return await cashier.stand(PayState(payment.voucher.channel), payer)
    except MeshnodeError as reason:
        if isinstance(reason, PaymentRefused) and reason.pay_code == PayCode.UNKNOWN_CHANNEL:
            return None
        raise told(reason) from None


async def _arrived(cashier: Cashier, payment: Payment, payer: bytes, transaction: bytes) -> PayStand:
    """Wait until a deposit is in the channel, as surely as its amount asks for. Raises Unpaid when that takes long."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + DEPOSIT_S
    stand: PayStand | None = None
    while True:
        try:
            await cashier.look(payment.config, payment.voucher.channel, payer)
            stand = await cashier.stand(PayState(payment.voucher.channel), payer)
        except MeshnodeError as reason:  # the transaction stands, whatever an endpoint says
            LOG.info("a deposit is not seen yet: %s", reason)
        if stand is not None and stand.balance >= payment.voucher.cumulative:
            return stand
        if loop.time() + LOOK_S > ends:
            paid = x402.header(x402.settled(payment, stand, transaction=transaction))
            raise Unpaid(x402.PENDING, paid=paid, retry_after_s=LOOK_S)
        await asyncio.sleep(LOOK_S)
