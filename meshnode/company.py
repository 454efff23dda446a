"""The node among others: its private mesh, what it does for it, whom it trusts, and strangers.

    Trust      whose node is whose                     (trust.py)
    Pool       splits, loans, standby                  (pool.py)
    Meshing    the private mesh                        (meshing.py)
    Strangers  the public mesh                         (strangers.py)
    Money      what strangers pay, and are paid        (money.py)

A node that was started with --solo has none of it: `Alone` stands in its place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from meshnode.api.app import ASGIApp
from meshnode.api.gate import Gates
from meshnode.api.mesh_control import MeshControls, no_mesh
from meshnode.api.metrics import Gauge
from meshnode.api.paying import Purse
from meshnode.api.public_control import PublicControls, nothing_public
from meshnode.api.record import Record
from meshnode.api.request import Request
from meshnode.api.served import Host, Served
from meshnode.api.spending_control import SpendingControl, no_spending
from meshnode.capacity import Lender
from meshnode.config import Places, Settings
from meshnode.doors import DoorParts, peer_door
from meshnode.engine.installed import Engine
from meshnode.errors import MeshnodeError, NotInMesh, StateError
from meshnode.hardware import Inventory
from meshnode.identity import Identity
from meshnode.meshing import Meshing, node_name
from meshnode.money import MoneyParts, control_of, open_money
from meshnode.planning import Speeds
from meshnode.pool import Pool
from meshnode.serving import Serving, Tell
from meshnode.status import mesh_gauges
from meshnode.strangers import StrangerParts, Strangers
from meshnode.telemetry import ProblemBoard
from meshnode.trust import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanyParts:
    """What of the node others have to do with. `changed` is called when something of this node has, `seen` when only
    what it knows of others has. `joined` is called whenever the private mesh has changed and this node is in it.
    `finished` is told of each request of a peer.
    """

    settings: Settings
    places: Places
    identity: Identity
    serving: Serving
    doors: DoorParts
    gates: Gates
    problems: ProblemBoard
    tell: Tell
    changed: Callable[[], None]
    seen: Callable[[], None]
    joined: Callable[[], None]
    finished: Callable[[Record], None]


class Company:
    """See the module. `start`, then `leave` while answers end, then `stop`; `close` when the engines have stopped."""

    def __init__(self, parts: CompanyParts) -> None:
        its = self._its = parts
        self._trust = Trust(its.places.home, bytes(its.identity.node_id), changed=its.changed, told=self._trust_damaged)
        self._pool = Pool(
            settings=its.settings,
            places=its.places,
            node=bytes(its.identity.node_id),
            name=node_name(its.settings),
            serving=its.serving,
            tell=its.tell,
            changed=its.changed,
            mesh=lambda: self._meshing.mesh,
            snapshot=lambda: self._meshing.snapshot(),
            wishes=lambda: self._meshing.demand.wishes(time.monotonic()),
            offers=lambda: self._meshing.offers(),
        )
        self._meshing = Meshing(
            settings=its.settings,
            places=its.places,
            identity=its.identity,
            serving=its.serving,
            problems=its.problems,
            tell=its.tell,
            changed=self._mesh_changed,
            handlers=self._pool.handlers,
            has=self._pool.has,
            trust=self._trust,
        )
        self._money = open_money(
            MoneyParts(
                settings=its.settings,
                places=its.places,
                identity=its.identity,
                tell=its.tell,
                mesh=lambda: self._strangers.mesh,
                offers=self._meshing.offers,
                record=lambda kind, **facts: self._strangers.record(kind, **facts),
                recorded=lambda: self._strangers.recorded(),
            )
        )
        self._strangers = Strangers(
            StrangerParts(
                settings=its.settings,
                places=its.places,
                identity=its.identity,
                doors=its.doors,
                gates=its.gates,
                problems=its.problems,
                tell=its.tell,
                changed=its.seen,
                has=self._pool.has,
                offers=self._meshing.offers,
                models=self.models,
                trust=self._trust.of_stranger,
                known_private=self._meshing.alive,
                finished=self.finished_for_peer,
                money=self._money,
            )
        )

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take part in what the settings say. Raises MeshnodeError."""
        await self._pool.start()
        if self._meshing.has_where_to_go:
            await self._meshing.start(peer_door(self._its.doors, finished=self.finished_for_peer).answer)
        if self._money is not None:
            await self._money.start()
        await self._strangers.start()

    def equip(self, engine: Engine, inventory: Inventory, speeds: Speeds) -> None:
        """The engine and the devices are known."""
        self._pool.equip(engine, inventory, speeds)

    async def leave(self, drain_s: float) -> None:
        """Take on nothing more for others, and let what runs for them end."""
        await self._pool.leave(drain_s)

    async def stop(self, *, now: bool) -> None:
        """Say goodbye to everybody."""
        try:
            await asyncio.gather(self._strangers.stop(now=now), self._meshing.stop(now=now))
        finally:  # whatever fails to part, the journal is closed and the audit log has its end
            if self._money is not None:
                await self._money.stop()
            await self._strangers.close()

    async def close(self) -> None:
        """Give back what was held for others."""
        await self._pool.stop()

    def _trust_damaged(self, error: StateError | None) -> None:
        """A file that says who is trusted cannot be read any more, or can again."""
        if error is None:
            self._its.problems.clear("trust-damaged")
        else:
            self._its.problems.put("trust-damaged", reason=error.message, todo=error.fix)

    def _mesh_changed(self) -> None:
        self._pool.mesh_changed()
        mesh = self._meshing.mesh
        if mesh is not None and mesh.state == "joined":
            self._its.joined()
        self._its.seen()

    # --- models and requests ----------------------------------------------------------------------------------------

    def models(self) -> list[Served]:
        """Every model that can be asked for here."""
        return self._strangers.hosts(self._meshing.served())

    def lenders(self) -> tuple[Lender, ...]:
        """The members that lend memory to splits."""
        return self._pool.lenders()

    async def plan(self, model: str) -> dict[str, Any]:
        """Where a model would run. Raises MeshnodeError."""
        return await self._pool.plan(model)

    def asked_for(self, unit: str) -> bool:
        """A person wants a model that this node has taken on by itself: it stays."""
        self._pool.asked_for(unit)
        return True

    def touch(self) -> None:
        """Something of this node has changed."""
        self._meshing.touch()
        self._strangers.touch()

    def answered(self, request: Request, stream: bytes, host: Host) -> None:
        """A host has answered a request of our own caller, with this stream of events."""
        self._strangers.answered(request, stream, host)

    def finished(self, record: Record) -> None:
        """A request of our own caller is over."""
        self._meshing.learn(record, asked_here=True)
        self._strangers.finished(record)
        self._pool.finished(record)

    def finished_for_peer(self, record: Record) -> None:
        """A request of a peer is over."""
        self._meshing.learn(record, asked_here=False)
        self._pool.finished(record)
        self._its.finished(record)

    # --- what is told -----------------------------------------------------------------------------------------------

    async def invitation(self, *, invite: bool) -> dict[str, Any] | None:
        """The private mesh, with an `invite` to it if one is wanted; None while there is none."""
        mesh = self._meshing.facts()
        if mesh is None:
            return None
        return {
            "id": mesh["id"],
            "name": mesh["name"],
            "invite": await self._meshing.first_invite() if invite else None,
        }

    @property
    def mesh_controls(self) -> MeshControls:
        """What a person can ask of the private mesh."""
        return self._meshing

    @property
    def public_controls(self) -> PublicControls:
        """What a person can ask of the public one."""
        return self._strangers

    def plain_door(self, app: ASGIApp) -> ASGIApp:
        """The API port, where strangers may pay over plain HTTP if the settings say so."""
        return self._strangers.plain_door(app)

    @property
    def purse(self) -> Purse | None:
        """What pays strangers, if anything does."""
        return None if self._money is None else self._money.purse

    @property
    def spending_control(self) -> SpendingControl:
        """What a person can ask about money."""
        return control_of(self._money, self._its.settings)

    def facts(self, radius: str) -> dict[str, Any]:
        """The members of /api/status that tell of others; `radius` is how far requests go by default."""
        return {
            "mesh": self._meshing.facts(),
            "swarm": self._strangers.facts(),
            "trust": self._trust.facts(radius),
            "pool": self._pool.facts(),
            "standby": self._pool.standby_facts(),
        }

    def gauges(self) -> Iterator[Gauge]:
        """The metrics of others."""
        if (mesh := self._meshing.facts()) is not None:
            yield from mesh_gauges(mesh)
        yield from self._strangers.gauges()


class Alone:
    """A node that knows nobody, as a Company."""

    def __init__(self, serving: Serving) -> None:
        self.models = serving.served

    async def start(self) -> None:
        """Nobody is met."""

    def equip(self, engine: Engine, inventory: Inventory, speeds: Speeds) -> None:
        """Nobody is told."""

    async def leave(self, drain_s: float) -> None:
        """Nobody is left."""

    async def stop(self, *, now: bool) -> None:
        """Nobody is told goodbye."""

    async def close(self) -> None:
        """Nothing is held."""

    def lenders(self) -> tuple[Lender, ...]:
        """Nobody."""
        return ()

    async def plan(self, model: str) -> dict[str, Any]:
        """Raises NotInMesh."""
        raise NotInMesh("this node was started with --solo", fix="meshnode show MODEL says whether it fits here")

    def asked_for(self, unit: str) -> bool:
        """A node that is alone takes on no models by itself."""
        return False

    def touch(self) -> None:
        """Nobody is told."""

    def answered(self, request: Request, stream: bytes, host: Host) -> None:
        """No stranger has answered."""

    def finished(self, record: Record) -> None:
        """Nobody learns of it."""

    async def invitation(self, *, invite: bool) -> dict[str, Any] | None:
        """There is no mesh."""
        return None

    @property
    def mesh_controls(self) -> MeshControls:
        """Refuses everything."""
        return no_mesh(_solo)

    @property
    def public_controls(self) -> PublicControls:
        """Refuses everything."""
        return nothing_public(_solo)

    def plain_door(self, app: ASGIApp) -> ASGIApp:
        """Strangers are not served."""
        return app

    @property
    def purse(self) -> Purse | None:
        """Nobody is paid."""
        return None

    @property
    def spending_control(self) -> SpendingControl:
        """Shows that there is no money, and refuses the rest."""
        return no_spending(why_not="this node was started with --solo")

    def facts(self, radius: str) -> dict[str, Any]:
        """There is nobody to tell of."""
        return dict.fromkeys(("mesh", "swarm", "trust", "pool", "standby"))

    def gauges(self) -> Iterator[Gauge]:
        """None."""
        return iter(())


def _solo() -> MeshnodeError:
    return NotInMesh("this node was started with --solo")
