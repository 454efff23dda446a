"""Ways through a relay, as the two ends of a flow see them."""

import asyncio
import socket
from collections.abc import Sequence

import pytest

from meshnode.errors import PeerUnreachable, WrongPeer
from meshnode.net.address import Address, SocketAddress, for_socket, from_socket
from meshnode.net.detours import (
    HEAD_BYTES,
    MOST_FLOWS,
    QUIET_S,
    RELAYED_PORT,
    Detours,
    FlowEnd,
    is_relayed,
    is_virtual,
    new_name,
)
from meshnode.net.path import ETHERNET_BYTES
from tests.net.nodes import HOST, IDENTITIES, echo, node, until
from tests.net.relayed import FLOW, carry, legs, relayed

pytestmark = pytest.mark.anyio
both = pytest.mark.parametrize("fast", [False, True], ids=["stock", "fast"])


class Relay:
    """A link to a relay of which only the address matters."""

    def __init__(self, destination: SocketAddress = (HOST, 7)) -> None:
        self.destination = self.proven_destination = destination
        self.has_ended = False
        self.asked = 0

    def ask_soon(self) -> None:
        self.asked += 1


class Wire:
    """What was sent, and what was received under which name."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[bytes], SocketAddress]] = []
        self.received: list[tuple[list[bytes], SocketAddress]] = []

    def transmit(self, datagrams: Sequence[bytes], destination: SocketAddress) -> None:
        self.sent.append((list(datagrams), destination))

    def receive(self, datagrams: list[bytes], source: SocketAddress) -> None:
        self.received.append((datagrams, source))

    def open(self, detours: Detours, flow: bytes, relay: Relay) -> FlowEnd:
        return detours.open_flow(flow, relay, transmit=self.transmit, received=self.receive)


# --- addresses ----------------------------------------------------------------------------------------------


def test_which_addresses_are_virtual() -> None:
    assert is_virtual(Address("100::1", 3)) and is_virtual(Address("100::ffff:0:0:1", 3))
    for host in ("100:0:0:1::1", "1000::1", "100.0.0.1", "::1", "2001:db8::100", "100::1:2:3:4:5"):
        assert not is_virtual(Address(str(Address.of(host, 1).host), 3)), host


def test_virtual_addresses_are_new_and_the_same_for_sockets_of_both_families() -> None:
    names = {new_name(RELAYED_PORT) for _ in range(1000)}
    assert len(names) == 1000
    for name in list(names)[:50]:
        address = from_socket(name)
        assert is_virtual(address) and is_relayed(name)
        assert for_socket(address, socket.AF_INET) == for_socket(address, socket.AF_INET6) == name
    assert not is_relayed((HOST, RELAYED_PORT)) and not is_relayed(new_name(1))


# --- one end ------------------------------------------------------------------------------------------------


def test_a_flow_adds_its_head_and_takes_it_off_again() -> None:
    detours, wire, relay = Detours(), Wire(), Relay()
    end = wire.open(detours, FLOW, relay)
    detours.send([b"\x40one", b"\xc0two"], end.name)
    head = b"\x03" + FLOW
    assert wire.sent == [([head + b"\x40one", head + b"\xc0two"], relay.destination)]
    end.receive([head + b"\x40three", head, head + b"\x03nested", head + b"\x01punch"], relay.destination, 1.0)
    assert wire.received == [([b"\x40three"], end.name)], "what is empty or not QUIC's goes no further"
    assert end.real == Address(HOST, 7) and detours.flow(FLOW) is end


def test_what_does_not_come_from_the_relay_is_dropped_and_counted() -> None:
    detours, wire, relay = Detours(), Wire(), Relay()
    end = wire.open(detours, FLOW, relay)
    end.receive([b"\x03" + FLOW + b"\x40one"] * 3, (HOST, 8), 1.0)
    assert wire.received == [] and detours.counters.hijacks == 3
    relay.destination = (HOST, 8)
    end.receive([b"\x03" + FLOW + b"\x40one"], (HOST, 8), 1.0)
    end.receive([b"\x03" + FLOW + b"\x40two"], (HOST, 7), 1.0)
    assert len(wire.received) == 2, "the relay may be moving"


def test_a_quiet_flow_has_the_relay_asked_now_and_then() -> None:
    detours, wire, relay = Detours(), Wire(), Relay()
    end = wire.open(detours, FLOW, relay)
    detours.send([b"\x40"], end.name)
    assert relay.asked == 0
    end._heard_at -= 2 * QUIET_S
    end._asked_at -= 2 * QUIET_S
    for _ in range(100):
        detours.send([b"\x40"], end.name)
    assert relay.asked == 1


def test_a_flow_carries_nothing_when_its_relay_is_gone_or_relayed_itself() -> None:
    detours, wire, relay = Detours(), Wire(), Relay()
    end = wire.open(detours, FLOW, relay)
    relay.destination = end.name
    detours.send([b"\x40"], end.name)
    relay.destination, relay.has_ended = (HOST, 7), True
    detours.send([b"\x40"], end.name)
    detours.close_flow(FLOW)
    detours.close_flow(FLOW)
    detours.send([b"\x40"], end.name)
    assert wire.sent == [] and detours.counters.lost_ways == 3
    assert len(detours) == 0 and detours.flow(FLOW) is None


def test_flows_that_are_refused() -> None:
    detours, wire, relay = Detours(), Wire(), Relay()
    end = wire.open(detours, FLOW, relay)
    ended = Relay()
    ended.has_ended = True
    for flow, over in ((FLOW, relay), (b"short", relay), (b"another8", Relay(end.name)), (b"another8", ended)):
        with pytest.raises(ValueError):
            wire.open(detours, flow, over)
    for number in range(MOST_FLOWS - 1):
        wire.open(detours, number.to_bytes(8, "big"), relay)
    with pytest.raises(ValueError, match="too many"):
        wire.open(detours, b"another8", relay)
    assert len(detours.flows_over(relay)) == MOST_FLOWS


# --- real endpoints -----------------------------------------------------------------------------------------


@both
async def test_a_link_through_a_relay(fast: bool) -> None:
    async with relayed(fast=fast) as it, asyncio.timeout(10):
        assert (it.here.path, it.there.path) == ("relayed", "relayed")
        assert (it.here.address, it.there.address) == (it.way, it.way_back)
        assert it.one_to_relay.path == "direct"
        stream = it.here.open_stream()
        stream.write(b"hello")
        answering = asyncio.create_task(echo(await it.other.stream()))
        assert await stream.read_exactly(5) == b"hello"
        assert await it.here.echo() < 1.0
        answering.cancel()
        forwarded = it.relay.endpoint.forwarder.counters
        assert forwarded.datagrams > 10 and forwarded.hijacks == forwarded.unknown == 0


async def test_datagrams_through_a_relay_fit_into_those_of_ethernet() -> None:
    """The handshake takes the 1200 bytes of QUIC and the head; then the size is searched for, on loopback as well."""
    async with legs() as (one, other, relay, one_to_relay, other_to_relay):
        sizes: list[int] = []
        carry(relay, one, other)
        flow = relay.endpoint.forwarder.get(FLOW)
        assert flow is not None
        real = flow._transmit
        flow._transmit = lambda datagrams, to: (sizes.extend(map(len, datagrams)), real(datagrams, to))[1]  # type: ignore
        other.endpoint.open_flow(FLOW, other_to_relay)
        link = await one.endpoint.dial([one.endpoint.open_flow(FLOW, one_to_relay)], expected=other.node_id)
        assert sizes[0] == 1200 + HEAD_BYTES
        await until(lambda: link.datagram_bytes == ETHERNET_BYTES - HEAD_BYTES)
        link.open_stream().write(bytes(200_000))
        far = await other.stream()
        assert len(await far.read_exactly(200_000)) == 200_000
        assert max(sizes) == ETHERNET_BYTES
        await until(lambda: one_to_relay.datagram_bytes == 16384)


async def test_a_smaller_bound_of_the_endpoint_holds_for_the_whole_datagram() -> None:
    async with relayed(most_datagram_bytes=1300) as it:
        await until(lambda: it.here.datagram_bytes == it.there.datagram_bytes == 1300 - HEAD_BYTES)


async def test_an_endpoint_that_knows_no_ipv6_has_detours_all_the_same() -> None:
    async with relayed() as it:
        assert it.one.endpoint._socket.family == socket.AF_INET and it.here.address.is_ipv6


async def test_a_relay_that_keeps_everything_learns_nothing() -> None:
    secret = b"the weather in Lisbon " * 200
    async with legs() as (one, other, relay, one_to_relay, other_to_relay):
        captured: list[bytes] = []
        real = relay.endpoint.transmit
        relay.endpoint.forwarder._transmit = lambda datagrams, to: (captured.extend(datagrams), real(datagrams, to))[1]
        carry(relay, one, other)
        other.endpoint.open_flow(FLOW, other_to_relay)
        link = await one.endpoint.dial([one.endpoint.open_flow(FLOW, one_to_relay)], expected=other.node_id)
        link.open_stream().write(secret)
        assert await (await other.stream()).read_exactly(len(secret)) == secret
        everything = b"".join(captured)
        assert len(everything) > len(secret)
        assert secret[:22] not in everything and other.node_id not in everything and one.node_id not in everything


async def test_a_relay_that_answers_itself_is_not_taken_for_the_peer() -> None:
    """It ends the flow in an endpoint of its own, with a key of its own."""
    async with legs() as (one, other, relay, one_to_relay, _), node(3) as impostor:
        to_relay = await impostor.dial(relay)
        await until(lambda: relay.endpoint.link(impostor.node_id) is not None)
        carry(relay, one, impostor)
        impostor.endpoint.open_flow(FLOW, to_relay)
        way = one.endpoint.open_flow(FLOW, one_to_relay)
        with pytest.raises(WrongPeer):
            await one.endpoint.dial([way], expected=other.node_id)
        assert one.endpoint.link(other.node_id) is None
        assert [each.peer for each in one.recorder.up] == [relay.node_id], "nobody else has become a peer"


async def test_a_third_address_cannot_speak_for_the_relay() -> None:
    async with relayed() as it:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
            for _ in range(5):
                elsewhere.sendto(b"\x03" + FLOW + b"\x40" + bytes(40), (HOST, it.one.address.port))
            elsewhere.sendto(b"\x03" + b"no flow!" + b"\x40" + bytes(40), (HOST, it.one.address.port))
            elsewhere.sendto(b"\x03", (HOST, it.one.address.port))
            elsewhere.sendto(b"\x2a" + bytes(40), (HOST, it.one.address.port))
            await until(lambda: it.one.endpoint.counters.junk == 1)
        assert it.one.endpoint.counters.flow_hijacks == 5
        assert it.one.endpoint.forwarder.counters.unknown == 2
        assert await it.here.echo() < 1.0


async def test_a_flow_ends_with_the_link_to_its_relay() -> None:
    async with relayed() as it:
        it.here.watch(True)
        it.one_to_relay.close(0x100)
        await until(lambda: it.here.silent, 1.5)
        assert it.here.alive, "the link waits for another way"
        assert it.one.endpoint.name_of(it.way) is None
        with pytest.raises(PeerUnreachable):
            await it.one.endpoint.dial([it.way], expected=IDENTITIES[3].node_id, timeout_s=1)


async def test_the_relay_may_move() -> None:
    """Its NAT gives it another port: the links to it follow, and the flow with them."""
    from tests.net.test_channel import rebind

    async with relayed() as it, asyncio.timeout(10):
        rebind(it.relay)
        for link in list(it.relay.endpoint.links):
            await link.echo()
        assert it.one_to_relay.address == it.relay.address
        assert await it.here.echo() < 1.0
        assert it.here.address == it.way and it.here.path == "relayed"


async def test_an_end_may_move() -> None:
    """It is heard again over the relay as soon as its own link to the relay has been followed, which it sees to."""
    from tests.net.test_channel import rebind

    async with relayed() as it, asyncio.timeout(10):
        it.here.watch(True)
        rebind(it.one)
        await it.here.echo(timeout_s=5)
        assert it.here.path == "relayed" and it.here.alive
        assert it.relay.endpoint.forwarder.counters.hijacks > 0, "what came from the new port before that"
