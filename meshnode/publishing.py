"""This node's part in listing its open mesh on Nostr relays, and in seeing who else lists it.

core/publishing says whether it is this node's turn; here that is carried out, and every LOOK_S what the relays list of
this mesh is looked at: it tells whether other publishers are still at work, and which nodes of the same mesh this one
has never met.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from meshnode.core.budget import Bucket
from meshnode.core.effects import Member
from meshnode.core.publishing import Do, Publishing
from meshnode.describing import models_of, price_of, vram_bytes
from meshnode.discovery.nostr import Fetched, RelayReport, accepted
from meshnode.errors import MeshnodeError
from meshnode.identity import Identity
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.open_vault import OpenVault
from meshnode.telemetry import LOG
from meshnode.wire.listings import Entry, Listing
from meshnode.wire.registry import LIMIT_ADDRESSES, LIMIT_LISTING_ENTRIES, LIMIT_LISTING_WANTED, Role
from meshnode.wire.signed import Sign
from meshnode.wire.statements import Dynamic
from meshnode.wire.values import WireError

LOOK_S = 20.0
FIRST_LOOK_S = 1.5
"""A node that has just come looks again soon: others may have begun at the same time. Then ever less often."""
LOOK_LIMIT_S = 4.0
STEP_S = 1.0
FIRST_STEP_S = 0.05
FIRST_STEPS = 20
GOODBYE_S = 3.0
NEWS_A_SECOND = 0.05
NEWS_AT_ONCE = 4
"""Relays limit how often somebody may publish; a listing that changes all the time waits for its refresh."""


class Relays(Protocol):
    """What is needed of discovery.nostr.NostrRelays."""

    async def fetch(self, timeout_s: float = ..., *, mesh: bytes | None = None, eager: bool = False) -> Fetched: ...
    async def publish(self, listing: Listing, sign: Sign, *, timeout_s: float = ...) -> tuple[RelayReport, ...]: ...
    async def delete(self, mesh: bytes, *, timeout_s: float = ...) -> tuple[RelayReport, ...]: ...


@dataclass(frozen=True, slots=True)
class Announced:
    """What a publisher depends on.

    `paused` says that this node is not to be found for now; `met` is given what the relays list of the mesh, and dials
    whom it does not know; `trouble` gets what is wrong with the relays, "" when nothing is.
    """

    mesh: Mesh
    vault: OpenVault
    identity: Identity
    relays: Relays
    region: str
    software: str
    max_clients: int
    paused: Callable[[], bool]
    met: Callable[[Sequence[Listing]], Coroutine[Any, Any, int]]
    trouble: Callable[[str], None]
    changed: Callable[[], None]


class Publisher:
    """Lists one mesh from `run` to `stop`. `reports` are those of the last publication, `at` its wall time."""

    def __init__(self, its: Announced, mesh: bytes, draw: Callable[[], float] = random.random) -> None:
        self._its = its
        self._mesh = mesh
        self._core = Publishing(mesh, its.identity.node_id, draw)
        self._wake = asyncio.Event()
        self._busy = asyncio.Lock()
        self._said: tuple[object, ...] = ()
        self._news = Bucket(NEWS_A_SECOND, NEWS_AT_ONCE, monotonic())
        self.reports: tuple[RelayReport, ...] = ()
        self.at = 0.0

    @property
    def is_publisher(self) -> bool:
        """Whether it is this node's turn."""
        return self._core.is_publisher

    @property
    def is_listed(self) -> bool:
        """Whether the listing of this node is on a relay."""
        return self._core.is_listed

    def wake(self) -> None:
        """Members, models or strangers have changed."""
        self._wake.set()

    async def run(self) -> None:
        """List and look until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._list())
            group.create_task(self._look())

    async def stop(self) -> None:
        """Take the listing back. `run` must have ended."""
        if self._core.leave() is Do.DELETE:
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await self._carry_out(Do.DELETE)
            except TimeoutError:
                LOG.info("the listing was not taken back in time: it ends by itself")

    # --- listing ----------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        # What this node has to offer is stated first: a listing without it would have to be replaced at once.
        for _ in range(FIRST_STEPS):
            if self._has_stated():
                break
            await asyncio.sleep(FIRST_STEP_S)
        while True:
            await self._step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(STEP_S, self._core.next_s(monotonic()))):
                    await self._wake.wait()
                    # What changes now is likely to change again at once.
                    await asyncio.sleep(STEP_S)
            self._wake.clear()

    async def _step(self) -> None:
        its = self._its
        policy = its.vault.policy
        listing = self.listing()
        said = listing.models, frozenset(entry.node for entry in listing.entries)
        if said != self._said and self._news.take(1, monotonic()):
            self._said = said
            self._core.changed()
        do = self._core.step(
            monotonic(),
            time.time(),
            alive=[member.node for member in self._alive()],
            clients=0 if policy is None else policy.count(Role.CLIENT),
            max_clients=its.max_clients,
            paused=its.paused() or not listing.entries,
        )
        if do is not Do.NOTHING:
            await self._carry_out(do, listing)

    async def _carry_out(self, do: Do, listing: Listing | None = None) -> None:
        its = self._its
        async with self._busy:
            try:
                if do is Do.PUBLISH and listing is not None:
                    reports = await its.relays.publish(listing, its.identity.sign)
                else:
                    reports = await its.relays.delete(self._mesh)
            except (MeshnodeError, WireError, OSError) as reason:
                LOG.warning("the listing of this mesh: %s", reason)
                its.trouble(str(reason))
                self._core.done(monotonic(), do, ok=False)
                return
            ok = accepted(reports) > 0
            self._core.done(monotonic(), do, ok)
            if do is Do.PUBLISH:
                self.reports, self.at = reports, time.time()
                its.trouble("" if ok else "; ".join(f"{each.url}: {each.text or each.state}" for each in reports[:3]))
        its.changed()

    # --- looking ----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        pause_s = FIRST_LOOK_S
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.0))
            pause_s = min(LOOK_S, 1.5 * pause_s)
            if not (self.is_publisher or self._its.mesh.state != "joined"):
                continue
            try:
                fetched = await self._its.relays.fetch(LOOK_LIMIT_S, mesh=self._mesh)
            except (MeshnodeError, OSError) as reason:
                LOG.info("the relays cannot be asked: %s", reason)
                continue
            if fetched.answered:
                self._core.heard(fetched.listings, monotonic())
                self.wake()
                others = [each for each in fetched.listings if each.node != self._its.identity.node_id]
                if await self._its.met(others):
                    LOG.info("nodes of this mesh that were listed have been met")

    # --- what is listed -----------------------------------------------------------------------------------------------

    def _has_stated(self) -> bool:
        own = self._its.identity.node_id
        return any(shown.node == own and shown.dynamic is not None for shown in self._its.mesh.shown())

    def _alive(self) -> list[Member]:
        members = self._its.mesh.members().members.values()
        return [member for member in members if member.state == "alive" and member.role is Role.MEMBER]

    def listing(self) -> Listing:
        """What this node says of its mesh now: no more than it would show to who asks."""
        its = self._its
        mine = its.vault.credentials
        alive = self._alive()
        policy = its.vault.policy
        dynamics = _shown(its.mesh)
        served = {offer.name for dynamic in dynamics for offer in dynamic.models}
        wanted = (wish.model for member in alive if member.demand is not None for wish in member.demand.wishes)
        return Listing(
            mesh=self._mesh,
            node=its.identity.node_id,
            name="" if mine is None else mine.mesh_name,
            entries=self._entries(alive),
            models=models_of(dynamics),
            wanted=tuple(dict.fromkeys(name for name in wanted if name not in served))[:LIMIT_LISTING_WANTED],
            vram_bytes=sum(map(vram_bytes, dynamics)),
            nodes=max(1, len(alive)),
            clients=0 if policy is None else policy.count(Role.CLIENT),
            max_clients=its.max_clients,
            region=its.region,
            software=its.software,
            price=price_of(dynamics),
        )

    def _entries(self, alive: Sequence[Member]) -> tuple[Entry, ...]:
        """This node, then linked members that are near: so that the mesh can be entered when this node is busy."""
        own = self._its.identity.node_id
        found = [Entry(own, self._its.mesh.addresses[:LIMIT_ADDRESSES])] if self._its.mesh.addresses else []
        others = [each for each in alive if each.node != own and each.linked and each.identity and each.reachable]
        others.sort(key=lambda each: (not _is_global(each), 1.0 if each.rtt_s is None else each.rtt_s))
        for member in others:
            if member.identity is not None and member.identity.addresses:
                found.append(Entry(member.node, member.identity.addresses))
        return tuple(found[:LIMIT_LISTING_ENTRIES])


def _is_global(member: Member) -> bool:
    return member.identity is not None and any(not address.is_private for address in member.identity.addresses)


def _shown(mesh: Mesh) -> list[Dynamic]:
    """What members state, as far as an inquiry shows it."""
    return [shown.dynamic.body for shown in mesh.shown() if shown.dynamic is not None]
