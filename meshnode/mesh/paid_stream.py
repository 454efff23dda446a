"""The serving end of a paid `http` stream: HTTP for the tunnel on one side, messages about money on the other.

    PayAsk, PayVoucher, PayHttp  ──> read() gives the bytes of HTTP; the newest voucher waits in voucher()
    PayQuote, PayDue, PayReceipt <── send();  PayHttp <── write(), with the counts that stand when it is written

It looks like a MeshStream to mesh/tunnel.py, and whoever reads the request reads the vouchers on the way, so the
stream has one reader. What is wanted and owed is for api/charging.py: nothing here knows prices. Protocol: 15-payments.

What a peer can hold here is bounded: one voucher (the newest one stands for all before it), one read of HTTP, and a
number of vouchers that grows with the tokens that went out.
"""

from __future__ import annotations

import asyncio

from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.wire.frames import FrameReader, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.payments import (
    FROM_PAYER,
    PayAsk,
    PayDue,
    PayHttp,
    PayQuote,
    PayReceipt,
    PayRefused,
    PayVoucher,
    pieces,
)
from meshnode.wire.registry import LIMIT_PAY_FRAME_BYTES, MessageId
from meshnode.wire.values import WireError

READ_BYTES = 64 << 10
VOUCHERS_AT_ONCE = 32
TOKENS_A_VOUCHER = 4
"""A peer may send so many vouchers, and one more for every so many tokens of its answer. Each costs a signature."""
LEAVE_S = 5.0
"""How long the peer may take over the last words of a stream that ended before its time."""


class StreamMisused(ConnectionError):
    """The peer has sent what has no place on a paid stream."""


class PaidStream:
    """See the module. `begin` comes first; `ask` is there afterwards. One task reads, another may send and wait."""

    def __init__(self, stream: MeshStream) -> None:
        self._stream = stream
        self._frames = FrameReader()
        self._http = bytearray()
        self._over = False
        self._left = asyncio.Event()
        self._voucher: PayVoucher | None = None
        self._news = asyncio.Event()
        self._vouchers = 0
        self._asked: PayAsk | None = None
        self._tokens = (0, 0)
        self._receipt_sent = False
        self._misused = False
        self.drain = stream.drain  # a method of its own would cost an await for every piece
        self.refused: PayRefused | None = None

    @property
    def link(self) -> Link:
        """The link to the peer."""
        return self._stream.link

    @property
    def ask(self) -> PayAsk:
        """What the peer asks for."""
        assert self._asked is not None, "begin() comes first"
        return self._asked

    async def begin(self, timeout_s: float) -> None:
        """Wait for the first message. Raises StreamMisused, TimeoutError, and OSError when the stream breaks."""
        async with asyncio.timeout(timeout_s):
            while self._asked is None:
                if not await self._more():
                    raise self._misuse("a paid stream that asks for nothing")

    # --- HTTP, for the tunnel ---------------------------------------------------------------------------------

    async def read(self, limit_bytes: int) -> bytes:
        """Bytes of the request; b"" after the peer's end. Raises StreamMisused, and OSError as MeshStream.read."""
        while not self._http:
            if not await self._more():
                return b""
        piece = bytes(self._http[:limit_bytes])
        del self._http[:limit_bytes]
        return piece

    def write(self, data: bytes) -> None:
        """Queue bytes of the answer, which brings it to the `counted` tokens. Raises OSError as MeshStream.write."""
        tokens_in, tokens_out = self._tokens
        for piece in pieces(data):
            self._stream.write(_frame(PayHttp(piece.data, tokens_in, tokens_out)))

    def write_eof(self) -> None:
        """The answer is whole, and said what it cost."""
        self._stream.write_eof()

    def reset(self, code: int) -> None:
        """End both directions. Where a receipt went out the peer has time to take it: an end in order, then a reset."""
        if self._stream.is_finished:
            return
        if not self._receipt_sent or self._misused:
            self._stream.reset(code)
            return
        self._stream.write_eof()
        if not self._stream.is_finished:
            asyncio.get_running_loop().call_later(LEAVE_S, self._reset_unfinished, code)

    async def broken(self) -> None:
        """Wait until the peer has ended its direction, or the stream is broken: who pays no more has left."""
        waits = [asyncio.ensure_future(self._stream.broken()), asyncio.ensure_future(self._left.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    # --- money, for api/charging.py ---------------------------------------------------------------------------

    def send(self, message: PayQuote | PayDue | PayReceipt | PayRefused) -> None:
        """Queue a message. Raises OSError as MeshStream.write."""
        self._stream.write(_frame(message))
        self._receipt_sent = self._receipt_sent or isinstance(message, PayReceipt)

    def counted(self, tokens_in: int, tokens_out: int) -> None:
        """So many tokens will have been delivered with what is written next. What is said never falls."""
        self._tokens = max(self._tokens[0], tokens_in), max(self._tokens[1], tokens_out)

    async def voucher(self) -> PayVoucher | None:
        """The newest voucher that was not taken yet; None when no more will come. Needs someone who reads."""
        while self._voucher is None:
            if self._over or self.refused is not None:
                return None
            self._news.clear()
            await self._news.wait()
        found, self._voucher = self._voucher, None
        return found

    # --- what comes -------------------------------------------------------------------------------------------

    async def _more(self) -> bool:
        """Read once. False at the end of the peer's direction."""
        if self._over:
            return False
        data = await self._stream.read(READ_BYTES)
        if not data:
            if self._frames.waiting_bytes:
                raise self._misuse("a stream that ends within a frame")
            self._over = True
            self._left.set()
            self._news.set()
            return False
        try:
            for number, body in self._frames.feed(data):
                self._take(number, body)
        except WireError as reason:
            raise self._misuse(reason.reason) from None
        return True

    def _misuse(self, what: str) -> StreamMisused:
        self._misused = True
        return StreamMisused(what)

    def _take(self, number: int, body: bytes) -> None:
        if number % 2 == 0 and number not in FROM_PAYER:
            raise WireError(f"the message {number} on a paid stream")
        if number != MessageId.PAY_HTTP and len(body) > LIMIT_PAY_FRAME_BYTES:
            raise WireError(f"a message of {len(body)} bytes")
        message = decode_message(number, body)
        if message is not None and (self._asked is None) != isinstance(message, PayAsk):
            raise WireError("a paid stream begins with what is asked, and asks once")
        match message:
            case PayAsk():
                self._asked = message
            case PayHttp():
                self._http += message.data
            case PayVoucher():
                self._vouchers += 1
                if self._vouchers > VOUCHERS_AT_ONCE + self._tokens[1] // TOKENS_A_VOUCHER:
                    raise WireError("more vouchers than any answer needs")
                self._voucher = message
                self._news.set()
            case PayRefused():
                self.refused = message
                self._news.set()

    def _reset_unfinished(self, code: int) -> None:
        if not self._stream.is_finished:
            self._stream.reset(code)


def _frame(message: object) -> bytes:
    return encode_frame(message_id(message), encode_message(message))
