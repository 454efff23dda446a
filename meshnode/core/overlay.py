"""Whom this node is linked with, gossips with and watches.

Up to 48 members everybody is everybody's neighbour. Above that each has about eight: five at random, which keep the
mesh in one piece (a random graph of that degree is an expander), and three near ones, which carry most of the load.
As every node knows all members, candidates come from the table: the walks of HyParView (Leitao, Pereira, Rodrigues,
DSN 2007) are not needed, its active view and its offers and refusals of neighbourhood are.

Members that are unreachable or dead are dialled now and then, so that the halves of a mesh find each other again.

Rules of this file: pure; a neighbour is what Probing watches; one dial to a peer at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from meshnode.core.broadcast import Broadcast
from meshnode.core.chance import jittered, pick, sample
from meshnode.core.context import Context
from meshnode.core.coordinates import distance_s
from meshnode.core.effects import Dial
from meshnode.core.members import Record
from meshnode.core.probing import Edge, Probing
from meshnode.wire.address import Address
from meshnode.wire.messages import NeighbourReply, NeighbourRequest, Part, PeerEntry
from meshnode.wire.statements import Coordinate

TIDY_S = 1.0
QUIET_S = 5.0
ANSWER_S = 3.0
DIAL_ENDS_S = 20.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
PAUSES = 1024
BOOK = 256
REPLACED_AFTER_S = 2.0
REDIAL_SHARE = 8.0
LEAST_REDIAL_S = 3.0
NEARER = 0.7
CONSIDERED = 512


class Overlay:
    """The neighbours of this node and the links that it wants."""

    def __init__(self, context: Context, probing: Probing, broadcast: Broadcast, now: float) -> None:
        self._context = context
        self._probing = probing
        self._broadcast = broadcast
        self._full = True
        self._parted: set[bytes] = set()
        self._asked: dict[bytes, float] = {}
        self._near: set[bytes] = set()
        self._dialling: dict[bytes, float] = {}
        self._pauses: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._book: OrderedDict[bytes, tuple[Address, ...]] = OrderedDict()
        self._searched_at = now

    @property
    def neighbours(self) -> frozenset[bytes]:
        """Those that this node gossips with and watches."""
        return frozenset(self._probing.edges)

    @property
    def is_full_mesh(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self._full

    def healthy(self) -> dict[bytes, float | None]:
        """Linked neighbours that answer, and their round trips in seconds."""
        edges = self._probing.edges.items()
        return {peer: edge.rtt_s for peer, edge in edges if edge.linked and edge.missed_since is None}

    # --- links --------------------------------------------------------------------------------------------------

    def up(self, peer: bytes, rtt_s: float | None, now: float, *, was_gone: bool) -> None:
        """A member is linked."""
        self._dialling.pop(peer, None)
        self._pauses.pop(peer, None)
        self._parted.discard(peer)
        if self._full or peer in self._probing.edges:
            self._embrace(peer, rtt_s, now)
        elif peer in self._asked or was_gone:
            self._ask(peer, now)
        self._context.deadlines.set_earlier("overlay", now + 0.05)

    def down(self, peer: bytes, now: float) -> None:
        """The link is gone. A neighbour is dialled at once: that it does not come back would prove more."""
        self._broadcast.remove(peer)
        self._asked.pop(peer, None)
        record = self._context.members.get(peer)
        if peer in self._probing.edges and (record is None or record.is_gone):
            self._release(peer)
        elif peer in self._probing.edges:
            self._dial(peer, now)
        self._context.deadlines.set_earlier("overlay", now + 0.05)
        self._context.deadlines.set_earlier("redial", now + LEAST_REDIAL_S)

    def failed(self, peer: bytes, now: float) -> None:
        """A dial has failed; the pause before the next one doubles."""
        self._dialling.pop(peer, None)
        self._asked.pop(peer, None)
        failures = self._pauses.pop(peer, (0, 0.0))[0] + 1
        longest_s = LONGEST_PAUSE_S if peer not in self._probing.edges else LONGEST_PAUSE_S / 6
        pause_s = min(longest_s, FIRST_PAUSE_S * (1 << min(failures, 10)) / 2)
        self._pauses[peer] = (failures, now + jittered(self._context.random, pause_s))
        if len(self._pauses) > PAUSES:
            self._pauses.popitem(last=False)
        self._context.deadlines.set_earlier("overlay", now + TIDY_S)

    def avoid(self, peer: bytes, until: float) -> None:
        """Do not dial this peer before that time."""
        self._pauses[peer] = (1, until)

    def gone(self, peer: bytes, now: float) -> None:
        """A member is dead or has left: no neighbour any more."""
        self._release(peer)
        self._context.deadlines.set_earlier("overlay", now + 0.05)
        self._context.deadlines.set_earlier("redial", now + LEAST_REDIAL_S)

    def learn(self, entries: Iterable[PeerEntry], now: float) -> None:
        """Nodes that may be dialled when there is nobody else."""
        for entry in entries:
            if entry.node != self._context.node and entry.addresses:
                self._book.pop(entry.node, None)
                self._book[entry.node] = entry.addresses
                if len(self._book) > BOOK:
                    self._book.popitem(last=False)
        self._context.deadlines.set_earlier("overlay", now + 0.05)

    # --- neighbourhood ------------------------------------------------------------------------------------------

    def asked(self, peer: bytes, request: NeighbourRequest, rtt_s: float | None, now: float) -> None:
        """A linked peer wants to be a neighbour."""
        accepted = self._full or len(self._probing.edges) < self._context.options.most_neighbours
        if not accepted and request.urgent:
            self._part_from_one(now)
            accepted = True
        if accepted or peer in self._probing.edges:
            self._embrace(peer, rtt_s, now)
        self._context.out.send(peer, NeighbourReply(accepted or peer in self._probing.edges))

    def answered(self, peer: bytes, accepted: bool, rtt_s: float | None, now: float) -> None:
        """What became of a request. Answers that nobody waits for say nothing."""
        if self._asked.pop(peer, None) is None:
            return
        if accepted:
            self._embrace(peer, rtt_s, now)
            return
        if peer in self._probing.edges:
            self._release(peer)
        self._pauses[peer] = (1, now + QUIET_S)
        self._context.deadlines.set_earlier("overlay", now + 0.05)

    def parted(self, peer: bytes, now: float) -> None:
        """A neighbour wants to be none any more; the link stays."""
        if peer in self._probing.edges:
            self._release(peer)
            self._parted.add(peer)
            self._context.deadlines.set_earlier("overlay", now + 0.05)

    def _ask(self, peer: bytes, now: float) -> None:
        self._asked[peer] = now
        lonely = len(self._probing.edges) <= 1
        self._context.out.send(peer, NeighbourRequest(urgent=lonely, near=peer in self._near))

    def _embrace(self, peer: bytes, rtt_s: float | None, now: float) -> None:
        self._asked.pop(peer, None)
        self._parted.discard(peer)
        self._probing.watch(peer, rtt_s, now)
        self._broadcast.add(peer)

    def _release(self, peer: bytes) -> None:
        self._near.discard(peer)
        self._probing.forget(peer)
        self._broadcast.remove(peer)

    def _part_from_one(self, now: float) -> None:
        """One neighbour less: any but the near ones."""
        others = [peer for peer in self._probing.edges if peer not in self._near]
        if others:
            peer = pick(self._context.random, others)
            self._release(peer)
            self._parted.add(peer)
            if peer in self._context.linked:
                self._context.out.send(peer, Part())

    # --- tidying ------------------------------------------------------------------------------------------------

    def tidy(self, now: float, here: Coordinate) -> None:
        """Make the links and neighbours what they should be, a few steps at a time."""
        self._forget_what_took_too_long(now)
        self._choose_mode(now)
        busy = self._fill_full_mesh(now) if self._full else self._fill_partial_view(now, here)
        if not self._context.linked:
            self._dial_book(now)
            busy = True
        pause_s = TIDY_S if busy else QUIET_S
        self._context.deadlines.set_earlier("overlay", now + jittered(self._context.random, pause_s))

    def redial(self, now: float) -> bytes | None:
        """Dial one of those that are not there: they may only have been cut off.

        Returns one whose link outlived the verdict: it is to be told, as no new link will be the occasion.
        """
        absent = [record for record in self._context.members if record.state in ("unreachable", "dead")]
        if not absent:
            return None
        chosen = pick(self._context.random, absent).node
        self._dial(chosen, now)
        age_s = now - max(record.since for record in absent)
        pause_s = min(LONGEST_PAUSE_S, max(LEAST_REDIAL_S, age_s / REDIAL_SHARE))
        self._context.deadlines.set("redial", now + jittered(self._context.random, pause_s))
        return chosen if chosen in self._context.linked else None

    def _forget_what_took_too_long(self, now: float) -> None:
        self._dialling = {peer: at for peer, at in self._dialling.items() if now - at < DIAL_ENDS_S}
        for peer in [peer for peer, at in self._asked.items() if now - at > DIAL_ENDS_S]:
            del self._asked[peer]
        for peer, edge in list(self._probing.edges.items()):
            record = self._context.members.get(peer)
            if not edge.linked and (record is None or record.is_gone):
                self._release(peer)

    def _choose_mode(self, now: float) -> None:
        size = self._context.size
        if self._full and size > self._context.options.full_mesh:
            self._full = False
            wanted = self._context.options.random_neighbours + self._context.options.near_neighbours
            for peer in sample(self._context.random, list(self.healthy()), wanted):
                self._ask(peer, now)
        elif not self._full and size < self._context.options.back_to_full_mesh:
            self._full = True
            self._parted.clear()
            for peer in self._context.linked:
                self._embrace(peer, None, now)

    def _fill_full_mesh(self, now: float) -> bool:
        members, linked = self._context.members, self._context.linked
        for peer in linked - self._probing.edges.keys() - self._parted:
            back = members.get(peer)
            if back is None or not back.is_gone:
                self._embrace(peer, None, now)
        missing = [record for record in members if not record.is_gone and record.node not in linked]
        for record in sorted(missing, key=lambda each: each.node):
            peer = record.node
            # The smaller id dials; the other one waits, and dials if that did not help.
            if self._context.node < peer or now - record.since > self._context.options.patience_s:
                self._dial(peer, now)
        return bool(missing)

    def _fill_partial_view(self, now: float, here: Coordinate) -> bool:
        options = self._context.options
        wanted = options.random_neighbours + options.near_neighbours
        edges = self._probing.edges
        late = now - REPLACED_AFTER_S
        standing = [peer for peer, edge in edges.items() if edge.missed_since is None or edge.missed_since > late]
        lacking = wanted - len(standing) - sum(peer not in edges for peer in self._asked)
        if lacking > 0:
            near = len(self._near & set(standing))
            if near < options.near_neighbours and self._nearest(here, now, 1):
                lacking -= 1
            for peer in self._candidates(lacking, now):
                self._approach(peer, now)
        elif len(edges) > options.most_neighbours - 4:
            self._part_from_one(now)
            return True
        elif now - self._searched_at >= options.near_search_s:
            self._searched_at = now
            self._nearest(here, now, 1)
        return len(standing) < wanted

    def _candidates(self, count: int, now: float) -> list[bytes]:
        edges = self._probing.edges
        sampled = [record.node for record in self._context.members.sample(self._context.random, 4 * count + 8)]
        fit = [peer for peer in sampled if peer not in edges and peer not in self._asked and self._may(peer, now)]
        return fit[: max(0, count)]

    def _nearest(self, here: Coordinate, now: float, count: int) -> bool:
        """Approach members that seem nearer than the near neighbours. Whether there were any."""
        edges = self._probing.edges
        for peer in [peer for peer in self._near if peer not in edges and peer not in self._asked]:
            self._near.discard(peer)
        worst_s = max((_rtt_s(edges.get(peer)) for peer in self._near), default=0.0)
        if len(self._near) < self._context.options.near_neighbours:
            worst_s = float("inf")
        ranked: list[tuple[float, bytes]] = []
        for record in self._context.members.sample(self._context.random, CONSIDERED):
            peer, there = record.node, _coordinate(record)
            if there is not None and peer not in self._near and peer not in self._asked and self._may(peer, now):
                ranked.append((distance_s(here, there), peer))
        better = [peer for away_s, peer in sorted(ranked)[:count] if away_s < NEARER * worst_s]
        for peer in better:
            if len(self._near) >= self._context.options.near_neighbours:
                self._near.discard(max(self._near, key=lambda each: _rtt_s(edges.get(each))))
            self._near.add(peer)
            if peer not in edges:
                self._approach(peer, now)
        return bool(better)

    def _approach(self, peer: bytes, now: float) -> None:
        if peer in self._context.linked:
            self._ask(peer, now)
        elif self._dial(peer, now):
            self._asked[peer] = now

    # --- dialling -----------------------------------------------------------------------------------------------

    def _may(self, peer: bytes, now: float) -> bool:
        return self._pauses.get(peer, (0, 0.0))[1] <= now

    def _dial(self, peer: bytes, now: float) -> bool:
        record = self._context.members.get(peer)
        identity = record.identity if record is not None else None
        addresses = identity.addresses if identity is not None else self._book.get(peer, ())
        busy = len(self._dialling) >= self._context.options.dials_at_once
        if not addresses or busy or peer in self._dialling or peer in self._context.linked or not self._may(peer, now):
            return False
        self._dialling[peer] = now
        self._context.out.add(Dial(peer, addresses))
        return True

    def _dial_book(self, now: float) -> None:
        for peer in sample(self._context.random, list(self._book), 2):
            self._dial(peer, now)


def _coordinate(record: Record | None) -> Coordinate | None:
    dynamic = record.dynamic if record is not None and record.state == "alive" else None
    return None if dynamic is None else dynamic.coordinate


def _rtt_s(edge: Edge | None) -> float:
    return 0.0 if edge is None or edge.rtt_s is None else edge.rtt_s
