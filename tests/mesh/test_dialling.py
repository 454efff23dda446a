import asyncio
import random
from contextlib import suppress

import pytest

from meshnode.mesh.dialling import AT_ONCE, KNOWN_PEERS, Directions, Pauses, Search
from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_ADDRESSES

pytestmark = pytest.mark.anyio


def peer(number: int) -> bytes:
    return number.to_bytes(32, "big")


def place(number: int) -> Address:
    return Address("192.0.2.1", number)


def test_pauses_double_with_jitter_up_to_a_bound() -> None:
    pauses = Pauses(random.Random(1))
    assert pauses.due_at(peer(1)) == 0
    seen = []
    for _ in range(10):
        pauses.failed(peer(1), now=100.0)
        seen.append(pauses.due_at(peer(1)) - 100)
    for pause_s, most_s in zip(seen, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60], strict=True):
        assert most_s / 2 <= pause_s <= most_s
    assert len({round(pause_s, 6) for pause_s in seen[6:]}) > 1
    pauses.succeeded(peer(1))
    pauses.failed(peer(1), now=100.0)
    assert pauses.due_at(peer(1)) <= 101


def test_pauses_know_so_many_peers() -> None:
    pauses = Pauses(random.Random(1))
    for number in range(KNOWN_PEERS + 5):
        pauses.failed(peer(number), 1.0)
    assert [pauses.due_at(peer(number)) > 0 for number in (0, 4, 5, KNOWN_PEERS)] == [False, False, True, True]


def test_directions_begin_with_what_worked() -> None:
    directions = Directions()
    assert directions.to(peer(1)) == ()
    directions.named(peer(1), [place(1), place(2)])
    directions.worked(peer(1), place(2))
    assert directions.to(peer(1), [place(3)]) == (place(2), place(3), place(1))
    directions.named(peer(1), [])
    directions.named(peer(1), [place(number) for number in range(10, 40)])
    assert len(directions.to(peer(1), [place(number) for number in range(40, 80)])) == 2 * LIMIT_ADDRESSES
    for number in range(2, KNOWN_PEERS + 2):
        directions.named(peer(number), [place(1)])
        directions.worked(peer(number), place(1))
    assert directions.to(peer(1)) == ()


class World:
    """Peers that answer or not, and the search among them."""

    def __init__(self, count: int, most_s: float = 0.02) -> None:
        self.peers = [peer(number) for number in range(count)]
        self.up: set[bytes] = set()
        self.linked: set[bytes] = set()
        self.tried: list[bytes] = []
        self.most_at_once = self.now = 0
        self.joined = asyncio.Event()
        self.search = Search(
            candidates=lambda: [found for found in self.peers if found not in self.linked],
            dial=self.dial,
            enough=lambda: bool(self.linked),
            pauses=Pauses(random.Random(7), least_s=0.01, most_s=most_s),
        )

    async def dial(self, target: bytes) -> bool:
        self.tried.append(target)
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        if target in self.up:
            self.linked.add(target)
            self.joined.set()
            return True
        if target == peer(0):
            raise RuntimeError("no reason to stop")
        return False

    async def __aenter__(self) -> "World":
        self.task = asyncio.ensure_future(self.search.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def test_a_search_goes_on_until_somebody_answers() -> None:
    async with World(20) as world:
        while len(world.tried) < 60:
            await asyncio.sleep(0.005)
        assert set(world.tried) == set(world.peers)
        assert world.most_at_once == AT_ONCE
        world.up.add(peer(13))
        await asyncio.wait_for(world.joined.wait(), 2)
        await asyncio.sleep(0.01)
        count = len(world.tried)
        await asyncio.sleep(0.05)
        assert len(world.tried) == count


async def test_a_lost_link_wakes_it_at_once() -> None:
    async with World(3, most_s=60) as world:
        world.up.add(peer(2))
        await asyncio.wait_for(world.joined.wait(), 2)
        world.linked.clear()
        world.joined.clear()
        world.search.wake()
        await asyncio.wait_for(world.joined.wait(), 0.5)


async def test_with_nobody_to_try_it_waits_for_news() -> None:
    async with World(0) as world:
        await asyncio.sleep(0.01)
        world.peers.append(peer(5))
        world.up.add(peer(5))
        world.search.wake()
        await asyncio.wait_for(world.joined.wait(), 0.5)
