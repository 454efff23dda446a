"""The part of a member: it runs the membership machine over the sessions, and shows the mesh to clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from meshnode.core.effects import Member, MembershipSnapshot
from meshnode.core.events import (
    DialFailed,
    Learned,
    LeaveAsked,
    PeerDown,
    PeerSilent,
    PeerUp,
    Publish,
    Received,
    RttMeasured,
)
from meshnode.core.membership import Membership
from meshnode.errors import MeshnodeError
from meshnode.mesh.control import datagram_of, frame_of
from meshnode.mesh.dialling import AT_ONCE
from meshnode.mesh.driver import Driver
from meshnode.mesh.sessions import Peer, Sessions
from meshnode.mesh.vault import Vault
from meshnode.mesh.views import Shown, Subscribers, choose
from meshnode.telemetry import LOG
from meshnode.wire import messages
from meshnode.wire.address import Address
from meshnode.wire.messages import PeerEntry, Subscribe, View
from meshnode.wire.registry import Close, Role, StatementKind
from meshnode.wire.statements import Demand, Dynamic, Identity, Wish
from meshnode.wire.values import WireError

GOSSIP = frozenset(
    {
        messages.Statements,
        messages.Probe,
        messages.ProbeAck,
        messages.IHave,
        messages.Graft,
        messages.Prune,
        messages.Digest,
        messages.Bucket,
        messages.Want,
        messages.JoinOverlay,
        messages.ForwardJoin,
        messages.NeighbourRequest,
        messages.NeighbourReply,
        messages.Shuffle,
        messages.ShuffleReply,
        messages.Part,
    }
)
"""What the machine understands; everything else is for others, or for nobody."""
SHOW_S = 0.5
UNKNOWN_RTT_S = 1.0


class MemberPart:
    """See `Part`. `reach(node, addresses)` dials a peer until it is admitted, and raises MeshnodeError or OSError."""

    def __init__(
        self,
        machine: Membership,
        *,
        node: bytes,
        vault: Vault,
        sessions: Sessions,
        reach: Callable[[bytes, Sequence[Address]], Awaitable[Any]],
        changed: Callable[[], None],
        counters: Counter[str],
        known: tuple[PeerEntry, ...] = (),
    ) -> None:
        """`known` are members of an earlier life of this node."""
        self._machine = machine
        self._node = node
        self._vault = vault
        self._sessions = sessions
        self._reach = reach
        self._counters = counters
        self._driver = Driver(machine, self, changed=changed, counters=counters)
        self._dials: dict[bytes, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._framed: tuple[Any, bytes] = (None, b"")
        self._subscribers = Subscribers()
        self._showing: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._driver.handle(Learned(known))

    # --- sessions -------------------------------------------------------------------------------------------------

    def peer_up(self, peer: Peer) -> None:
        """Members take part in the gossip; a client waits to be asked what it wants."""
        if peer.role is Role.MEMBER:
            self._driver.handle(PeerUp(peer.node, peer.link.rtt_s))

    def peer_down(self, peer: Peer) -> None:
        """Its session is over."""
        self._subscribers.gone(peer.node)
        if peer.role is Role.MEMBER:
            self._driver.handle(PeerDown(peer.node))

    def received(self, peer: Peer, message: Any) -> None:
        """Raises WireError for what the peer's role may not send."""
        if peer.role is Role.MEMBER and type(message) in GOSSIP:
            self._driver.handle(Received(peer.node, message))
        elif peer.role is Role.CLIENT and isinstance(message, Subscribe):
            if not self._subscribers.subscribe(peer.node, message.interval_s):
                peer.link.close(Close.FLOOD)
            self._show()
        elif isinstance(message, View):
            self._counters["messages_unasked"] += 1
        elif peer.role is Role.CLIENT:
            raise WireError(f"a client sent a {type(message).__name__}", Close.ROLE_REFUSED)
        else:
            raise WireError(f"a {type(message).__name__} where it means nothing")

    def silent(self, node: bytes, silent: bool) -> None:
        """Nothing is heard of a peer any more, or something again."""
        if self._is_member(node):
            self._driver.handle(PeerSilent(node, silent))

    def measured(self, node: bytes, rtt_s: float) -> None:
        """A round trip to a linked peer."""
        if self._is_member(node):
            self._driver.handle(RttMeasured(node, rtt_s))

    def _is_member(self, node: bytes) -> bool:
        peer = self._sessions.get(node)
        return peer is not None and peer.role is Role.MEMBER

    # --- what this node says ----------------------------------------------------------------------------------------

    def identify(self, identity: Identity) -> None:
        """Who this node is, or what of that is new."""
        self._driver.handle(Publish(identity))

    def publish(self, has: Dynamic) -> None:
        """What this node has; the machine adds its monitors, its coordinate and its neighbours."""
        self._driver.handle(Publish(has))

    def publish_demand(self, wishes: Sequence[Wish]) -> None:
        """What is asked for at this node."""
        self._driver.handle(Publish(Demand(tuple(wishes))))

    async def leave(self) -> None:
        """Flood the signed farewell; returns when it is on its way, after half a second at most."""
        self._driver.handle(LeaveAsked())
        await self._driver.settled()
        await self._sessions.flush(0.5)

    async def close(self) -> None:
        """Stop the machine."""
        self._driver.close()
        if self._showing is not None:
            self._showing.cancel()
            self._showing = None
        tasks = list(self._dials.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what is known ----------------------------------------------------------------------------------------------

    def members(self) -> MembershipSnapshot:
        """The mesh as it is known here."""
        return self._driver.snapshot()

    def shown(self) -> list[Shown]:
        """Members that answer, this node among them, with their signed statements."""
        members = self.members().members.values()
        return [shown for member in members if (shown := self._shown(member)) is not None]

    def addresses(self, node: bytes) -> tuple[Address, ...]:
        """Where a node says that it can be reached."""
        member = self.members().members.get(node)
        return () if member is None or member.identity is None else member.identity.addresses

    def wants_links(self) -> bool:
        """Whether no member is linked; how many more it takes is for the machine to say."""
        return not any(peer.role is Role.MEMBER for peer in self._sessions.peers)

    def needs(self, node: bytes) -> bool:
        """Neighbours are needed, clients not; a link that was made for one request serves no gossip."""
        return node in self.members().neighbours

    def candidates(self) -> Iterable[bytes]:
        """Members that were alive when they were last heard of."""
        members = self.members().members.values()
        known = [member for member in members if member.node != self._node and member.state in ("alive", "unreachable")]
        return [member.node for member in sorted(known, key=lambda member: member.state)]

    # --- Outside: what the effects of the machine do ------------------------------------------------------------------

    def send(self, peer: bytes, message: Any, reliable: bool) -> None:
        """Send a message to an admitted peer; dropped when it is gone. What no datagram takes goes by the stream."""
        found = self._sessions.get(peer)
        if found is None:
            self._counters["messages_undeliverable"] += 1
            return
        try:
            if not reliable and found.link.send_datagram(datagram_of(message)):
                return
            if self._framed[0] is not message:  # one message often goes to every neighbour
                self._framed = (message, frame_of(message))
            found.control.send(self._framed[1])
        except WireError:
            LOG.exception("a %s of our own cannot be sent", type(message).__name__)

    def dial(self, peer: bytes, addresses: Sequence[Address]) -> None:
        """Try to reach a peer: PeerUp or DialFailed follows."""
        if peer not in self._dials:
            self._dials[peer] = self._loop.create_task(self._dial(peer, addresses))

    def close_peer(self, peer: bytes, code: int) -> None:
        """The peer broke the rules, or is not wanted any more."""
        found = self._sessions.get(peer)
        if found is not None:
            self._sessions.offend(found.link, Close(code))

    async def save_incarnation(self, value: int) -> None:
        """Write it to the disk."""
        await asyncio.to_thread(self._vault.save_incarnation, value)

    async def _dial(self, peer: bytes, addresses: Sequence[Address]) -> None:
        try:
            async with self._room:
                await self._reach(peer, addresses)
        except (MeshnodeError, OSError):
            self._driver.handle(DialFailed(peer))
        finally:
            del self._dials[peer]

    # --- clients ------------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        if self._showing is not None:
            self._showing.cancel()
            self._showing = None
        for peer, view in self._subscribers.due(lambda: choose(self.shown()), monotonic()):
            self.send(peer, view, True)
        if len(self._subscribers):
            self._showing = self._loop.call_later(SHOW_S, self._show)

    def _shown(self, member: Member) -> Shown | None:
        if member.state != "alive" or (member.node != self._node and not member.reachable):
            return None
        identity = self._machine.statement(member.node, StatementKind.IDENTITY)
        if identity is None:
            return None
        rtt_s = 0.0 if member.node == self._node else (member.rtt_s or member.estimated_rtt_s or UNKNOWN_RTT_S)
        return Shown(member.node, identity, self._machine.statement(member.node, StatementKind.DYNAMIC), rtt_s)
