"""A model of memberlist (SWIM with Lifeguard), for comparison: its timers and formulas, not its code.

Das, Gupta, Motivala, DSN 2002; Dadgar, Phillips, Currey, 2018 (arXiv:1707.00788). A node probes one random member each
interval, then asks three others to probe it, then falls back to a stream; who does not answer is suspected, and dead
when the suspicion was not refuted. Suspicion and its answers travel on gossip to a few random nodes per tick. Push and
pull of whole states is left out: it plays no part in finding the dead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tests.sim.world import World

HEAD_BYTES = 28
PROBE_BYTES, ACK_BYTES, RUMOUR_BYTES = 95, 25, 77
PACKET_BYTES = 1400


@dataclass(frozen=True)
class Settings:
    """The constants of memberlist's DefaultLANConfig and DefaultWANConfig. Times in seconds."""

    probe_s: float = 1.0
    timeout_s: float = 0.5
    indirect: int = 3
    retransmit: int = 4
    suspicion: int = 4
    longest: int = 6
    gossip_s: float = 0.2
    fanout: int = 3
    worst_health: int = 8


LAN = Settings()
WAN = Settings(probe_s=5.0, timeout_s=3.0, suspicion=6, gossip_s=0.5, fanout=4)


@dataclass
class Suspicion:
    """One node's doubt of another: since when, confirmed by whom, and which deadline is in force."""

    incarnation: int
    since: float
    by: set[int] = field(default_factory=set)
    deadline: float = 0.0


@dataclass
class Peer:
    """The state of one node: what it doubts or buries (all others are alive), and the rumours it still passes on."""

    up: bool = True
    incarnation: int = 0
    health: int = 0
    known: dict[int, int] = field(default_factory=dict)
    dead: dict[int, int] = field(default_factory=dict)
    doubts: dict[int, Suspicion] = field(default_factory=dict)
    rumours: dict[int, list[object]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    acked: set[int] = field(default_factory=set)
    sent_bytes: int = 0


Rumour = tuple[str, int, int, int]
"""What, about whom, of which incarnation, by whom."""


class Memberlist:
    """`count` nodes that know each other, in the network of a World."""

    def __init__(self, world: World, count: int, settings: Settings) -> None:
        self.world = world
        self.settings = settings
        self.nodes = [Peer() for _ in range(count)]
        self.dead_at: dict[int, dict[int, float]] = {}
        self.false_dead = 0
        self._number = 0
        world._places = [world._place() for _ in range(count)]
        decades = max(1.0, math.log10(count))
        self.shortest_s = settings.suspicion * decades * settings.probe_s
        self.confirmations = settings.suspicion - 2 if count > settings.suspicion else 0
        self.sendings = settings.retransmit * math.ceil(math.log10(count + 1))
        for index in range(count):
            world.at(world.now + world.chance.uniform(0, settings.probe_s), self._probe, index)
            world.at(world.now + world.chance.uniform(0, settings.gossip_s), self._gossip, index)

    # --- the network --------------------------------------------------------------------------------------------

    def _send(self, one: int, other: int, size: int, call: object, *arguments: object) -> None:
        sender, world = self.nodes[one], self.world
        if not sender.up:
            return
        rumours = self._take_rumours(one, PACKET_BYTES - size)
        sender.sent_bytes += HEAD_BYTES + size + RUMOUR_BYTES * len(rumours)
        if not world.loss.strikes((one, other), world.chance):
            world.at(world.now + world.delay_s(one, other), self._receive, other, rumours, call, arguments)

    def _receive(self, at: int, rumours: list[Rumour], call: object, arguments: tuple[object, ...]) -> None:
        if not self.nodes[at].up:
            return
        for rumour in rumours:
            self._hear(at, rumour)
        if callable(call):
            call(at, *arguments)

    def _take_rumours(self, at: int, room: int) -> list[Rumour]:
        taken: list[Rumour] = []
        rumours = self.nodes[at].rumours
        for about, entry in sorted(rumours.items(), key=lambda item: item[1][1]):  # type: ignore[arg-type, return-value]
            if (len(taken) + 1) * RUMOUR_BYTES > room:
                break
            taken.append(entry[0])  # type: ignore[arg-type]
            entry[1] += 1  # type: ignore[operator]
            if entry[1] >= self.sendings:  # type: ignore[operator]
                del rumours[about]
        return taken

    def _tell(self, at: int, rumour: Rumour) -> None:
        self.nodes[at].rumours[rumour[1]] = [rumour, 0]

    # --- probing ------------------------------------------------------------------------------------------------

    def _probe(self, at: int) -> None:
        node, world, settings = self.nodes[at], self.world, self.settings
        if not node.up:
            return
        if not node.order:
            node.order = world.chance.sample(range(len(self.nodes)), len(self.nodes))
        subject = node.order.pop()
        if subject == at or subject in node.dead:
            world.at(world.now + 1e-3, self._probe, at)
            return
        self._number += 1
        number, interval_s = self._number, settings.probe_s * (1 + node.health)
        self._send(at, subject, PROBE_BYTES, self._ping, at, number)
        world.at(world.now + settings.timeout_s * (1 + node.health), self._ask_others, at, subject, number, interval_s)
        world.at(world.now + interval_s, self._end, at, subject, number)

    def _ping(self, at: int, by: int, number: int) -> None:
        self._send(at, by, ACK_BYTES, self._acked, number)

    def _acked(self, at: int, number: int) -> None:
        self.nodes[at].acked.add(number)

    def _ask_others(self, at: int, subject: int, number: int, interval_s: float) -> None:
        node, world = self.nodes[at], self.world
        if not node.up or number in node.acked:
            return
        for helper in world.chance.sample(range(len(self.nodes)), min(len(self.nodes), self.settings.indirect)):
            if helper not in (at, subject) and helper not in node.dead:
                self._send(at, helper, PROBE_BYTES, self._help, at, subject, number)
        if self.nodes[subject].up:  # the stream: four packets must pass, and are sent again once a second
            works = (1 - world.loss.rate) ** 4
            if world.chance.random() < 1 - (1 - works) ** max(1, int(interval_s)):
                world.at(world.now + 4 * world.least_delay_s(at, subject), self._acked, at, number)

    def _help(self, at: int, by: int, subject: int, number: int) -> None:
        self._send(at, subject, PROBE_BYTES, self._ping_for, at, by, number)

    def _ping_for(self, at: int, helper: int, by: int, number: int) -> None:
        self._send(at, helper, ACK_BYTES, self._pass_on, by, number)

    def _pass_on(self, at: int, by: int, number: int) -> None:
        self._send(at, by, ACK_BYTES, self._acked, number)

    def _end(self, at: int, subject: int, number: int) -> None:
        node = self.nodes[at]
        if not node.up:
            return
        if number in node.acked:
            node.acked.discard(number)
            node.health = max(0, node.health - 1)
        else:
            node.health = min(self.settings.worst_health - 1, node.health + 1)
            self._hear(at, ("suspect", subject, node.known.get(subject, 0), at))
        self._probe(at)

    def _gossip(self, at: int) -> None:
        node, world = self.nodes[at], self.world
        if not node.up:
            return
        for other in world.chance.sample(range(len(self.nodes)), min(len(self.nodes), self.settings.fanout)):
            if node.rumours and other != at and other not in node.dead:
                self._send(at, other, 0, None)
        world.at(world.now + self.settings.gossip_s, self._gossip, at)

    # --- rumours ------------------------------------------------------------------------------------------------

    def _hear(self, at: int, rumour: Rumour) -> None:
        kind, subject, incarnation, by = rumour
        node = self.nodes[at]
        if subject == at:
            if kind != "alive" and incarnation >= node.incarnation:
                node.incarnation = incarnation + 1
                node.health = min(self.settings.worst_health - 1, node.health + 1)
                self._tell(at, ("alive", at, node.incarnation, at))
            return
        known = node.known.get(subject, 0)
        if kind == "alive" and incarnation > known:
            node.known[subject] = incarnation
            node.doubts.pop(subject, None)
            node.dead.pop(subject, None)
            self._tell(at, rumour)
        elif kind == "suspect" and incarnation >= known and subject not in node.dead:
            self._suspect(at, rumour)
        elif kind == "dead" and incarnation >= known and subject not in node.dead:
            self._bury(at, rumour)

    def _suspect(self, at: int, rumour: Rumour) -> None:
        _, subject, incarnation, by = rumour
        node = self.nodes[at]
        doubt = node.doubts.get(subject)
        if doubt is None:
            doubt = node.doubts[subject] = Suspicion(incarnation, self.world.now)
        elif by in doubt.by or len(doubt.by) > self.confirmations:
            return
        doubt.by.add(by)
        self._tell(at, rumour)
        doubt.deadline = doubt.since + self.timeout_s(len(doubt.by) - 1)
        self.world.at(max(self.world.now, doubt.deadline), self._lapse, at, subject, doubt, doubt.deadline)

    def timeout_s(self, confirmed: int) -> float:
        """How long a suspicion lasts: the longest time without confirmations, the shortest with enough of them."""
        if not self.confirmations:
            return self.shortest_s
        longest_s = self.settings.longest * self.shortest_s
        share = math.log(confirmed + 1) / math.log(self.confirmations + 1)
        return max(self.shortest_s, longest_s - share * (longest_s - self.shortest_s))

    def _lapse(self, at: int, subject: int, doubt: Suspicion, deadline: float) -> None:
        node = self.nodes[at]
        if node.up and node.doubts.get(subject) is doubt and doubt.deadline == deadline:
            self._bury(at, ("dead", subject, doubt.incarnation, at))

    def _bury(self, at: int, rumour: Rumour) -> None:
        _, subject, incarnation, _ = rumour
        node = self.nodes[at]
        node.dead[subject] = incarnation
        node.doubts.pop(subject, None)
        self._tell(at, rumour)
        if self.nodes[subject].up:
            self.false_dead += 1
        else:
            self.dead_at.setdefault(subject, {}).setdefault(at, self.world.now)

    # --- what is measured -----------------------------------------------------------------------------------------

    def crash(self, index: int) -> None:
        """A node is gone without a word."""
        self.nodes[index].up = False

    def known_to(self, share: float, subject: int, since: float) -> float:
        """Seconds until that share of the living nodes knew; infinite when they never did."""
        living = [index for index, node in enumerate(self.nodes) if node.up]
        times = sorted(self.dead_at.get(subject, {}).get(index, math.inf) for index in living)
        return times[max(0, math.ceil(share * len(living)) - 1)] - since
