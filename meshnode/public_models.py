"""Models between this node and strangers, both ways: what it tells an open mesh of itself, and what it hears there.

Strangers hear of devices and models only where the owner has said so. Of what strangers offer, models become hosts in
the radius that the owner's trust gives them; a member of the private mesh is already known, and not added twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from meshnode.api.served import Served
from meshnode.api.upstream import Connect, Pipe
from meshnode.core.effects import MembershipSnapshot
from meshnode.core.prices import FREE, Price
from meshnode.errors import MeshnodeError
from meshnode.mesh.mesh import Mesh
from meshnode.offers import priced, served_over_mesh
from meshnode.public_mesh import PublicMesh
from meshnode.wire.payments import PAID_HEADER
from meshnode.wire.registry import StreamType
from meshnode.wire.statements import Dynamic, ModelState, Offer

PUBLISH_PAUSE_S = 0.5
PAUSE_PER_MEMBER_S = 0.1
"""News of load are told less often in a larger mesh, so that what a node hears does not grow with it."""
REFRESH_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """`shares` says whether strangers may use this node at the moment; `stated` is called when the mesh has been told
    what there is. The others are those of SwarmParts.
    """

    public: Callable[[], PublicMesh | None]
    shares: Callable[[], bool]
    has: Callable[[], Dynamic]
    offers: Callable[[], tuple[Offer, ...]]
    trust: Callable[[bytes], str]
    known_private: Callable[[], Collection[bytes]]
    stated: Callable[[], None] = lambda: None
    price: Callable[[str], Price] = lambda model: FREE
    chain: int = 0


@dataclass(frozen=True, slots=True)
class _Merged:
    """What was merged, and from what."""

    members: MembershipSnapshot
    local: tuple[Served, ...]
    private: frozenset[bytes]
    served: list[Served]


class PublicModels:
    """See the module. `run` tells the mesh; `hosts` merges what is heard."""

    def __init__(self, parts: ModelParts) -> None:
        self._its = parts
        self._news = asyncio.Event()
        self._merged: _Merged | None = None

    def touch(self) -> None:
        """Models of this node, whom it trusts, or the mesh it is in have changed."""
        self._merged = None
        self._news.set()

    def offers(self) -> tuple[Offer, ...]:
        """The models of this node that strangers may use now, and what they cost."""
        return priced(self._its.offers(), self._its.price, self._its.chain) if self._its.shares() else ()

    async def run(self) -> None:
        """State what this node has, when that has changed, but not too often. Until cancelled."""
        told = None
        while True:
            public, offers = self._its.public(), self.offers()
            # Nothing of leases, splits or files: those are the private mesh's.
            has = Dynamic(devices=self._its.has().devices if self._its.shares() else (), models=offers)
            if public is not None and public.mesh.entered and (public.mesh.entered, has) != told:
                told = public.mesh.entered, has
                public.mesh.publish(has)
                self._its.stated()
                ready = {offer.content_hash for offer in offers if offer.state == ModelState.READY}
                public.dht.provide([(digest, 0, 0) for digest in ready if any(digest)])
                await asyncio.sleep(PUBLISH_PAUSE_S + PAUSE_PER_MEMBER_S * len(public.mesh.members().members))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._news.wait()
            self._news.clear()

    def hosts(self, local: Iterable[Served]) -> list[Served]:
        """Every model that can be asked for: those of `local` (this node, its private mesh), and those of strangers."""
        models = tuple(local)
        public = self._its.public()
        if public is None:
            return list(models)
        mesh = public.mesh
        members, private = mesh.members(), frozenset(self._its.known_private())
        known = self._merged
        if known is None or known.members is not members or known.private != private or not _same(known.local, models):
            known = self._merged = _Merged(members, models, private, self._merge(mesh, members, models, private))
        return known.served

    def _merge(
        self, mesh: Mesh, members: MembershipSnapshot, models: Sequence[Served], private: Collection[bytes]
    ) -> list[Served]:
        strangers = {
            node.hex(): member
            for node, member in members.members.items()
            if node != members.node and node not in private
        }
        return served_over_mesh(
            models,
            strangers.values(),
            mesh.http,
            radius=lambda member: self._its.trust(member.node),
            connect_paid=lambda node: _paid_streams(mesh, node),
        )

    def hash_of(self, name: str) -> bytes | None:
        """The content hash of a model that this node or a member offers under a name."""
        public = self._its.public()
        members = public.mesh.members().members.values() if public is not None else ()
        offered = (offer for each in members if each.dynamic is not None for offer in each.dynamic.models)
        known = (offer for offer in (*self._its.offers(), *offered) if name == offer.name or name in offer.names)
        return next((offer.content_hash for offer in known if any(offer.content_hash)), None)


def _paid_streams(mesh: Mesh, node: bytes) -> Connect:
    """What opens a stream over which a node is paid. The result raises OSError."""

    async def connect() -> Pipe:
        try:
            return await mesh.open_stream(node, StreamType.HTTP, PAID_HEADER)
        except MeshnodeError as reason:
            raise ConnectionError(str(reason)) from None

    return connect


def _same(some: Sequence[Served], others: Sequence[Served]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
