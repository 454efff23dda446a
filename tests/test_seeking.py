"""The way of a node through open meshes, without a network: every state, every refusal, every sentence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest

from meshnode import seeking
from meshnode.core.choosing import Wishes
from meshnode.core.effects import Member, MembershipSnapshot
from meshnode.core.open_policy import OpenPolicy
from meshnode.discovery.relays import RelayReport
from meshnode.errors import HomeNotWritable, PeerRefused
from meshnode.finding import Found, Leads, Way
from meshnode.identity import load_or_create
from meshnode.mesh.open_vault import OpenVault
from meshnode.seeking import Seeker, Seeking
from meshnode.wire.address import Address
from meshnode.wire.listings import Entry, Listing
from meshnode.wire.messages import PeerEntry
from meshnode.wire.open_meshes import open_mesh_id
from meshnode.wire.registry import Role
from meshnode.wire.statements import Dynamic, ModelState, Offer

pytestmark = pytest.mark.anyio

AT = (Address("192.0.2.1", 9338),)
OK = RelayReport("wss://one", "ok", "", 1, 0.1)
DOWN = RelayReport("wss://one", "down", "refused", 0, 0.1)
NOTHING = Found((), (), (OK,))


def node(number: int) -> bytes:
    return bytes([number]) * 32


def way(name: str, *numbers: int, models: Sequence[str] = ()) -> Way:
    entries = tuple(Entry(node(number), AT) for number in numbers)
    return Way(open_mesh_id(name), name, entries, frozenset(models), ("2 ms away",))


def found(*ways: Way) -> Found:
    return Found(ways, (), (OK,))


class World:
    """What a Seeking sees: a mesh (mesh.Mesh), looks (finding.Finding), and what it says."""

    def __init__(self, home: Path, role: Role = Role.MEMBER, name: str | None = None) -> None:
        self.identity = load_or_create(home / "node.key")
        self.vault = OpenVault(home / "public", self.identity, OpenPolicy())
        self.role = role
        self.state = "alone"
        self.entered = 0
        self.answers_of: set[bytes] = set()
        self.called: list[bytes] = []
        self.refusing: set[bytes] = set()
        self.looks: list[tuple[Leads, bytes | None, Collection[bytes]]] = []
        self.script: list[Found] = []
        self.known: dict[bytes, Member] = {}
        self.told: list[str] = []
        self.trouble = ""
        self.log: list[str] = []
        self.failure: Exception | None = None
        self.seeking = Seeking(
            Seeker(
                mesh=cast(Any, self),
                vault=self.vault,
                role=role,
                finding=cast(Any, self),
                wishes=Wishes,
                bootstrap=("192.0.2.9:1",),
                answers=self._answers,
                tell=self.told.append,
                trouble=lambda text: setattr(self, "trouble", text),
                entered=lambda: self.log.append(f"in {self.name}"),
                left=self._left,
            ),
            name=name,
        )

    @property
    def name(self) -> str:
        mine = self.vault.credentials
        return "" if mine is None else mine.mesh_name

    async def _answers(self, host: bytes) -> bool:
        return host in self.answers_of

    async def _left(self) -> None:
        self.log.append(f"out of {self.name}")

    # finding.Finding

    async def look(
        self, wishes: Wishes, leads: Leads, *, mesh: bytes | None = None, avoid: Collection[bytes] = ()
    ) -> Found:
        self.looks.append((leads, mesh, avoid))
        if self.failure is not None:
            raise self.failure
        return self.script.pop(0) if self.script else NOTHING

    # mesh.Mesh

    async def enter(self) -> None:
        self.entered += 1

    async def leave(self) -> None:
        self.state = "alone"
        self.known.clear()

    async def call(self, peer: bytes, addresses: Sequence[Address] = ()) -> None:
        self.called.append(peer)
        if peer in self.refusing:
            raise PeerRefused("no room", close_code=0x11B)
        self.state = "joined"

    def members(self) -> MembershipSnapshot:
        return MembershipSnapshot(self.identity.node_id, MappingProxyType(self.known))

    def host(self, number: int, model: str) -> None:
        offer = Offer(model, b"h" * 16, ModelState.READY, 512, 1)
        self.known[node(number)] = Member(
            node(number),
            "alive",
            1,
            Role.MEMBER,
            None,
            Dynamic(models=(offer,)),
            None,
            True,
            True,
            0.01,
            None,
            0.0,
            0.0,
        )
        self.seeking.wake()


@asynccontextmanager
async def at_work(world: World) -> AsyncIterator[None]:
    task = asyncio.create_task(world.seeking.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeking, "TURN_S", 0.02)
    monkeypatch.setattr(seeking, "FIRST_PAUSE_S", 0.02)


async def test_the_best_is_joined_and_the_next_one_when_it_refuses(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.script = [found(way("full", 1, 2), way("good", 3))]
    world.refusing = {node(1), node(2)}
    async with at_work(world):
        await until(lambda: world.seeking.state == "joined")
        assert world.called == [node(1), node(2), node(3)]
        assert world.told == ['in "good" as member (2 ms away)'] and world.trouble == ""
        assert world.log == ["in full", "out of full", "in good"]
        assert world.looks[0][0].bootstrap == ("192.0.2.9:1",)


async def test_where_everybody_refuses_a_member_begins_a_mesh(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.script = [found(way("full", 1))]
    world.refusing = {node(1)}
    async with at_work(world):
        await until(lambda: world.seeking.state == "alone")
        assert world.name == "meshnode" and world.seeking.sentence.startswith('alone in "meshnode": ')


async def test_a_client_begins_nothing_and_looks_again(tmp_path: Path) -> None:
    world = World(tmp_path, Role.CLIENT)
    world.script = [NOTHING, Found((), (), (DOWN,)), found(way("late", 1))]
    async with at_work(world):
        await until(lambda: world.seeking.state == "joined")
    assert len(world.looks) == 3
    assert world.told[0] == "no public mesh to join: the relays list none; this node goes on looking"
    assert "no Nostr relay answers (wss://one: refused)" in world.told[1]
    assert world.trouble == "" and world.log == ["in late"]


async def test_a_name_is_entered_at_once_and_only_its_mesh_is_looked_for(tmp_path: Path) -> None:
    world = World(tmp_path, name="My Mesh")
    async with at_work(world):
        await until(lambda: world.seeking.state == "alone")
        assert world.name == "my-mesh" and world.looks[0][1] == open_mesh_id("my mesh")
        # Somebody else who knows the name calls.
        world.state = "joined"
        world.seeking.wake()
        await until(lambda: world.seeking.state == "joined")
        assert world.seeking.sentence == 'in "my-mesh" as member'
        world.state = "joining"
        await until(lambda: world.seeking.state == "alone")
        assert "nobody answers any more" in world.seeking.sentence


async def test_a_client_with_a_name_that_nobody_is_in(tmp_path: Path) -> None:
    world = World(tmp_path, Role.CLIENT, "club")
    async with at_work(world):
        await until(lambda: world.told)
        assert world.told[0].startswith('nobody of "club" to join: ') and world.entered == 0


async def test_alone_for_long_it_looks_again_and_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeking, "ALONE_S", 0.1)
    world = World(tmp_path)
    world.script = [found(way("good", 3))]
    async with at_work(world):
        await until(lambda: world.seeking.state == "joined")
        world.vault.remember_peers([PeerEntry(node(3), AT)])
        assert len(world.looks) == 1
        world.state = "joining"
        await until(lambda: len(world.looks) >= 3)
        assert world.name == "good", "those who come back will look for it here"
        assert world.looks[1][0].saved == (PeerEntry(node(3), AT),) and world.looks[1][0].mesh == open_mesh_id("good")
        world.script = [found(way("other", 5))]
        await until(lambda: world.name == "other" and world.seeking.state == "joined")


async def test_the_mesh_of_last_time_is_looked_for_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.vault.open("last", Role.MEMBER)
    world.vault.remember_peers([PeerEntry(node(7), AT)])
    async with at_work(world):
        await until(lambda: world.looks)
        assert world.looks[0][0] == Leads(open_mesh_id("last"), (PeerEntry(node(7), AT),), ("192.0.2.9:1",))
        assert world.looks[0][1] is None


# --- a mesh that serves nothing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shows_hosts", [False, True])
async def test_a_mesh_that_serves_nothing_is_left_and_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shows_hosts: bool
) -> None:
    monkeypatch.setattr(seeking, "SERVES_S", 0.1)
    world = World(tmp_path)
    world.script = [found(way("liars", 1, 2, models=["treasure", "gold"]))]
    async with at_work(world):
        await until(lambda: world.seeking.state == "joined")
        if shows_hosts:
            world.host(1, "treasure")
        await until(lambda: world.seeking.state == "alone")
        assert '"liars" lists gold, treasure and serves none of them: left' in world.told
        assert world.name == "meshnode" and world.seeking.avoided == {node(1), node(2)}
        assert world.looks[1][2] == {node(1), node(2)} and world.looks[1][0].saved == ()
        monkeypatch.setattr(seeking, "monotonic", lambda: 1e9)
        assert not world.seeking.avoided, "an hour later"


@pytest.mark.parametrize("models", [[], ["small"]])
async def test_a_mesh_that_serves_what_it_lists_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[str]
) -> None:
    monkeypatch.setattr(seeking, "SERVES_S", 0.1)
    world = World(tmp_path)
    world.script = [found(way("good", 1, models=models))]
    world.answers_of = {node(1)}
    async with at_work(world):
        await until(lambda: world.seeking.state == "joined")
        world.host(1, "small")
        await asyncio.sleep(0.3)
        assert world.seeking.state == "joined" and world.log == ["in good"] and not world.seeking.avoided


# --- trouble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [HomeNotWritable("disk full"), RuntimeError("a bug")])
async def test_what_goes_wrong_is_said_and_tried_again(tmp_path: Path, failure: Exception) -> None:
    world = World(tmp_path)
    world.failure = failure
    async with at_work(world):
        await until(lambda: world.seeking.state == "failed")
        assert world.trouble == world.seeking.sentence == world.told[-1]
        assert ("disk full" in world.trouble) == isinstance(failure, HomeNotWritable)
        world.failure = None
        await until(lambda: world.seeking.state == "alone")


async def test_listed_nodes_of_this_mesh_that_are_not_known_are_met(tmp_path: Path) -> None:
    world = World(tmp_path, name="one")
    async with at_work(world):
        await until(lambda: world.seeking.state == "alone")
        world.host(1, "small")
        world.refusing = {node(3)}

        def listing(name: str, *numbers: int) -> Listing:
            entries = tuple(Entry(node(number), AT) for number in numbers)
            return Listing(mesh=open_mesh_id(name), node=node(numbers[0]), name=name, entries=entries)

        assert await world.seeking.meet([listing("one", 1, 2), listing("two", 9), listing("one", 3, 4)]) == 2
        assert world.called == [node(2), node(3), node(4)]
        world.called.clear()
        assert (
            await world.seeking.meet([listing("one", *range(10, 14)), listing("one", *range(20, 24))]) == seeking.CALLS
        )
        assert len(world.called) == seeking.CALLS, "so many at a time: gossip does the rest"
