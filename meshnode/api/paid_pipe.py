"""Paying for an answer while it comes: the pipe to a node that sells, with the messages about money taken out.

    Exchange ── HTTP ──> PaidPipe ── PayAsk, PayVoucher, PayHttp ──>  a stream whose header says that it is paid
             <── HTTP ──          <── PayQuote, PayHttp, PayDue, PayReceipt
                             │
                        the signing task ──> PaidRequest, which keeps the journal and signs

Bytes never wait for a signature: whoever reads the pipe only notes what came, and a task beside it asks the
PaidRequest, one step after the other, and sends what that gives. When it says no, the provider is told, the pipe
breaks, and the request goes on at another host (answering.py).

Whatever becomes of a request, its PaidRequest is told the end once: `settle` works on after the request is gone, and
gives a provider a moment to say what the part cost that was given. Protocol: 15-payments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from meshnode.api.paying import PaidRequest, Progress
from meshnode.api.received import Received
from meshnode.api.upstream import Connect, Pipe
from meshnode.errors import (
    GasCapReached,
    MeshnodeError,
    MonthlyCapReached,
    PaymentRefused,
    PaymentsOff,
    PriceAboveCeiling,
)
from meshnode.telemetry import LOG
from meshnode.wire import receipts
from meshnode.wire.frames import FrameReader, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.payments import (
    FROM_PROVIDER,
    PayAsk,
    PayDue,
    PayHttp,
    PayQuote,
    PayReceipt,
    PayRefused,
    PayVoucher,
    pieces,
)
from meshnode.wire.registry import LIMIT_PAY_FRAME_BYTES, PAY_TEXTS, MessageId, PayCode
from meshnode.wire.values import WireError

READ_BYTES = 64 << 10
DUES_AT_ONCE = 64
TEXT_BYTES_A_DUE = 16
"""A provider may ask for a voucher so often, and once more for every so many bytes of text."""
LEAVE_S = 2.0
"""How long a provider has for its receipt when the request ends before its answer."""
_UNDER_WAY: set[asyncio.Task[int]] = set()
"""Settlements whose request may be gone: the loop alone would forget them."""

Step = Callable[[], Awaitable[PayVoucher | None]]


class PaymentStopped(ConnectionError):
    """The pipe is over, as one of its ends does not go on with the payment, or breaks its rules."""


class Payment:
    """The payment of one attempt. `connect` opens its pipe; `settle` comes at its end, also where it never began.

    `refusal` is why it could not be paid, if that is what went wrong.
    """

    def __init__(self, request: PaidRequest, path: str) -> None:
        self._request = request
        self._path = path
        self._pipe: PaidPipe | None = None
        self._settling: asyncio.Task[int] | None = None
        self._refusal: MeshnodeError | None = None

    @property
    def refusal(self) -> MeshnodeError | None:
        """Who says no, and why: the Purse, or the provider."""
        return self._refusal or (self._pipe.refusal if self._pipe is not None else None)

    def over(self, connect: Connect) -> Connect:
        """What opens the pipe, over a stream that `connect` opens. Raises OSError."""

        async def open_pipe() -> Pipe:
            try:
                ask, voucher = await self._request.ask()
            except MeshnodeError as reason:
                self._refusal = reason
                raise PaymentStopped(reason.message) from None
            self._pipe = PaidPipe(await connect(), self._request, Received(self._path))
            self._pipe.begin(ask, voucher)
            return self._pipe

        return open_pipe

    def settle(self, outcome: str) -> asyncio.Task[int]:
        """Tell the PaidRequest that it is over: whole, broken or cancelled. Gives the micro-USDC that it cost."""
        if self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._settle(outcome))
            _UNDER_WAY.add(self._settling)
            self._settling.add_done_callback(_UNDER_WAY.discard)
        return self._settling

    async def _settle(self, outcome: str) -> int:
        progress = Progress()
        if self._pipe is not None:
            progress = await self._pipe.close()
        try:
            return await self._request.ended("refused" if self.refusal is not None else outcome, progress)
        except MeshnodeError as reason:
            LOG.warning("the end of a payment could not be kept: %s", reason)
            return 0


class PaidPipe:
    """See the module. A Pipe, made by Payment. `refusal` is set once either end has said no."""

    def __init__(self, raw: Pipe, request: PaidRequest, received: Received) -> None:
        self._raw = raw
        self._request = request
        self._received = received
        self._frames = FrameReader()
        self._http = bytearray()
        self._reading = self._leaving = self._ended = self._over = False
        self._news = asyncio.Event()
        self._signing: asyncio.Task[None] | None = None
        self._quote: bytes | None = None
        self._due: PayDue | None = None
        self._dues = 0
        self._receipt: bytes | None = None
        self._finish = ""
        self._settled = asyncio.Event()
        self._seen: set[type[Any]] = set()
        self._tokens = (0, 0)
        self._told = 0
        self.refusal: MeshnodeError | None = None

    @property
    def silent(self) -> bool:
        """Nothing is heard of the other end."""
        return getattr(self._raw, "silent", False)

    def begin(self, ask: PayAsk, voucher: PayVoucher | None) -> None:
        """The first messages. Raises OSError."""
        self._raw.write(_frame(ask))
        if voucher is not None:
            self._raw.write(_frame(voucher))
        self._signing = asyncio.get_running_loop().create_task(self._sign())

    # --- Pipe -------------------------------------------------------------------------------------------------

    async def read(self, limit_bytes: int, /) -> bytes:
        """Bytes of HTTP; b"" at the end of an answer that is whole. Raises OSError."""
        while not self._http:
            if self._over:
                return b""
            await self._more()
            if self.refusal is not None:
                raise PaymentStopped(self.refusal.message)
        piece = bytes(self._http[:limit_bytes])
        del self._http[:limit_bytes]
        return piece

    def write(self, data: bytes, /) -> None:
        """Queue bytes of HTTP. Raises OSError."""
        for piece in pieces(data):
            self._raw.write(_frame(piece))

    def abort(self) -> None:
        """Pay no more. A provider may still say what it came to (see `close`), unless somebody waits for its bytes."""
        if self._leaving:
            return
        self._leaving = True
        if self._reading:
            self._raw.abort()
        else:
            self._end()

    async def close(self) -> Progress:
        """The end of all that is paid: takes the receipt, if it comes soon, and ends the stream. What has come."""
        self.abort()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while not self._over and not self.silent:
                    await self._more()
                    self._http.clear()
        if self._over:  # our last words are on their way
            asyncio.get_running_loop().call_later(LEAVE_S, self._raw.abort)
        else:
            self._raw.abort()
        self._over = True
        if self._signing is not None:
            self._news.set()
            await asyncio.wait([self._signing])
        return self._progress()

    # --- what comes -------------------------------------------------------------------------------------------

    async def _more(self) -> None:
        """Read once, and take what came. Raises OSError."""
        self._reading = True
        try:
            data = await self._raw.read(READ_BYTES)
        finally:
            self._reading = False
        try:
            for number, body in self._frames.feed(data):
                self._take(number, body)
            if not data:
                await self._at_the_end()
        except WireError as reason:
            self._refuse(PaymentRefused(reason.reason, pay_code=PayCode.CUM_MISMATCH))
            self._raw.abort()
            raise PaymentStopped(reason.reason) from None

    async def _at_the_end(self) -> None:
        if self._frames.waiting_bytes:
            raise WireError("a stream that ends within a frame")
        if self._receipt is not None:
            await self._settled.wait()
        self._over = True
        if self._finish in ("broken", "cancelled") and not self._leaving:
            raise PaymentStopped(f"the answer ended before its time: {self._finish}")

    def _take(self, number: int, body: bytes) -> None:
        if number % 2 == 0 and number not in FROM_PROVIDER:
            raise WireError(f"the message {number} on a paid stream")
        if number != MessageId.PAY_HTTP and len(body) > LIMIT_PAY_FRAME_BYTES:
            raise WireError(f"a message of {len(body)} bytes")
        match message := decode_message(number, body):
            case PayHttp():
                self._received.take(message.data)
                self._http += message.data
                known_in, known_out = self._tokens
                self._tokens = max(known_in, message.tokens_in), max(known_out, message.tokens_out)
                if self._is_time():
                    self._news.set()
                return
            case PayQuote():
                self._once(message)
                self._quote = message.quote
            case PayDue():
                self._dues += 1
                if self._dues > DUES_AT_ONCE + self._received.text_bytes // TEXT_BYTES_A_DUE:
                    raise WireError("more demands than any answer needs")
                self._due = message
            case PayReceipt():
                self._once(message)
                with suppress(WireError):  # whether it is one at all is for the PaidRequest to find out
                    self._finish = receipts.read(message.receipt).finish
                self._receipt = message.receipt
            case PayRefused():
                text = message.text or PAY_TEXTS.get(message.code, f"code {message.code}")
                self.refusal = self.refusal or PaymentRefused(text, pay_code=message.code)
        self._news.set()

    def _once(self, message: Any) -> None:
        if type(message) in self._seen:
            raise WireError(f"a second {type(message).__name__} on one stream")
        self._seen.add(type(message))

    def _progress(self) -> Progress:
        """Where the provider says nothing of its counts, an event with text is a token."""
        tokens_in, tokens_out = self._tokens
        return Progress(self._received.text_bytes, tokens_in, tokens_out or self._received.events)

    def _is_time(self) -> bool:
        return self._progress().tokens_out >= self._told + self._request.step_tokens

    # --- what is paid -----------------------------------------------------------------------------------------

    async def _sign(self) -> None:
        """One step after the other, until the pipe is closed and its receipt is seen to."""
        while True:
            while (step := self._next_step()) is not None:
                try:
                    voucher = await step()
                    if voucher is not None:
                        self._send(voucher)
                except MeshnodeError as reason:
                    self._refuse(reason)
                except Exception:
                    LOG.exception("a payment failed")
                    self._refuse(MeshnodeError("this is a fault of meshnode; its log has the details"))
            if self._over:
                return
            self._news.clear()
            await self._news.wait()

    def _next_step(self) -> Step | None:
        if self._receipt is not None:
            return None if self._settled.is_set() else self._take_receipt
        if self._leaving or self.refusal is not None:
            return None
        request, progress = self._request, self._progress()
        if (quote := self._quote) is not None:
            self._quote = None
            return lambda: request.quoted(quote)
        if PayQuote not in self._seen:  # it is a gift
            return None
        if (due := self._due) is not None:
            self._due, self._told = None, progress.tokens_out
            return lambda: request.due(due, progress)
        if self._is_time():
            self._told = progress.tokens_out
            return lambda: request.received(progress)
        return None

    async def _take_receipt(self) -> PayVoucher | None:
        """The answer is here: a receipt that is not believed changes what is paid, and nothing else."""
        assert self._receipt is not None
        try:
            voucher = await self._request.receipt(self._receipt, self._progress(), self._received.sha256)
            if voucher is not None:
                self._send(voucher)
        except MeshnodeError as reason:
            LOG.warning("a receipt is not believed: %s", reason)
        finally:
            self._settled.set()
            self._end()
        return None

    def _send(self, voucher: PayVoucher) -> None:
        if not self._ended:
            with suppress(OSError):
                self._raw.write(_frame(voucher))

    def _refuse(self, reason: MeshnodeError) -> None:
        """Nothing more is paid. The provider hears the kind of reason, and may say what it came to so far."""
        if self.refusal is None:
            self.refusal = reason
            if not self._ended:
                with suppress(OSError):
                    self._raw.write(_frame(PayRefused(_code_of(reason))))
            self._end()

    def _end(self) -> None:
        """Our direction is over. A pipe that knows no end of one direction is told by its abort."""
        self._ended = True
        end = getattr(self._raw, "write_eof", None)
        if end is not None:
            end()


def _frame(message: Any) -> bytes:
    return encode_frame(message_id(message), encode_message(message))


def _code_of(reason: MeshnodeError) -> int:
    match reason:
        case PaymentRefused():
            return reason.pay_code
        case PriceAboveCeiling():
            return PayCode.PRICE_ABOVE_CEILING
        case MonthlyCapReached() | GasCapReached() | PaymentsOff():
            return PayCode.CAP_REACHED
    return PayCode.CUM_MISMATCH
