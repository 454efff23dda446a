"""What a mesh lacks: models that are asked for and served by nobody, or by too few; and who should serve them.

Every node computes this from what all of them gossip, so nodes with the same view name the same nodes in the same
order, and no message is needed to agree. Nothing here depends on who computes it, on the clock or on chance.

A model is *unserved* when it is asked for and nobody hosts it or is about to. It is *hot* when requests wait in front
of full hosts, or when it gets HOT_PER_MINUTE requests and its hosts are used HOT_TIMES as much as those of the least
used model and at least to HOT_USE. *Use* is the part of a model's tokens per second that its requests take.

Whoever serves it should have room for it, and then: serve nothing so far; say that it has the weights on its disk (the
others may get them from peers, or have them and not say so); be near to those who ask. Equal ones go by the number of
the node. Distances follow from coordinates, which all nodes see alike, and count in steps, so that noise does not
change the order.

Rules of this file: pure; what peers say is taken as it comes, and bounded where it was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from meshnode.core.coordinates import distance_s
from meshnode.core.routing import ANSWER_TOKENS, UNKNOWN_TOKENS_PER_S
from meshnode.wire.statements import Coordinate

WANTED_PER_MINUTE = 0.1
"""What is asked for less often is not wanted: one request fades to this in three minutes."""
HOT_PER_MINUTE = 10.0
HOT_TIMES = 3.0
HOT_USE = 0.5
"""Below half of what its hosts can do, one more of them would help nobody."""
QUEUE_SHARE = 0.5
"""Requests that wait, in shares of the slots, from which a full model counts as queueing."""
ROOM_SHARE, ROOM_BYTES = 1.15, 256 << 20
"""What a model takes beyond its file, roughly: cache and buffers. The exact plan is made by whoever acts."""
NEAR_S = 0.05
"""The step in which distances count."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model at a node. `ready` is False while it is loaded or started again. Speeds in tokens per second."""

    name: str
    names: tuple[str, ...] = ()
    content_hash: str = ""
    size_bytes: int = 0
    ready: bool = True
    slots: int = 1
    busy: int = 0
    waiting: int = 0
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class NodeView:
    """A living member, this node too, as all nodes see it.

    `asks` are the requests per minute of its callers by model as they are now, `weights` the content hashes on its
    disk that others may have, `claims` those of which it hosts a split or is about to, `room_bytes` the free memory.
    """

    node: str
    hosted: tuple[Hosted, ...] = ()
    asks: Mapping[str, float] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    room_bytes: int = 0
    place: Coordinate | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """A model as a node knows it, from its disk or from hosts that it once saw."""

    name: str
    content_hash: str
    size_bytes: int
    names: tuple[str, ...] = ()

    def called(self, name: str) -> bool:
        """Whether callers mean this one by that name."""
        return name == self.name or name in self.names or name.casefold() == self.name.casefold()


Kind = Literal["unserved", "hot"]


@dataclass(frozen=True, slots=True)
class Need:
    """A model of which the mesh needs another host. `why` is for people."""

    model: Known
    kind: Kind
    per_minute: float
    why: str


class Survey:
    """One look at the mesh: who hosts the known models, and how often each is asked for. Others cannot be judged.

    A host counts for a model when it has the same weights or goes by a name of it: callers would be answered.
    """

    def __init__(self, view: Sequence[NodeView], known: Iterable[Known]) -> None:
        self.view = view
        self.models = sorted(known, key=lambda model: (model.name, model.content_hash))
        self._by_name: dict[str, str] = {}
        self._by_hash: dict[str, str] = {}
        for model in self.models:
            for name in (model.name, *model.names):
                self._by_name.setdefault(name.casefold(), model.name)
            if model.content_hash:
                self._by_hash.setdefault(model.content_hash, model.name)
        self._hosts: dict[str, list[tuple[str, Hosted]]] = {model.name: [] for model in self.models}
        self._rates: dict[str, float] = dict.fromkeys(self._hosts, 0.0)
        self._claimed: set[str] = set()
        for node in view:
            for host in node.hosted:
                if (found := self.model_of(host)) is not None:
                    self._hosts[found].append((node.node, host))
            for asked, rate in node.asks.items():
                if (meant := self._by_name.get(asked.casefold())) is not None:
                    self._rates[meant] += rate
            self._claimed |= {self._by_hash[claim] for claim in node.claims if claim in self._by_hash}

    def model_of(self, host: Hosted) -> str | None:
        """Which of the known models it is."""
        return self._by_hash.get(host.content_hash) or self._by_name.get(host.name.casefold())

    def needs(self) -> list[Need]:
        """What is lacking, the unserved before the hot, of each the most wanted first."""
        use = {name: self._use(name) for name, hosts in self._hosts.items() if hosts}
        found = []
        for model in self.models:
            hosts = [host for _, host in self._hosts[model.name]]
            per_minute = self._rates[model.name]
            if model.name in self._claimed or not all(host.ready for host in hosts):
                continue
            if not hosts:
                if per_minute >= WANTED_PER_MINUTE:
                    why = f"{per_minute:.1f} requests a minute, and no node serves it"
                    found.append(Need(model, "unserved", per_minute, why))
            elif why := _heat(hosts, per_minute, use, model.name):
                found.append(Need(model, "hot", per_minute, why))
        return sorted(found, key=lambda need: (need.kind != "unserved", -need.per_minute, need.model.name))

    def per_minute(self, name: str) -> float:
        """How often a model is asked for, over all nodes."""
        return self._rates.get(name, 0.0)

    def hosts(self, name: str) -> list[tuple[str, Hosted]]:
        """The nodes that have a model, also those where it is still loaded."""
        return self._hosts.get(name, [])

    def is_shared(self, model: Known) -> bool:
        """Some node gives its weights to others."""
        return any(model.content_hash in node.weights for node in self.view)

    def use_without(self, name: str, node: str) -> float | None:
        """How much the hosts of a model would be used if that node were none; None when no ready one was left."""
        if not any(host.ready and other != node for other, host in self.hosts(name)):
            return None
        return self._use(name, without=node)

    def _use(self, name: str, without: str = "") -> float:
        ready = [host for node, host in self._hosts[name] if host.ready and node != without]
        tokens_per_s = sum(max(1, host.slots) * (host.tokens_per_s or UNKNOWN_TOKENS_PER_S) for host in ready)
        return self._rates[name] / 60 * ANSWER_TOKENS / tokens_per_s if tokens_per_s else 0.0


def _heat(hosts: Sequence[Hosted], per_minute: float, use: Mapping[str, float], name: str) -> str:
    slots = sum(host.slots for host in hosts)
    waiting = sum(host.waiting for host in hosts)
    if waiting >= max(1.0, QUEUE_SHARE * slots) and sum(host.busy for host in hosts) >= slots:
        return f"{waiting} requests wait for {slots} slots"
    others = min((used for other, used in use.items() if other != name), default=0.0)
    if per_minute >= HOT_PER_MINUTE and use[name] >= max(HOT_USE, HOT_TIMES * others):
        return f"{per_minute:.0f} requests a minute use {100 * use[name]:.0f} % of what its hosts can do"
    return ""


def ranking(need: Need, survey: Survey, *, busy: bool = False) -> list[str]:
    """The nodes that could serve it, the best first: those that serve nothing yet, or with `busy` the others.

    Where no free node has room for it alone, room does not count: it may be split, which only a plan can tell.
    """
    model = need.model
    needed_bytes = round(model.size_bytes * ROOM_SHARE) + ROOM_BYTES
    hosting = {node for node, _ in survey.hosts(model.name)}
    able = [node for node in survey.view if bool(node.hosted or node.claims) == busy and node.node not in hosting]
    roomy = able if busy else [node for node in able if node.room_bytes >= needed_bytes] or able
    askers = [
        (node.place, rate)
        for node in survey.view
        if node.place is not None and (rate := sum(rate for name, rate in node.asks.items() if model.called(name))) > 0
    ]

    def merit(node: NodeView) -> tuple[bool, int, str]:
        return (model.content_hash not in node.weights, _distance_steps(node.place, askers), node.node)

    return [node.node for node in sorted(roomy, key=merit)]


def _distance_steps(place: Coordinate | None, askers: Sequence[tuple[Coordinate, float]]) -> int:
    """The mean round trip to those who ask, in steps of NEAR_S; 0 where nothing is known."""
    if place is None or not askers:
        return 0
    total = sum(rate for _, rate in askers)
    return int(sum(distance_s(place, other) * rate for other, rate in askers) / total / NEAR_S)
