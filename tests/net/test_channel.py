"""The addresses behind a connection: a peer that moves, and somebody who only pretends to."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from time import monotonic

import pytest

from meshnode.net.address import Address, SocketAddress, from_socket
from meshnode.net.channel import REDIRECT_BYTES, Channel
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.net.udp import UdpSocket
from tests.lab.udp_relay import Faults, UdpRelay
from tests.net.nodes import HOST, LIMIT_S, Node, echo, linked, read_all, two_nodes, until
from tests.net.relayed import FLOW, carry, legs, relayed

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
    channel._redirect = None
    channel._next_move_at = 0.0
    for step in range(100):
        channel._follow((HOST, 100 + step), 50, 10 + step / 1000)
    assert quiet.validations == 1
    channel._follow((HOST, 1), 50, 10.05)
    assert channel.destination == (HOST, 1), "back to a known place at any time"


# --- going on elsewhere -------------------------------------------------------------------------------------


async def send_all(stream: MeshStream, data: bytes) -> None:
    for start in range(0, len(data), 1 << 16):
        stream.write(data[start : start + (1 << 16)])
        await stream.drain()
    stream.write_eof()


@both
@pytest.mark.parametrize("mover", ["sender", "receiver"])
async def test_a_transfer_and_open_streams_go_on_from_relay_to_direct(fast: bool, mover: str) -> None:
    async with relayed(fast=fast) as it, asyncio.timeout(20):
        data = random.Random(1).randbytes(12_000_000)
        idle = it.here.open_stream()
        idle.write(b"before")
        far_idle = await it.other.stream()
        bulk = it.here.open_stream()
        sending = asyncio.create_task(send_all(bulk, data))
        far = await it.other.stream()
        first = await far.read_exactly(2_000_000)
        if mover == "sender":
            answered = await it.here.redirect(it.other.address)
        else:
            answered = await it.there.redirect(it.one.address)
        assert answered
        rest = await read_all(far)
        await sending
        assert sha256(first + rest).digest() == sha256(data).digest()
        await until(lambda: it.here.path == it.there.path == "direct")
        assert (it.here.address, it.there.address) == (it.other.address, it.one.address)
        it.one.endpoint.close_flow(FLOW)
        it.other.endpoint.close_flow(FLOW)
        it.relay.endpoint.forwarder.close(FLOW)
        far_idle.write(b"after")
        assert await far_idle.read_exactly(6) == b"before" and await idle.read_exactly(5) == b"after"
        await until(lambda: it.here.datagram_bytes == it.there.datagram_bytes == 16384)
        assert it.one.endpoint.counters.moves == it.other.endpoint.counters.moves == 1
        assert it.one.recorder.down == it.other.recorder.down == []


@both
async def test_a_transfer_goes_on_from_direct_to_relay(fast: bool) -> None:
    """The other way round, as when a direct path dies: with large datagrams under way that no relay carries."""
    async with legs(fast=fast) as (one, other, relay, one_to_relay, other_to_relay), asyncio.timeout(20):
        link = await one.dial(other)
        await until(lambda: link.datagram_bytes == 16384)
        carry(relay, one, other)
        other.endpoint.open_flow(FLOW, other_to_relay)
        way = one.endpoint.open_flow(FLOW, one_to_relay)
        data = random.Random(2).randbytes(8_000_000)
        sending = asyncio.create_task(send_all(link.open_stream(), data))
        far = await other.stream()
        first = await far.read_exactly(1_000_000)
        assert await link.redirect(way)
        assert link.path == "relayed" and link.datagram_bytes <= 1443
        assert first + await read_all(far) == data
        await sending
        there = other.endpoint.link(one.node_id)
        assert there is not None and there.path == "relayed"


@both
async def test_a_way_that_is_dead_is_left_again(fast: bool) -> None:
    async with linked(fast=fast, most_datagram_bytes=1452) as (one, other, here, there), asyncio.timeout(20):
        await until(lambda: here.datagram_bytes == 1452)
        known = here.address
        stream = here.open_stream()
        answering = asyncio.create_task(echo(await _opened(stream, other)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind((HOST, 0))
            started = monotonic()
            moving = asyncio.create_task(here.redirect(from_socket(deaf.getsockname())))
            await asyncio.sleep(0.1)
            assert here.address != known and here.datagram_bytes == 1200
            assert here.proven_destination == (known.host, known.port)
            assert not await here.redirect(other.address), "one at a time"
            stream.write(bytes(500_000))
            assert not await moving
            assert monotonic() - started < 1.5
            received = 0
            deaf.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    received += len(deaf.recv(65536))
        assert 0 < received <= 3 * (REDIRECT_BYTES + 6 * 1200), "little goes where nobody has answered"
        assert here.address == known and here.datagram_bytes == 1452
        assert len(await stream.read_exactly(500_000)) == 500_000
        assert here.alive and there.alive and not here.silent and not there.silent
        assert one.recorder.silences == other.recorder.silences == [], "and nobody was accused"
        answering.cancel()


async def _opened(stream: MeshStream, other: Node) -> MeshStream:
    stream.write(b"!")
    far = await other.stream()
    assert await far.read_exactly(1) == b"!"
    return far


async def test_redirections_that_make_no_sense() -> None:
    async with linked() as (_, other, here, _there):
        moves = other.endpoint.counters.moves
        assert await here.redirect(here.address), "it is there already"
        assert not await here.redirect(Address("2001:db8::1", 9)), "this socket reaches no IPv6"
        assert not await here.redirect(Address("100::1", 3)), "no such flow"
        assert other.endpoint.counters.moves == moves
        moving = asyncio.create_task(here.redirect(Address(HOST, 9)))
        await asyncio.sleep(0.02)
        here.close(0x100)
        started = monotonic()
        assert not await moving and monotonic() - started < 0.5, "the end of the link ends it"
        assert not await here.redirect(other.address)


async def test_a_redirection_that_is_cancelled_leaves_the_link_where_it_was() -> None:
    async with linked() as (_, other, here, _there):
        moving = asyncio.create_task(here.redirect(Address(HOST, 9)))
        await asyncio.sleep(0.02)
        moving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await moving
        assert here.address == other.address and await here.echo() < 1.0


@both
async def test_a_move_over_a_line_that_loses_a_fifth(fast: bool) -> None:
    """In both directions, of what goes the new way; and the peer sees another address there, as behind a translator."""
    async with relayed(fast=fast, most_datagram_bytes=1452) as it, asyncio.timeout(30):
        for seed in range(4):
            line = UdpRelay(server=(HOST, it.other.address.port), front=(HOST, 0), seed=seed)
            with line:
                line.faults = Faults(loss=0.2, delay_s=0.005)
                stream = it.here.open_stream()
                data = random.Random(seed).randbytes(200_000)
                sending = asyncio.create_task(send_all(stream, data))
                far = await it.other.stream()
                assert await it.here.redirect(Address(*line.address))
                assert await read_all(far) == data
                await sending
                assert it.here.path == "direct" and line.clients == 1
                assert await it.here.redirect(it.way), "and back"


async def test_both_ends_may_move_at_the_same_time() -> None:
    async with relayed() as it:
        stream = it.here.open_stream()
        stream.write(bytes(3_000_000))
        far = await it.other.stream()
        moved = await asyncio.gather(it.here.redirect(it.other.address), it.there.redirect(it.one.address))
        assert moved == [True, True]
        assert len(await far.read_exactly(3_000_000)) == 3_000_000
        assert it.here.path == it.there.path == "direct"


async def test_challenges_are_repeated_while_a_peer_sends_from_a_new_place() -> None:
    """However long all that goes there is lost, a new one is under way soon after that; but not for every packet."""
    async with relayed(most_datagram_bytes=1452) as it, asyncio.timeout(10):
        heals_at = monotonic() + 0.45
        real = it.other.endpoint.transmit

        def transmit(datagrams: Sequence[bytes], destination: SocketAddress) -> None:
            if destination[1] != it.one.address.port or monotonic() > heals_at:
                real(datagrams, destination)

        it.other.endpoint.transmit = transmit  # type: ignore[method-assign]
        repeated: list[float] = []
        repeat = it.there.quic.repeat_challenge
        it.there.quic.repeat_challenge = lambda: (repeated.append(monotonic()), repeat())[1]  # type: ignore
        stream = it.here.open_stream()
        moving = asyncio.create_task(it.here.redirect(it.other.address))
        while it.there.path != "direct":
            stream.write(b"still here")
            await asyncio.sleep(0.01)
        assert monotonic() - heals_at < 0.12 and await moving
        assert it.other.endpoint.counters.moves == 1
        assert 4 <= len(repeated) <= 12
        assert all(later - earlier > 0.045 for earlier, later in zip(repeated, repeated[1:], strict=False))
