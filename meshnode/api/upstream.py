"""One HTTP/1.1 exchange with a llama-server, over any pipe of bytes.

The pipe is a Unix or loopback socket to the engine beside us, or a stream of the mesh to another node. Each exchange
uses a fresh one: llama-server closes after an SSE answer in spite of its keep-alive header, and a stream of the mesh
costs no round trip. Parsing is llhttp's (httptools); nothing is retried here.

A body with neither a length nor chunks ends with its connection (RFC 9112, 6.3). On a socket that end cannot be told
from a crash, so it counts as one; a stream of the mesh ends with an explicit FIN, and a crash there is a reset.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import httptools

from meshnode.errors import EngineCrashed
from meshnode.wire.registry import Reset


class Pipe(Protocol):
    """Bytes both ways. A pipe whose `ends_cleanly` is False may end (`b""`) where it should have been reset; one that
    has no such member ends cleanly. A pipe may have a member `silent`, which is True while nothing is heard of its
    other end.
    """

    async def read(self, limit_bytes: int, /) -> bytes:
        """Some bytes, or b"" at the end. Raises OSError when the pipe is broken."""
        ...

    def write(self, data: bytes, /) -> None:
        """Queue bytes for sending. Raises OSError when the pipe is known to be broken."""
        ...

    def abort(self) -> None:
        """Tear both directions down at once. Never raises, and may be called again."""
        ...


Connect = Callable[[], Awaitable[Pipe]]
"""Opens a fresh pipe to one llama-server. Raises OSError."""
OpenSockets = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

READ_BYTES = 64 << 10
LOOK_S = 0.2
"""How often a pipe is asked whether its other end is silent."""
MAX_HEAD_BYTES = 64 << 10
JOINED_BYTES = 16 << 10


class UpstreamBroken(EngineCrashed):
    """The engine ended the connection before its answer was complete."""

    code = "engine-connection-lost"
    fix = "send the request again"
    busy = False
    """The far end had too much to do, and said so."""
    reached = True
    """There was a connection before it broke."""

    @classmethod
    def because_of(cls, reason: OSError | httptools.HttpParserError) -> UpstreamBroken:
        """What a pipe or the parser raised, as this error."""
        error = cls(type(reason).__name__)
        error.busy = getattr(reason, "code", None) == Reset.OVERLOAD
        return error


class SilenceWatch:
    """Breaks a pipe whose other end has fallen silent, if `may_leave` says that there is another way.

    Without another way it waits on: a peer that was gone for two seconds may come back with the rest.
    """

    def __init__(self, pipe: Pipe, may_leave: Callable[[], bool]) -> None:
        self._pipe = pipe
        self._may_leave = may_leave
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if hasattr(pipe, "silent"):
            self._look()

    def _look(self) -> None:
        if self._pipe.silent and self._may_leave():  # type: ignore[attr-defined]
            self._pipe.abort()
            return
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()


def never() -> bool:
    """There is no other way."""
    return False


class SocketPipe:
    """A Unix or TCP connection as a Pipe."""

    ends_cleanly = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.read = reader.read  # a method of its own would cost an await for every piece

    def write(self, data: bytes, /) -> None:
        """Queue bytes for sending."""
        self._writer.write(data)

    def abort(self) -> None:
        """Close the connection at once."""
        with suppress(OSError, RuntimeError):
            self._writer.transport.abort()


def over_sockets(open_sockets: OpenSockets) -> Connect:
    """What opens a connection as asyncio does, as a Connect."""

    async def connect() -> Pipe:
        return SocketPipe(*await open_sockets())

    return connect


class Exchange:
    """A request that was sent and the answer that comes back.

    Use `await Exchange.send(...)`, then `async for piece in exchange.body()`. `close()` tears the connection down,
    which is how llama-server learns that nobody waits any more.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._watch: SilenceWatch | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._head_complete = False
        self._complete = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    @classmethod
    async def send(
        cls,
        connect: Connect,
        method: str,
        path: str,
        *,
        api_key: str,
        body: bytes,
        content_type: str,
        request_id: str = "",
        may_leave: Callable[[], bool] = never,
    ) -> Exchange:
        """Connect, send the request, and return once the head of the answer is here.

        No key and no id are sent where they are empty. A pipe that falls silent before the exchange is closed counts as
        broken when `may_leave` says that there is another way. Raises UpstreamBroken when the connection fails or the
        answer is not HTTP.
        """
        try:
            pipe = await connect()
        except OSError as reason:
            error = UpstreamBroken(f"no connection: {reason.strerror or reason}")
            error.reached = False
            raise error from None
        exchange = cls(pipe)
        exchange._watch = SilenceWatch(pipe, may_leave)
        try:
            key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
            number = f"X-Meshnode-Request-Id: {request_id}\r\n" if request_id else ""
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: llama-server\r\n{key}{number}"
                f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            # Each write is a system call that wakes llama-server: one for both, unless copying the body costs more.
            begin = body[:JOINED_BYTES]
            pipe.write(head.encode("latin-1") + begin)
            if len(body) > len(begin):
                pipe.write(body[len(begin) :])
            await exchange._receive_head()
        except OSError as reason:
            exchange.close()
            raise UpstreamBroken.because_of(reason) from None
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
            data = await self._pipe.read(READ_BYTES)
            if data:
                self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as reason:
            raise UpstreamBroken.because_of(reason) from None
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
                if self._ends_with_the_pipe():
                    return
                raise UpstreamBroken("the answer was cut short")

    def _ends_with_the_pipe(self) -> bool:
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        return not framed and getattr(self._pipe, "ends_cleanly", True)

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
        if self._watch is not None:
            self._watch.close()
        self._pipe.abort()

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
