"""One lookup: towards a key over disjoint paths, as S/Kademlia does it (Baumgart and Mies 2007).

The nearest known nodes are dealt out to three paths. What a node tells goes to its own path alone, and no node is asked
twice, so that whoever lies on one path does not harm the others. A path is at its end when it knows of nobody nearer
than what all of them have found.

What hostile answers can do is bounded:
- a lookup asks so many nodes and lasts so long, whatever it is told; a path has its share of that;
- of one network prefix a few are asked, and two at most count among the nearest: a crowd around the key is passed by;
- who told of several nodes that do not answer is not believed about the others;
- a node that answers slowly gives its turn to the next, and may still answer.

Pure: `now` is monotonic seconds; what is to be done comes from `step`.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from meshnode.core.dht_space import most, number, place, prefix, told_to
from meshnode.core.dht_table import ADDRESSES
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtPeer, Provider
from meshnode.wire.registry import LIMIT_DHT_PEERS

A_PREFIX_AMONG_THE_NEAREST = 2
A_PREFIX_ASKED = 6
LIES = 4
WAITING = 64
"""So many nodes of a path may wait to be asked; the farthest are forgotten."""
MOST_PROVIDERS = 64


@dataclass(frozen=True, slots=True)
class LookupLimits:
    """The cost of one lookup. A question is over after `question_s`; after `slow_s` the next one need not wait for it.

    `enough` nodes that know records end a search; `replicas` is how many nearest nodes a lookup is to find.
    """

    paths: int = 3
    at_once: int = 3
    questions: int = 60
    lookup_s: float = 5.0
    question_s: float = 1.5
    slow_s: float = 0.5
    replicas: int = 8
    enough: int = 4


@dataclass(frozen=True, slots=True)
class Answerer:
    """A node that answered: where, how far from the key it is, and the token that it gave."""

    node: bytes
    distance: int
    at: Address
    addresses: tuple[Address, ...]
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class Step:
    """A node to ask now."""

    node: bytes
    addresses: tuple[Address, ...]


@dataclass(slots=True, eq=False)
class _Candidate:
    distance: int
    node: bytes
    addresses: tuple[Address, ...]
    informer: bytes

    def __lt__(self, other: _Candidate) -> bool:
        return self.distance < other.distance

    @property
    def networks(self) -> dict[str, Address]:
        """The prefixes of the addresses that it is said to have, each with one of these."""
        return {prefix(address): address for address in self.addresses}


@dataclass(slots=True)
class _Path:
    """`waiting` is sorted by distance; `known` are all nodes that this path has ever heard of."""

    waiting: list[_Candidate] = field(default_factory=list)
    known: set[bytes] = field(default_factory=set)
    lies: Counter[bytes] = field(default_factory=Counter)
    truths: Counter[bytes] = field(default_factory=Counter)
    asked: int = 0

    def hear(self, candidate: _Candidate) -> None:
        self.known.add(candidate.node)
        if candidate.addresses:
            insort(self.waiting, candidate)
            del self.waiting[WAITING:]

    def distrust(self, informer: bytes) -> None:
        """Somebody did not answer of whom `informer` told."""
        self.lies[informer] += 1
        if informer and self.lies[informer] >= LIES and self.lies[informer] > self.truths[informer]:
            self.waiting = [each for each in self.waiting if each.informer != informer]


@dataclass(frozen=True, slots=True)
class _Question:
    candidate: _Candidate
    path: int
    asked_at: float


class Lookup:
    """A lookup of `key`. With `records` it ends as soon as enough nodes have told of providers."""

    def __init__(
        self,
        key: bytes,
        seeds: Sequence[DhtPeer],
        *,
        own: bytes,
        records: bool,
        now: float,
        limits: LookupLimits = LookupLimits(),
    ) -> None:
        self.key = key
        self.records = records
        self.asked = 0
        self.is_done = False
        self._place = number(key)
        self._limits = limits
        self._ends_at = now + limits.lookup_s
        self._open: dict[bytes, _Question] = {}
        self._answered: list[Answerer] = []
        self._names: set[bytes] = set()
        self._asking: Counter[str] = Counter()
        """Of each prefix so many have answered from there, or are being asked there."""
        self._nearest: list[Answerer] | None = None
        self._found: dict[bytes, Provider] = {}
        self._told: dict[bytes, set[Address]] = {}
        count = max(1, min(limits.paths, len(seeds)))
        self._paths = [_Path(known={own}) for _ in range(count)]
        usable = [seed for seed in seeds[:LIMIT_DHT_PEERS] if seed.node != own]
        for at, candidate in enumerate(sorted(self._candidate(seed.node, seed.addresses) for seed in usable)):
            self._paths[at % count].hear(candidate)

    # --- what to do -----------------------------------------------------------------------------------------------

    def step(self, now: float) -> list[Step]:
        """Whom to ask now. Sets `is_done` when nothing more will come."""
        if self.is_done:
            return []
        if now >= self._ends_at or (self.records and self._is_enough()):
            self.is_done = True
            return []
        for node, question in list(self._open.items()):
            if now >= question.asked_at + self._limits.question_s:
                self.failed(node)
        steps: list[Step] = []
        for at, path in enumerate(self._paths):
            quick = sum(
                question.path == at and now < question.asked_at + self._limits.slow_s
                for question in self._open.values()
            )
            while quick < self._limits.at_once and (candidate := self._next(path)) is not None:
                self._open[candidate.node] = _Question(candidate, at, now)
                self._asking.update(candidate.networks.keys())
                path.asked += 1
                self.asked += 1
                quick += 1
                steps.append(Step(candidate.node, candidate.addresses))
        self.is_done = not self._open
        return steps

    def next_after(self, now: float) -> float:
        """When to call `step` again even if nothing happens."""
        found = self._ends_at
        for question in self._open.values():
            for late_s in (self._limits.slow_s, self._limits.question_s):
                if now < question.asked_at + late_s < found:
                    found = question.asked_at + late_s
        return found

    # --- what came of it ------------------------------------------------------------------------------------------

    def answered(
        self, node: bytes, at: Address, peers: Iterable[DhtPeer], providers: Iterable[Provider], token: bytes
    ) -> int:
        """A node that was asked answered, from an address that it has thereby proven. Records have been judged.

        Of so many nodes it told addresses that nobody may be told of from there: these are not dialled.
        """
        question = self._close(node)
        if question is None:
            return 0
        path = self._paths[question.path]
        path.truths[question.candidate.informer] += 1
        self._names.add(node)
        self._asking[prefix(at)] += 1
        addresses = tuple(dict.fromkeys((at, *question.candidate.addresses)))
        answerer = Answerer(node, question.candidate.distance, at, addresses, token)
        insort(self._answered, answerer, key=lambda each: each.distance)
        self._nearest = None
        for provider in providers:
            self._keep(provider, at)
        refused = 0
        for peer in peers:
            if peer.node not in path.known:
                addresses = told_to(peer.addresses, at)
                refused += addresses != peer.addresses
                path.hear(self._candidate(peer.node, addresses[:ADDRESSES], node))
        return refused

    def failed(self, node: bytes) -> None:
        """A node that was asked did not answer, or not as it must."""
        question = self._close(node)
        if question is not None:
            self._paths[question.path].distrust(question.candidate.informer)

    def knows(self, provider: Provider) -> None:
        """This very node keeps a record."""
        self._keep(provider, None)

    # --- the result -----------------------------------------------------------------------------------------------

    @property
    def nearest(self) -> list[Answerer]:
        """Those that answered, nearest first, of one network two at most: where records belong."""
        if self._nearest is None:
            self._nearest, networks = [], Counter[str]()
            for each in self._answered:
                network = prefix(each.at)
                if networks[network] < most(each.at, A_PREFIX_AMONG_THE_NEAREST):
                    networks[network] += 1
                    self._nearest.append(each)
                    if len(self._nearest) == self._limits.replicas:
                        break
        return self._nearest

    @property
    def providers(self) -> list[Provider]:
        """Who provides what is looked for: first those of whom most nodes of different networks told."""
        ranked = sorted(self._found.values(), key=lambda each: (-self._voices(each.node), -each.expires_at))
        return ranked[:MOST_PROVIDERS]

    # --- inside ---------------------------------------------------------------------------------------------------

    def _candidate(self, node: bytes, addresses: tuple[Address, ...], informer: bytes = b"") -> _Candidate:
        return _Candidate(place(node) ^ self._place, node, addresses, informer)

    def _next(self, path: _Path) -> _Candidate | None:
        """The nearest node of a path that may be asked now; it is taken out."""
        limits = self._limits
        if self.asked >= limits.questions or path.asked >= limits.questions // len(self._paths):
            return None
        nearest = self.nearest
        bound = nearest[-1].distance if len(nearest) >= limits.replicas else None
        for at, candidate in enumerate(path.waiting):
            if bound is not None and candidate.distance > bound:
                return None
            if candidate.node in self._names:
                continue
            if candidate.node not in self._open and self._has_room(candidate):
                del path.waiting[at]
                return candidate
        return None

    def _has_room(self, candidate: _Candidate) -> bool:
        """Whether its networks are not in a crowd: of what has been proven, and of what is being asked."""
        for network, address in candidate.networks.items():
            if self._asking[network] >= most(address, A_PREFIX_ASKED):
                return False
            nearer = 0
            for each in self._answered:
                if each.distance >= candidate.distance:
                    break
                nearer += prefix(each.at) == network
            if nearer >= most(address, A_PREFIX_AMONG_THE_NEAREST):
                return False
        return True

    def _close(self, node: bytes) -> _Question | None:
        question = self._open.pop(node, None)
        if question is not None:
            self._asking.subtract(question.candidate.networks.keys())
        return question

    def _keep(self, provider: Provider, at: Address | None) -> None:
        known = self._found.get(provider.node)
        if known is None and len(self._found) >= 4 * MOST_PROVIDERS:
            return
        if known is None or known.expires_at < provider.expires_at:
            self._found[provider.node] = provider
        told = self._told.setdefault(provider.node, set())
        if at is not None:
            told.add(at)

    def _voices(self, node: bytes) -> int:
        return _voices(self._told[node])

    def _is_enough(self) -> bool:
        tellers = {at for places in self._told.values() for at in places}
        return _voices(tellers) >= self._limits.enough


def _voices(places: Iterable[Address]) -> int:
    """How many nodes have told something, if those of one network count twice at most."""
    networks: Counter[str] = Counter()
    for at in places:
        networks[prefix(at)] = min(networks[prefix(at)] + 1, most(at, A_PREFIX_AMONG_THE_NEAREST))
    return networks.total()
