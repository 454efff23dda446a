"""A router on loopback that answers what the test says: as PCP and NAT-PMP are spoken, or as nobody should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import cast

from meshnode.net.gateway import Gateway

Answers = Callable[[bytes], Iterable[bytes]]


class FakeRouter(asyncio.DatagramProtocol):
    """`answers` gives the datagrams that answer one; `heard` is all that came."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.heard: list[bytes] = []
        self.voice: asyncio.DatagramTransport | None = None
        """Where answers leave from, if not from the router's own socket."""
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        assert self._transport is not None
        self.heard.append(data)
        for answer in self.answers(data):
            (self.voice or self._transport).sendto(answer, addr)


@asynccontextmanager
async def router(answers: Answers, *, another_voice: bool = False) -> AsyncIterator[tuple[Gateway, FakeRouter]]:
    """One that is up within the block. With `another_voice` it answers from another port than it was asked at."""
    loop = asyncio.get_running_loop()
    transport, fake = await loop.create_datagram_endpoint(lambda: FakeRouter(answers), local_addr=("127.0.0.1", 0))
    voice = None
    if another_voice:
        voice, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        fake.voice = voice
    try:
        yield Gateway("127.0.0.1", "127.0.0.1", 8, transport.get_extra_info("sockname")[1]), fake
    finally:
        for opened in (transport, voice):
            if opened is not None:
                opened.close()
        await asyncio.sleep(0)
