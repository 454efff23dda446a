"""What this node has to do with strangers: the public mesh, what they may have here, what is written down of it, and
whether their answers are true.

    Swarm          which public mesh, who is in it                  (swarm.py)
    GuestRequests  their requests here, bounded, after all others   (api/guest_requests.py)
    Audit          a record of each, both ways                      (audit.py)
    Verifier       their answers, looked at by a second node        (api/verifying.py)
    PortMapper     a port of the router, so that they get here      (net/portmap.py)

Nothing of it runs on a node that was not told to go public.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode import durable
from meshnode.api.app import ASGIApp
from meshnode.api.gate import Gates
from meshnode.api.guest_requests import audit_facts, guest_gauges
from meshnode.api.metrics import Gauge
from meshnode.api.record import Record
from meshnode.api.request import Request
from meshnode.api.served import Host, Served
from meshnode.api.verifying import Verifier
from meshnode.api.x402 import Offer as Offered
from meshnode.api.x402_door import X402Door
from meshnode.api.x402_sale import CappedTill
from meshnode.audit import Audit
from meshnode.audit_reading import last_records
from meshnode.config import Places, Settings
from meshnode.core.prices import FREE
from meshnode.core.radius import PUBLIC
from meshnode.core.verification import Reputations, Verdict
from meshnode.discovering import open_relays
from meshnode.doors import DoorParts, guest_door, guests_of, paid_door
from meshnode.errors import MeshnodeError
from meshnode.identity import Identity
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.options import PUBLIC_LIMITS
from meshnode.money import Money
from meshnode.net.portmap import PortMapper
from meshnode.serving import Tell
from meshnode.swarm import Swarm, SwarmParts
from meshnode.telemetry import LOG, ProblemBoard
from meshnode.wire.address import Address
from meshnode.wire.statements import Dynamic, Offer

MOST_FOUND_OUT = 4096
SPOT = "spot"


@dataclass(frozen=True, slots=True, kw_only=True)
class StrangerParts:
    """What of the node strangers have to do with.

    `has` and `offers` say what there is, `trust` who a node is to us, `known_private` who is in the private mesh.
    `finished` is told of each request of a stranger; `models` are all that can be asked for here. What
    strangers pay here is a matter of `money`, if there is any.
    """

    settings: Settings
    places: Places
    identity: Identity
    doors: DoorParts
    gates: Gates
    problems: ProblemBoard
    tell: Tell
    changed: Callable[[], None]
    has: Callable[[], Dynamic]
    offers: Callable[[], tuple[Offer, ...]]
    models: Callable[[], Sequence[Served]]
    trust: Callable[[bytes], str]
    known_private: Callable[[], Collection[bytes]]
    finished: Callable[[Record], None]
    money: Money | None = None


class Strangers:
    """See the module. `start` where the settings say so; `stop` in every case. It is what the control API calls."""

    def __init__(self, parts: StrangerParts) -> None:
        its = self._its = parts
        settings = its.settings
        self._audit = Audit(its.places.home, problems=its.problems)
        self._writes = False
        self._door: X402Door | None = None
        money = its.money
        self._guests = guest_door(
            its.doors,
            guests_of(settings),
            self._audit,
            its.finished,
            address_of=self._address_of,
            is_near=lambda node: its.trust(node) != PUBLIC,
            till=CappedTill(money, self._offer_of) if money is not None and settings.x402 else money,
        )
        self._found_out = _FoundOut(its.places.home / "public" / "found-out.json")
        self._reputations = Reputations(random.SystemRandom())
        self._verifier = Verifier(
            hosts=self._free_hosts,
            gates=its.gates,
            reputations=self._reputations,
            random=random.SystemRandom(),
            told=self._looked_at,
        )
        self._swarm = Swarm(
            SwarmParts(
                settings=settings,
                places=its.places,
                identity=its.identity,
                has=its.has,
                offers=its.offers,
                problems=its.problems,
                tell=its.tell,
                changed=its.changed,
                relays=open_relays(settings.nostr_relay, its.places.home / "public" / "nostr.key"),
                answer=self._guests.answer,
                trust=its.trust,
                known_private=its.known_private,
                limits=PUBLIC_LIMITS,
                mapper=PortMapper(changed=its.changed) if _wants_port(settings) else None,
                pausing=self._guests.pause,
                strangers=self._guests.facts,
                verdict=lambda node: self._reputations.verdict(node.hex()),
                price=money.price if money is not None else lambda _: FREE,
                chain=money.chain if money is not None else 0,
                desk=money.bank if money is not None else None,
            )
        )

    async def start(self) -> None:
        """Take part in a public mesh, if the settings say so. Raises PortInUse for a port that was asked for."""
        if self._its.settings.goes_public or self._its.money is not None:
            await self._begin_to_write()
        if self._its.settings.goes_public:
            await self._swarm.start()

    async def _begin_to_write(self) -> None:
        if not self._writes:
            self._writes = True
            self._reputations.recall(await asyncio.to_thread(self._found_out.read))
            await self._audit.start()

    async def stop(self, *, now: bool = False) -> None:
        """Say goodbye to strangers."""
        await self._swarm.stop(now=now)
        await self._verifier.close()

    async def close(self) -> None:
        """Write down what is left to be."""
        await self._audit.close()

    # --- models -----------------------------------------------------------------------------------------------------

    def _free_hosts(self, model: str) -> list[Host]:
        """Those that may be asked for a second opinion: nobody is paid for one."""
        found = (host for each in self._its.models() if each.id == model for host in each.hosts)
        return [host for host in found if host.price.is_free]

    def hosts(self, nearer: Sequence[Served]) -> list[Served]:
        """The models of nearer nodes with those of strangers, without strangers that were found out."""
        models = self._swarm.hosts(nearer)
        bad = self._reputations.found_out
        if not bad:
            return models
        kept = (
            dataclasses.replace(model, hosts=tuple(host for host in model.hosts if host.node not in bad))
            for model in models
        )
        return [model for model in kept if model.hosts]

    def touch(self) -> None:
        """Something about this node's models has changed."""
        self._swarm.touch()

    @property
    def mesh(self) -> Mesh | None:
        """The public mesh, while this node has a port for it."""
        return self._swarm.mesh

    def record(self, kind: str, /, **facts: Any) -> None:
        """Write an event of money into the audit log."""
        self._audit.record(kind, **facts)

    async def recorded(self) -> bool:
        """Whether all that was recorded is on the disk."""
        return await self._audit.flush()

    def plain_door(self, app: ASGIApp) -> ASGIApp:
        """The API port, where strangers over plain HTTP may pay if the settings say so."""
        its = self._its
        if its.money is None or not its.settings.x402:
            return app
        self._door = paid_door(app, its.doors, cashier=its.money.cashier, guests=self._guests)
        return self._door

    def _offer_of(self, node: bytes) -> Offered | None:
        return None if self._door is None else self._door.offer_of(node)

    def _address_of(self, node: bytes) -> Address | None:
        if self._door is not None and (caller := self._door.address_of(node)) is not None:
            return caller
        mesh = self._swarm.mesh
        return None if mesh is None else mesh.address_of(node)

    # --- what is written down, and looked at ------------------------------------------------------------------------

    def finished(self, record: Record) -> None:
        """A request of our own caller is over: where a stranger took part, it is written down."""
        if self._writes and record.reached == PUBLIC:
            self._audit.record("asked", node=record.node, **audit_facts(record))

    def answered(self, request: Request, stream: bytes, host: Host) -> None:
        """A stranger has answered a request of our own caller, with this stream of events."""
        if self._its.settings.verify == SPOT:
            self._verifier.offer(request, stream, host)

    def _looked_at(self, node: str, before: Verdict, after: Verdict) -> None:
        self._audit.record("checked", node=node, verdict=after)
        if after != before:
            LOG.info("answers of the stranger %s: %s", node[:10], after)
            self._its.changed()
        if after == "bad" and before != "bad":
            self._its.tell("public", f"{node[:10]} answers with other weights than it claims; it is asked no more")
            asyncio.get_running_loop().run_in_executor(None, self._found_out.write, self._reputations.remembered())

    # --- what a person can ask and do -------------------------------------------------------------------------------

    async def pause(self, paused: bool) -> dict[str, Any]:
        """Serve no strangers for now, or serve them again."""
        return await self._swarm.pause(paused)

    async def join_public(self, name: str | None) -> dict[str, Any]:
        """Take part in the public mesh of this name, or in the one that suits best."""
        await self._begin_to_write()
        return await self._swarm.join_public(name)

    async def leave_public(self) -> dict[str, Any]:
        """Take part in no public mesh any more."""
        return await self._swarm.leave_public()

    async def discover(self, model: str, region: str) -> dict[str, Any]:
        """The public meshes that are listed, best first."""
        return await self._swarm.discover(model, region)

    async def providers(self, model: str) -> dict[str, Any]:
        """Who of the public mesh offers a model, by the distributed hash table."""
        return await self._swarm.providers(model)

    async def audit(self, limit: int) -> dict[str, Any]:
        """The newest records of the audit log, the last one first."""
        if self._writes:
            await self._audit.flush()
        records = await asyncio.to_thread(last_records, self._its.places.home, limit)
        return {"records": records, "log": self._audit.facts()}

    def facts(self) -> dict[str, Any] | None:
        """The `swarm` member of /api/status."""
        return self._swarm.facts()

    def gauges(self) -> Iterator[Gauge]:
        """The metrics of strangers."""
        if self._writes:
            yield from guest_gauges(self._guests.facts())
            for what, count in sorted(self._verifier.counters.items()):
                yield "meshnode_verification", "Answers of strangers that were looked at", {"what": what}, count


def _wants_port(settings: Settings) -> bool:
    """Whether the router is asked to forward the port of strangers: not for a node that nobody dials."""
    return settings.port_map == "on" or (settings.port_map == "auto" and settings.goes_public and not settings.client)


class _FoundOut:
    """The nodes that answered with other weights than they claim, and which: beyond the life of the process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writing = threading.Lock()

    def read(self) -> list[tuple[str, str]]:
        """What `write` wrote; nothing where the file is missing or damaged: it is no proof of anything."""
        try:
            found = json.loads(self._file.read_bytes())
            return [(str(node), str(weights)) for node, weights in found[:MOST_FOUND_OUT]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, RecursionError):
            LOG.warning("%s cannot be read, and begins anew", self._file)
            return []

    def write(self, found: Sequence[tuple[str, str]]) -> None:
        """Keep these."""
        try:
            with self._writing:
                durable.write(self._file, json.dumps(found[:MOST_FOUND_OUT]).encode())
        except MeshnodeError as reason:
            LOG.warning("%s cannot be written: %s", self._file, reason)
