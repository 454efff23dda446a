"""What strangers hear of this node, and what it makes of what they offer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import pytest

from meshnode.api.served import Served
from meshnode.core.effects import Member, MembershipSnapshot
from meshnode.core.prices import Price
from meshnode.errors import PeerUnreachable
from meshnode.public_mesh import PublicMesh
from meshnode.public_models import ModelParts, PublicModels
from meshnode.wire.payments import PAID_HEADER
from meshnode.wire.registry import Role, StreamType
from meshnode.wire.statements import Device, Dynamic, ModelState, Offer

pytestmark = pytest.mark.anyio

OWN, ANN, BOB = (bytes([number]) * 32 for number in (1, 2, 3))
GPU = Device("GPU", 8 << 30, 4 << 30)


def offer(name: str, digest: int = 7, state: int = ModelState.READY) -> Offer:
    return Offer(name, bytes([digest]) * 16, state, 4096, 2, names=(f"{name}-alias",))


def member(node: bytes, *models: Offer, reachable: bool = True) -> Member:
    return Member(
        node, "alive", 1, Role.MEMBER, None, Dynamic(models=models), None, True, reachable, 0.01, None, 0.0, 0.0
    )


class FakeMesh:
    """A mesh with these members, and a table that remembers what is offered (mesh.Mesh, mesh.dht.Dht)."""

    def __init__(self, *members: Member) -> None:
        self.entered = 1
        self.published: list[Dynamic] = []
        self.provided: list[Sequence[tuple[bytes, int, int]]] = []
        self.news = asyncio.Event()
        self.known(*members)
        self.mesh = self.dht = self
        self.streams: Any = None
        self.opened: list[tuple[bytes, int, bytes]] = []

    async def open_stream(self, node: bytes, kind: int, header: bytes) -> Any:
        self.opened.append((node, kind, header))
        if isinstance(self.streams, Exception):
            raise self.streams
        return self.streams

    def known(self, *members: Member) -> None:
        known = {each.node: each for each in (member(OWN, offer("own")), *members)}
        self.snapshot = MembershipSnapshot(OWN, MappingProxyType(known))

    def members(self) -> MembershipSnapshot:
        return self.snapshot

    def http(self, node: bytes) -> Callable[[], Awaitable[Any]]:
        async def connect() -> Any:
            raise ConnectionError

        return connect

    def publish(self, has: Dynamic) -> None:
        self.published.append(has)
        self.news.set()

    def provide(self, contents: Sequence[tuple[bytes, int, int]]) -> None:
        self.provided.append(contents)


class Desk:
    """PublicModels with everything that it depends on."""

    def __init__(self, *members: Member, shares: bool = True) -> None:
        self.public: FakeMesh | None = FakeMesh(*members)
        self.shares = shares
        self.offered = [offer("own"), offer("coming", 9, ModelState.LOADING)]
        self.radius: dict[bytes, str] = {}
        self.private: frozenset[bytes] = frozenset()
        self.asked: Counter[str] = Counter()
        self.models = PublicModels(
            ModelParts(
                public=lambda: cast(PublicMesh | None, self.public),
                shares=lambda: self.shares,
                has=lambda: Dynamic(devices=(GPU,), rpc=5, weights=(b"w" * 16,)),
                offers=lambda: tuple(self.offered),
                trust=self._trust,
                known_private=lambda: self.private,
            )
        )

    def _trust(self, node: bytes) -> str:
        self.asked["trust"] += 1
        return self.radius.get(node, "public")

    def hosts(self, local: Sequence[Served] = ()) -> dict[str, list[tuple[bool, str]]]:
        found = self.models.hosts(local)
        return {model.id: [(host.here, host.radius) for host in model.hosts] for model in found}

    async def told(self, count: int) -> list[Dynamic]:
        """What the mesh has heard when it has heard that often."""
        assert self.public is not None
        task = asyncio.create_task(self.models.run())
        try:
            async with asyncio.timeout(5):
                while len(self.public.published) < count:
                    self.public.news.clear()
                    await self.public.news.wait()
        finally:
            task.cancel()
        return self.public.published


async def test_strangers_hear_of_devices_and_models_and_nothing_else() -> None:
    desk = Desk()
    (has,) = await desk.told(1)
    assert has == Dynamic(devices=(GPU,), models=tuple(desk.offered))
    assert desk.public is not None and desk.public.provided == [[(bytes([7]) * 16, 0, 0)]], "what is ready can be found"


async def test_a_node_that_does_not_share_tells_nothing() -> None:
    desk = Desk(shares=False)
    assert await desk.told(1) == [Dynamic()]
    assert desk.models.offers() == ()


async def test_a_pause_is_told_soon() -> None:
    desk = Desk()
    await desk.told(1)
    desk.shares = False
    desk.models.touch()
    assert (await desk.told(2))[-1] == Dynamic()


async def test_in_another_mesh_it_is_told_again() -> None:
    desk = Desk()
    first = await desk.told(1)
    assert desk.public is not None
    desk.public.entered = 2
    assert (await desk.told(2))[1] == first[0]


def test_models_of_strangers_are_added_to_those_that_are_known() -> None:
    desk = Desk(member(ANN, offer("small")), member(BOB, offer("small"), offer("large", 8)))
    here = Served("small", "ready", slots=2).here(None, node=OWN.hex())
    assert desk.hosts([here]) == {
        "small": [(True, "local"), (False, "public"), (False, "public")],
        "large": [(False, "public")],
    }
    assert desk.hosts([]) == {"small": [(False, "public")] * 2, "large": [(False, "public")]}


def test_a_friend_among_strangers_is_a_friend() -> None:
    desk = Desk(member(ANN, offer("small")), member(BOB, offer("small")))
    desk.radius = {BOB: "local"}
    assert desk.hosts()["small"] == [(False, "public"), (False, "local")]


def test_members_of_the_private_mesh_are_not_added_twice() -> None:
    desk = Desk(member(ANN, offer("small")), member(BOB, offer("large", 8), reachable=False))
    assert list(desk.hosts()) == ["small"]
    desk.private = frozenset({ANN})
    assert desk.hosts() == {}


def test_nothing_is_merged_anew_without_a_reason() -> None:
    desk = Desk(member(ANN, offer("small")))
    local = [Served("own", "ready")]
    first = desk.models.hosts(local)
    assert desk.models.hosts(local) is first and desk.asked["trust"] == 1
    desk.models.touch()
    assert desk.models.hosts(local) is not first
    assert desk.public is not None
    desk.public.known(member(ANN, offer("other")))
    assert [model.id for model in desk.models.hosts(local)] == ["own", "other"]
    assert [model.id for model in desk.models.hosts([Served("new", "ready")])] == ["new", "other"]


def test_without_an_open_port_there_are_no_strangers() -> None:
    desk = Desk()
    desk.public = None
    local = [Served("own", "ready")]
    assert desk.models.hosts(local) == local and desk.models.hash_of("small") is None


def test_hashes_by_name() -> None:
    desk = Desk(member(ANN, offer("small", 8)))
    assert desk.models.hash_of("small") == desk.models.hash_of("small-alias") == bytes([8]) * 16
    assert desk.models.hash_of("own") == bytes([7]) * 16 and desk.models.hash_of("large") is None


async def test_strangers_hear_what_a_model_costs_and_are_paid_over_streams_of_their_own() -> None:
    desk = Desk(member(ANN, replace(offer("sold"), price_in=2, price_out=6, chain=7)), member(BOB, offer("given")))
    desk.models._its = replace(desk.models._its, price=lambda name: Price(1, 3 * (name == "own")), chain=84532)
    told = {each.name: (each.price_in, each.price_out, each.chain) for each in desk.models.offers()}
    assert told == {"own": (1, 3, 84532), "coming": (1, 0, 84532)}
    sold, given = (next(m for m in desk.models.hosts([]) if m.id == name).hosts[0] for name in ("sold", "given"))
    assert (sold.price, sold.chain, given.connect_paid) == (Price(2, 6), 7, None)
    assert sold.connect_paid is not None and desk.public is not None
    desk.public.streams = "a stream"
    assert await sold.connect_paid() == "a stream"
    assert desk.public.opened == [(ANN, StreamType.HTTP, PAID_HEADER)]
    desk.public.streams = PeerUnreachable("gone")
    with pytest.raises(ConnectionError, match="gone"):
        await sold.connect_paid()


def test_a_friend_in_the_open_mesh_is_free() -> None:
    desk = Desk(member(ANN, replace(offer("sold"), price_in=2, chain=7)))
    desk.radius[ANN] = "trusted"
    [model] = desk.models.hosts([])
    assert model.hosts[0].price.is_free and model.hosts[0].connect_paid is None
