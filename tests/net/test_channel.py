"""The addresses behind a connection: a peer that moves, and somebody who only pretends to."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from meshnode.net.address import Address, from_socket
from meshnode.net.channel import Channel
from meshnode.net.link import Link
from meshnode.net.udp import UdpSocket
from tests.net.nodes import HOST, LIMIT_S, Node, echo, linked, two_nodes, until

pytestmark = pytest.mark.anyio
both = pytest.mark.parametrize("fast", [False, True], ids=["stock", "fast"])


def rebind(node: Node) -> Address:
    """The node's NAT gives it another port: its packets come from a new one, the old one leads nowhere."""
    endpoint = node.endpoint
    endpoint._socket.close()
    endpoint._socket = UdpSocket.open(
        HOST, 0, received=endpoint._received, unreachable=endpoint._unreachable, drained=endpoint._drained
    )
    return endpoint.address


@both
@pytest.mark.parametrize("mover", ["dialler", "dialled"])
async def test_a_peer_is_followed_to_its_new_address(fast: bool, mover: str) -> None:
    async with linked(fast=fast) as (one, other, here, there), asyncio.timeout(LIMIT_S):
        moved, stayed, near, far = (one, other, here, there) if mover == "dialler" else (other, one, there, here)
        stream = near.open_stream()
        stream.write(b"before")
        distant = await stayed.stream()
        answering = asyncio.create_task(echo(distant))
        assert await stream.read_exactly(6) == b"before"
        address = rebind(moved)
        started = monotonic()
        stream.write(b"after")
        assert await stream.read_exactly(5) == b"after"
        assert monotonic() - started < 0.5
        assert far.address == address
        await until(lambda: stayed.endpoint.counters.moves == 1)
        assert far.quic.is_path_valid
        for _ in range(20):
            stream.write(bytes(50_000))
            assert len(await stream.read_exactly(50_000)) == 50_000
        await until(lambda: far.datagram_bytes == 16384)
        assert await far.echo() < 1.0 and await near.echo() < 1.0
        answering.cancel()
        assert stayed.recorder.down == moved.recorder.down == []


class Forwarder:
    """Between two nodes. `copy_to` also gets to see, from a socket of its own, what comes from the dialler."""

    def __init__(self, destination: Address) -> None:
        self.loop = asyncio.get_running_loop()
        self.destination = (destination.host, destination.port)
        self.client: tuple[str, int] | None = None
        self.pretend = False
        self.spoofed_in = self.spoofed_out = 0
        self.front, self.back, self.spoof = (self._open(read) for read in (self._front, self._back, self._spoof))

    def _open(self, read: Callable[[], None]) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((HOST, 0))
        made.setblocking(False)
        self.loop.add_reader(made.fileno(), read)
        return made

    def close(self) -> None:
        for each in (self.front, self.back, self.spoof):
            self.loop.remove_reader(each.fileno())
            each.close()

    def _front(self) -> None:
        data, self.client = self.front.recvfrom(65536)
        if self.pretend:
            # The victim's address, as far as the node can tell; and it is there before the original.
            self.spoofed_out += len(data)
            self.spoof.sendto(data, self.destination)
        self.back.sendto(data, self.destination)

    def _back(self) -> None:
        data = self.back.recv(65536)
        if self.client is not None:
            self.front.sendto(data, self.client)

    def _spoof(self) -> None:
        self.spoofed_in += len(self.spoof.recv(65536))


@asynccontextmanager
async def through_a_forwarder(fast: bool) -> AsyncIterator[tuple[Node, Forwarder, Link, Link]]:
    async with two_nodes(fast=fast, most_datagram_bytes=1452) as (one, other):
        forwarder = Forwarder(other.address)
        try:
            address = from_socket(forwarder.front.getsockname())
            link = await one.endpoint.dial([address], expected=other.node_id)
            await until(lambda: bool(other.recorder.up))
            yield other, forwarder, link, other.recorder.up[0]
            link.close(0x100)
        finally:
            forwarder.close()


@both
async def test_a_forged_source_gets_no_more_than_three_times_what_it_sent(fast: bool) -> None:
    """Somebody on the way copies packets from another source, and is faster than the originals."""
    async with through_a_forwarder(fast) as (other, forwarder, link, there), asyncio.timeout(LIMIT_S):
        stream = link.open_stream()
        stream.write(b"go")
        far = await other.stream()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                far.write(bytes(20_000))
                sent += 20_000
                await far.drain()

        async def swallow() -> None:
            while await stream.read(1 << 20):
                pass

        tasks = [asyncio.create_task(flood()), asyncio.create_task(swallow())]
        await until(lambda: sent > 1_000_000)
        forwarder.pretend = True
        before = sent
        for _ in range(40):
            stream.write(b"x" * 20)
            await asyncio.sleep(0.02)
        assert forwarder.spoofed_in <= 3 * forwarder.spoofed_out
        assert forwarder.spoofed_in < 20_000
        forwarder.pretend = False
        await until(lambda: there.address == from_socket(forwarder.back.getsockname()))
        await until(lambda: sent > before + 1_000_000)
        assert other.endpoint.counters.moves == 0 and there.alive and link.alive
        for task in tasks:
            task.cancel()


@both
async def test_replayed_packets_move_nobody(fast: bool) -> None:
    async with through_a_forwarder(fast) as (other, forwarder, link, there):
        address = there.address
        copies: list[bytes] = []
        real = there.receive
        there.receive = lambda datagrams, *rest: (copies.extend(datagrams), real(datagrams, *rest))[1]  # type: ignore
        await link.echo()
        there.receive = real  # type: ignore[method-assign]
        assert copies
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
            seen = other.endpoint.counters.datagrams_in
            for data in copies:
                elsewhere.sendto(data, (HOST, other.address.port))
            await until(lambda: other.endpoint.counters.datagrams_in >= seen + len(copies))
        assert there.address == address and there.quic.is_path_valid


async def test_a_path_that_never_answers_is_left_again() -> None:
    async with linked() as (one, other, here, there):
        known = here.destination
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind((HOST, 0))
            here._follow(deaf.getsockname(), 100, monotonic())
            assert here.destination == deaf.getsockname()
            there.watch(True)
            await until(lambda: here.destination == known)
        assert here.alive and await here.echo() < 1.0
        assert one.recorder.down == other.recorder.down == []


def test_moves_to_unknown_places_are_rare() -> None:
    """The rule alone, on a channel without a connection."""

    class Quiet:
        def __init__(self) -> None:
            self.validations = 0

        def begin_validation(self, _: int) -> None:
            self.validations += 1

        def end_validation(self) -> None:
            pass

    channel = Channel.__new__(Channel)
    channel.quic = quiet = Quiet()  # type: ignore[assignment]
    channel._destination = channel._proven_destination = (HOST, 1)
    channel._next_move_at = 0.0
    for step in range(100):
        channel._follow((HOST, 100 + step), 50, 10 + step / 1000)
    assert quiet.validations == 1
    channel._follow((HOST, 1), 50, 10.05)
    assert channel.destination == (HOST, 1), "back to a known place at any time"
