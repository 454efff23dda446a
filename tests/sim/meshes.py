"""Meshes to begin with, and what the gates measure in them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

from meshnode.core.budget import PeerBudget
from meshnode.core.events import Publish
from meshnode.core.members import Record, Shared
from meshnode.wire.registry import Role, StatementKind
from meshnode.wire.statements import (
    SHORT_ID_BYTES,
    Coordinate,
    Device,
    Dynamic,
    Identity,
    Offer,
    Statement,
    make,
)
from tests.sim.world import Node, World, signature

CERTIFICATE = b"c" * 190


def identity(world: World, index: int) -> Identity:
    return Identity(CERTIFICATE, (world.address(index),), f"node-{index}", "meshnode/0")


def load(busy: int = 0) -> Dynamic:
    """What a node with one GPU and two models says."""
    offers = [
        Offer(name, bytes([at]) * 16, 1, 32768, 4, busy, 0, 7, 412, 9000, 4 << 30)
        for at, name in enumerate(("qwen3-8b-q4_k_m", "nomic-embed"))
    ]
    return Dynamic((Device("NVIDIA RTX 4090", 24 << 30, 9 << 30),), tuple(offers))


def grown(world: World, count: int, *, for_s: float = 20.0) -> None:
    """A mesh in which everybody joined in the usual way, through the first node."""
    for index in range(count):
        node = world.add()
        world.give(node, Publish(identity(world, index)))
        world.give(node, Publish(load()))
        if index:
            world.at(world.now + 0.05 * index, world.link, index, 0)
    world.run(0.05 * count + for_s)


def settled(world: World, count: int, *, degree: int = 8) -> None:
    """A mesh that has been there for long, all tables full, the overlay in place: joining is not simulated."""
    statements: dict[int, list[Statement]] = {}
    full = count <= world.options.full_mesh
    places = [world._place() for _ in range(count)]
    ways = [set(range(count)) - {at} for at in range(count)] if full else _overlay(world, places, degree)
    records = {}
    for index in range(count):
        monitors = tuple(sorted(world.name(other)[:SHORT_ID_BYTES] for other in ways[index]))[: world.options.monitors]
        here = places[index]
        coordinate = Coordinate((round(here[0] * 1e6), round(here[1] * 1e6), 0, 0), round(here[2] * 1e6), 200)
        dynamic = load()
        dynamic = Dynamic(dynamic.devices, dynamic.models, monitors, coordinate)
        statements[index] = [
            make(body, origin=world.name(index), incarnation=1, number=number, sign=_signer(world.name(index)))
            for number, body in enumerate((identity(world, index), dynamic), 1)
        ]
        name = world.name(index)
        records[name] = Record(name, Role.MEMBER, "alive", 1, world.now - 600, world.now, tuple(statements[index]))
    shared = Shared(records)
    for _ in range(count):
        world.add(shared=shared)
    world._places = places
    for index in range(count):
        machine = world.nodes[index].machine
        machine._own._number = 2
        machine._own.statements = {each.kind: each for each in statements[index]}
        machine._own.changed_at = {each.kind: world.now - 60 * world.chance.random() for each in statements[index]}
        machine._own._monitors = list(statements[index][1].body.monitors)
        machine._own._wanted[statements[index][1].kind] = load()
        machine._own._bucket._tokens = world.chance.random()
        machine._own.hurry(world.now + 30 * world.chance.random())
        machine._overlay._full = full
        machine._sync._joined = True
        machine._probing._loss = 1 - (1 - world.loss.rate) ** 2
    for one in range(count):
        for other in ways[one]:
            if one < other:
                for here, there in ((one, other), (other, one)):
                    world.nodes[here].machine._overlay._asked[world.name(there)] = world.now
                _link_quietly(world, one, other)
    tree = _tree(ways)
    for index in range(count):
        broadcast = world.nodes[index].machine._broadcast
        for other in ways[index]:
            peer = world.name(other)
            broadcast.remove(peer)
            if other in tree[index]:
                broadcast.eager[peer] = 0
            else:
                broadcast.lazy[peer] = None


def _tree(ways: list[set[int]]) -> list[set[int]]:
    """The eager links of a mesh that has gossiped for long: a spanning tree, by breadth first search from a node."""
    tree: list[set[int]] = [set() for _ in ways]
    seen, queue = {0}, deque([0])
    while queue:
        here = queue.popleft()
        for there in sorted(ways[here] - seen):
            seen.add(there)
            tree[here].add(there)
            tree[there].add(here)
            queue.append(there)
    return tree


def _link_quietly(world: World, one: int, other: int) -> None:
    """As if the link had been there for long: nothing is said about it."""
    for here, there in ((one, other), (other, one)):
        node = world.nodes[here]
        node.links.add(there)
        machine, peer, rtt_s = node.machine, world.name(there), 2 * world.least_delay_s(one, other) + 0.004
        machine._context.linked.add(peer)
        machine._budgets[peer] = PeerBudget(world.now)
        machine._budgets[peer].resize(len(world.nodes))
        machine._overlay._embrace(peer, rtt_s, world.now)
        edge = machine._probing.edges[peer]
        edge.smoothed_s, edge.deviation_s = rtt_s, 0.005
        machine._set_timer()
        for effect in machine._context.out.take():
            world._carry_out(node, effect)


def _overlay(world: World, places: list[tuple[float, float, float]], degree: int) -> list[set[int]]:
    """Five at random and three near, both directions."""
    count = len(places)
    ways: list[set[int]] = [set() for _ in range(count)]
    for one in range(count):
        sampled = world.chance.sample(range(count), min(count, 60))
        near = sorted(sampled, key=lambda other: math.dist(places[one][:2], places[other][:2]))
        chosen = [other for other in near if other != one][:1] + world.chance.sample(range(count), degree)
        for other in chosen:
            if other != one and len(ways[one]) < degree and len(ways[other]) < degree + 2:
                ways[one].add(other)
                ways[other].add(one)
    return ways


def _signer(name: bytes) -> Callable[[bytes], bytes]:
    return lambda message: signature(name, message)


def publish_always(world: World, least_s: float = 1.0, most_s: float = 3.0) -> None:
    """From now on every node has something new to say every few seconds, more than it may say."""

    def say(index: int, turn: int) -> None:
        world.give(world.nodes[index], Publish(load(turn % 5)))
        world.at(world.now + world.chance.uniform(least_s, most_s), say, index, turn + 1)

    for index in range(len(world.nodes)):
        world.at(world.now + world.chance.uniform(0, most_s), say, index, 1)


def stall_some(world: World, share: float = 0.1, least_s: float = 2.0, most_s: float = 4.0) -> list[int]:
    """From now on some nodes stand still again and again. Returns which."""
    stalling = world.chance.sample(range(len(world.nodes)), max(1, int(share * len(world.nodes))))

    def stall(index: int) -> None:
        world.stand_still(index, world.chance.uniform(least_s, most_s))
        world.at(world.now + world.chance.uniform(8, 20), stall, index)

    for index in stalling:
        world.at(world.now + world.chance.uniform(0, 10), stall, index)
    return stalling


def traffic(world: World, for_s: float) -> float:
    """Bytes that a node sends in a second, on average."""
    before = sum(node.sent_bytes for node in world.nodes)
    world.run(for_s)
    return (sum(node.sent_bytes for node in world.nodes) - before) / len(world.nodes) / for_s


def crashes(world: World, watch: Watch, subjects: Iterable[int], *, apart_s: float) -> dict[str, list[float | None]]:
    """Crash nodes one after the other. What comes back are seconds: until neighbours avoid it, and until 99 % know."""
    found: dict[str, list[float | None]] = {"avoided": [], "unreachable": [], "dead": []}
    crashed: list[tuple[int, float, set[int]]] = []
    for subject in subjects:
        users = {index for index in world.nodes[subject].links if world.nodes[index].up}
        crashed.append((subject, world.now, users))
        world.crash(subject)
        world.run(apart_s)
    world.run(max(0.0, 10.0 - apart_s))
    for subject, at, users in crashed:
        found["unreachable"].append(watch.known_to(0.99, subject, ("unreachable", "dead"), at))
        found["dead"].append(watch.known_to(0.99, subject, ("dead",), at))
        found["avoided"] += [watch.avoided.get((index, subject), math.inf) - at for index in users]
    return found


def updates(world: World, origins: Iterable[int]) -> list[float]:
    """Publish at some nodes. Seconds from the signing of each statement until 99 % of all nodes have it."""
    found = []
    for origin in origins:
        world.nodes[origin].machine._own._bucket.credit(1)
        world.give(world.nodes[origin], Publish(load(7)))
        name, was = world.name(origin), _number(world, origin, origin)
        while _number(world, origin, origin) == was:
            world.run(0.02)
        begun = world.now
        number = _number(world, origin, origin)
        others = [node.index for node in world.nodes if node.up and node.name != name]
        while sum(_number(world, index, origin) >= number for index in others) < 0.99 * len(others):
            assert world.now - begun < 60, f"seed {world.seed}: an update of {origin} does not get through"
            world.run(0.05)
        found.append(world.now - begun)
    return found


def _number(world: World, at: int, of: int) -> int:
    statement = world.nodes[at].machine.statement(world.name(of), StatementKind.DYNAMIC)
    return 0 if statement is None else statement.number


class Watch:
    """When each machine came to know what of whom."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.first: dict[tuple[bytes, str], dict[int, float]] = {}
        self.false_dead: list[tuple[int, int, float]] = []
        self.avoided: dict[tuple[int, int], float] = {}
        world.watch = self._note

    def _note(self, node: Node, peer: bytes, state: str, at: float) -> None:
        subject = self.world.by_name[peer]
        if (node.index, subject.index) not in self.avoided and not subject.up:
            edge = node.machine._probing.edges.get(peer)
            if state != "alive" or (edge is not None and edge.missed_since is not None):
                self.avoided[node.index, subject.index] = at
        if state == "alive":
            return
        self.first.setdefault((peer, state), {}).setdefault(node.index, at)
        if state == "dead" and subject.up:
            self.false_dead.append((node.index, subject.index, at))

    def known_to(self, share: float, subject: int, states: Iterable[str], since: float) -> float | None:
        """Seconds until that share of the living nodes knew that a node is in one of the states; None: never."""
        living = [node.index for node in self.world.nodes if node.up]
        name = self.world.name(subject)
        times = []
        for index in living:
            found = [self.first.get((name, state), {}).get(index) for state in states]
            times.append(min((at for at in found if at is not None), default=math.inf))
        at = sorted(times)[max(0, math.ceil(share * len(living)) - 1)]
        return None if at == math.inf else at - since


def percentile(values: Iterable[float | None], share: float) -> float:
    """The smallest value that `share` of them does not exceed; what never happened counts as infinite."""
    known = sorted(math.inf if value is None else value for value in values)
    return known[max(0, math.ceil(share * len(known)) - 1)]


def agree(world: World, among: Iterable[int]) -> bool:
    """Whether these nodes think of each other that they are alive."""
    indexes = list(among)
    names = {world.name(index) for index in indexes}
    for index in indexes:
        members = world.nodes[index].machine._context.members
        alive = {record.node for record in members if record.state == "alive"}
        if not names - {world.name(index)} <= alive:
            return False
    return True
