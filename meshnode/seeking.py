"""The way of a node through open meshes: look, join the best, or begin one; notice when it is alone, and look again.

    looking ── a way in ──> joining ── admitted ──> joined ── nobody left for 90 s, or nothing of what was listed ──┐
       │                       └── refused: the next way                                                            │
       ├── none, a member ──> alone in a mesh of its own, which is listed, and merged with others of its name        │
       └── none, a client ──> failed, with the reason; again after a pause  <───────────────────────────────────────┘

Each state has a sentence for people. Nothing here ends the node: what goes wrong is said, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from meshnode.core.choosing import Wishes
from meshnode.errors import MeshnodeError
from meshnode.finding import Finding, Found, Leads, Way
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.open_vault import OpenVault
from meshnode.telemetry import LOG
from meshnode.wire.listings import Entry, Listing
from meshnode.wire.messages import PeerEntry
from meshnode.wire.open_meshes import DEFAULT_NAME, canonical_name, open_mesh_id
from meshnode.wire.registry import Role
from meshnode.wire.statements import ModelState

SeekState = Literal["looking", "joining", "joined", "alone", "failed"]

ALONE_S = 90.0
"""After so long without anybody a member looks for another mesh."""
CLIENT_ALONE_S = 20.0
"""A client can do nothing alone."""
SERVES_S = 10.0
"""Of the models that were listed one must be there by then."""
BAD_S = 3600.0
MOST_BAD = 1024
CALL_S = 3.0
CALLS = 4
HOSTS = 3
TURN_S = 1.0
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Seeker:
    """What the seeking of a node depends on.

    `wishes` are asked for at each look; `answers` says whether a member answers a request at all; `tell` gets each new
    sentence, for people; `trouble` the one that says what is wrong, "" when nothing is; `entered` and `left` are called
    when this node takes part in a mesh, perhaps again, and when it does so no more.
    """

    mesh: Mesh
    vault: OpenVault
    role: Role
    finding: Finding
    wishes: Callable[[], Wishes]
    bootstrap: tuple[str, ...]
    answers: Callable[[bytes], Awaitable[bool]]
    tell: Callable[[str], None]
    trouble: Callable[[str], None]
    entered: Callable[[], None]
    left: Callable[[], Awaitable[None]]


class Seeking:
    """See the module. `run` until cancelled."""

    def __init__(self, seeker: Seeker, *, name: str | None) -> None:
        """`name` is that of the mesh that is wanted, None for the best."""
        self._its = seeker
        self._name = None if name is None else canonical_name(name)
        self._home = ""
        """The mesh that this node was in last, with others or alone."""
        self._past: tuple[str, tuple[PeerEntry, ...]] = ("", ())
        self._told = ""
        self._bad: dict[bytes, float] = {}
        self._company_at = monotonic()
        self._joined_by: Way | None = None
        self._judge_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._changed = asyncio.Event()
        self.state: SeekState = "looking"
        self.sentence = "looking for a public mesh"
        self.found: Found | None = None

    # --- for the composer -----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Members or links have changed."""
        self._changed.set()

    @property
    def avoided(self) -> frozenset[bytes]:
        """Nodes whose mesh has admitted this one and served nothing."""
        now = monotonic()
        self._bad = {node: until for node, until in self._bad.items() if until > now}
        return frozenset(self._bad)

    async def run(self) -> None:
        """Seek until cancelled."""
        while True:
            try:
                await self._seek()
                await self._stay()
            except MeshnodeError as reason:
                # A full disk, for one; serving goes on meanwhile.
                self._say("failed", f"{reason.message}. {reason.fix}".removesuffix(". "), trouble=True)
                await self._rest()
            except Exception:
                LOG.exception("seeking a public mesh")
                self._say("failed", "a fault of this node; its log says which: meshnode logs", trouble=True)
                await self._rest()

    async def meet(self, listings: Sequence[Listing]) -> int:
        """Be linked with listed nodes of this very mesh that are not known here; with how many that worked.

        Two meshes of one name, begun at the same time or parted since, so become one again.
        """
        mine = self._its.vault.credentials
        known = self._its.mesh.members().members
        avoided = self.avoided
        met = 0
        for entry in (entry for each in listings if mine and each.mesh == mine.mesh for entry in each.entries):
            member = known.get(entry.node)
            if entry.node in avoided or (member is not None and member.state == "alive"):
                continue
            if await self._call(entry):
                met += 1
                if met >= CALLS:
                    break
        return met

    # --- looking and joining ----------------------------------------------------------------------------------------

    async def _seek(self) -> None:
        """Look, and join what is best; a member that finds nothing begins a mesh."""
        its = self._its
        mesh = None if self._name is None else open_mesh_id(self._name)
        if self._name is not None and its.role is Role.MEMBER:
            # Everybody who names it is in it: the only question is who else is.
            await self._enter(self._name)
        wanted = f'"{self._name}"' if self._name is not None else "a public mesh"
        self._say("looking", f"looking for {wanted}")
        found = self.found = await its.finding.look(its.wishes(), self._leads(), mesh=mesh, avoid=self.avoided)
        for way in found.ways:
            if await self._join(way):
                return
        if its.role is Role.MEMBER:
            await self._begin(found)
        else:
            await self._leave()
            self._say("failed", f"{self._unfound()}: {found.why_not}; this node goes on looking", trouble=True)

    def _leads(self) -> Leads:
        name, saved = self._past
        mine = self._its.vault.credentials
        if mine is not None and self._its.vault.peers():
            name, saved = mine.mesh_name, self._its.vault.peers()
        return Leads(open_mesh_id(name) if name else b"", saved, self._its.bootstrap)

    def _unfound(self) -> str:
        return "no public mesh to join" if self._name is None else f'nobody of "{self._name}" to join'

    async def _join(self, way: Way) -> bool:
        its = self._its
        self._say("joining", f'joining "{way.name}"')
        await self._enter(way.name)
        for entry in way.entries[:CALLS]:
            if await self._call(entry):
                reasons = f" ({', '.join(way.reasons[:2])})" if way.reasons else ""
                self._joined_by, self._judge_at = way, monotonic() + SERVES_S
                self._company_at = monotonic()
                self._pause_s = FIRST_PAUSE_S
                self._home = way.name
                self._say("joined", f'in "{way.name}" as {its.role.name.lower()}{reasons}')
                return True
        return False

    async def _call(self, entry: Entry) -> bool:
        try:
            async with asyncio.timeout(CALL_S):
                await self._its.mesh.call(entry.node, entry.addresses)
        except (MeshnodeError, OSError, TimeoutError) as reason:
            LOG.info("%s is not met: %s", entry.node.hex()[:10], reason or "no answer")
            return False
        return True

    async def _begin(self, found: Found) -> None:
        """Go on alone, in a mesh that others can find by its name."""
        name = self._name or self._home or DEFAULT_NAME
        await self._enter(name)
        self._home = name
        self._company_at = monotonic()
        sentence = f'alone in "{name}": {found.why_not}; whoever names it joins this node'
        self._say("alone", sentence, trouble=not found.relays_answered)

    async def _enter(self, name: str) -> None:
        """Take part in the mesh of this name, and in no other."""
        its = self._its
        mine = its.vault.credentials
        if mine is not None and mine.mesh != open_mesh_id(name):
            await self._leave()
        await asyncio.to_thread(its.vault.open, name, its.role)
        await its.mesh.enter()
        its.entered()

    async def _leave(self) -> None:
        """Leave the present mesh; whom it had is remembered until the end of the process."""
        its = self._its
        mine = its.vault.credentials
        if mine is None:
            return
        if its.vault.peers():
            self._past = mine.mesh_name, its.vault.peers()
        self._joined_by = None
        await its.left()
        await its.mesh.leave()

    # --- staying ----------------------------------------------------------------------------------------------------

    async def _stay(self) -> None:
        """Stay as long as there is company, or a chance of it. Returns when it is time to look again."""
        if self.state == "failed":
            await self._rest()
            return
        alone_s = ALONE_S if self._its.role is Role.MEMBER else CLIENT_ALONE_S
        while True:
            self._look_around()
            if await self._serves_nothing():
                await self._give_up()
                return
            if monotonic() - self._company_at > alone_s:
                self._company_at = monotonic()
                return
            await self._turn(TURN_S)

    def _look_around(self) -> None:
        its = self._its
        members = its.mesh.members().members
        if its.vault.policy is not None:
            its.vault.policy.retain({node for node, each in members.items() if each.state in ("alive", "unreachable")})
        mine = its.vault.credentials
        name = "" if mine is None else mine.mesh_name
        if its.mesh.state == "joined":
            self._company_at = monotonic()
            if self.state != "joined":
                self._say("joined", f'in "{name}" as {its.role.name.lower()}')
        elif self.state == "joined":
            self._say("alone", f'alone in "{name}": nobody answers any more; looking again soon')

    async def _serves_nothing(self) -> bool:
        """Whether the mesh was joined for models of which none can be asked in time."""
        way = self._joined_by
        if way is None:
            return False
        if not way.models:
            self._joined_by = None
        for node in self._hosts(way.models)[:HOSTS]:
            if await self._its.answers(node):
                self._joined_by = None
                return False
        return self._joined_by is not None and monotonic() > self._judge_at

    def _hosts(self, models: frozenset[str]) -> list[bytes]:
        snapshot = self._its.mesh.members()
        return [
            node
            for node, member in snapshot.members.items()
            if node != snapshot.node and member.state == "alive" and member.reachable and member.dynamic is not None
            if any(offer.name in models and offer.state == ModelState.READY for offer in member.dynamic.models)
        ]

    async def _give_up(self) -> None:
        """The mesh has admitted this node and serves nothing of what it lists: leave its entries alone for an hour."""
        way = self._joined_by
        assert way is not None
        until = monotonic() + BAD_S
        for entry in way.entries:
            self._bad[entry.node] = until
        while len(self._bad) > MOST_BAD:
            del self._bad[next(iter(self._bad))]
        self._home = ""
        sentence = f'"{way.name}" lists {", ".join(sorted(way.models)[:3])} and serves none of them: left'
        LOG.warning("%s", sentence)
        self._its.tell(sentence)
        await self._leave()
        self._past = ("", ())
        await asyncio.to_thread(self._its.vault.forget)

    async def _rest(self) -> None:
        until = monotonic() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        while (left_s := until - monotonic()) > 0:
            await asyncio.sleep(left_s)

    async def _turn(self, most_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._changed.wait()
        self._changed.clear()

    def _say(self, state: SeekState, sentence: str, *, trouble: bool = False) -> None:
        self.state, self.sentence = state, sentence
        if state in ("looking", "joining"):
            return  # on the way: what was wrong before may still be
        self._its.trouble(sentence if trouble else "")
        if sentence != self._told:
            self._told = sentence
            self._its.tell(sentence)
