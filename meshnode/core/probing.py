"""Watching neighbours: when to ask for a sign of life, how often, and when to say that one is missed.

Whatever arrives from a neighbour is a sign of life. An edge that was idle is probed by datagrams, with the timeout of
RFC 6298 (smoothed round trip plus four deviations). How many tries it takes follows from the measured loss p: the
least n with p^n <= 1e-4. The tries are spread over at least 0.9 s, so that a short standstill is no miss.

A miss is local: the router stops using the neighbour at once. What the mesh makes of it is for verdicts.py.

Rules of this file: pure; one deadline an edge; losses are counted only on edges that answer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from meshnode.core.chance import jittered
from meshnode.core.deadlines import Deadlines
from meshnode.core.effects import Outbox
from meshnode.core.randomness import Randomness
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.messages import Probe

ACCEPTED_RISK = 1e-4
LOSS_GAIN = 1 / 16
FIRST_LOSS = 0.05
REMEMBERED_PROBES = 16
SECOND_S = 0.2
MOST_U32 = (1 << 32) - 1


@dataclass(slots=True)
class Edge:
    """What is known of the way to one neighbour. Times are monotonic seconds."""

    heard_at: float
    linked: bool = True
    rtt_s: float | None = None
    smoothed_s: float | None = None
    deviation_s: float = 0.0
    tries: int = 0
    """Probes of the present series that are unanswered; 0 when none is under way."""
    hurried: bool = False
    """The present series began because another one misses the neighbour: fewer tries do."""
    missed_since: float | None = None
    sent: OrderedDict[int, tuple[float, int]] = field(default_factory=OrderedDict)
    """Probe number to (when, how many before it in its series)."""


class Probing:
    """The edges of this node. `missed` and `recovered` are what the machine reacts to."""

    def __init__(
        self,
        node: bytes,
        options: MembershipOptions,
        random: Randomness,
        out: Outbox,
        deadlines: Deadlines,
        is_monitor_of: Callable[[bytes], bool],
    ) -> None:
        self._is_monitor_of = is_monitor_of
        self._node = node
        self._options = options
        self._random = random
        self._out = out
        self._deadlines = deadlines
        self._number = 0
        self._loss = FIRST_LOSS
        self.edges: dict[bytes, Edge] = {}

    # --- edges --------------------------------------------------------------------------------------------------

    def watch(self, peer: bytes, rtt_s: float | None, now: float) -> None:
        """A neighbour, from now on. One that was missed stays so until it is heard."""
        edge = self.edges.get(peer)
        if edge is None:
            edge = self.edges[peer] = Edge(heard_at=now)
        edge.linked = True
        if rtt_s is not None:
            edge.rtt_s = rtt_s
            if edge.smoothed_s is None:
                edge.smoothed_s, edge.deviation_s = rtt_s, rtt_s / 2
        self._deadlines.set(("edge", peer), now + self._random.random() * self.period_s(peer))

    def forget(self, peer: bytes) -> None:
        """No neighbour any more."""
        self.edges.pop(peer, None)
        self._deadlines.cancel(("edge", peer))

    def period_s(self, peer: bytes) -> float:
        """How long an edge may be idle before it is probed: a second, longer where this node has very many edges.

        Those who declared this node as their monitor are probed every second however many there are: there are few.
        """
        period_s = len(self.edges) / self._options.edges_a_second
        return self._options.idle_s if period_s <= 1 or self._is_monitor_of(peer) else period_s

    def missing(self) -> int:
        """How many edges are missed."""
        return sum(edge.missed_since is not None for edge in self.edges.values())

    def is_isolated(self) -> bool:
        """More than half of the neighbours are missed: it may be this node that cannot be heard."""
        return self.missing() > max(1, len(self.edges) // 2)

    # --- signs of life ------------------------------------------------------------------------------------------

    def heard(self, peer: bytes, now: float) -> bool:
        """Something has arrived. True when the neighbour was missed until now."""
        edge = self.edges.get(peer)
        if edge is None:
            return False
        edge.heard_at = now
        recovered = edge.missed_since is not None
        if edge.tries or recovered:
            edge.tries = 0
            edge.missed_since = None
            edge.hurried = False
            self._deadlines.set(("edge", peer), now + self.period_s(peer))
        return recovered

    def acknowledged(self, peer: bytes, number: int, now: float) -> float | None:
        """A probe was answered. The round trip in seconds, None when this probe is not known (any more)."""
        edge = self.edges.get(peer)
        found = edge.sent.pop(number, None) if edge is not None else None
        if edge is None or found is None:
            return None
        sent_at, before = found
        for lost in [True] * min(before, self._options.most_tries) + [False]:
            self._loss += LOSS_GAIN * (lost - self._loss)
        edge.sent.clear()
        sample_s = now - sent_at
        if edge.smoothed_s is None:
            edge.smoothed_s, edge.deviation_s = sample_s, sample_s / 2
        else:
            edge.deviation_s += (abs(edge.smoothed_s - sample_s) - edge.deviation_s) / 4
            edge.smoothed_s += (sample_s - edge.smoothed_s) / 8
        edge.rtt_s = sample_s if edge.rtt_s is None else min(sample_s, edge.rtt_s + 0.1 * (sample_s - edge.rtt_s))
        return sample_s

    def measured(self, peer: bytes, rtt_s: float) -> None:
        """The transport measured a round trip, the least of some time."""
        edge = self.edges.get(peer)
        if edge is not None:
            edge.rtt_s = rtt_s

    # --- misses -------------------------------------------------------------------------------------------------

    def tries_needed(self, *, hurried: bool = False) -> int:
        """How many probes go unanswered before a neighbour is missed; half of that when another one misses it."""
        loss = min(0.9, max(1e-9, self._loss))
        needed = math.ceil(math.log(ACCEPTED_RISK) / math.log(loss) - 1e-9)
        tries = max(self._options.fewest_tries, min(self._options.most_tries, needed))
        return tries // 2 if hurried else tries

    def timeout_s(self, edge: Edge) -> float:
        """How long to wait for the answer to a probe before the next try."""
        spread_s = 0.0 if edge.hurried else self._options.least_miss_s / self.tries_needed()
        if edge.smoothed_s is None:
            return max(spread_s, self._options.first_rto_s)
        return max(spread_s, self._options.least_rto_s, edge.smoothed_s + 4 * edge.deviation_s)

    def due(self, peer: bytes, now: float) -> bool:
        """The deadline of an edge has come. True when the neighbour is missed from now on."""
        edge = self.edges.get(peer)
        if edge is None:
            return False
        if edge.missed_since is not None:
            if edge.linked:
                self._probe(peer, edge, now)
            self._deadlines.set(("edge", peer), now + jittered(self._random, self._options.missed_probe_s))
            return False
        # Both ends heard each other at the same time: the greater id waits a little, so that one probe serves both.
        period_s = self.period_s(peer) + (SECOND_S if self._node > peer else 0.0)
        if not edge.tries and edge.linked and now < edge.heard_at + period_s - 1e-6:
            self._deadlines.set(("edge", peer), edge.heard_at + period_s)
            return False
        if edge.tries >= self.tries_needed(hurried=edge.hurried):
            return self.miss(peer, now)
        self._probe(peer, edge, now)
        self._deadlines.set(("edge", peer), now + self.timeout_s(edge))
        return False

    def ask_now(self, peer: bytes, now: float) -> None:
        """Another one misses this neighbour: probe it at once, unless that is under way."""
        edge = self.edges.get(peer)
        if edge is None or edge.missed_since is not None or not edge.linked:
            return
        edge.hurried = True
        if edge.tries:
            return
        self._probe(peer, edge, now)
        self._deadlines.set(("edge", peer), now + self.timeout_s(edge))

    def miss(self, peer: bytes, now: float) -> bool:
        """Evidence from elsewhere, such as a closed link. True when the neighbour was not missed before."""
        edge = self.edges.get(peer)
        if edge is None or edge.missed_since is not None:
            return False
        edge.missed_since = now
        edge.tries = 0
        edge.hurried = False
        self._deadlines.set(("edge", peer), now + jittered(self._random, self._options.missed_probe_s))
        return True

    def unlinked(self, peer: bytes, now: float) -> bool:
        """The link of a neighbour is gone: it is missed at once, though that alone proves nothing."""
        edge = self.edges.get(peer)
        if edge is None:
            return False
        edge.linked = False
        edge.sent.clear()
        return self.miss(peer, now)

    def _probe(self, peer: bytes, edge: Edge, now: float) -> None:
        self._number = (self._number + 1) & MOST_U32
        edge.sent[self._number] = (now, edge.tries)
        if len(edge.sent) > REMEMBERED_PROBES:
            edge.sent.popitem(last=False)
        edge.tries += edge.missed_since is None
        self._out.send(peer, Probe(self._number), reliable=False)
