"""The relay's side of flows: what it carries, for whom, and how much."""

import asyncio
import socket
from collections.abc import Sequence
from time import monotonic

import pytest

from meshnode.net.address import SocketAddress
from meshnode.net.detours import RELAYED_PORT, new_name
from meshnode.net.relay import IDLE_S, MOST_FORWARDED, Forwarder, TokenBucket
from tests.net.nodes import HOST, read_all, until
from tests.net.relayed import FLOW, relayed

pytestmark = pytest.mark.anyio

ONE, OTHER, THIRD = (HOST, 1001), (HOST, 1002), (HOST, 1003)


class Leg:
    """A link of which only the address matters."""

    def __init__(self, address: SocketAddress) -> None:
        self.destination = self.proven_destination = address
        self.has_ended = False

    def ask_soon(self) -> None:
        raise AssertionError("a relay asks nobody")


class Sent(list[tuple[list[bytes], SocketAddress]]):
    """What left, and for where."""

    def transmit(self, datagrams: Sequence[bytes], destination: SocketAddress) -> None:
        self.append((list(datagrams), destination))


def carrying(bytes_per_s: float = 1e9, burst_bytes: int = 1 << 30) -> tuple[Forwarder, Sent, Leg, Leg]:
    sent, one, other = Sent(), Leg(ONE), Leg(OTHER)
    forwarder = Forwarder(sent.transmit)
    forwarder.open(FLOW, one, other, bytes_per_s=bytes_per_s, burst_bytes=burst_bytes)
    return forwarder, sent, one, other


def give(forwarder: Forwarder, datagrams: list[bytes], source: SocketAddress, now: float | None = None) -> None:
    flow = forwarder.get(FLOW)
    assert flow is not None
    flow.receive(datagrams, source, monotonic() if now is None else now)


# --- tokens -------------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    bucket = TokenBucket(1000.0, 500, 0.0)
    assert bucket.take([100] * 8, 0.0) == 5
    assert bucket.take([100], 0.0) == 0
    assert bucket.take([100] * 8, 0.3) == 3
    assert bucket.take([100] * 80, 1000.0) == 5, "no more than a burst is saved up"
    taken = sum(bucket.take([100], 1000.0 + step / 100) for step in range(1, 1001))
    assert taken == 100, "ten seconds"


# --- the rules, without a network ---------------------------------------------------------------------------


def test_both_directions_unchanged_and_in_runs() -> None:
    forwarder, sent, _, _ = carrying()
    run = [bytes([number]) * 100 for number in range(60)]
    give(forwarder, run, ONE)
    give(forwarder, [b"back"], OTHER)
    assert sent == [(run, OTHER), ([b"back"], ONE)]
    assert (forwarder.counters.datagrams, forwarder.counters.bytes) == (61, 6004)


def test_a_third_address_is_refused_and_counted() -> None:
    forwarder, sent, _, _ = carrying()
    give(forwarder, [b"x"] * 7, THIRD)
    assert sent == [] and forwarder.counters.hijacks == 7 and forwarder.counters.datagrams == 0


def test_a_flow_follows_its_ends_once_they_are_proven() -> None:
    forwarder, sent, one, _ = carrying()
    one.destination = THIRD
    give(forwarder, [b"early"], THIRD)
    give(forwarder, [b"to the proven place"], OTHER)
    one.proven_destination = THIRD
    give(forwarder, [b"now"], THIRD)
    give(forwarder, [b"late"], ONE)
    give(forwarder, [b"back"], OTHER)
    assert sent == [([b"to the proven place"], ONE), ([b"now"], OTHER), ([b"back"], THIRD)]
    assert forwarder.counters.hijacks == 2


def test_an_end_that_has_gone_behind_a_relay_is_sent_nothing() -> None:
    forwarder, sent, one, _ = carrying()
    one.proven_destination = new_name(RELAYED_PORT)
    give(forwarder, [b"x"], OTHER)
    assert sent == []


def test_what_exceeds_the_quota_is_dropped_and_counted() -> None:
    forwarder, sent, _, _ = carrying(bytes_per_s=10_000, burst_bytes=5_000)
    start = monotonic()
    give(forwarder, [bytes(1000)] * 8, ONE, start)
    give(forwarder, [bytes(1000)] * 8, OTHER, start)
    assert [len(run) for run, _ in sent] == [5] and forwarder.counters.over_quota == 11
    give(forwarder, [bytes(1000)] * 8, OTHER, start + 0.31)
    assert [len(run) for run, _ in sent] == [5, 3], "both directions share it"


def test_a_quota_of_one_flow_is_not_that_of_another() -> None:
    forwarder, sent, one, other = carrying(bytes_per_s=1, burst_bytes=1000)
    forwarder.open(b"another8", one, other, bytes_per_s=1, burst_bytes=1000)
    give(forwarder, [bytes(1000)] * 2, ONE)
    second = forwarder.get(b"another8")
    assert second is not None
    second.receive([bytes(1000)] * 2, ONE, monotonic())
    assert [len(run) for run, _ in sent] == [1, 1]


def test_what_is_idle_ends() -> None:
    forwarder, _, one, other = carrying()
    told: list[bytes] = []
    forwarder.on_ended = told.append
    start = monotonic()
    forwarder.open(b"another8", one, other, bytes_per_s=1, burst_bytes=1000)
    give(forwarder, [b"x"], ONE, start + 30)
    assert forwarder.idle(start + IDLE_S / 2) == []
    assert forwarder.idle(start + IDLE_S + 1) == [b"another8"]
    forwarder.tick(start + IDLE_S + 1)
    assert told == [b"another8"] and len(forwarder) == 1
    give(forwarder, [b"x"], THIRD, start + 80)
    forwarder.tick(start + 30 + IDLE_S)
    assert told == [b"another8", FLOW], "somebody else does not keep it open"


def test_flows_end_with_either_link_and_by_being_closed() -> None:
    forwarder, sent, one, other = carrying()
    told: list[bytes] = []
    forwarder.on_ended = lambda flow: (told.append(flow), forwarder.close(b"another8"))[0]
    third = Leg(THIRD)
    forwarder.open(b"another8", other, one, bytes_per_s=1, burst_bytes=1000)
    forwarder.open(b"yetother", third, one, bytes_per_s=1, burst_bytes=1000)
    forwarder.lost(other)
    assert told == [FLOW], "the other one was closed meanwhile"
    forwarder.close(b"yetother")
    forwarder.close(b"yetother")
    assert told == [FLOW] and len(forwarder) == 0 and forwarder.get(FLOW) is None and sent == []


def test_flows_that_are_refused() -> None:
    forwarder, _, one, other = carrying()
    ended, behind = Leg(THIRD), Leg(new_name(RELAYED_PORT))
    ended.has_ended = True
    wrong = [(FLOW, one, other), (b"short", one, other), (b"another8", one, one)]
    for flow, first, second in [*wrong, (b"another8", one, ended), (b"another8", behind, one)]:
        with pytest.raises(ValueError):
            forwarder.open(flow, first, second, bytes_per_s=1, burst_bytes=1)
    for number in range(MOST_FORWARDED - 1):
        forwarder.open(number.to_bytes(8, "big"), one, other, bytes_per_s=1, burst_bytes=1)
    with pytest.raises(ValueError, match="too many"):
        forwarder.open(b"another8", one, other, bytes_per_s=1, burst_bytes=1)


# --- real endpoints -----------------------------------------------------------------------------------------


async def test_hijackers_and_replays_on_the_wire_do_no_harm() -> None:
    async with relayed(most_datagram_bytes=1452) as it, asyncio.timeout(10):
        seen: list[bytes] = []
        flow = it.relay.endpoint.forwarder.get(FLOW)
        assert flow is not None
        real = flow._transmit
        flow._transmit = lambda datagrams, to: (seen.extend(datagrams), real(datagrams, to))[1]
        stream = it.here.open_stream()
        stream.write(bytes(100_000))
        stream.write_eof()
        far = await it.other.stream()
        assert await read_all(far) == bytes(100_000)
        flow._transmit = real
        counters = it.relay.endpoint.forwarder.counters
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
            for data in seen[:60]:
                elsewhere.sendto(data, (HOST, it.relay.address.port))
            await until(lambda: counters.hijacks == min(60, len(seen)))
        # The relay itself, or whoever can write on its wire, repeats everything to both ends.
        for end in (it.one, it.other):
            arrived = end.endpoint.counters.relayed_in
            for start in range(0, len(seen), 40):
                link = it.relay.endpoint.link(end.node_id)
                assert link is not None
                it.relay.endpoint.transmit(seen[start : start + 40], link.destination)
            await until(lambda end=end, arrived=arrived: end.endpoint.counters.relayed_in >= arrived + len(seen))
        assert it.here.path == it.there.path == "relayed" and it.here.alive and it.there.alive
        assert it.there.address == it.way_back and it.here.address == it.way
        assert await it.here.echo() < 1.0 and await it.there.echo() < 1.0
        assert it.one.recorder.down == it.other.recorder.down == []


async def test_a_transfer_over_a_small_quota_arrives_at_its_rate() -> None:
    async with relayed(bytes_per_s=1e6, burst=100_000) as it, asyncio.timeout(20):
        stream = it.here.open_stream()
        started = monotonic()
        stream.write(bytes(1_000_000))
        stream.write_eof()
        far = await it.other.stream()
        assert len(await read_all(far)) == 1_000_000
        took_s = monotonic() - started
        assert 0.85 < took_s < 4.0, "what does not fit is lost and sent again, without a collapse"
        assert it.relay.endpoint.forwarder.counters.over_quota > 0


async def test_a_flow_ends_with_a_link_of_the_relay() -> None:
    async with relayed() as it:
        told: list[bytes] = []
        it.relay.endpoint.forwarder.on_ended = told.append
        it.other_to_relay.close(0x100)
        await until(lambda: told == [FLOW])
        assert len(it.relay.endpoint.forwarder) == 0
        it.here.open_stream().write(b"nobody hears this")
        await until(lambda: it.relay.endpoint.forwarder.counters.unknown > 0)
