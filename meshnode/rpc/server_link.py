"""The worker's connection to its rpc-server: bytes there, replies back to whoever asked.

The transport tells at once when it cannot take everything; then nothing more is written until it is empty. So a thread
may send through the socket itself in between (`expand.Feed`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from meshnode.wire import ggml_rpc as rpc
from meshnode.wire.ggml_rpc import ReplyCutter
from meshnode.wire.values import WireError

HOST = "127.0.0.1"
HELLO_S = 20.0
"""How long an rpc-server may take to let go of the connection before."""

Taker = Callable[[bytes, bool], None]
"""Gets the pieces of a reply, with its head, and whether it is the last piece."""


class ServerLink(asyncio.Protocol):
    """One connection. `ended(words)` is called once when it ends other than by `abort`; `flush` after replies."""

    def __init__(self, *, flush: Callable[[], None], ended: Callable[[str], None]) -> None:
        self.replies: ReplyCutter[Taker] = ReplyCutter()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self._flush = flush
        self._ended = ended
        self._transport: asyncio.Transport
        self._paused_by = 0
        self._over = False

    @classmethod
    async def connect(cls, port: int, *, flush: Callable[[], None], ended: Callable[[str], None]) -> ServerLink:
        """Connect and say hello. Raises OSError."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: cls(flush=flush, ended=ended), HOST, port)
        greeted: asyncio.Future[None] = loop.create_future()

        def greeting(_: bytes, last: bool) -> None:
            if last and not greeted.done():
                greeted.set_result(None)

        link.replies.expect(greeting, rpc.HELLO_REPLY_BYTES)
        link.write(rpc.hello())
        try:
            await asyncio.wait_for(greeted, HELLO_S)
        except TimeoutError:
            link.abort()
            raise ConnectionError("the rpc-server does not answer") from None
        except BaseException:
            link.abort()
            raise
        return link

    @property
    def is_paused(self) -> bool:
        """Whether replies are not read, as nobody can take them."""
        return self._paused_by > 0

    @property
    def owes(self) -> bool:
        """Whether the server has a reply to give, and could give it."""
        return len(self.replies) > 0 and not self.is_paused

    def write(self, data: bytes) -> None:
        """Send bytes to the server."""
        self._transport.write(data)

    def socket(self) -> socket.socket:
        """A second handle of the connection."""
        sock: socket.socket = self._transport.get_extra_info("socket")
        return sock.dup()

    def pause(self) -> None:
        """Read no replies until as many calls of `resume`."""
        self._paused_by += 1
        self._transport.pause_reading()

    def resume(self) -> None:
        """See `pause`."""
        self._paused_by -= 1
        if not self._paused_by and not self._over:
            self._transport.resume_reading()

    def abort(self) -> None:
        """End the connection at once, also for a thread that writes to it."""
        if not self._over:
            self._over = True
            with suppress(OSError):
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            self._transport.abort()
            self.may_write.set()

    # --- called by the loop ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        try:
            for take, piece, last in self.replies.feed(data):
                take(piece, last)
        except WireError as error:
            self._end(f"the rpc-server broke the rules: {error}")
            return
        self._flush()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def connection_lost(self, _: Exception | None) -> None:
        self._end("the rpc-server has ended the connection")

    def _end(self, words: str) -> None:
        if not self._over:
            self.abort()
            self._ended(words)
