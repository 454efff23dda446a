"""A mesh on a virtual clock in which callers ask for models and standby nodes follow: same seed, same run.

What a node knows of another is as old as the gossip: a change is published at most every two seconds and arrives some
seconds later, and not at all over a way that is cut; who has not been heard of for DEAD_S is gone. Requests come at
random moments (Poisson) at gateways, which pick a ready host that they know of. Loading and draining take time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from meshnode.core.demand import DemandMeter
from meshnode.core.needs import Hosted, Known, NodeView
from meshnode.core.rebalancing import Decision, Holding, Own, Promote, Rebalancer, StepDown

DECIDE_S = 3.0
PUBLISH_S = 2.0
REFRESH_S = 4.0
DEAD_S = 15.0
LOAD_S = (4.0, 12.0)
DRAIN_S = (0.0, 5.0)
ANSWER_S = 6.0
SLOTS = 4
GIB = 1 << 30


@dataclass
class Serving:
    """A model at a node. `ends` are the moments at which the answers under way will be whole."""

    model: Known
    unasked: bool
    since: float
    ready: bool = False
    used_at: float = 0.0
    ends: list[float] = field(default_factory=list)

    def load(self, now: float) -> tuple[int, int]:
        """Busy slots and waiting requests."""
        self.ends = [end for end in self.ends if end > now]
        return min(SLOTS, len(self.ends)), max(0, len(self.ends) - SLOTS)


@dataclass
class Node:
    """A node: its own state, what it last heard of the others and when, and what it decides with."""

    name: str
    disk: tuple[Known, ...]
    rebalancer: Rebalancer | None
    room_bytes: int
    refuses: frozenset[str] = frozenset()
    meter: DemandMeter = field(default_factory=DemandMeter)
    serving: dict[str, Serving] = field(default_factory=dict)
    heard: dict[str, tuple[float, NodeView]] = field(default_factory=dict)
    up: bool = True
    changing: bool = False
    told: NodeView = field(default_factory=lambda: NodeView(""))
    told_at: float = 0.0


@dataclass(frozen=True)
class Change:
    """What a node did, and when."""

    at: float
    node: str
    decision: Decision


class World:
    """The clock, the nodes and what came of it: `changes` of nodes, `lost` requests, `answered` ones."""

    def __init__(self, seed: int, *, delay_s: tuple[float, float] = (0.2, 3.0)) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.delay_s = delay_s
        self.nodes: dict[str, Node] = {}
        self.changes: list[Change] = []
        self.lost: list[tuple[float, str]] = []
        self.answered = 0
        self.cut: Callable[[str, str], bool] = lambda one, other: False
        self.rate: Callable[[str, str, float], float] = lambda gateway, model, now: 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    # --- building -------------------------------------------------------------------------------------------

    def add(
        self,
        disk: Sequence[Known] = (),
        *,
        standby: bool = True,
        room_bytes: int = 64 * GIB,
        serves: str = "",
        refuses: Sequence[str] = (),
        asks: Sequence[str] = (),
    ) -> Node:
        """A node that starts now. It serves a model that a person asked for, is on standby, or neither."""
        name = self.chance.randbytes(4).hex()
        rebalancer = Rebalancer(random.Random(self.chance.random())) if standby else None
        node = self.nodes[name] = Node(name, tuple(disk), rebalancer, room_bytes, frozenset(refuses))
        if serves:
            model = next(known for known in disk if known.name == serves)
            node.serving[serves] = Serving(model, unasked=False, since=self.now, ready=True, used_at=self.now)
        self._each(self.chance.uniform(0, PUBLISH_S), PUBLISH_S, lambda: self._publish(node))
        if rebalancer is not None:
            self._each(10 + self.chance.uniform(0, DECIDE_S), DECIDE_S, lambda: self._decide(node))
        for model_name in asks:
            self._ask_later(node, model_name)
        return node

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, what))

    def _each(self, first_s: float, every_s: float, what: Callable[[], None]) -> None:
        def again() -> None:
            what()
            self.at(self.now + every_s * self.chance.uniform(0.9, 1.1), again)

        self.at(self.now + first_s, again)

    def run(self, for_s: float) -> None:
        end = self.now + for_s
        while self._queue and self._queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = end

    def crash(self, node: Node) -> None:
        node.up = False
        node.serving.clear()

    # --- gossip ---------------------------------------------------------------------------------------------

    def _own_view(self, node: Node) -> NodeView:
        hosted = []
        for name, serving in node.serving.items():
            busy, waiting = serving.load(self.now)
            known = serving.model
            hosted.append(
                Hosted(
                    name, (), known.content_hash, known.size_bytes, serving.ready, SLOTS, busy, waiting, 256 / ANSWER_S
                )
            )
        taken = sum(serving.model.size_bytes for serving in node.serving.values())
        asks = {wish.model: wish.rate / 1000 for wish in node.meter.wishes(self.now)}
        weights = frozenset(known.content_hash for known in node.disk)
        return NodeView(node.name, tuple(hosted), asks, weights, room_bytes=node.room_bytes - taken)

    def _publish(self, node: Node) -> None:
        if not node.up:
            return
        view, at = self._own_view(node), self.now
        if (
            view.hosted == node.told.hosted
            and view.asks.keys() == node.told.asks.keys()
            and at < node.told_at + REFRESH_S
        ):
            return
        node.told, node.told_at = view, at
        for other in self.nodes.values():
            if other is not node and other.up and not self.cut(node.name, other.name):
                self.at(at + self.chance.uniform(*self.delay_s), lambda other=other: self._hear(other, at, view))

    def _hear(self, node: Node, at: float, view: NodeView) -> None:
        if view.node not in node.heard or node.heard[view.node][0] < at:
            node.heard[view.node] = at, view

    def view_of(self, node: Node) -> list[NodeView]:
        """The mesh as a node sees it now; rates fade as they do at every reader."""
        found = [self._own_view(node)]
        for at, view in node.heard.values():
            if self.now - at < DEAD_S:
                fade = 2.0 ** -((self.now - at) / 60)
                asks = {name: rate * fade for name, rate in view.asks.items()}
                found.append(NodeView(view.node, view.hosted, asks, view.weights, room_bytes=view.room_bytes))
        return found

    # --- requests -------------------------------------------------------------------------------------------

    def _ask_later(self, node: Node, model: str) -> None:
        def ask() -> None:
            per_minute = self.rate(node.name, model, self.now)
            if node.up and per_minute and self.chance.random() < per_minute / 60:
                self._ask(node, model)
            self.at(self.now + self.chance.uniform(0.5, 1.5), ask)

        self.at(self.now + self.chance.random(), ask)

    def _ask(self, node: Node, model: str) -> None:
        node.meter.record(model, self.now)
        known = [view.node for view in self.view_of(node) for host in view.hosted if host.name == model and host.ready]
        hosts = [
            serving
            for name in known
            if self.nodes[name].up and (serving := self.nodes[name].serving.get(model)) and serving.ready
        ]
        if not hosts:
            self.lost.append((self.now, model))
            return
        one, other = self.chance.choice(hosts), self.chance.choice(hosts)
        serving = min(one, other, key=lambda host: len(host.ends))
        _, waiting = serving.load(self.now)
        starts_at = self.now if len(serving.ends) < SLOTS else sorted(serving.ends)[len(serving.ends) - SLOTS]
        serving.ends.append(starts_at + ANSWER_S * self.chance.uniform(0.5, 1.5))
        serving.used_at = max(serving.ends)
        self.answered += 1

    # --- decisions ------------------------------------------------------------------------------------------

    def _decide(self, node: Node) -> None:
        if not node.up or node.changing or node.rebalancer is None:
            return
        holdings = [
            Holding(name, serving.unasked, serving.ready, self.now - serving.used_at, self.now - serving.since)
            for name, serving in node.serving.items()
        ]
        own = Own(node.name, node.disk, holdings, lambda model, without: self._fits(node, model, without))
        decision = node.rebalancer.decide(self.view_of(node), own, self.now)
        match decision:
            case Promote():
                self.changes.append(Change(self.now, node.name, decision))
                self._load(node, decision.model)
            case StepDown():
                self.changes.append(Change(self.now, node.name, decision))
                self._unload(node, decision.name)

    def _fits(self, node: Node, model: Known, without: str) -> bool:
        taken = sum(serving.model.size_bytes for name, serving in node.serving.items() if name != without)
        return model.size_bytes + taken <= node.room_bytes

    def _load(self, node: Node, model: Known) -> None:
        serving = node.serving[model.name] = Serving(model, unasked=True, since=self.now, used_at=self.now)

        def done() -> None:
            if node.serving.get(model.name) is serving:
                if model.name in node.refuses:
                    del node.serving[model.name]
                    assert node.rebalancer is not None
                    node.rebalancer.failed(model.name, self.now)
                else:
                    serving.ready = True

        self.at(self.now + self.chance.uniform(*LOAD_S), done)

    def _unload(self, node: Node, name: str) -> None:
        del node.serving[name]
        node.changing = True

        def done() -> None:
            node.changing = False

        self.at(self.now + self.chance.uniform(*DRAIN_S), done)

    # --- what came of it ------------------------------------------------------------------------------------

    def hosts(self, model: str) -> list[str]:
        """The nodes that answer for a model now."""
        return sorted(
            node.name for node in self.nodes.values() if node.up and (at := node.serving.get(model)) and at.ready
        )

    def promotions(self, model: str = "") -> list[Change]:
        """Who took a model on, and when."""
        return [
            change
            for change in self.changes
            if isinstance(change.decision, Promote) and model in ("", change.decision.model.name)
        ]
