import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import pytest

from meshnode.errors import PeerUnreachable, WrongPeer
from meshnode.net import dialling
from meshnode.net.address import Address, from_socket
from tests.net.nodes import HOST, IDENTITIES, node, two_nodes, until

pytestmark = pytest.mark.anyio


@contextmanager
def deaf() -> Iterator[Address]:
    """A port where nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((HOST, 0))
        yield from_socket(bound.getsockname())


@pytest.fixture
def closed() -> Address:
    """A port that is not open."""
    with deaf() as address:
        pass
    return address


async def test_the_second_address_is_tried_after_a_moment() -> None:
    async with two_nodes() as (one, other):
        with deaf() as first:
            started = monotonic()
            link = await one.endpoint.dial([first, other.address], expected=other.node_id)
            assert dialling.STAGGER_S <= monotonic() - started < dialling.STAGGER_S + 0.5
        assert link.address == other.address
        await until(lambda: not one.endpoint._unfinished)


async def test_a_closed_port_does_not_make_anybody_wait(closed: Address) -> None:
    async with two_nodes() as (one, other):
        started = monotonic()
        link = await one.endpoint.dial([closed, other.address], expected=other.node_id)
        assert link.alive
        assert monotonic() - started < dialling.STAGGER_S


async def test_nobody_answers(closed: Address) -> None:
    async with node(0) as one:
        with deaf() as silent, pytest.raises(PeerUnreachable, match=str(silent.port)):
            await one.endpoint.dial([silent], expected=IDENTITIES[1].node_id, timeout_s=0.2)
        started = monotonic()
        with pytest.raises(PeerUnreachable):
            await one.endpoint.dial([closed], expected=IDENTITIES[1].node_id, timeout_s=5.0)
        assert monotonic() - started < 2.0, "nobody waits to the end for a port that is closed"
        with pytest.raises(PeerUnreachable, match="no address"):
            await one.endpoint.dial([], expected=None)
        await until(lambda: not one.endpoint._unfinished)


async def test_a_refusal_says_more_than_silence() -> None:
    async with two_nodes() as (one, other):
        with deaf() as silent, pytest.raises(WrongPeer):
            await one.endpoint.dial([silent, other.address], expected=IDENTITIES[3].node_id, timeout_s=0.5)


async def test_one_attempt_for_all_who_ask() -> None:
    async with two_nodes() as (one, other):
        links = await asyncio.gather(*(one.dial(other) for _ in range(5)))
        assert len(set(links)) == 1
        assert other.endpoint.counters.handshakes_begun == 1


async def test_a_caller_who_gives_up_does_not_end_the_attempt_of_others() -> None:
    async with two_nodes() as (one, other):
        first, second = asyncio.create_task(one.dial(other)), asyncio.create_task(one.dial(other))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).alive
        assert first.cancelled()


async def test_two_addresses_of_one_peer_leave_one_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "STAGGER_S", 0.0)
    async with two_nodes() as (one, other):
        again = Address("127.0.0.2", other.address.port)
        async with node(2, host="0.0.0.0") as third:
            addresses = [Address(host, third.address.port) for host in (HOST, again.host)]
            link = await one.endpoint.dial(addresses, expected=third.node_id)
            await until(lambda: not one.endpoint._unfinished and not third.endpoint._unfinished)
            assert one.endpoint.link(third.node_id) is link
            await until(lambda: len(third.endpoint._links.get(one.node_id, [])) == 1)
            assert await link.echo() < 1.0
