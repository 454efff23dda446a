"""Streams to nodes of the table: dialled where the table says, over links that do not stay."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.core.effects import MembershipSnapshot
from meshnode.mesh.dht_ways import LINGER_S, OverMesh
from meshnode.mesh.upkeep import IDLE_S
from meshnode.net.stream import MeshStream
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import StreamType
from tests.mesh.memory_link import memory_links

pytestmark = pytest.mark.anyio

HERE, THERE = Address("127.0.0.1", 1), Address("11.1.1.1", 2)
NODE = b"n" * 32


class FakeMesh:
    """As much of a Mesh as is used. `linked` is where the peer is, if it is."""

    def __init__(self, linked: Address | None) -> None:
        self.addresses = (HERE,)
        self.linked = linked
        self.opened: asyncio.Queue[MeshStream] = asyncio.Queue()
        self.dialled: list[tuple[bytes, tuple[Address, ...]]] = []
        self.peer = SimpleNamespace(link=memory_links(self.opened.put_nowait)[0], used_at=1000.0)
        self._reach = self

    def members(self) -> MembershipSnapshot:
        return MembershipSnapshot(NODE, {})

    def address_of(self, node: bytes) -> Address | None:
        return self.linked

    async def session(self, node: bytes, addresses: tuple[Address, ...]) -> Any:
        self.dialled.append((node, addresses))
        return self.peer


@pytest.mark.parametrize("linked", [None, THERE])
async def test_a_stream_over_a_link_that_is_there_or_is_made(linked: Address | None) -> None:
    mesh = FakeMesh(linked)
    ways = OverMesh(mesh)  # type: ignore[arg-type]
    await ways.open_stream(NODE, StreamType.DHT, b"", addresses=(THERE,))
    assert mesh.dialled == [(NODE, (THERE,))]
    header = encode_stream_header(StreamType.DHT, b"")
    assert await (await mesh.opened.get()).read_exactly(len(header)) == header
    assert mesh.peer.used_at == (1000.0 if linked else 1000.0 - IDLE_S + LINGER_S)
    assert (ways.addresses, ways.members().node) == ((HERE,), NODE)
