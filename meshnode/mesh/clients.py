"""The part of a client-only node: it holds no state of the mesh but what its access nodes show it.

It keeps one to three access nodes, which send it Views (views.py), and dials the hosts of models when it needs them.
What that costs does not grow with the mesh. One that falls silent keeps its link, as it may be heard again, but counts
for nothing until then: others take its place, and a new link to it is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from meshnode.core.coordinates import distance_s
from meshnode.core.effects import Member, MembershipSnapshot
from meshnode.mesh.sessions import Peer, Sessions
from meshnode.mesh.views import ClientView, Seen, Shown
from meshnode.wire.address import Address
from meshnode.wire.messages import Subscribe, View
from meshnode.wire.registry import Role
from meshnode.wire.signed import Verify
from meshnode.wire.statements import Dynamic, Identity, Statement, Wish
from meshnode.wire.values import WireError

FEWEST_ACCESS_NODES = 2
"""Below that another one is looked for, so that the loss of one leaves no gap."""
MOST_ACCESS_NODES = 3
INTERVAL_S = 1


class ClientPart:
    """See `Part`."""

    def __init__(
        self,
        *,
        node: bytes,
        admit: Callable[[Statement], Role | None],
        verify: Verify,
        sessions: Sessions,
        returned: Callable[[bytes, Sequence[Address]], None],
        changed: Callable[[], None],
        counters: Counter[str],
    ) -> None:
        """`returned` is told of nodes that are known to be there again, and where."""
        self._node = node
        self._sessions = sessions
        self._returned = returned
        self._changed = changed
        self._counters = counters
        self._view = ClientView(admit=admit, verify=verify)
        self._access: dict[bytes, Peer] = {}
        self._silent: dict[bytes, int] = {}
        """Who is not heard, with the incarnation that fell silent: a later one has been heard by somebody since."""
        self._heard_at: dict[bytes, float] = {}
        self._since: dict[bytes, float] = {}
        self._seen: dict[bytes, Seen] = {}
        self._rtts_s: dict[bytes, float] = {}
        self._snapshot: MembershipSnapshot | None = None

    # --- sessions -------------------------------------------------------------------------------------------------

    def peer_up(self, peer: Peer) -> None:
        """Up to three members that are linked are access nodes; others are hosts of models."""
        self._silent.pop(peer.node, None)
        if peer.link.rtt_s is not None:
            self._rtts_s[peer.node] = peer.link.rtt_s
        self._subscribe()
        self._touch()

    def peer_down(self, peer: Peer) -> None:
        """What only this access node told is forgotten, unless it was the last: then the last View stays."""
        self._silent.pop(peer.node, None)
        self._rtts_s.pop(peer.node, None)
        if self._access.get(peer.node) is peer:
            del self._access[peer.node]
            if len(self._view.access_nodes) > 1:
                self._view.lost(peer.node)
                self._look()
            self._subscribe()
        self._touch()

    def _subscribe(self) -> None:
        for peer in self._sessions.peers:
            if peer.role is not Role.MEMBER or peer.node in self._access or peer.link.silent:
                continue
            if len(self._access) >= MOST_ACCESS_NODES and not self._drop_silent():
                return
            self._access[peer.node] = peer
            peer.link.watch(True)
            peer.send(Subscribe(INTERVAL_S))

    def _drop_silent(self) -> bool:
        """Give up an access node that is not heard for one that is. False when all are heard."""
        for node, peer in self._access.items():
            if node in self._silent:
                del self._access[node]
                peer.link.watch(False)
                return True
        return False

    def received(self, peer: Peer, message: Any) -> None:
        """Raises WireError for anything but a View, and for one with a forged statement."""
        if not isinstance(message, View):
            raise WireError(f"a {type(message).__name__} for a client")
        if peer.node not in self._access:
            self._counters["messages_unasked"] += 1
            return
        self._counters["views_received"] += 1
        now = monotonic()
        if self._view.received(peer.node, message):
            for gone in set(self._view.access_nodes) - set(self._access):
                self._view.lost(gone)
            self._look()
        for node, seen in self._seen.items():
            if peer.node in seen.access:
                self._heard_at[node] = now
        self._touch()

    def silent(self, node: bytes, silent: bool) -> None:
        """Nothing is heard of a peer any more, or something again."""
        if silent:
            seen = self._seen.get(node)
            self._silent[node] = 0 if seen is None else seen.incarnation
        else:
            self._silent.pop(node, None)
        self._subscribe()
        self._look()
        self._touch()

    def measured(self, node: bytes, rtt_s: float) -> None:
        """A round trip to a linked peer."""
        self._rtts_s[node] = rtt_s
        self._snapshot = None

    # --- what this node says: nothing -----------------------------------------------------------------------------

    def identify(self, identity: Identity) -> None:
        """A client is known only to those it talks to."""

    def publish(self, has: Dynamic) -> None:
        """A client has nothing to offer."""

    def publish_demand(self, wishes: Sequence[Wish]) -> None:
        """Members see the demand of a client in its requests."""

    async def leave(self) -> None:
        """Nobody has to be told."""

    async def close(self) -> None:
        """Nothing runs here."""

    # --- what is known ----------------------------------------------------------------------------------------------

    def members(self) -> MembershipSnapshot:
        """What the access nodes show."""
        if self._snapshot is None:
            members = {node: self._member(seen) for node, seen in self._seen.items() if node != self._node}
            self._snapshot = MembershipSnapshot(node=self._node, members=members)
        return self._snapshot

    def shown(self) -> list[Shown]:
        """A client shows the mesh to nobody."""
        return []

    def addresses(self, node: bytes) -> tuple[Address, ...]:
        """Where a node says that it can be reached."""
        seen = self._seen.get(node)
        return () if seen is None else seen.identity.addresses

    def wants_links(self) -> bool:
        """Whether there are fewer access nodes than there should be."""
        return len(self._access.keys() - self._silent.keys()) < FEWEST_ACCESS_NODES

    def needs(self, node: bytes) -> bool:
        """Access nodes are needed, hosts only as long as they are asked."""
        return node in self._access

    def candidates(self) -> Iterable[bytes]:
        """Members, the near ones first."""
        members = [member for member in self.members().members.values() if member.role is Role.MEMBER]
        return [member.node for member in sorted(members, key=lambda each: (_rtt_s(each), each.node))]

    def _member(self, seen: Seen) -> Member:
        peer = self._sessions.get(seen.node)
        linked = peer is not None and peer.link.alive
        return Member(
            node=seen.node,
            state="alive",
            incarnation=seen.incarnation,
            role=seen.role,
            identity=seen.identity,
            dynamic=seen.dynamic,
            demand=None,
            linked=linked,
            reachable=seen.incarnation > self._silent.get(seen.node, -1),
            rtt_s=self._rtts_s.get(seen.node),
            estimated_rtt_s=self._estimate_s(seen),
            since=self._since[seen.node],
            heard_at=self._heard_at[seen.node],
        )

    def _estimate_s(self, seen: Seen) -> float | None:
        """Through the nearest access node that tells of it: the way there, and from there by their coordinates."""
        there = seen.dynamic.coordinate if seen.dynamic else None
        found = []
        for access in seen.access:
            rtt_s, through = self._rtts_s.get(access), self._seen.get(access)
            here = through.dynamic.coordinate if through is not None and through.dynamic is not None else None
            if rtt_s is not None:
                found.append(rtt_s + (distance_s(here, there) if here is not None and there is not None else 0.0))
        return min(found, default=None)

    def _look(self) -> None:
        now = monotonic()
        before = self._seen
        # What a silent node said last is old; it is believed only where nobody says anything newer.
        heard = [node for node in self._view.access_nodes if node not in self._silent]
        self._seen = {seen.node: seen for seen in self._view.nodes(heard or self._view.access_nodes)}
        for node, seen in self._seen.items():
            if node not in before or seen.incarnation > before[node].incarnation:
                self._returned(node, seen.identity.addresses)
        self._since = {node: self._since.get(node, now) for node in self._seen}
        self._heard_at = {node: self._heard_at.get(node, now) for node in self._seen}

    def _touch(self) -> None:
        self._snapshot = None
        self._changed()


def _rtt_s(member: Member) -> float:
    known = member.rtt_s if member.rtt_s is not None else member.estimated_rtt_s
    return 1.0 if known is None else known
