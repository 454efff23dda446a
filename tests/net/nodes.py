"""Endpoints on loopback for the tests of this room, and a handler that writes down what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.identity import Identity, NodeId
from meshnode.net.address import Address
from meshnode.net.endpoint import Endpoint, EndpointOptions
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream

LIMIT_S = 10.0
HOST = "127.0.0.1"


def identity(seed: int) -> Identity:
    """The same key for the same number."""
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


IDENTITIES = sorted((identity(number) for number in range(1, 5)), key=lambda each: each.node_id)
"""In the order of their NodeIds."""


class Recorder:
    """A handler that keeps all it is told."""

    def __init__(self) -> None:
        self.up: list[Link] = []
        self.down: list[tuple[Link, int, str]] = []
        self.streams: asyncio.Queue[MeshStream] = asyncio.Queue()
        self.datagrams: list[bytes] = []
        self.silences: list[tuple[bool, float]] = []

    def link_up(self, link: Link) -> None:
        self.up.append(link)

    def link_down(self, link: Link, code: int, reason: str) -> None:
        self.down.append((link, code, reason))

    def stream_opened(self, stream: MeshStream) -> None:
        self.streams.put_nowait(stream)

    def datagram(self, link: Link, data: bytes) -> None:
        self.datagrams.append(data)

    def link_silent(self, link: Link, silent: bool) -> None:
        self.silences.append((silent, monotonic()))


class Node:
    """An endpoint with its recorder."""

    def __init__(self, endpoint: Endpoint, recorder: Recorder) -> None:
        self.endpoint = endpoint
        self.recorder = recorder

    @property
    def node_id(self) -> NodeId:
        return self.endpoint.node_id

    @property
    def address(self) -> Address:
        return self.endpoint.address

    async def dial(self, other: Node, **options: Any) -> Link:
        return await self.endpoint.dial([other.address], expected=other.node_id, **options)

    async def stream(self) -> MeshStream:
        """The next stream that a peer opens."""
        return await asyncio.wait_for(self.recorder.streams.get(), LIMIT_S)


@asynccontextmanager
async def node(number: int, *, host: str = HOST, **options: Any) -> AsyncIterator[Node]:
    """A node with the key of that number (0 to 3, in the order of the NodeIds), closed at the end."""
    recorder = Recorder()
    endpoint = await Endpoint.open(IDENTITIES[number], recorder, host=host, options=EndpointOptions(**options))
    try:
        yield Node(endpoint, recorder)
    finally:
        await endpoint.close()


@asynccontextmanager
async def two_nodes(**options: Any) -> AsyncIterator[tuple[Node, Node]]:
    """The nodes 0 and 1, not connected."""
    async with node(0, **options) as one, node(1, **options) as other:
        yield one, other


@asynccontextmanager
async def linked(**options: Any) -> AsyncIterator[tuple[Node, Node, Link, Link]]:
    """The nodes 0 and 1, and both ends of the link that 0 dialled."""
    async with two_nodes(**options) as (one, other):
        link = await one.dial(other)
        await until(lambda: bool(other.recorder.up))
        yield one, other, link, other.recorder.up[0]


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Wait for what network and timers bring about."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


async def echo(stream: MeshStream) -> None:
    """Send everything back, and end when the peer does."""
    while data := await stream.read(1 << 16):
        stream.write(data)
        await stream.drain()
    stream.write_eof()


async def read_all(stream: MeshStream) -> bytes:
    """Until the peer ends."""
    pieces = []
    while data := await stream.read(1 << 16):
        pieces.append(data)
    return b"".join(pieces)
