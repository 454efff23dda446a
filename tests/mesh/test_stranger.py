"""A visit is a connection of its own, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from meshnode.errors import PeerUnreachable, WrongPeer
from meshnode.identity import ephemeral
from meshnode.mesh.stranger import open_pairing, visit
from meshnode.net.endpoint import Endpoint
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.wire.address import Address
from meshnode.wire.frames import HEADER_BYTES, decode_stream_header
from meshnode.wire.registry import Reset, StreamType

pytestmark = pytest.mark.anyio


class Host:
    """Remembers who came, and what was opened (net.Handler)."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.gone = asyncio.Event()
        self.streams: asyncio.Queue[MeshStream] = asyncio.Queue()

    def link_up(self, link: Link) -> None:
        self.links.append(link)

    def link_down(self, link: Link, code: int, reason: str) -> None:
        self.gone.set()

    def stream_opened(self, stream: MeshStream) -> None:
        self.streams.put_nowait(stream)

    def datagram(self, link: Link, data: bytes) -> None:
        raise AssertionError("a visitor says nothing unasked")

    def link_silent(self, link: Link, silent: bool) -> None: ...


async def test_a_visitor_opens_a_pairing_stream_and_goes() -> None:
    async with asyncio.timeout(10):
        host = Host()
        endpoint = await Endpoint.open(ephemeral(), host, host="127.0.0.1")
        guest = ephemeral()
        async with visit(guest, [endpoint.address], host="127.0.0.1") as link:
            assert link.peer == endpoint.node_id
            open_pairing(link)
            stream = await host.streams.get()
            assert decode_stream_header(await stream.read_exactly(HEADER_BYTES)) == (StreamType.PAIR, 0)
            assert link.exporter("EXPORTER-test", 32) == stream.link.exporter("EXPORTER-test", 32)
        await host.gone.wait()
        assert [link.peer for link in host.links] == [guest.node_id]
        await endpoint.close()


async def test_whoever_is_visited_gets_nothing_from_the_visitor() -> None:
    async with asyncio.timeout(10):
        host = Host()
        endpoint = await Endpoint.open(ephemeral(), host, host="127.0.0.1")
        async with visit(ephemeral(), [endpoint.address], host="127.0.0.1") as link:
            open_pairing(link)
            back = (await host.streams.get()).link.open_stream()
            back.write(b"who are you?")
            with pytest.raises(ConnectionResetError) as refused:
                await back.read(1)
            assert getattr(refused.value, "code", None) == Reset.REFUSED
        await endpoint.close()


async def test_nobody_there() -> None:
    with pytest.raises(PeerUnreachable):
        async with visit(ephemeral(), [Address("127.0.0.1", 9)], host="127.0.0.1", timeout_s=0.5):
            raise AssertionError("there is nobody")


async def test_another_one_than_was_meant_is_not_visited() -> None:
    async with asyncio.timeout(10):
        endpoint = await Endpoint.open(ephemeral(), Host(), host="127.0.0.1")
        async with visit(ephemeral(), [endpoint.address], host="127.0.0.1", expected=endpoint.node_id) as link:
            assert link.peer == endpoint.node_id
        with pytest.raises(WrongPeer):
            async with visit(ephemeral(), [endpoint.address], host="127.0.0.1", expected=ephemeral().node_id):
                raise AssertionError("somebody else is there")
        await endpoint.close()
