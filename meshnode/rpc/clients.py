"""The connections of llama-server to one tunnel's port, served one after the other as an rpc-server would.

A loader connects and goes several times before it stays, and a new connection may be noticed before the end of the old
one: it waits. Nothing is read of those that wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

HOST = "127.0.0.1"
MOST_WAITING = 4


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self.transport: asyncio.Transport
        self.may_write = asyncio.Event()
        self.may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._clients.came(self)

    def data_received(self, data: bytes) -> None:
        self._clients.received(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.may_write.set()
        self._clients.left(self)

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()


class Clients:
    """See the module. `begun` when a client gets its turn, `received` for its bytes, `left` when it has gone."""

    def __init__(
        self, *, begun: Callable[[], None], received: Callable[[bytes], None], left: Callable[[], None]
    ) -> None:
        self.received = received
        self._begun = begun
        self._left = left
        self._server: asyncio.Server | None = None
        self._current: _Client | None = None
        self._waiting: deque[_Client] = deque()
        self._reading = True
        self._closed = False

    async def listen(self) -> int:
        """Open a port on loopback and return it. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), HOST, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def read(self, on: bool) -> None:
        """Whether to read what the client sends, from now on."""
        if on is not self._reading:
            self._reading = on
            if self._current is not None:
                self._apply(self._current)

    def _apply(self, client: _Client) -> None:
        if self._reading:
            client.transport.resume_reading()
        else:
            client.transport.pause_reading()

    def write(self, data: bytes) -> None:
        """Send to the client, if there is one."""
        if self._current is not None:
            self._current.transport.write(data)

    async def room(self) -> None:
        """Wait until the client takes more."""
        if self._current is not None and not self._current.may_write.is_set():
            await self._current.may_write.wait()

    def drop(self) -> None:
        """End the client's connection at once."""
        if self._current is not None:
            self._current.transport.abort()

    def close(self) -> None:
        """End all connections and give the port back; `left` is not called any more."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        self.drop()
        for client in self._waiting:
            client.transport.abort()

    # --- called by connections -------------------------------------------------------------------------------

    def came(self, client: _Client) -> None:
        """It has connected."""
        if self._closed or len(self._waiting) >= MOST_WAITING:
            client.transport.abort()
        elif self._current is not None:
            client.transport.pause_reading()
            self._waiting.append(client)
        else:
            self._begin(client)

    def _begin(self, client: _Client) -> None:
        self._current = client
        self._begun()
        self._apply(client)

    def left(self, client: _Client) -> None:
        """Its connection is over."""
        if client in self._waiting:
            self._waiting.remove(client)
        if client is not self._current:
            return
        self._current = None
        if not self._closed:
            self._left()
        if self._waiting and not self._closed:
            self._begin(self._waiting.popleft())
