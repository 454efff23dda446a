"""When a relayed link is moved and where to, with relays and searches that do what the test wants."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from meshnode.mesh import relayed_links
from meshnode.mesh.flows import RelayFailed
from meshnode.mesh.relayed_links import RelayedLinks
from meshnode.wire.address import Address
from meshnode.wire.registry import Close

pytestmark = pytest.mark.anyio
PEER, NEAR, FAR = b"p" * 32, b"n" * 32, b"f" * 32
DIRECT = Address("11.7.1.1", 5)


class FakeLink:
    """A link that goes where it is sent, unless `deaf`."""

    def __init__(self, peer: bytes = PEER) -> None:
        self.peer = peer
        self.alive = True
        self.address = Address("100::1", 3)
        self.deaf = False
        self.closed_with: int | None = None

    def close(self, code: int) -> None:
        self.closed_with = code

    @property
    def path(self) -> str:
        return "direct" if self.address == DIRECT else "relayed"

    async def redirect(self, address: Address) -> bool:
        if not self.deaf:
            self.address = address
        return not self.deaf


class FakeFlow:
    def __init__(self, relay: FakeLink, address: Address) -> None:
        self.relay = relay
        self.address = address


class World:
    """Everything around RelayedLinks: flows, relays, searches."""

    def __init__(self) -> None:
        self.near, self.far = FakeLink(NEAR), FakeLink(FAR)
        self.order = [self.near, self.far]
        self.refusing: set[bytes] = set()
        self.asked: list[bytes] = []
        self.closed: list[Any] = []
        self.searches = 0
        self.finds_at = 1
        self.busy_for = 0
        self.around: object = "here"
        self.used = True
        self.told = 0
        self.counters: Counter[str] = Counter()
        self.links = RelayedLinks(
            flows=self,  # type: ignore[arg-type]
            paths=self,  # type: ignore[arg-type]
            relays=lambda node, without: [link for link in self.order if link.peer != without],  # type: ignore[misc]
            ask=self.ask,  # type: ignore[arg-type]
            circumstances=lambda node: self.around,
            in_use=lambda link: self.used,
            moved=self.tell,
            counters=self.counters,
        )
        self.link = FakeLink()
        self.flow = FakeFlow(self.near, self.link.address)
        self.links.carry(self.link, self.flow)  # type: ignore[arg-type]

    def tell(self) -> None:
        self.told += 1

    async def ask(self, relay: FakeLink, node: bytes) -> FakeFlow:
        assert node == PEER
        self.asked.append(relay.peer)
        if relay.peer in self.refusing:
            raise RelayFailed("no")
        return FakeFlow(relay, Address("100::2", 3))

    # mesh.flows.Flows, mesh.direct_paths.DirectPaths

    def at(self, address: Address) -> Any:
        return None

    def close(self, flow: Any) -> None:
        self.closed.append(flow)

    def is_busy(self, peer: bytes) -> bool:
        self.busy_for -= 1
        return self.busy_for >= 0

    async def seek(self, link: FakeLink) -> bool:
        self.searches += 1
        await asyncio.sleep(0)
        return self.searches >= self.finds_at and await link.redirect(DIRECT)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relayed_links, "LOOK_S", 0.01)
    monkeypatch.setattr(relayed_links, "BUSY_S", 0.001)
    monkeypatch.setattr(relayed_links, "LINGER_S", 0.03)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


# --- a direct path ----------------------------------------------------------------------------------------------------


async def test_a_direct_path_is_looked_for_at_once_and_the_relay_kept_for_a_moment() -> None:
    world = World()
    world.links.admitted(world.link)  # type: ignore[arg-type]
    await settled()
    assert (world.link.path, world.told, world.closed) == ("direct", 1, [])
    await until(lambda: world.closed == [world.flow])
    world.links.down(world.link)  # type: ignore[arg-type]
    assert world.closed == [world.flow] and world.counters == {"relayed_moved": 1}
    await world.links.close()


async def test_it_is_looked_for_again_when_something_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.core.traversal.RETRY_S", (0.0, 3600.0))
    world = World()
    world.finds_at = 4
    world.links.admitted(world.link)  # type: ignore[arg-type]
    await until(lambda: world.searches == 2)
    await asyncio.sleep(0.03)
    assert world.searches == 2, "the next attempt is far away"
    world.around = "there"
    await until(lambda: world.searches == 3)
    world.around = "elsewhere"
    await until(lambda: world.link.path == "direct")
    await world.links.close()


async def test_a_search_that_the_other_end_has_begun_is_waited_for() -> None:
    world = World()
    world.busy_for = 5
    world.links.admitted(world.link)  # type: ignore[arg-type]
    await settled()
    assert world.searches == 0
    await until(lambda: world.link.path == "direct")
    await world.links.close()


@pytest.mark.parametrize("why", ["dead", "unused"])
async def test_for_a_link_that_nobody_uses_nothing_is_looked_for(why: str) -> None:
    world = World()
    world.link.alive, world.used = why != "dead", why != "unused"
    world.links.admitted(world.link)  # type: ignore[arg-type]
    await settled()
    assert world.searches == 0
    await world.links.close()


async def test_a_path_that_does_not_last_is_looked_for_again() -> None:
    world = World()
    world.links.admitted(world.link)  # type: ignore[arg-type]
    await until(lambda: world.link.path == "direct")
    world.finds_at = 99
    world.link.address = world.flow.address
    await until(lambda: world.searches == 2)
    assert world.closed == [], "the relay carries it again"
    await world.links.close()


@pytest.mark.parametrize("how", ["redirect", "search", "before", "neither"])
async def test_a_direct_dial_that_is_answered_late_shows_the_way(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relayed_links, "TAKE_OVER_S", 0.05)
    world, late, left = World(), FakeLink(), []
    late.address = DIRECT
    world.link.deaf = how != "redirect"
    if how == "before":
        world.link.address = DIRECT
    assert world.links.was_relayed(world.link)  # type: ignore[arg-type]
    assert world.links.was_relayed(late) is False  # type: ignore[arg-type]
    world.links.shown(world.link, late, otherwise=lambda: left.append(late))  # type: ignore[arg-type]
    await settled()
    if how == "search":
        world.link.address = DIRECT
    await asyncio.sleep(0.1)
    assert (late.closed_with, left) == ((None, [late]) if how == "neither" else (Close.DUPLICATE, []))
    await world.links.close()


# --- another relay ----------------------------------------------------------------------------------------------------


async def test_when_a_relay_is_silent_another_one_carries_the_link() -> None:
    world = World()
    for _ in range(3):
        world.links.silent(world.near)  # type: ignore[arg-type]
    await settled()
    assert (world.asked, world.link.address) == ([FAR], Address("100::2", 3))
    assert world.closed == [world.flow] and world.counters == {"relayed_rerouted": 1}
    world.links.silent(FakeLink(b"x" * 32))  # type: ignore[arg-type]
    await settled()
    assert world.asked == [FAR]
    await world.links.close()


async def test_when_a_flow_ends_the_same_relay_will_do() -> None:
    world = World()
    world.links.flow_ended(world.flow)  # type: ignore[arg-type]
    await settled()
    assert world.asked == [NEAR] and world.link.address == Address("100::2", 3)
    await world.links.close()


async def test_the_next_relay_is_asked_when_one_refuses_or_leads_nowhere() -> None:
    world = World()
    world.refusing.add(NEAR)
    world.link.deaf = True
    world.links.flow_ended(world.flow)  # type: ignore[arg-type]
    await settled()
    assert world.asked == [NEAR, FAR]
    assert len(world.closed) == 1 and world.closed[0].relay is world.far and not world.counters
    await world.links.close()


@pytest.mark.parametrize("why", ["dead", "direct"])
async def test_nothing_is_rerouted_that_needs_no_relay(why: str) -> None:
    world = World()
    if why == "dead":
        world.link.alive = False
    else:
        world.link.address = DIRECT
    world.links.flow_ended(world.flow)  # type: ignore[arg-type]
    world.links.silent(world.link)  # type: ignore[arg-type]
    await settled()
    assert world.asked == []
    await world.links.close()


async def test_the_flow_of_a_link_that_has_ended_is_given_up() -> None:
    world = World()
    world.links.down(world.link)  # type: ignore[arg-type]
    world.links.down(world.link)  # type: ignore[arg-type]
    assert world.closed == [world.flow]


async def test_a_relay_that_gives_a_flow_up_at_once_does_not_keep_the_node_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relayed_links, "REROUTE_S", 0.05)
    world = World()
    for _ in range(50):
        [flow] = world.links._carried.values() or [None]  # type: ignore[list-item]
        if flow is not None:
            world.links.flow_ended(flow)
        await asyncio.sleep(0.002)
    assert 2 <= len(world.asked) <= 4
    await world.links.close()


async def test_a_link_that_has_become_direct_meanwhile_stays_so() -> None:
    world = World()
    world.links.flow_ended(world.flow)  # type: ignore[arg-type]
    world.link.address = DIRECT
    await settled()
    assert world.asked == []
    await world.links.close()
