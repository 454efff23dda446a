"""One look for open meshes: relays, peers of last time and given addresses are asked together, and what they name is
probed at once.

    relays ──> listings ──> the eight most promising ──┐
    address book of last time ─────────────────────────┼──> mesh/inquiry.ask ──> core/choosing ──> Ways, best first
    --bootstrap HOST:PORT ─────────────────────────────┘

Nobody waits for the slowest: when a mesh that may be joined has answered, the others have a moment to show that they
are better. Nothing here joins anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from meshnode.core import choosing
from meshnode.core.choosing import Candidate, Probe, Ranked, Wishes
from meshnode.describing import listing_of, probe_of
from meshnode.discovery.nostr import Fetched, RelayReport
from meshnode.errors import MeshnodeError
from meshnode.identity import ephemeral
from meshnode.mesh import inquiry
from meshnode.mesh.inquiry import Answered
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.listings import Entry, Listing
from meshnode.wire.messages import PeerEntry
from meshnode.wire.registry import LIMIT_ADDRESSES, Role

BETTER_S = 0.25
"""So long may others take to answer when there is a mesh that may be joined."""
LOOK_S = 6.0
ASK_S = 2.0
RELAYS_S = 4.0
RESOLVE_S = 3.0
ASKED_AT_ONCE = 3
MOST_SAVED = 8


class Listings(Protocol):
    """What is needed of discovery.nostr.NostrRelays."""

    def fetching(
        self, timeout_s: float = ..., *, mesh: bytes | None = None, eager: bool = ...
    ) -> AsyncIterator[Fetched]: ...


@dataclass(frozen=True, slots=True)
class Way:
    """A mesh that may be joined, and where: `entries` with the one that has answered first. `models` are the names
    that were listed for it.
    """

    mesh: bytes
    name: str
    entries: tuple[Entry, ...]
    models: frozenset[str]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What a look has brought: Ways, best first; all meshes with the reasons; what relays said. `avoided` listings lead
    to nodes that were to be avoided.
    """

    ways: tuple[Way, ...]
    ranked: tuple[Ranked, ...]
    relays: tuple[RelayReport, ...]
    avoided: int = 0

    @property
    def relays_answered(self) -> bool:
        """Whether any relay has said anything, be it that there is nothing."""
        return any(report.answered for report in self.relays)

    @property
    def why_not(self) -> str:
        """Why there is nothing to join, for people."""
        refused = [f'"{each.candidate.name}": {each.refusal}' for each in self.ranked if each.refusal]
        if refused:
            return "; ".join(refused[:3])
        if not self.relays_answered:
            told = [f"{report.url}: {report.text or report.state}" for report in self.relays]
            return "no Nostr relay answers" + (f" ({'; '.join(told[:3])})" if told else "")
        return "those that are listed serve nothing" if self.avoided else "the relays list none"


@dataclass(frozen=True, slots=True)
class Leads:
    """Where to look beside the relays: members of the `mesh` of last time, and addresses that a person has given."""

    mesh: bytes = b""
    saved: tuple[PeerEntry, ...] = ()
    bootstrap: tuple[str, ...] = ()


Ask = Callable[..., Coroutine[Any, Any, Answered]]
"""`mesh.inquiry.ask`."""


class Finding:
    """Looks for open meshes for a node in one role. `host` gives the address that its sockets are bound to."""

    def __init__(
        self, relays: Listings, *, node: bytes, role: Role, host: Callable[[], str], ask: Ask = inquiry.ask
    ) -> None:
        self._relays = relays
        self._node = node
        self._role = role
        self._host = host
        self._ask = ask

    async def look(
        self,
        wishes: Wishes,
        leads: Leads = Leads(),
        *,
        mesh: bytes | None = None,
        avoid: Collection[bytes] = (),
    ) -> Found:
        """Look for all meshes, or for one. `avoid` are nodes that are not asked. Raises nothing for the network."""
        look = _Look(wishes, mesh)
        try:
            for entry in leads.saved[:MOST_SAVED]:
                if not mesh or mesh == leads.mesh:
                    look.start(self._one(look, entry.addresses, entry.node, leads.mesh, avoid))
            for text in leads.bootstrap:
                look.start(self._bootstrap(look, text, avoid))
            look.start(self._listed(look, avoid))
            await look.finished()
        finally:
            await look.close()
        return look.found()

    async def _first_answer(
        self, mesh: bytes, entries: Sequence[Entry], avoid: Collection[bytes] = ()
    ) -> Answered | None:
        """The first answer from an entry of a mesh; None when nobody answers."""
        left = deque(each for each in entries if each.node != self._node and each.node not in avoid)
        running: set[asyncio.Task[Answered | None]] = set()
        try:
            while left or running:
                while left and len(running) < ASKED_AT_ONCE:
                    entry = left.popleft()
                    running.add(asyncio.create_task(self._answer(entry.addresses, entry.node, mesh)))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for answer in (task.result() for task in done):
                    if answer is not None:
                        return answer
            return None
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def probe(self, candidate: Candidate) -> Probe | None:
        """What a listed mesh shows when it is asked; None when nobody answers (discovering.Ask)."""
        answered = await self._first_answer(candidate.mesh, candidate.entries)
        return None if answered is None else probe_of(answered)

    # --- sources ----------------------------------------------------------------------------------------------------

    async def _listed(self, look: _Look, avoid: Collection[bytes]) -> None:
        async with aclosing(self._relays.fetching(RELAYS_S, mesh=look.mesh, eager=True)) as parts:  # type: ignore[type-var]
            async for part in parts:
                look.relays = part.relays
                others = [each for each in part.listings if each.node != self._node]
                look.listings = tuple(each for each in others if not _leads_to(each, avoid))
                look.avoided = len(others) - len(look.listings)
                for candidate in choosing.shortlist(look.listings, look.wishes):
                    # Another relay may name entries of a mesh none of which has answered so far.
                    entries = [each for each in candidate.entries if each.node not in look.asked]
                    if entries and not look.has_answer(candidate.mesh):
                        look.asked.update(entry.node for entry in entries)
                        look.start(self._listed_mesh(look, candidate.mesh, entries, avoid))

    async def _listed_mesh(self, look: _Look, mesh: bytes, entries: Sequence[Entry], avoid: Collection[bytes]) -> None:
        answered = await self._first_answer(mesh, entries, avoid)
        if answered is not None:
            look.answer(answered)

    async def _bootstrap(self, look: _Look, text: str, avoid: Collection[bytes]) -> None:
        host, _, port = text.rpartition(":")
        try:
            async with asyncio.timeout(RESOLVE_S):
                known = await asyncio.get_running_loop().getaddrinfo(
                    host.strip("[]"), int(port), type=socket.SOCK_DGRAM
                )
        except (OSError, UnicodeError, TimeoutError) as reason:
            LOG.info("bootstrap %s: %s", text, reason or "no answer")
            return
        addresses = tuple(dict.fromkeys(Address.of(str(name[0]), int(name[1])) for *_, name in known))
        await self._one(look, addresses, None, look.mesh or b"", avoid)

    async def _one(
        self, look: _Look, addresses: Sequence[Address], node: bytes | None, mesh: bytes, avoid: Collection[bytes]
    ) -> None:
        if node in avoid or node == self._node:
            return
        answered = await self._answer(addresses, node, mesh)
        if answered is not None and answered.node not in avoid and answered.node != self._node:
            look.answer(answered)

    async def _answer(self, addresses: Sequence[Address], node: bytes | None, mesh: bytes) -> Answered | None:
        host = self._host()
        try:
            return await self._ask(
                ephemeral(),
                sensible(addresses, host),
                expected=node,
                mesh=mesh,
                role=self._role,
                host=host,
                timeout_s=ASK_S,
            )
        except (MeshnodeError, OSError) as reason:
            LOG.debug("no answer from %s: %s", node.hex()[:10] if node else "a given address", reason)
            return None


class _Look:
    """What one look has found so far, and what it still waits for."""

    def __init__(self, wishes: Wishes, mesh: bytes | None) -> None:
        self.wishes = wishes
        self.mesh = mesh
        self.asked: set[bytes] = set()
        self.listings: tuple[Listing, ...] = ()
        self.relays: tuple[RelayReport, ...] = ()
        self.avoided = 0
        self._answers: dict[bytes, Answered] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._news.set())
        self._tasks.add(task)

    def has_answer(self, mesh: bytes) -> bool:
        return mesh in self._answers

    def answer(self, answered: Answered) -> None:
        """Of one mesh the nearest answer counts."""
        known = self._answers.get(answered.prospect.mesh)
        if known is None or answered.rtt_s < known.rtt_s:
            self._answers[answered.prospect.mesh] = answered

    async def finished(self) -> None:
        """All have answered or failed, or there is something good enough and a moment has gone by, or it takes long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOK_S
        soon = False
        while not all(task.done() for task in self._tasks):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._news.wait()
            self._news.clear()
            if loop.time() >= until:
                return
            if not soon and any(not each.refusal for each in self._ranked()):
                soon, until = True, min(until, loop.time() + BETTER_S)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                LOG.warning("a source of public meshes failed", exc_info=outcome)

    def _ranked(self) -> list[Ranked]:
        # Who was asked without a listing is described by its own answer, in which every claim is shown.
        described = [listing_of(answered) for answered in self._answers.values()]
        candidates = choosing.gather([*self.listings, *described])
        if self.mesh is not None:
            candidates = [each for each in candidates if each.mesh == self.mesh]
        probes = {mesh: probe_of(answered) for mesh, answered in self._answers.items()}
        return choosing.rank(choosing.score(each, probes.get(each.mesh), self.wishes) for each in candidates)

    def found(self) -> Found:
        ranked = self._ranked()
        ways = [_way(each, self._answers[each.candidate.mesh]) for each in ranked if not each.refusal]
        return Found(tuple(ways), tuple(ranked), self.relays, self.avoided)


def _leads_to(listing: Listing, nodes: Collection[bytes]) -> bool:
    """Whether these nodes are all that a listing leads to."""
    return listing.node in nodes or all(entry.node in nodes for entry in listing.entries)


def _way(ranked: Ranked, answered: Answered) -> Way:
    listed = next((each.addresses for each in ranked.candidate.entries if each.node == answered.node), ())
    addresses = tuple(dict.fromkeys((answered.address, *listed)))
    first = Entry(answered.node, addresses[:LIMIT_ADDRESSES])
    others = [each for each in ranked.candidate.entries if each.node != answered.node]
    return Way(
        mesh=ranked.candidate.mesh,
        name=ranked.candidate.name,
        entries=(first, *others),
        models=frozenset(model.name for model in ranked.candidate.models),
        reasons=ranked.reasons,
    )


def sensible(addresses: Sequence[Address], host: str) -> Sequence[Address]:
    """Without loopback, which is another machine's, unless this node is on loopback itself."""
    if Address.of(host, 1).is_loopback:
        return addresses
    return [address for address in addresses if not address.is_loopback]
