"""One HTTP/1.1 exchange with a llama-server, over any byte stream.

Today the stream is a Unix or loopback socket; a stream of the mesh fits as well, as all that is asked of it is a
reader and a writer. Each exchange uses a fresh connection: llama-server closes after an SSE answer in spite of its
keep-alive header. Parsing is llhttp's (httptools); nothing is retried here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import httptools

from meshnode.errors import EngineCrashed

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

READ_BYTES = 64 << 10
MAX_HEAD_BYTES = 64 << 10
JOINED_BYTES = 16 << 10


class UpstreamBroken(EngineCrashed):
    """The engine ended the connection before its answer was complete."""

    code = "engine-connection-lost"
    fix = "send the request again"


class Exchange:
    """A request that was sent and the answer that comes back.

    Use `await Exchange.send(...)`, then `async for piece in exchange.body()`. `close()` tears the connection down,
    which is how llama-server learns that nobody waits any more.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._head_complete = False
        self._complete = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    @classmethod
    async def send(
        cls, connect: Connect, method: str, path: str, *, api_key: str, body: bytes, content_type: str
    ) -> Exchange:
        """Connect, send the request, and return once the head of the answer is here.

        Raises UpstreamBroken when the connection fails or the answer is not HTTP.
        """
        try:
            reader, writer = await connect()
        except OSError as reason:
            raise UpstreamBroken(f"no connection: {reason.strerror or reason}") from None
        exchange = cls(reader, writer)
        try:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: llama-server\r\nAuthorization: Bearer {api_key}\r\n"
                f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            # Each write is a system call that wakes llama-server: one for both, unless copying the body costs more.
            begin = body[:JOINED_BYTES]
            writer.write(head.encode("latin-1") + begin)
            if len(body) > len(begin):
                writer.write(memoryview(body)[len(begin) :])
            await exchange._receive_head()
        except BaseException:
            exchange.close()
            raise
        return exchange

    async def _receive_head(self) -> None:
        # The answer may come before the whole body was taken (an early 4xx), so reading does not wait for drain().
        while not self._head_complete:
            if not await self._feed():
                raise UpstreamBroken("it closed the connection without an answer")

    async def _feed(self) -> bool:
        """Read once and parse. False at the end of the connection."""
        try:
            data = await self._reader.read(READ_BYTES)
            if data:
                self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as reason:
            raise UpstreamBroken(type(reason).__name__) from None
        return bool(data)

    async def body(self) -> AsyncIterator[bytes]:
        """The decoded body in pieces, each as large as what had arrived. Raises UpstreamBroken if it is cut short."""
        while True:
            if self._pieces:
                piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                yield piece
            if self._complete:
                return
            if not await self._feed():
                raise UpstreamBroken("the answer was cut short")

    async def read_all(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamBroken beyond `limit_bytes`."""
        pieces = []
        size = 0
        async for piece in self.body():
            size += len(piece)
            if size > limit_bytes:
                raise UpstreamBroken("the answer is too large")
            pieces.append(piece)
        return b"".join(pieces)

    def header(self, name: bytes) -> bytes | None:
        """The first header of that (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)

    def close(self) -> None:
        """End the connection at once, whatever is still under way."""
        with suppress(OSError, RuntimeError):
            self._writer.transport.abort()

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header; the head as a whole is bounded."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise UpstreamBroken("its headers are too large")
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is here."""
        self.status = self._parser.get_status_code()
        self._head_complete = True

    def on_body(self, piece: bytes) -> None:
        """Part of the body, already without its chunk frame."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._complete = True
