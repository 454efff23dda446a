"""A till and a purse with the real core of either side, and money that is made up.

Fakes in what touches keys, chain and disk: a voucher is signed by a secret that both know, and nothing is written. What
decides is real: core/credit.py of who is paid, core/ledger.py of who pays.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

from meshnode.api.paying import PaidCall, Progress
from meshnode.core.counting import TokenCount
from meshnode.core.credit import Credit
from meshnode.core.ledger import Ledger
from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.prices import Price
from meshnode.core.windows import Window
from meshnode.errors import MeshnodeError, MonthlyCapReached, PaymentRefused, PriceAboveCeiling
from meshnode.identity import verify
from meshnode.wire import quotes, receipts
from meshnode.wire.payments import PayAsk, PayDue, PayVoucher
from meshnode.wire.quotes import Quote
from meshnode.wire.receipts import Receipt
from meshnode.wire.registry import PayCode
from tests.net.nodes import IDENTITIES

MONTH = "2026-11"
CHAIN = 84532
CHANNEL = b"\xcc" * 32
PRICE = Price(200_000, 600_000)
"""20 and 60 cents a million tokens."""
WEIGHTS = "ab" * 16
PROMPT_TOKENS = 20
PAYER, RECEIVER, HUB, TOKEN = (bytes([number]) * 20 for number in (1, 2, 3, 4))


def sign_voucher(cumulative: int, channel: bytes = CHANNEL) -> PayVoucher:
    """What only the payer could sign, if this were real."""
    return PayVoucher(channel, cumulative, _signature(channel, cumulative))


def _signature(channel: bytes, cumulative: int) -> bytes:
    return (sha256(b"secret" + channel + str(cumulative).encode()).digest() * 3)[:65]


# --- the provider -----------------------------------------------------------------------------------------------------


class FakeTill:
    """Sells at `price`, over one channel."""

    def __init__(self, price: Price = PRICE, *, balance_micros: int = 10**6, unpaid: int = 0) -> None:
        self.sells_at = price
        self.quotes_at = price
        self.unpaid = unpaid
        self.credit = Credit(CHANNEL, balance_micros=balance_micros)
        self.node = IDENTITIES[1]
        self.sales: list[FakeSale] = []
        self.refuses: PaymentRefused | None = None

    def price(self, model: str, /) -> Price:
        return self.sells_at

    async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> FakeSale:
        if self.refuses is not None:
            raise self.refuses
        self.credit.open(ask.request, self.quotes_at, self.unpaid)
        sale = FakeSale(self, ask, model, content_hash)
        self.sales.append(sale)
        return sale


class FakeSale:
    """One request of FakeTill. `delivered` is how far the answer was let out, `vouched` what came for it."""

    def __init__(self, till: FakeTill, ask: PayAsk, model: str, content_hash: bytes) -> None:
        self._till = till
        self.ask = ask
        self.vouched: list[int] = []
        self.ignored = 0
        self.delivered = (0, 0)
        self.receipt: Receipt | None = None
        self.calls = 0
        credit = till.credit
        self._quote = Quote(
            id=sha256(ask.request.encode()).digest()[:16],
            node=till.node.node_id,
            model=model,
            content_hash=content_hash,
            price_in=till.quotes_at.tokens_in,
            price_out=till.quotes_at.tokens_out,
            every_tokens=32,
            ahead_tokens=64,
            credit_tokens=till.unpaid,
            unpaid_prefill_tokens=2048,
            not_after=2_000_000_000,
            chain=CHAIN,
            hub=HUB,
            token=TOKEN,
            receiver=RECEIVER,
            receiver_authorizer=RECEIVER,
            withdraw_delay_s=86400,
            min_deposit=1,
            channel=CHANNEL,
            charged=credit.stated(ask.request),
            vouched=credit.vouched_micros,
            signature=_signature(CHANNEL, credit.vouched_micros) if credit.vouched_micros else b"",
        )

    @property
    def quote(self) -> bytes:
        return quotes.issue(self._quote, self._till.node.sign)

    @property
    def charged_micros(self) -> int:
        return self.receipt.charged_micros if self.receipt else 0

    def may_start(self, tokens_in: int, /) -> bool:
        return self._till.credit.may_prefill(self.ask.request, tokens_in)

    def may_emit(self, tokens_in: int, tokens_out: int, /) -> bool:
        if not self._till.credit.may_emit(self.ask.request, tokens_in, tokens_out):
            return False
        self._till.credit.deliver(self.ask.request, tokens_in, tokens_out)
        self.delivered = tokens_in, tokens_out
        return True

    def due(self, tokens_in: int, tokens_out: int, /) -> PayDue:
        return PayDue(self._till.credit.owed(self.ask.request, tokens_in, tokens_out), tokens_in, tokens_out)

    async def voucher(self, voucher: PayVoucher, /) -> bool:
        assert self.calls == 0, "two calls at a time"
        self.calls += 1
        await asyncio.sleep(0)
        self.calls -= 1
        right = voucher.channel == CHANNEL and voucher.signature == _signature(CHANNEL, voucher.cumulative)
        try:
            if not right or not self._till.credit.accept(voucher.cumulative):
                self.ignored += 1
                return False
        except Refused as reason:
            raise PaymentRefused(str(reason), pay_code=PayCode.INSUFFICIENT_BALANCE) from None
        self._till.credit.held(voucher.cumulative)
        self.vouched.append(voucher.cumulative)
        return True

    async def ended(self, tokens_in: int, tokens_out: int, finish: str, output_sha256: str, /) -> bytes:
        assert self.calls == 0 and self.receipt is None
        charged = self._till.credit.ended(self.ask.request, tokens_in, tokens_out)
        self.receipt = Receipt(
            request=self.ask.request,
            quote=self._quote.id,
            node=self._till.node.node_id,
            model=self._quote.model,
            content_hash=self._quote.content_hash,
            payer=PAYER,
            channel=CHANNEL,
            chain=CHAIN,
            hub=HUB,
            price_in=self._quote.price_in,
            price_out=self._quote.price_out,
            tokens_in=charged.meter.tokens_in,
            tokens_out=charged.meter.tokens_out,
            charged_micros=charged.charged_micros,
            channel_charged_micros=charged.settled_micros,
            finish=finish,
            output_sha256=bytes.fromhex(output_sha256),
            at=1_000_000,
        )
        return receipts.write(self.receipt, self._till.node.sign)


# --- the payer --------------------------------------------------------------------------------------------------------


class FakePurse:
    """Pays up to a ceiling and a cap, over one channel. `silent` stops it from signing anything more."""

    def __init__(
        self, *, ceiling: Price = PRICE, month_micros: int = 10**6, balance_micros: int = 10**6, blind: bool = False
    ) -> None:
        self.policy = Policy(mode="auto", ceiling=ceiling, month_micros=month_micros)
        self.ledger = Ledger(self.policy)
        self.ledger.opened(CHANNEL)
        self.ledger.funded(CHANNEL, balance_micros, 0, MONTH)
        self.blind = blind
        self.silent = False
        self.requests: list[FakePaidRequest] = []

    def refusal(self, price: Price, chain: int, model: str, /) -> MeshnodeError | None:
        refused = self.ledger.policy.refusal(price, model)
        return None if refused is None else PriceAboveCeiling(str(refused))

    async def begin(self, call: PaidCall, /) -> FakePaidRequest:
        try:
            self.ledger.reserve(call.request, CHANNEL, call.model, call.price, call.most_in, call.most_out, MONTH)
        except Refused as reason:
            raise MonthlyCapReached(str(reason)) from None
        self.requests.append(FakePaidRequest(self, call))
        return self.requests[-1]


class FakePaidRequest:
    """One request of FakePurse."""

    step_tokens = 32

    def __init__(self, purse: FakePurse, call: PaidCall) -> None:
        self._purse = purse
        self.call = call
        self.count = TokenCount(call.most_out)
        self.told: list[str] = []
        self.signed: list[int] = []
        self.output = ""
        self.receipt_seen: Receipt | None = None
        self.outcome = ""
        self.progress = Progress()
        self._busy = False

    async def ask(self) -> tuple[PayAsk, PayVoucher | None]:
        self.told.append("ask")
        ask = PayAsk(self.call.request, self.call.model, self.call.most_out, CHAIN)
        return ask, self._due(Progress()) if self._purse.blind else None

    async def quoted(self, quote: bytes, /) -> PayVoucher | None:
        self.told.append("quoted")
        found = quotes.read_genuine(quote, node=self.call.node, verify=verify)
        if Price(found.price_in, found.price_out) != self.call.price:
            raise PriceAboveCeiling("it asks more than it advertised")
        return self._due(Progress())

    async def received(self, progress: Progress, /) -> PayVoucher | None:
        return await self._step("received", progress)

    async def due(self, due: PayDue, progress: Progress, /) -> PayVoucher | None:
        return await self._step("due", progress, due.tokens_in, due.tokens_out)

    async def _step(self, name: str, progress: Progress, tokens_in: int = 0, tokens_out: int = 0) -> PayVoucher | None:
        assert not self._busy and not self.outcome, "one call at a time, and none after the end"
        self._busy = True
        await asyncio.sleep(0)
        self._busy = False
        self.told.append(name)
        self.count.received_bytes = progress.text_bytes
        if self.count.diverges(max(tokens_out, progress.tokens_out)):
            raise PaymentRefused("more tokens than bytes", pay_code=PayCode.CUM_MISMATCH)
        return self._due(progress, max(progress.tokens_in, tokens_in), tokens_out, asked=name == "due")

    def _due(
        self, progress: Progress, tokens_in: int = 0, tokens_out: int = 0, asked: bool = True
    ) -> PayVoucher | None:
        if self._purse.silent:
            return None
        received = self.count.accept(max(progress.tokens_out, tokens_out))
        try:
            signed = self._purse.ledger.due(self.call.request, tokens_in, received, Window(), MONTH, asked)
        except Refused as reason:
            raise MonthlyCapReached(str(reason)) from None
        line = self._purse.ledger.line(CHANNEL)
        assert line is not None
        if signed is None and not (asked and line.signed_micros):
            return None
        self.signed.append(line.signed_micros)
        return sign_voucher(line.signed_micros)

    async def receipt(self, receipt: bytes, progress: Progress, output_sha256: str, /) -> PayVoucher | None:
        self.told.append("receipt")
        self.receipt_seen = found = receipts.read_genuine(receipt, verify)
        self.output = output_sha256
        before = len(self.signed)
        for entry in self._purse.ledger.finished(self.call.request, found.charged_micros, MONTH):
            if hasattr(entry, "delta_micros"):
                self.signed.append(entry.line.signed_micros)
        return sign_voucher(self.signed[-1]) if len(self.signed) > before else None

    async def ended(self, outcome: str, progress: Progress, /) -> int:
        assert not self.outcome, "it ends once"
        self.outcome, self.progress = outcome, progress
        if self.receipt_seen is not None:
            return self.receipt_seen.charged_micros
        running = self._purse.ledger.running(self.call.request)
        self._purse.ledger.release(self.call.request)
        return 0 if running is None else running.covered_micros
