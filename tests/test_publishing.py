"""Listing a mesh: what is said of it, when it is said, taken back, and what is done with what others list."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, cast

import pytest

from meshnode import publishing
from meshnode.core.effects import Member, MembershipSnapshot
from meshnode.core.open_policy import OpenPolicy
from meshnode.discovery.nostr import Fetched
from meshnode.discovery.relays import RelayReport
from meshnode.errors import HomeNotWritable
from meshnode.identity import ephemeral
from meshnode.mesh.credentials import Credentials
from meshnode.mesh.views import Shown
from meshnode.publishing import Announced, Publisher
from meshnode.wire import statements
from meshnode.wire.address import Address
from meshnode.wire.listings import Entry, Listing
from meshnode.wire.open_meshes import open_mesh_id
from meshnode.wire.registry import Role
from meshnode.wire.statements import Demand, Device, Dynamic, Identity, ModelState, Offer, Wish

pytestmark = pytest.mark.anyio

MESH = open_mesh_id("one")
SMALL = Offer("small", b"h" * 16, ModelState.READY, 512, 4)
HERE = (Address("192.0.2.1", 9338),)
OK = RelayReport("wss://one", "ok", "", 1, 0.1)
DOWN = RelayReport("wss://two", "down", "connection refused", 0, 0.1)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STEP_S", "FIRST_STEP_S", "FIRST_LOOK_S", "LOOK_S"):
        monkeypatch.setattr(publishing, name, 0.01)


class World:
    """The mesh, vault and relays of a publisher (mesh.Mesh, mesh.OpenVault, discovery.NostrRelays)."""

    def __init__(self) -> None:
        self.identity = ephemeral()
        self.state = "alone"
        self.addresses = HERE
        self.policy = OpenPolicy()
        self.credentials = Credentials(MESH, "one", b"", Role.MEMBER, False, 0)
        self.paused = False
        self.refuses = False
        self.others: tuple[Listing, ...] = ()
        self.published: list[Listing] = []
        self.deleted: list[bytes] = []
        self.met: list[Sequence[Listing]] = []
        self.troubles: list[str] = []
        self.known: dict[bytes, Member] = {}
        self.statements: list[Shown] = []
        self.failure: Exception | None = None
        self.member(bytes(self.identity.node_id), HERE, Dynamic((Device("GPU", 8 << 30, 0),), (SMALL,)))

    def member(
        self, node: bytes, addresses: tuple[Address, ...], dynamic: Dynamic | None = None, **more: Any
    ) -> Member:
        found = Member(
            node,
            "alive",
            1,
            Role.MEMBER,
            Identity(b"c" * 80, addresses),
            dynamic,
            None,
            True,
            True,
            0.01,
            None,
            0.0,
            0.0,
        )
        found = self.known[node] = dataclasses.replace(found, **more)
        key = self.identity
        identity = statements.make(Identity(b"c" * 80), origin=key.node_id, incarnation=1, number=1, sign=key.sign)
        signed = None
        if dynamic is not None:
            signed = statements.make(dynamic, origin=key.node_id, incarnation=1, number=1, sign=key.sign)
        self.statements.append(Shown(node, identity, signed, 0.0))
        return found

    def members(self) -> MembershipSnapshot:
        return MembershipSnapshot(self.identity.node_id, MappingProxyType(self.known))

    def shown(self) -> list[Shown]:
        return self.statements

    async def fetch(self, timeout_s: float = 0.0, *, mesh: bytes | None = None, eager: bool = False) -> Fetched:
        return Fetched(self.others, Counter(), (DOWN if self.refuses else OK,))

    async def publish(self, listing: Listing, sign: Any, *, timeout_s: float = 0.0) -> tuple[RelayReport, ...]:
        if self.failure is not None:
            raise self.failure
        self.published.append(listing)
        return (DOWN,) if self.refuses else (DOWN, OK)

    async def delete(self, mesh: bytes, *, timeout_s: float = 0.0) -> tuple[RelayReport, ...]:
        self.deleted.append(mesh)
        return (OK,)

    async def meet(self, listings: Sequence[Listing]) -> int:
        self.met.append(listings)
        return len(listings)

    def publisher(self) -> Publisher:
        announced = Announced(
            mesh=cast(Any, self),
            vault=cast(Any, self),
            identity=self.identity,
            relays=self,
            region="moon",
            software="test",
            max_clients=4,
            paused=lambda: self.paused,
            met=self.meet,
            trouble=self.troubles.append,
            changed=lambda: None,
        )
        return Publisher(announced, MESH, lambda: 0.5)


@asynccontextmanager
async def at_work(world: World) -> AsyncIterator[Publisher]:
    found = world.publisher()
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await found.stop()


def listing_of(node: bytes) -> Listing:
    return Listing(mesh=MESH, node=node, name="one", entries=(Entry(node, HERE),))


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


async def test_a_mesh_is_listed_and_taken_back() -> None:
    world = World()
    async with at_work(world) as publisher:
        await until(lambda: publisher.is_listed)
        (listing,) = world.published
        assert (listing.mesh, listing.name, listing.region, listing.nodes, listing.max_clients) == (
            MESH,
            "one",
            "moon",
            1,
            4,
        )
        assert listing.entries == (Entry(bytes(world.identity.node_id), HERE),)
        assert [(model.name, model.hosts) for model in listing.models] == [("small", 1)]
        assert listing.vram_bytes == 8 << 30
        assert publisher.reports == (DOWN, OK) and publisher.at > 0 and world.troubles[-1] == ""
        assert publisher.is_publisher and not world.deleted
    assert world.deleted == [MESH]


async def test_what_no_relay_takes_is_said() -> None:
    world = World()
    world.refuses = True
    async with at_work(world) as publisher:
        await until(lambda: world.troubles and world.troubles[-1])
        assert world.troubles[-1] == "wss://two: connection refused" and not publisher.is_listed
    assert not world.deleted, "what was never listed need not be taken back"


async def test_a_key_that_cannot_be_written_is_said_and_ends_nothing() -> None:
    world = World()
    world.failure = HomeNotWritable("read-only file system")
    async with at_work(world):
        await until(lambda: any("read-only" in trouble for trouble in world.troubles))


async def test_a_pause_and_a_full_house_take_the_listing_back() -> None:
    world = World()
    async with at_work(world) as publisher:
        await until(lambda: publisher.is_listed)
        world.paused = True
        publisher.wake()
        await until(lambda: not publisher.is_listed)
        world.paused = False
        publisher.wake()
        await until(lambda: publisher.is_listed)
        for number in range(4):
            world.policy.entered(bytes([number]) * 32, HERE[0], Role.CLIENT)
        publisher.wake()
        await until(lambda: not publisher.is_listed)
        assert publisher.listing().clients == 4


async def test_a_node_that_nobody_could_dial_lists_nothing() -> None:
    world = World()
    world.addresses = ()
    async with at_work(world) as publisher:
        await asyncio.sleep(0.05)
        assert not world.published and not publisher.is_listed
        world.addresses = HERE
        publisher.wake()
        await until(lambda: publisher.is_listed)


async def test_news_are_listed_soon_but_not_all_the_time() -> None:
    world = World()
    async with at_work(world) as publisher:
        await until(lambda: publisher.is_listed)
        for number in range(30):
            offer = dataclasses.replace(SMALL, name=f"model{number}")
            world.statements.clear()
            world.member(bytes(world.identity.node_id), HERE, Dynamic(models=(offer,)))
            publisher.wake()
            await asyncio.sleep(0.02)
        assert 2 <= len(world.published) <= 1 + publishing.NEWS_AT_ONCE


async def test_others_that_list_the_mesh_are_met_and_this_node_is_not() -> None:
    world = World()
    own = listing_of(bytes(world.identity.node_id))
    other = listing_of(b"o" * 32)
    world.others = own, other
    async with at_work(world):
        await until(lambda: world.met)
    assert world.met[0] == [other]


async def test_relays_that_do_not_answer_say_nothing_of_others() -> None:
    world = World()
    world.refuses = True
    async with at_work(world):
        await asyncio.sleep(0.05)
    assert not world.met


def test_entries_are_this_node_then_near_members_that_can_be_dialled() -> None:
    world = World()
    far = world.member(b"f" * 32, (Address("8.8.8.8", 1),), rtt_s=0.2)
    near = world.member(b"n" * 32, (Address("9.9.9.9", 1),), rtt_s=0.01)
    world.member(b"h" * 32, (Address("192.168.1.2", 1),), rtt_s=0.001)
    world.member(b"g" * 32, (), rtt_s=0.001)
    world.member(b"u" * 32, (Address("8.8.4.4", 1),), reachable=False)
    world.member(b"d" * 32, (Address("8.8.4.4", 1),), state="dead")
    entries = world.publisher().listing().entries
    assert [entry.node for entry in entries] == [bytes(world.identity.node_id), near.node, far.node, b"h" * 32]


def test_what_is_asked_for_and_not_served_is_wanted() -> None:
    world = World()
    wishes = Demand((Wish("small", 100), Wish("large", 50)))
    world.member(b"n" * 32, HERE, None, demand=wishes)
    listing = world.publisher().listing()
    assert listing.wanted == ("large",) and listing.nodes == 2
