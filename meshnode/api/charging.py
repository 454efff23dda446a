"""The gate of a paid answer, at the node that gives it: nothing goes out before it is vouched for.

    engine ──> Charge.body ── counts each event, asks the Sale ──> Reply
                    │ it may not go out yet: PayDue, and wait
    payer ── PayVoucher ──> Sale.voucher, beside it

A Till knows prices, channels and signatures, and keeps the journal; here is only the order of things: a quote first,
then vouchers, then tokens, then a receipt, whatever becomes of the answer. While the line stands the engine is not
read, so it works on no further than its socket lets it. A prompt that is too long to be read on trust waits for its
voucher before the engine hears of it.

What has been given is charged, and nothing else: a request that was refused, or that broke off before its first token,
costs nothing. Protocol: 15-payments.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Protocol

from meshnode.api.metering import Meter, Piece
from meshnode.api.record import token_counts
from meshnode.api.upstream import UpstreamBroken
from meshnode.core.prices import Price
from meshnode.errors import MeshnodeError, PaymentRefused
from meshnode.telemetry import LOG
from meshnode.wire.payments import PayAsk, PayDue, PayQuote, PayReceipt, PayRefused, PayVoucher
from meshnode.wire.registry import LIMIT_PAY_STALL_S, LIMIT_PAY_TEXT_CHARS, PAY_TEXTS, PayCode
from meshnode.wire.schema import showable

STALL_S: float = LIMIT_PAY_STALL_S
"""How long an answer stands still for want of a voucher."""
MOST_IGNORED = 8
"""Vouchers of one request that may be worth nothing: stale, forged, or for another channel."""
EARLY_TOKENS = 64
"""A longer prompt is asked to be paid for while it is read, so that the first token does not wait for that."""
LATE_S = 5.0
"""How long the last voucher of an answer that is whole may take."""
MOST_PLAIN_BYTES = 64 << 20
"""Of an answer that is no stream, and is held until it is paid."""

_UNDER_WAY: set[asyncio.Future[None]] = set()
"""Sales that are being ended, perhaps by nobody any more: the loop alone would forget them."""


class Sale(Protocol):
    """One paid request, at the Till. Its coroutines never run two at a time."""

    @property
    def quote(self) -> bytes:
        """What it costs, signed."""
        ...

    @property
    def charged_micros(self) -> int:
        """What it came to, once it has ended."""
        ...

    def may_start(self, tokens_in: int, /) -> bool:
        """Whether a prompt of about so many tokens may be read now. If so it is."""
        ...

    def may_emit(self, tokens_in: int, tokens_out: int, /) -> bool:
        """Whether the answer may come to so many tokens now. If so they go out next."""
        ...

    def due(self, tokens_in: int, tokens_out: int, /) -> PayDue:
        """The least that would let it come to that."""
        ...

    async def voucher(self, voucher: PayVoucher, /) -> bool:
        """Keep a voucher, durably; False for one that is worth nothing. Raises PaymentRefused where it ends here."""
        ...

    async def ended(self, tokens_in: int, tokens_out: int, finish: str, output_sha256: str, /) -> bytes:
        """So many tokens were given: the receipt, signed and kept. `finish`: stop, length, cancelled, broken."""
        ...


class Till(Protocol):
    """Sells answers."""

    def price(self, model: str, /) -> Price:
        """What a model costs strangers; FREE if nothing."""
        ...

    async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> Sale:
        """Begin a sale to a node. Raises PaymentRefused."""
        ...


class Payer(Protocol):
    """The end of a stream at which somebody pays (mesh/paid_stream.py)."""

    @property
    def ask(self) -> PayAsk: ...
    @property
    def refused(self) -> PayRefused | None: ...
    def send(self, message: PayQuote | PayDue | PayReceipt | PayRefused, /) -> None: ...
    def counted(self, tokens_in: int, tokens_out: int, /) -> None: ...
    async def voucher(self) -> PayVoucher | None: ...


class Reply(Protocol):
    """Where the answer goes; see peer_requests.py."""

    async def head(self, status: int, headers: Sequence[tuple[str, str]], /) -> None: ...
    async def body(self, piece: bytes, /) -> None: ...
    async def finish(self) -> None: ...


class Charge:
    """The sale of one answer to `node`. `async with open(...)`, and inside of it `over(reply)` is what the answer goes
    through. `prompt_tokens` is about how long the prompt is.
    """

    def __init__(self, till: Till, payer: Payer, node: bytes, *, prompt_tokens: int) -> None:
        self._till = till
        self._payer = payer
        self._node = node
        self._prompt_tokens = prompt_tokens
        self._sale: Sale
        self._turn = asyncio.Lock()
        self._news = asyncio.Event()
        self._no_more: PaymentRefused | None = None
        self._output = sha256()
        self._settled = False
        self.tokens_in = self.tokens_out = 0
        """What was given."""
        self.charged_micros = 0

    @asynccontextmanager
    async def open(self, model: str, content_hash: bytes) -> AsyncIterator[None]:
        """A sale for the length of the block, which begins when the prompt may be read. Raises PaymentRefused."""
        opening = asyncio.ensure_future(
            self._till.open(self._node, self._payer.ask, model=model, content_hash=content_hash)
        )
        try:
            self._sale = await asyncio.shield(opening)
        except PaymentRefused as reason:
            self._refuse(reason)
            raise
        except asyncio.CancelledError:
            _keep(asyncio.ensure_future(self._give_up(opening)))
            raise
        taking: asyncio.Task[None] | None = None
        finish = "broken"
        try:
            self._payer.send(PayQuote(self._sale.quote))
            taking = asyncio.create_task(self._take_vouchers())
            if not self._sale.may_start(self._prompt_tokens):
                await self._until(lambda: self._sale.may_start(self._prompt_tokens), self._prompt_tokens, 0)
            elif self._prompt_tokens > EARLY_TOKENS:
                self._payer.send(self._sale.due(self._prompt_tokens, 1))
            yield
        except PaymentRefused as reason:
            self._refuse(reason)
            raise
        except asyncio.CancelledError:
            finish = "cancelled"
            raise
        finally:
            whole = self._settled
            if not whole:
                # What is owed is written down also when whoever waits for this is being cancelled.
                await self.end(finish)
            if taking is not None:
                asyncio.get_running_loop().call_later(LATE_S if whole else 0, taking.cancel)

    @property
    def most_out(self) -> int:
        """The most tokens of the answer that are paid for."""
        return self._payer.ask.most_out

    def over(self, reply: Reply) -> Reply:
        """What lets out to `reply` what is paid."""
        return _Gate(self, reply)

    # --- what goes out ----------------------------------------------------------------------------------------

    async def until_paid(self, tokens_in: int, tokens_out: int) -> None:
        """Wait until the answer may come to so many tokens. Raises PaymentRefused."""
        if not self._sale.may_emit(tokens_in, tokens_out):
            await self._until(lambda: self._sale.may_emit(tokens_in, tokens_out), tokens_in, tokens_out)

    def may_emit(self, piece: Piece) -> bool:
        """Whether a piece may go out now."""
        return self._sale.may_emit(piece.tokens_in, piece.tokens_out)

    def giving(self, data: bytes, tokens_in: int, tokens_out: int) -> None:
        """These bytes go out next, and bring the answer to so many tokens."""
        self._output.update(data)
        self.tokens_in, self.tokens_out = tokens_in, tokens_out
        self._payer.counted(tokens_in, tokens_out)

    async def end(self, finish: str) -> None:
        """Nothing more is given: what it came to is kept, and the receipt goes out."""
        await asyncio.shield(_keep(asyncio.ensure_future(self._settle(finish))))

    async def _give_up(self, opening: asyncio.Future[Sale]) -> None:
        """End a sale whose payer has left before it was open."""
        with suppress(MeshnodeError):
            self._sale = await opening
            await self._settle("cancelled")

    async def _settle(self, finish: str) -> None:
        self._settled = True
        try:
            async with self._turn:
                receipt = await self._sale.ended(self.tokens_in, self.tokens_out, finish, self._output.hexdigest())
        except MeshnodeError as reason:  # the answer was given, and is paid for by the last voucher
            LOG.warning("there is no receipt for a paid answer: %s", reason)
            return
        self.charged_micros = self._sale.charged_micros
        if self.tokens_in or self.tokens_out or finish not in ("broken", "cancelled"):
            with suppress(OSError):
                self._payer.send(PayReceipt(receipt))

    # --- what comes -------------------------------------------------------------------------------------------

    async def _until(self, may: Callable[[], bool], tokens_in: int, tokens_out: int) -> None:
        self._payer.send(self._sale.due(tokens_in, tokens_out))
        try:
            async with asyncio.timeout(STALL_S):
                while not may():
                    if self._no_more is not None:
                        raise self._no_more
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise _no_voucher() from None

    async def _take_vouchers(self) -> None:
        ignored = 0
        try:
            while (voucher := await self._payer.voucher()) is not None:
                async with self._turn:
                    worth = await self._sale.voucher(voucher)
                ignored += not worth
                if ignored > MOST_IGNORED:
                    raise PaymentRefused("vouchers that are worth nothing", pay_code=PayCode.BAD_SIGNATURE)
                self._news.set()
            self._no_more = _no_voucher()
        except PaymentRefused as reason:
            self._no_more = reason
        except MeshnodeError as reason:  # the journal cannot be written: what is not kept is not paid
            LOG.warning("a voucher could not be kept: %s", reason)
            self._no_more = PaymentRefused("it cannot be kept here", pay_code=PayCode.CHAIN_DOWN)
        self._news.set()

    def _refuse(self, reason: PaymentRefused) -> None:
        with suppress(OSError):
            text = showable(reason.detail or PAY_TEXTS.get(reason.pay_code, ""), LIMIT_PAY_TEXT_CHARS)
            self._payer.send(PayRefused(reason.pay_code, text))


class _Gate:
    """A Reply in front of another one."""

    def __init__(self, charge: Charge, reply: Reply) -> None:
        self._charge = charge
        self._reply = reply
        self._meter = Meter(charge.most_out)
        self._plain: bytearray | None = None
        self._head: tuple[int, Sequence[tuple[str, str]]] = (0, ())

    async def head(self, status: int, headers: Sequence[tuple[str, str]], /) -> None:
        """The head of a stream goes out at once, that of another answer with its body."""
        kind = next((value for name, value in headers if name == "content-type"), "")
        if kind.startswith("text/event-stream"):
            await self._reply.head(status, headers)
        else:
            self._plain, self._head = bytearray(), (status, headers)

    async def body(self, data: bytes, /) -> None:
        """What of it is paid goes out; waits for the rest. Raises PaymentRefused when no voucher comes for it."""
        if self._plain is not None:
            self._plain += data
            if len(self._plain) > MOST_PLAIN_BYTES:
                raise UpstreamBroken("the answer is too large")
            return
        await self._give(list(self._meter.take(data)))

    async def finish(self) -> None:
        """All of it was paid, and goes out; then the receipt."""
        charge = self._charge
        if self._plain is not None:
            body = bytes(self._plain)
            counts = token_counts(body)
            await charge.until_paid(*counts)
            await self._reply.head(*self._head)
            charge.giving(body, *counts)
            await self._reply.body(body)
        elif (rest := self._meter.rest()) is not None:
            await self._give([rest])
        await charge.end(self._meter.finish)
        await self._reply.finish()

    async def _give(self, pieces: list[Piece]) -> None:
        ready: list[Piece] = []
        for piece in pieces:
            if not self._charge.may_emit(piece):
                await self._let_out(ready)
                ready = []
                await self._charge.until_paid(piece.tokens_in, piece.tokens_out)
            ready.append(piece)
        await self._let_out(ready)

    async def _let_out(self, pieces: list[Piece]) -> None:
        if pieces:
            data = b"".join(piece.data for piece in pieces)
            self._charge.giving(data, pieces[-1].tokens_in, pieces[-1].tokens_out)
            await self._reply.body(data)


def _keep(task: asyncio.Future[None]) -> asyncio.Future[None]:
    _UNDER_WAY.add(task)
    task.add_done_callback(_UNDER_WAY.discard)
    return task


def _no_voucher() -> PaymentRefused:
    return PaymentRefused("no voucher came in time", pay_code=PayCode.NO_VOUCHER)
