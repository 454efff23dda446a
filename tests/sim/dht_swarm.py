"""A swarm of hash table machines on a virtual clock: nodes come and go, offer and look for models. Same seed, same run.

A question costs the round trips of a handshake where there is no link, and a timeout where nobody is. Messages are
handed over as values; with `wire` they are encoded and decoded on their way. Signatures are stand-ins: eight bytes that
only the signer of the name could know, so that a forgery is told from the real thing at no cost.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2s
from typing import Any

from meshnode.core.dht import DhtMachine, DhtOptions
from meshnode.core.dht_events import (
    Answer,
    Answered,
    Ask,
    Asked,
    Event,
    Failed,
    Found,
    Here,
    Offer,
    Search,
    Seen,
    TimerFired,
)
from meshnode.core.effects import Counted, SetTimer
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFind, DhtFound, DhtPeer, DhtStore, DhtStored, Provider, model_key, node_key
from meshnode.wire.messages import decode_message, encode_message, message_id

MESH = b"m" * 32
EPOCH_S = 1_800_000_000.0
HANDSHAKE_TRIPS = 3
LINK_S = 300.0
BOOTSTRAP = 8


def signature(node: bytes, message: bytes) -> bytes:
    """The stand-in for a signature of 64 bytes."""
    return blake2s(node + b"secret" + message, digest_size=8).digest() * 8


def is_signed(node: bytes, made: bytes, message: bytes) -> bool:
    """Whether the stand-in is that of the node."""
    return made == signature(node, message)


@dataclass(eq=False)
class Node:
    """A machine in the swarm. `answer` replaces what it says to others: a rogue. `links` are until when."""

    name: bytes
    address: Address
    place: float
    machine: DhtMachine
    serves: bool = True
    up: bool = True
    timer_at: float | None = None
    counted: Counter[str] = field(default_factory=Counter)
    links: dict[bytes, float] = field(default_factory=dict)
    answer: Callable[[Node, Asked], Any] | None = None
    offers: tuple[bytes, ...] = ()


@dataclass
class Outcome:
    """What became of a search, and how many nodes were asked for it.

    `possible`: when it began, a node was there that offers the content. `found`: when it ended, one of those that it
    names was there.
    """

    by: Node
    content: bytes
    possible: bool
    found: bool = False
    asked: int = 0
    providers: tuple[Provider, ...] | None = None
    began_at: float = 0.0
    ended_at: float = 0.0


class Swarm:
    """The clock and the nodes."""

    def __init__(self, seed: int, *, options: DhtOptions | None = None, wire: bool = False) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.options = options or DhtOptions()
        self.wire = wire
        self.nodes: dict[bytes, Node] = {}
        self.alive: list[Node] = []
        self.events = 0
        self.questions = 0
        self.offered: Counter[bytes] = Counter()
        self._count = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    # --- nodes ----------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        """Wall time."""
        return EPOCH_S + self.now

    def random_address(self) -> Address:
        """One of some forty thousand networks: a few have several nodes."""
        draw = self.chance.randrange
        return Address(f"{11 + draw(80)}.{draw(256)}.{draw(2)}.{1 + draw(250)}", 1024 + draw(60_000))

    def add(
        self,
        *,
        name: bytes = b"",
        address: Address | None = None,
        serves: bool = True,
        know: Sequence[Node] | None = None,
    ) -> Node:
        """A new node, which knows some of those that are there."""
        name = name or self.chance.randbytes(32)
        machine = DhtMachine(
            node=name,
            mesh=MESH,
            serves=serves,
            sign=partial(signature, name),
            verify=is_signed,
            clock=self.clock,
            random=random.Random(self.chance.random()),
            secret=self.chance.randbytes(32),
            now=self.now,
            options=self.options,
        )
        node = Node(name, address or self.random_address(), self.chance.random(), machine, serves)
        known = know if know is not None else self.chance.sample(self.alive, min(BOOTSTRAP, len(self.alive)))
        self.nodes[name] = node
        self.alive.append(node)
        self.give(node, Here((node.address,)))
        self.give(node, Seen(tuple(DhtPeer(each.name, (each.address,)) for each in known if each.serves)))
        return node

    def leave(self, node: Node) -> None:
        """Gone without a word."""
        node.up = False
        at = self.alive.index(node)
        self.alive[at] = self.alive[-1]
        self.alive.pop()
        del self.nodes[node.name]
        self.offered.subtract(node.offers)

    def offer(self, node: Node, *contents: bytes) -> None:
        """A node serves models with these content hashes from now on."""
        self.offered.subtract(node.offers)
        self.offered.update(contents)
        node.offers = contents
        self.give(node, Offer(tuple((content, 0, 0) for content in contents)))

    def search(self, node: Node, content: bytes) -> Outcome:
        """Look for a model; what comes of it is filled in as the clock runs."""
        outcome = Outcome(node, content, self.offered[content] > 0, began_at=self.now)
        self.give(node, Search(_Number(outcome), model_key(content)))
        return outcome

    # --- the clock ------------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something at a time."""
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, what))

    def run(self, for_s: float) -> None:
        """Let the clock run."""
        end = self.now + for_s
        while self._queue and self._queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = end

    def give(self, node: Node, event: Event) -> None:
        """An event for a machine, and what follows."""
        self.events += 1
        for effect in node.machine.handle(event, self.now):
            match effect:
                case Counted(what):
                    node.counted[what] += 1
                case Ask():
                    self._ask(node, effect)
                case SetTimer(at=at):
                    node.timer_at = at
                    self.at(at, partial(self._fire, node, at))
                case Found(number, providers, asked):
                    assert isinstance(number, _Number)
                    outcome = number.outcome
                    outcome.providers, outcome.ended_at, outcome.asked = providers, self.now, asked
                    outcome.found = any(each.node in self.nodes for each in providers)
                case Answer():
                    raise AssertionError("an answer to nobody")

    def _fire(self, node: Node, at: float) -> None:
        if node.up and node.timer_at == at:
            node.timer_at = None
            self.give(node, TimerFired())

    # --- questions ------------------------------------------------------------------------------------------------

    def _ask(self, node: Node, ask: Ask) -> None:
        self.questions += 1
        peer = self.nodes.get(ask.peer)
        linked = peer is not None and node.links.get(ask.peer, 0.0) > self.now
        if peer is None or not (linked or peer.address in ask.addresses):
            return  # the timeout of the machine tells
        one_way_s = self.one_way_s(node, peer)
        trips = 0 if linked else HANDSHAKE_TRIPS
        node.links[ask.peer] = peer.links[node.name] = self.now + LINK_S
        self.at(self.now + (1 + 2 * trips) * one_way_s, partial(self._arrive, node, peer, ask, one_way_s))

    def one_way_s(self, one: Node, other: Node) -> float:
        """Round trips of 20 to 200 ms."""
        return 0.01 + 0.08 * abs(one.place - other.place) + 0.01 * self.chance.random()

    def _arrive(self, node: Node, peer: Node, ask: Ask, one_way_s: float) -> None:
        if not peer.up or not node.up:
            return
        message = self._over_the_wire(ask.message)
        asked = Asked(0, node.name, node.address, (), node.serves, message)
        if peer.answer is not None:
            answer = peer.answer(peer, asked)
        else:
            answer = None
            for effect in peer.machine.handle(asked, self.now):
                match effect:
                    case Counted(what):
                        peer.counted[what] += 1
                    case Answer(message=answer):
                        pass
                    case _:
                        raise AssertionError("a question makes nobody ask")
        back = self.now + one_way_s
        if answer is None:
            self.at(back, partial(self._back, node, Failed(ask.number)))
        else:
            self.at(back, partial(self._back, node, Answered(ask.number, peer.address, self._over_the_wire(answer))))

    def _back(self, node: Node, event: Answered | Failed) -> None:
        if node.up:
            self.give(node, event)

    def _over_the_wire(self, message: Any) -> Any:
        return decode_message(message_id(message), encode_message(message)) if self.wire else message


@dataclass(frozen=True, eq=False)
class _Number:
    """Names a search by what becomes of it."""

    outcome: Outcome


# --- what happens in it ---------------------------------------------------------------------------------------------


def settled(swarm: Swarm, count: int) -> None:
    """A swarm of so many nodes that has been up for a while: everybody's table is as full as it would have become."""
    nodes = [swarm.add(know=()) for _ in range(count)]
    ranked = sorted(nodes, key=lambda node: node.machine.table.key)
    for at, node in enumerate(ranked):
        near = ranked[max(0, at - 24) : at] + ranked[at + 1 : at + 25]
        for other in [*near, *swarm.chance.sample(nodes, min(count, 240))]:
            heard_at = swarm.now - swarm.chance.random() * swarm.options.silent_s
            node.machine.table.heard(other.name, other.address, (other.address,), heard_at)
        # The first look around itself belongs to a node that joins.
        node.machine._refreshes = swarm.options.first_refreshes + 1
        node.machine._refresh_at = swarm.now + swarm.chance.random() * swarm.options.refresh_s
        swarm.give(node, Here((node.address,)))


def churn(swarm: Swarm, per_hour: float, for_s: float, *, spared: Callable[[Node], bool] = lambda node: False) -> None:
    """Nodes leave at random moments (Poisson), that share of them in an hour; for each one another comes."""
    rate = per_hour * len(swarm.alive) / 3600
    at = swarm.now

    def change() -> None:
        node = swarm.chance.choice(swarm.alive)
        if not spared(node):
            swarm.leave(node)
            swarm.add()

    while (at := at + swarm.chance.expovariate(rate)) < swarm.now + for_s:
        swarm.at(at, change)


def searches(swarm: Swarm, contents: Sequence[bytes], count: int, for_s: float) -> list[Outcome]:
    """So many searches at random moments by random nodes for random contents. Filled in as the clock runs."""
    outcomes: list[Outcome] = []

    def look() -> None:
        outcomes.append(swarm.search(swarm.chance.choice(swarm.alive), swarm.chance.choice(contents)))

    for _ in range(count):
        swarm.at(swarm.now + swarm.chance.random() * for_s, look)
    return outcomes


def found(outcomes: Iterable[Outcome]) -> float:
    """Of the searches that could succeed and whose node stayed, the share that did."""
    counted = [outcome for outcome in outcomes if outcome.possible and outcome.providers is not None]
    return sum(outcome.found for outcome in counted) / len(counted)


def near(swarm: Swarm, key: bytes, count: int, tries: int) -> list[bytes]:
    """Names of nodes around a key: the nearest of `tries` times as many."""
    place = int.from_bytes(key, "big")
    names = (swarm.chance.randbytes(32) for _ in range(count * tries))
    return heapq.nsmallest(count, names, key=lambda name: int.from_bytes(node_key(name), "big") ^ place)


def crowd(swarm: Swarm, key: bytes, count: int, *, network: str = "203.1.113", tries: int = 200) -> list[Node]:
    """Nodes of one /24 that stand around a key, nearest first. Each asks those who are nearest, and so offers itself
    for their tables; it knows its friends alone, and nobody who provides anything, and pretends to store.
    """
    rogues: list[Node] = []

    def answer(rogue: Node, asked: Asked) -> DhtFound | DhtStored:
        if isinstance(asked.message, DhtStore):
            return DhtStored(len(asked.message.records))
        friends = [DhtPeer(each.name, (each.address,)) for each in rogues[:21] if each is not rogue]
        return DhtFound(tuple(friends[:20]), (), b"t" * 16)

    honest = sorted(swarm.alive, key=lambda node: node.machine.table.key ^ int.from_bytes(key, "big"))
    for number, name in enumerate(near(swarm, key, count, tries)):
        rogue = swarm.add(name=name, address=Address(f"{network}.{number % 254 + 1}", 2000 + number), know=())
        rogue.answer = answer
        rogues.append(rogue)
        for node in [*honest[:20], *swarm.chance.sample(honest, 10)]:
            node.machine.handle(Asked(0, name, rogue.address, (), True, DhtFind(key)), swarm.now)
    return rogues
