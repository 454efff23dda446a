"""The open mesh of a node as one thing: its socket, vault, policy, hash table, and what answers on its streams.

What a stranger can reach is what is registered here: HTTP on listed paths, the hash table, inquiries, and, by the mesh
itself, relays and punches. Lending, weights and pairing have no handler, so that no message can open them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from meshnode import __version__
from meshnode.api.endpoints import COUNTING_ENDPOINTS, PUBLIC_ENDPOINTS
from meshnode.api.upstream import Exchange
from meshnode.config import Places, Settings
from meshnode.core.open_policy import OpenLimits, OpenPolicy
from meshnode.core.prices import FREE, Price
from meshnode.discovery.nostr import NostrRelays
from meshnode.errors import MeshnodeError, PortInUse
from meshnode.identity import Identity, short
from meshnode.mesh.dht import Dht
from meshnode.mesh.inquiry import Inquiries
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.open_vault import OpenVault
from meshnode.mesh.options import MeshLimits, MeshOptions
from meshnode.mesh.payments_stream import Desk, PaymentsStream
from meshnode.mesh.sessions import SessionLimits
from meshnode.mesh.tunnel import Answer
from meshnode.offers import nat_facts, peer_facts
from meshnode.telemetry import LOG, ProblemBoard
from meshnode.wire.registry import LIMIT_NAME_CHARS, Role, StreamType
from meshnode.wire.schema import showable
from meshnode.wire.statements import Dynamic, Offer

ASK_PATH = "/v1/chat/completions"
ASK_S = 2.0
REFUSALS = (401, 403)


class Mapper(Protocol):
    """What is needed of net.portmap.PortMapper."""

    @property
    def mapped(self) -> Sequence[Any]: ...
    @property
    def facts(self) -> dict[str, Any]: ...
    async def start(self, port: int) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmParts:
    """What the swarm needs of the rest of the node.

    `has` says what this node has, `offers` which models; strangers hear of both only where the owner has said so.
    `answer` serves their requests. `trust` gives the radius of a node by its id, `known_private` the members of the
    private mesh, whose models are already known. `pausing` is told whether to serve strangers nothing; `strangers` and
    `verdict` are shown. `price` (on `chain`) is what strangers pay here for a model, and `desk` answers what they ask
    about it; without a `desk` they cannot ask.
    """

    settings: Settings
    places: Places
    identity: Identity
    has: Callable[[], Dynamic]
    offers: Callable[[], tuple[Offer, ...]]
    problems: ProblemBoard
    tell: Callable[[str, str], None]
    changed: Callable[[], None]
    relays: NostrRelays
    answer: Answer
    trust: Callable[[bytes], str]
    known_private: Callable[[], Collection[bytes]]
    admitted: Sequence[tuple[str, str]] = tuple(("POST", path) for path in (*PUBLIC_ENDPOINTS, *COUNTING_ENDPOINTS))
    limits: MeshLimits = MeshLimits()
    mapper: Mapper | None = None
    pausing: Callable[[bool], None] = lambda paused: None
    strangers: Callable[[], dict[str, Any]] = dict
    verdict: Callable[[bytes], str | None] = lambda node: None
    price: Callable[[str], Price] = lambda model: FREE
    chain: int = 0
    desk: Desk | None = None


class PublicMesh:
    """See the module. `await PublicMesh.open(...)`; `close` at the end. It is in no mesh before somebody enters one."""

    def __init__(self, parts: SwarmParts, role: Role, vault: OpenVault, policy: OpenPolicy) -> None:
        self._its = parts
        self.role = role
        self.vault = vault
        self.policy = policy
        self.counters: Counter[str] = Counter()
        self.dht = Dht(
            identity=parts.identity, role=role, counters=self.counters, reachable=lambda: self._can_be_dialled
        )
        self.mesh: Mesh
        self._mapping: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, parts: SwarmParts, role: Role, changed: Callable[[], None]) -> PublicMesh:
        """Open the socket. Raises PortInUse for a port that was asked for, StateError, HomeNotWritable."""
        settings = parts.settings
        policy = OpenPolicy(OpenLimits(clients=settings.max_clients), known=lambda node: parts.trust(node) != "public")
        vault = await asyncio.to_thread(OpenVault, parts.places.home / "public", parts.identity, policy)
        found = cls(parts, role, vault, policy)
        inquiries = Inquiries(vault, parts.identity.node_id, found.counters)
        handlers = {StreamType.INQUIRY: inquiries.serve, StreamType.DHT: found.dht.serve}
        if parts.desk is not None:
            handlers[StreamType.PAY] = PaymentsStream(parts.desk, found.counters).serve
        try:
            found.mesh = await found._listen(settings.public_port, handlers, changed)
        except PortInUse:
            if "public_port" in settings.sources:
                raise
            # Nobody asked for this very port: a second node on one machine takes another.
            found.mesh = await found._listen(0, handlers, changed)
        inquiries.attach(found.mesh)
        found.dht.attach(found.mesh)
        if parts.mapper is not None:
            found._mapping = asyncio.create_task(parts.mapper.start(found.mesh.bound.port), name="map the public port")
        return found

    async def _listen(self, port: int, handlers: dict[StreamType, Any], changed: Callable[[], None]) -> Mesh:
        its, settings = self._its, self._its.settings
        # A host name says too much to strangers; who wants to be known by a name gives one.
        name = showable(settings.name or short(its.identity.node_id), LIMIT_NAME_CHARS)
        mapper = its.mapper
        return await Mesh.start(
            vault=self.vault,
            identity=its.identity,
            role=self.role,
            options=MeshOptions(
                host=settings.bind_host,
                port=port,
                name=name,
                software=f"meshnode {__version__}",
                relay=settings.relay == "on" or (settings.relay == "auto" and settings.publishes),
                guess_ports=settings.guess_ports,
                mapped=(lambda: ()) if mapper is None else (lambda: mapper.mapped),
            ),
            answer=its.answer,
            admitted=its.admitted,
            changed=changed,
            handlers=handlers,
            limits=dataclasses.replace(its.limits, sessions=SessionLimits(clients=settings.max_clients)),
            enter=False,
        )

    async def close(self, drain_s: float) -> None:
        """Say goodbye to the members, and give the port back."""
        if self._mapping is not None:
            self._mapping.cancel()
        closing = [self.dht.close(), self.mesh.close(drain_s=drain_s)]
        if self._its.mapper is not None:
            closing.append(self._its.mapper.close())
        if self._mapping is not None:
            await asyncio.gather(self._mapping, return_exceptions=True)
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                LOG.warning("closing the public port", exc_info=outcome)

    async def answers(self, node: bytes) -> bool:
        """Whether a member answers requests: one that asks for nothing must be refused as such, and costs nobody
        anything.
        """
        try:
            async with asyncio.timeout(ASK_S):
                exchange = await Exchange.send(
                    self.mesh.http(node), "POST", ASK_PATH, api_key="", body=b"{}", content_type="application/json"
                )
        except (MeshnodeError, OSError, TimeoutError):
            return False
        exchange.close()
        return exchange.status < 500 and exchange.status not in REFUSALS

    @property
    def _can_be_dialled(self) -> bool:
        """Whether nodes that do not know this one can reach it: no NAT is known of, or a router forwards the port."""
        nat = self.mesh.nat
        return bool(nat.mapped) or nat.kind in ("none", "unknown")

    def facts(self) -> dict[str, Any]:
        """What is shown of it in /api/status."""
        its, mesh, mine = self._its, self.mesh, self.vault.credentials
        return {
            "mesh": None if mine is None else {"id": mine.mesh.hex(), "name": mine.mesh_name},
            "role": self.role.name.lower(),
            "peers": [
                peer_facts(member, None if (at := mesh.address_of(node)) is None else str(at))
                | {"path": mesh.path_of(node), "radius": its.trust(node), "verdict": its.verdict(node)}
                for node, member in mesh.members().members.items()
                if node != its.identity.node_id
            ],
            "addresses": [str(address) for address in mesh.addresses],
            "nat": nat_facts(mesh.nat) | ({} if its.mapper is None else {"mapping": its.mapper.facts}),
            "strangers": {"serving": 0, "waiting": 0, "served": 0, "refused": 0, "tokens_out": 0} | its.strangers(),
            "dht": self.dht.facts(),
            "counters": {**mesh.counters, **self.counters},
        }
