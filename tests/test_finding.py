"""One look for open meshes: sources together, the best way first, liars and the slow left out. No network."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from meshnode.core.choosing import Candidate, Wishes
from meshnode.discovery.nostr import Fetched
from meshnode.discovery.relays import RelayReport
from meshnode.errors import PeerUnreachable
from meshnode.finding import Finding, Found, Leads, sensible
from meshnode.mesh.inquiry import Answered, Stated
from meshnode.wire.address import Address
from meshnode.wire.inquiry import Prospect
from meshnode.wire.listings import Entry, ListedModel, Listing
from meshnode.wire.messages import PeerEntry
from meshnode.wire.open_meshes import open_mesh_id
from meshnode.wire.registry import VERSION, Role
from meshnode.wire.statements import Dynamic, ModelState, Offer

pytestmark = pytest.mark.anyio

OWN = b"o" * 32
OK = RelayReport("wss://one", "ok", "", 1, 0.1)
DOWN = RelayReport("wss://two", "down", "refused", 0, 0.1)
SMALL = Offer("small", b"h" * 16, ModelState.READY, 512, 4)


def node(number: int) -> bytes:
    return bytes([number]) * 32


def at(number: int) -> Address:
    return Address(f"198.51.100.{number}", 9338)


def listing(name: str, *nodes: int, models: Sequence[str] = (), **more: Any) -> Listing:
    """A mesh listed by the first of these nodes."""
    return Listing(
        mesh=open_mesh_id(name),
        node=node(nodes[0]),
        name=name,
        entries=tuple(Entry(node(each), (at(each),)) for each in nodes),
        models=tuple(ListedModel(each) for each in models),
        created_at=1,
        **more,
    )


class Net:
    """Relays that list things, and nodes that answer. `asked` are the nodes that were."""

    def __init__(self, *parts: Fetched) -> None:
        self.parts = parts
        self.meshes: dict[int, tuple[str, float, tuple[Offer, ...]]] = {}
        self.slow: dict[int, float] = {}
        self.asked: list[bytes | None] = []
        self.room = True

    async def fetching(
        self, timeout_s: float = 0.0, *, mesh: bytes | None = None, eager: bool = True
    ) -> AsyncIterator[Fetched]:
        for part in self.parts:
            await asyncio.sleep(0)
            yield part

    async def ask(
        self, identity: Any, addresses: Sequence[Address], *, expected: bytes | None, mesh: bytes, role: Role, **_: Any
    ) -> Answered:
        self.asked.append(expected)
        number = next((each for each in self.meshes if at(each) in addresses), None)
        await asyncio.sleep(0 if number is None else self.slow.get(number, 0))
        if number is None:
            raise PeerUnreachable("nobody")
        name, rtt_s, offers = self.meshes[number]
        prospect = Prospect(VERSION, open_mesh_id(name), name, True, self.room, 1, 0)
        stated = (Stated(node(number), (at(number),), Dynamic(models=offers)),)
        return Answered(node(number), at(number), prospect, rtt_s, stated)

    def finding(self) -> Finding:
        return Finding(self, node=OWN, role=Role.MEMBER, host=lambda: "::", ask=self.ask)

    async def look(self, leads: Leads = Leads(b""), wishes: Wishes = Wishes(), **more: Any) -> Found:  # noqa: B008
        async with asyncio.timeout(5):
            return await self.finding().look(wishes, leads, **more)


def fetched(*listings: Listing, relays: tuple[RelayReport, ...] = (OK,)) -> Fetched:
    return Fetched(tuple(listings), Counter(), relays)


async def test_the_nearest_of_equals_comes_first() -> None:
    net = Net(fetched(listing("far", 1), listing("near", 2)))
    net.meshes = {1: ("far", 0.2, ()), 2: ("near", 0.01, ())}
    found = await net.look()
    assert [way.name for way in found.ways] == ["near", "far"]
    assert found.ways[0].entries == (Entry(node(2), (at(2),)),) and "10 ms away" in found.ways[0].reasons


async def test_a_mesh_is_asked_at_one_entry_after_the_other_until_one_answers() -> None:
    net = Net(fetched(listing("one", 1, 2, 3, 4)))
    net.meshes = {4: ("one", 0.01, ())}
    (way,) = (await net.look()).ways
    assert [entry.node for entry in way.entries] == [node(4), node(1), node(2), node(3)]
    assert set(net.asked) == {node(1), node(2), node(3), node(4)}


async def test_saved_peers_and_given_addresses_need_no_relay() -> None:
    net = Net(fetched(relays=(DOWN,)))
    net.meshes = {5: ("home", 0.01, (SMALL,)), 6: ("club", 0.3, ())}
    leads = Leads(open_mesh_id("home"), (PeerEntry(node(5), (at(5),)),), ("198.51.100.6:9338", "198.51.100.7:9338"))
    found = await net.look(leads)
    assert [way.name for way in found.ways] == ["home", "club"]
    assert found.ways[0].models == {"small"} and not found.relays_answered


async def test_only_the_mesh_that_is_wanted() -> None:
    net = Net(fetched(listing("one", 1), listing("two", 2)))
    net.meshes = {1: ("one", 0.01, ()), 2: ("two", 0.01, ()), 3: ("three", 0.01, ())}
    leads = Leads(open_mesh_id("three"), (PeerEntry(node(3), (at(3),)),))
    found = await net.look(leads, mesh=open_mesh_id("two"))
    assert [way.name for way in found.ways] == ["two"] and node(3) not in net.asked


async def test_nobody_asks_itself_or_who_is_to_be_avoided() -> None:
    own = Listing(mesh=open_mesh_id("own"), node=OWN, name="own", entries=(Entry(OWN, (at(9),)),))
    net = Net(fetched(own, listing("bad", 1), listing("mixed", 2, 1)))
    net.meshes = {1: ("bad", 0.01, ()), 2: ("mixed", 0.01, ()), 9: ("own", 0.01, ())}
    leads = Leads(open_mesh_id("bad"), (PeerEntry(node(1), (at(1),)), PeerEntry(OWN, (at(9),))))
    found = await net.look(leads, avoid={node(1)})
    assert [way.name for way in found.ways] == ["mixed"] and net.asked == [node(2)]
    assert found.avoided == 1


async def test_what_cannot_be_joined_is_said_with_the_reason() -> None:
    net = Net(fetched(listing("silent", 1), listing("braggart", 2, nodes=50)))
    net.meshes = {2: ("braggart", 0.01, ())}
    found = await net.look()
    assert not found.ways
    assert '"silent": nobody answers' in found.why_not and "claims more than twice the nodes" in found.why_not
    net.room = False
    assert '"braggart": full' in (await net.look()).why_not


@pytest.mark.parametrize(
    ("relays", "words"),
    [
        ((), "no Nostr relay answers"),
        ((DOWN,), "no Nostr relay answers (wss://two: refused)"),
        ((OK, DOWN), "the relays list none"),
    ],
)
async def test_relays_that_are_down_and_relays_that_list_nothing(relays: tuple[RelayReport, ...], words: str) -> None:
    assert (await Net(fetched(relays=relays)).look()).why_not == words
    assert (
        await Net(fetched(listing("bad", 1))).look(avoid={node(1)})
    ).why_not == "those that are listed serve nothing"


async def test_the_slow_are_not_waited_for_when_there_is_a_way() -> None:
    net = Net(fetched(listing("quick", 1), listing("slow", 2)))
    net.meshes = {1: ("quick", 0.01, ()), 2: ("slow", 0.001, ())}
    net.slow = {2: 30.0}
    began = asyncio.get_running_loop().time()
    found = await net.look()
    assert [way.name for way in found.ways] == ["quick"]
    assert asyncio.get_running_loop().time() - began < 1.0


async def test_a_relay_that_never_ends_is_not_waited_for_when_there_is_a_way() -> None:
    class Endless(Net):
        async def fetching(self, timeout_s: float = 0.0, **_: Any) -> AsyncIterator[Fetched]:
            yield self.parts[0]
            await asyncio.sleep(30)

    net = Endless(fetched(listing("one", 1)))
    net.meshes = {1: ("one", 0.01, ())}
    net.slow = {1: 0.05}
    began = asyncio.get_running_loop().time()
    assert [way.name for way in (await net.look()).ways] == ["one"]
    assert asyncio.get_running_loop().time() - began < 1.0


async def test_entries_that_a_later_relay_names_are_asked_as_well() -> None:
    first, second = listing("one", 1), listing("one", 2)
    net = Net(fetched(first), fetched(first), fetched(first, second))
    net.meshes = {2: ("one", 0.01, ())}
    assert [way.entries[0].node for way in (await net.look()).ways] == [node(2)]


async def test_a_source_that_breaks_spoils_no_look() -> None:
    class Broken(Net):
        async def fetching(self, timeout_s: float = 0.0, **_: Any) -> AsyncIterator[Fetched]:
            raise RuntimeError("broken")
            yield  # type: ignore[unreachable]

    net = Broken()
    net.meshes = {6: ("club", 0.3, ())}
    found = await net.look(Leads(bootstrap=("198.51.100.6:9338", "no.such.host.invalid:1")))
    assert [way.name for way in found.ways] == ["club"]


async def test_a_probe_of_a_listed_mesh() -> None:
    net = Net()
    net.meshes = {1: ("one", 0.01, (SMALL,))}
    one = listing("one", 1)
    probe = await net.finding().probe(Candidate(one.mesh, "one", (one,)))
    assert probe is not None and probe.models == {"small", (b"h" * 16).hex()}
    two = listing("two", 2)
    assert await net.finding().probe(Candidate(two.mesh, "two", (two,))) is None


def test_loopback_is_another_machines() -> None:
    here, there = Address("127.0.0.1", 1), at(1)
    assert sensible([here, there], "::") == [there]
    assert sensible([here, there], "127.0.0.1") == [here, there]
