"""Reaching peers that no datagram of a stranger reaches, and being reached by them (protocol/14-traversal.md).

    Reach.session ── nobody answers there ──> Traversal.reach ── Flows ──> a relay ──> the peer
    a relayed link comes up ──> DirectPaths: punches ──> the link moves, the relay is free again
    the relay is lost ──> another one, under the same link
    this node is behind NAT ──> Reservations with up to two relays
    relay and punch streams of peers ──> Relaying, Flows, DirectPaths

Who relays, who guesses ports and when to try again are decided in core/traversal.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Literal, Protocol

from meshnode.core.effects import Member
from meshnode.core.traversal import RESERVATIONS, head_start_s, needs_relays, relays_for_me, relays_to
from meshnode.errors import MeshnodeError, PeerUnreachable
from meshnode.identity import NodeId, short
from meshnode.mesh.background import Background
from meshnode.mesh.direct_paths import DirectPaths, Punches, Standing
from meshnode.mesh.flows import Flow, Flows, RelayFailed, Ways
from meshnode.mesh.message_stream import MessageStream
from meshnode.mesh.options import MeshOptions
from meshnode.mesh.presence import Presence
from meshnode.mesh.reach import Dials, Reach
from meshnode.mesh.relayed_links import RelayedLinks
from meshnode.mesh.relaying import Forwards, Relaying, RelayLimits
from meshnode.mesh.reservations import Reservations
from meshnode.mesh.sessions import Peer, Sessions
from meshnode.mesh.streams import StreamHandler
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.registry import Close, Nat, Reset, Role, StreamType
from meshnode.wire.statements import Dynamic
from meshnode.wire.traversal import RELAY_MESSAGES, RelayConnect, RelayFlow, RelayReserve
from meshnode.wire.values import WireError

DIAL_S = 3.0
STAGGER_S = 0.5
"""A relay that has brought no link within this time is not waited for alone."""
FIRST_MESSAGE_S = 5.0
LOOK_S = 2.0
BRIEF_S = 10.0
"""A relay that ends a flow within this time is asked last for the next one."""
BLAMED_S = 60.0
BLAMED = 256

Path = Literal["direct", "relayed"]
NatKind = Literal["unknown", "none", "cone", "symmetric"]


class Network(Dials, Ways, Punches, Forwards, Protocol):
    """What is needed of the endpoint."""


@dataclass(frozen=True, slots=True)
class NatView:
    """What this node knows of its own place: the kind of NAT, where peers see it, what its router forwards to it, and
    with which relays (node ids in hex) it has a place.
    """

    kind: NatKind = "unknown"
    observed: tuple[Address, ...] = ()
    mapped: tuple[Address, ...] = ()
    relays: tuple[str, ...] = ()


class Traversal:
    """See the module. `open` must be called before anything else; `renewed` is told when what this node says of its
    place is another. `counters` gets those of the parts, and: relayed_links, relay_malformed.
    """

    def __init__(
        self,
        own: bytes,
        role: Role,
        *,
        sessions: Sessions,
        reach: Reach,
        presence: Presence,
        options: MeshOptions,
        renewed: Callable[[], None],
        counters: Counter[str],
        limits: RelayLimits,
    ) -> None:
        self._own = own
        self._role = role
        self._sessions = sessions
        self._reach = reach
        self._presence = presence
        self._guess = options.guess_ports
        self._renewed = renewed
        self._counters = counters
        self._relaying = Relaying(sessions, on=options.relay and role is Role.MEMBER, counters=counters, limits=limits)
        self._flows = Flows(own, banned=sessions.is_banned, ended=self._flow_ended, counters=counters)
        self._paths = DirectPaths(
            own, standing=self._standing, observed=self._observed_by_relay, seen=self._seen_by, counters=counters
        )
        self._reservations = Reservations(
            observed=self._seen_by, refused=self._blame, ended=self._look_soon, counters=counters
        )
        self._links = RelayedLinks(
            flows=self._flows,
            paths=self._paths,
            relays=self._relays_to,
            ask=self._ask,
            circumstances=self._circumstances,
            in_use=lambda link: (peer := sessions.get(link.peer)) is not None and peer.link is link,
            moved=renewed,
            counters=counters,
        )
        self._blamed: OrderedDict[bytes, float] = OrderedDict()
        self._look = asyncio.Event()
        self._background = Background()
        self._endpoint: Network

    def open(self, endpoint: Network) -> None:
        """Go through this endpoint."""
        self._endpoint = self._flows.endpoint = self._paths.endpoint = endpoint
        self._relaying.open(endpoint)
        self._reach.relays = self

    def begin(self) -> None:
        """The node takes part in its mesh: relay, and watch its place in the network, until `leave`."""
        self._relaying.begin()
        self._background.start(self._watch())

    async def _watch(self) -> None:
        while True:
            if self._presence.look(self._linked(direct=False)):
                self._renewed()
            self._reserve()
            self._look.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._look.wait()

    async def leave(self) -> None:
        """Relay for nobody any more, and tell those for whom this node did; they look for another one."""
        self._relaying.leave()
        await self._background.stop()
        await self._reservations.close()

    async def close(self) -> None:
        """End everything, relayed links first: their goodbye still goes over the relay."""
        await self.leave()
        for peer in self._sessions.peers:
            if peer.link.path == "relayed":
                peer.link.close(Close.DONE)
        await self._links.close()
        await self._flows.end()

    # --- what others ask and tell ---------------------------------------------------------------------------------

    @property
    def handlers(self) -> Mapping[StreamType, StreamHandler]:
        """What serves the streams of peers."""
        return {StreamType.RELAY: self._relay_opened, StreamType.PUNCH: self._paths.asked}

    def told(self, has: Dynamic) -> Dynamic:
        """What this node has, and how it can be reached."""
        return dataclasses.replace(has, relay=self._relaying.on, nat=self._presence.told_nat)

    @property
    def nat(self) -> NatView:
        """What this node knows of its own place."""
        presence = self._presence
        relays = tuple(node.hex() for node in self._reservations.granted)
        return NatView(_NAMES[presence.nat], presence.observed, presence.mapped, relays)

    def path_of(self, node: bytes) -> Path | None:
        """How a linked peer is reached; None for others."""
        peer = self._sessions.get(node)
        return None if peer is None else peer.link.path

    def link_up(self, link: Link) -> bool:
        """Whether a new link, which came up late, is left alone: it only shows where the relayed one can go on. To
        replace that one would cost what is under way in it.
        """
        peer = self._sessions.get(link.peer)
        if peer is None or not link.dialled or link.path == "relayed":
            return False
        relayed = peer.link
        if relayed is link or not self._links.was_relayed(relayed) or not relayed.alive or relayed.silent:
            return False
        self._links.shown(relayed, link, otherwise=lambda: self._sessions.link_up(link))
        return True

    def peer_up(self, peer: Peer) -> None:
        """A peer was admitted. If it is reached through a relay, a direct path is looked for."""
        link = peer.link
        if link.path == "relayed":
            self._counters["relayed_links"] += 1
            if link.dialled:
                self._links.admitted(link)
        elif peer.session.observed is not None:
            self._seen_by(peer.session.observed, link)
        self._look_soon()

    def link_down(self, link: Link) -> None:
        """A link has ended."""
        self._links.down(link)
        self._look_soon()

    def link_silent(self, link: Link) -> None:
        """Nothing is heard over a link."""
        self._links.silent(link)

    async def _relay_opened(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        messages = MessageStream(stream, RELAY_MESSAGES)
        stream.watched = False
        try:
            message = await messages.receive(FIRST_MESSAGE_S)
            match message:
                case RelayReserve():
                    await self._relaying.reserve(messages, stream.link)
                case RelayConnect():
                    await self._relaying.connect(messages, stream.link, message)
                case RelayFlow():
                    await self._flows.offered(messages, stream.link, role, message)
                case _:
                    raise WireError("no way to begin")
        except (WireError, TimeoutError):
            self._counters["relay_malformed"] += 1
            stream.reset(Reset.MALFORMED)

    # --- reaching others ------------------------------------------------------------------------------------------

    def head_start_s(self, node: bytes, addresses: Sequence[Address]) -> float | None:
        """How long a direct dial of a peer is alone before `reach` may begin; None: there is nobody to relay."""
        if not self._relays_to(node):
            return None
        member = self._members().get(node)
        return head_start_s(None if member is None else member.dynamic, addresses, self._presence.addresses)

    async def reach(self, node: bytes) -> Link:
        """A link to a peer through a relay: the next best one is tried when one fails, or brings nothing in time.

        Raises PeerUnreachable with the reason of the last one.
        """
        waiting = deque(self._relays_to(node))
        tasks: list[asyncio.Task[Link]] = []
        running: set[asyncio.Task[Link]] = set()
        failure: BaseException | None = None
        next_at = now = monotonic()
        try:
            while waiting or running:
                if waiting and (now >= next_at or not running):
                    tasks.append(asyncio.ensure_future(self._reach_through(waiting.popleft(), node)))
                    running.add(tasks[-1])
                    next_at = now + STAGGER_S
                timeout_s = max(0.0, next_at - now) if waiting else None
                done, running = await asyncio.wait(running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    failure = task.exception()
                    if failure is None:
                        return task.result()
                    next_at = monotonic()
                now = monotonic()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise PeerUnreachable(f"{short(NodeId(node))} through a relay: {failure or 'nobody relays'}")

    async def _reach_through(self, relay: Link, node: bytes) -> Link:
        """Raises RelayFailed, MeshnodeError."""
        flow = await self._ask(relay, node)
        kept = False
        try:
            # Nobody is expected: another dial of the same peer may be under way, which would be waited for instead.
            link = await self._endpoint.dial([flow.address], expected=None, timeout_s=DIAL_S)
            if link.peer != node:
                link.close(Close.WRONG_PEER)
                self._counters["relays_lied"] += 1
                raise RelayFailed("the flow led to somebody else", lied=True)
            kept = link.alive and link.address == flow.address
        except (MeshnodeError, RelayFailed):
            self._blame(relay.peer)
            raise
        finally:
            if not kept:
                self._flows.close(flow)
        if kept:
            self._links.carry(link, flow)
        return link

    async def _ask(self, relay: Link, node: bytes) -> Flow:
        """A flow through a relay. Raises RelayFailed."""
        try:
            return await self._flows.through(relay, node)
        except RelayFailed as failure:
            LOG.debug("no flow to %s through %s: %s", node.hex()[:10], relay.peer.hex()[:10], failure)
            if failure.lied:
                self._blame(relay.peer)
            raise

    def _flow_ended(self, flow: Flow) -> None:
        if monotonic() - flow.since < BRIEF_S:
            self._blame(flow.relay.peer)
        self._links.flow_ended(flow)

    def _relays_to(self, node: bytes, without: bytes = b"") -> list[Link]:
        linked = self._linked(direct=True)
        found = relays_to(node, self._members(), {peer: link.rtt_s for peer, link in linked.items()}, self._to_avoid())
        return [linked[relay] for relay in found if relay != without]

    def _linked(self, *, direct: bool) -> dict[bytes, Link]:
        """The links to members that are heard; with `direct` only those without a relay in between."""
        return {
            peer.node: peer.link
            for peer in self._sessions.peers
            if peer.role is Role.MEMBER
            and peer.link.alive
            and not peer.link.silent
            and (not direct or peer.link.path == "direct")
        }

    def _members(self) -> Mapping[bytes, Member]:
        part = self._reach.part
        return {} if part is None else part.members().members

    # --- this node's own place ----------------------------------------------------------------------------------------

    def _circumstances(self, node: bytes) -> object:
        member = self._members().get(node)
        theirs = () if member is None or member.identity is None else member.identity.addresses
        nat = None if member is None or member.dynamic is None else member.dynamic.nat
        return self._presence.candidates(), self._presence.nat, theirs, nat

    def _standing(self) -> Standing:
        return Standing(self._presence.candidates(), self._presence.nat, self._guess)

    def _observed_by_relay(self, link: Link) -> Address | None:
        flow = self._flows.at(link.address)
        return None if flow is None else flow.observed

    def _seen_by(self, address: Address, link: Link) -> None:
        self._presence.seen_at(address, link.peer, link.address)
        self._look_soon()

    def _reserve(self) -> None:
        presence = self._presence
        part = self._reach.part
        if part is None or self._role is Role.CLIENT or not needs_relays(presence.told_nat, presence.addresses):
            self._reservations.want([])
            return
        linked = self._linked(direct=True)
        snapshot = part.members()
        rtts_s = {node: link.rtt_s for node, link in linked.items()}
        best = relays_for_me(snapshot.members, snapshot.neighbours, rtts_s, self._reservations.held, self._to_avoid())
        self._reservations.want([linked[node] for node in best[:RESERVATIONS]])

    def _blame(self, relay: bytes) -> None:
        """It did not help: others are asked first for a while."""
        self._blamed[relay] = monotonic() + BLAMED_S
        self._blamed.move_to_end(relay)
        if len(self._blamed) > BLAMED:
            self._blamed.popitem(last=False)

    def _to_avoid(self) -> set[bytes]:
        now = monotonic()
        return {relay for relay, until in self._blamed.items() if until > now}

    def _look_soon(self) -> None:
        self._look.set()


_NAMES: Mapping[Nat, NatKind] = {
    Nat.UNKNOWN: "unknown",
    Nat.NONE: "none",
    Nat.CONE: "cone",
    Nat.SYMMETRIC: "symmetric",
}
