import heapq
import itertools
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.core.effects import CancelTimer, SetTimer
from meshnode.core.election import (
    NO_PLAN,
    Advance,
    ClaimsChanged,
    ClaimsSeen,
    ElectionEffect,
    ElectionEvent,
    ElectionOptions,
    Elections,
    GiveUp,
    MayHost,
    MustStop,
    Want,
    rank,
)
from meshnode.core.events import TimerFired
from meshnode.wire.registry import LIMIT_CLAIMS
from meshnode.wire.schema import MAX_U32
from meshnode.wire.statements import ClaimState, PlanClaim

MODEL, OTHER_MODEL = b"m" * 16, b"o" * 16
OPTIONS = ElectionOptions()


def name(number: int) -> bytes:
    return bytes([number]) * 32


def claim(term: int, model: bytes = MODEL, state: int = ClaimState.SERVING) -> PlanClaim:
    return PlanClaim(b"p" * 16, model, term, state)


class Alone:
    """One machine and its timers."""

    def __init__(self, number: int = 5) -> None:
        self.machine = Elections(name(number), random=random.Random(number))
        self.now = 100.0
        self.timers: dict[object, float] = {}

    def give(self, event: ElectionEvent) -> list[ElectionEffect]:
        effects = self.machine.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, SetTimer):
                self.timers[effect.key] = effect.at
            elif isinstance(effect, CancelTimer):
                self.timers.pop(effect.key, None)
        return [effect for effect in effects if not isinstance(effect, SetTimer | CancelTimer)]

    def see(self, **claims: PlanClaim) -> list[ElectionEffect]:
        """Others are named by n and their number."""
        return self.give(ClaimsSeen({name(int(key[1:])): (said,) for key, said in claims.items()}))

    def wait(self, seconds: float) -> list[ElectionEffect]:
        effects, end = [], self.now + seconds
        while self.timers and min(self.timers.values()) <= end:
            key = min(self.timers, key=lambda key: (self.timers[key], str(key)))
            self.now = self.timers.pop(key)
            effects += self.give(TimerFired(key))
        self.now = end
        return effects


def test_who_is_alone_hosts_after_a_wait() -> None:
    alone = Alone()
    assert alone.give(Want(MODEL)) == [ClaimsChanged()]
    assert alone.machine.claims() == (PlanClaim(NO_PLAN, MODEL, 1, ClaimState.CLAIMING),)
    assert alone.wait(1.9) == []
    assert alone.wait(0.2) == [MayHost(MODEL, 1)]
    assert alone.machine.is_host(MODEL) and alone.machine.host(MODEL) == name(5)
    assert alone.give(Want(MODEL)) == [], "it is the host already"


def test_a_live_claim_keeps_others_from_claiming() -> None:
    alone = Alone()
    alone.see(n1=claim(7))
    assert alone.give(Want(MODEL)) == [] and alone.machine.claims() == ()
    assert alone.wait(60) == [] and alone.machine.host(MODEL) == name(1)
    assert alone.see() == []
    assert alone.wait(OPTIONS.pause_s) == [ClaimsChanged()]
    assert alone.machine.claims()[0].term == 8, "above all that were ever seen"
    assert alone.wait(OPTIONS.settle_s) == [MayHost(MODEL, 8)]


@pytest.mark.parametrize(
    ("other", "term", "yields"), [(1, 2, True), (9, 2, True), (1, 1, True), (9, 1, False), (9, 0, False)]
)
def test_the_greater_term_and_then_the_smaller_id(other: int, term: int, yields: bool) -> None:
    alone = Alone()
    alone.give(Want(MODEL))
    said = alone.see(**{f"n{other}": claim(term)})
    assert said == ([ClaimsChanged()] if yields else [])
    assert bool(alone.machine.claims()) is not yields
    hosted = alone.wait(OPTIONS.settle_s + OPTIONS.patience_s)
    assert hosted == ([] if yields else [MayHost(MODEL, 1)])


def test_a_worse_claim_is_given_time_to_go() -> None:
    alone = Alone()
    alone.give(Want(MODEL))
    alone.see(n9=claim(1))
    assert alone.wait(OPTIONS.settle_s + 1) == []
    alone.see()
    assert alone.wait(OPTIONS.settle_s / 4) == [MayHost(MODEL, 1)]


def test_a_host_that_loses_stops_and_comes_back_when_the_other_goes() -> None:
    alone = Alone()
    alone.give(Want(MODEL))
    alone.wait(2)
    assert alone.see(n1=claim(4), n7=claim(2)) == [ClaimsChanged(), MustStop(MODEL, name(1))]
    assert alone.machine.claims() == () and not alone.machine.is_host(MODEL)
    assert alone.see(n7=claim(2)) == []
    assert alone.machine.host(MODEL) == name(7)
    alone.see()
    assert alone.wait(4) == [ClaimsChanged(), MayHost(MODEL, 5)]


def test_a_host_that_wins_goes_on() -> None:
    alone = Alone()
    alone.give(Want(MODEL))
    alone.wait(2)
    assert alone.see(n9=claim(1)) == []
    assert alone.machine.is_host(MODEL)


def test_how_far_it_is_can_be_told_while_it_hosts() -> None:
    alone = Alone()
    step = Advance(MODEL, ClaimState.LOADING, b"p" * 16, (b"w" * 8,))
    assert alone.give(step) == []
    alone.give(Want(MODEL))
    assert alone.give(step) == [], "not before it was elected"
    alone.wait(2)
    assert alone.give(step) == [ClaimsChanged()]
    assert alone.machine.claims() == (PlanClaim(b"p" * 16, MODEL, 1, ClaimState.LOADING, (b"w" * 8,)),)
    assert alone.give(step) == []


def test_giving_up() -> None:
    alone = Alone()
    assert alone.give(GiveUp(MODEL)) == []
    alone.give(Want(MODEL))
    assert alone.give(GiveUp(MODEL)) == [ClaimsChanged()]
    assert alone.wait(60) == [] and alone.machine.claims() == () and not alone.timers
    alone.see(n1=claim(3))
    alone.give(Want(MODEL))
    assert alone.give(GiveUp(MODEL)) == []
    alone.see()
    assert alone.wait(60) == []


def test_models_are_apart() -> None:
    alone = Alone()
    alone.give(Want(MODEL))
    alone.give(Want(OTHER_MODEL))
    alone.see(n1=claim(9, OTHER_MODEL))
    assert alone.wait(2) == [MayHost(MODEL, 1)]
    assert [each.content_hash for each in alone.machine.claims()] == [MODEL]


def test_no_more_claims_than_a_statement_holds() -> None:
    alone = Alone()
    models = [bytes([number]) * 16 for number in range(LIMIT_CLAIMS + 1)]
    for model in models:
        alone.give(Want(model))
    assert len(alone.machine.claims()) == LIMIT_CLAIMS
    alone.wait(10)
    alone.give(GiveUp(models[0]))
    assert MayHost(models[-1], 1) in alone.wait(10)


def test_the_greatest_term_is_not_exceeded() -> None:
    alone = Alone()
    alone.see(n9=claim(MAX_U32))
    alone.see()
    alone.give(Want(MODEL))
    assert alone.machine.claims()[0].term == MAX_U32
    assert alone.wait(2) == [MayHost(MODEL, MAX_U32)]


def test_what_nobody_claims_or_wants_is_forgotten_in_time() -> None:
    machine = Elections(name(5), random=random.Random(1), options=ElectionOptions(models=20))
    for number in range(200):
        machine.handle(ClaimsSeen({name(1): (claim(number, number.to_bytes(16, "big")),)}), float(number))
    assert len(machine._races) <= 21


CLAIMS = st.builds(claim, st.integers(0, 5) | st.just(MAX_U32), st.sampled_from([MODEL, OTHER_MODEL]))
EVENTS: st.SearchStrategy[ElectionEvent] = st.one_of(
    st.builds(Want, st.sampled_from([MODEL, OTHER_MODEL])),
    st.builds(GiveUp, st.sampled_from([MODEL, OTHER_MODEL])),
    st.builds(Advance, st.just(MODEL), st.integers(0, 2), st.just(b"p" * 16), st.just(())),
    st.builds(ClaimsSeen, st.dictionaries(st.integers(1, 9).map(name), st.lists(CLAIMS, max_size=4).map(tuple))),
    st.builds(TimerFired, st.sampled_from([("election", MODEL), ("election", b"?" * 16), "membership"])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.7, 2.0, 9.0])), max_size=30))
def test_whatever_comes_a_host_never_stands_beside_a_better_claim(steps: list[tuple[ElectionEvent, float]]) -> None:
    alone = Alone()
    seen: dict[bytes, tuple[PlanClaim, ...]] = {}
    for event, pause_s in steps:
        if isinstance(event, ClaimsSeen):
            seen = {node: claims for node, claims in event.claims.items() if node != name(5)}
        alone.give(event)
        alone.wait(pause_s)
        for mine in alone.machine.claims():
            for node, said in seen.items():
                rivals = [each for each in said if each.content_hash == mine.content_hash]
                assert all(rank(mine, name(5)) > rank(each, node) for each in rivals)
        hosting = {each.content_hash for each in alone.machine.claims()}
        assert all(model in hosting for model in (MODEL, OTHER_MODEL) if alone.machine.is_host(model))


# --- many nodes -------------------------------------------------------------------------------------------------


class World:
    """Nodes whose claims reach each other after a while, parts that do not hear of each other, and nodes that die.

    A statement replaces an earlier one of its origin. Who cannot be reached is dropped after `notice_s`.
    """

    def __init__(self, count: int, seed: int, delay_s: float) -> None:
        self.random = random.Random(seed)
        self.machines = {name(number): Elections(name(number), random=self.random) for number in range(1, count + 1)}
        self.known: dict[bytes, dict[bytes, tuple[int, tuple[PlanClaim, ...]]]] = {node: {} for node in self.machines}
        self.said: dict[bytes, tuple[int, tuple[PlanClaim, ...]]] = dict.fromkeys(self.machines, (0, ()))
        self.part = dict.fromkeys(self.machines, 0)
        self.dead: set[bytes] = set()
        self.now = 0.0
        self.delay_s = delay_s
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.timers: dict[tuple[bytes, object], int] = {}
        self.most_hosts = 0

    def at(self, delay_s: float, action: Callable[[], None]) -> int:
        number = next(self.order)
        heapq.heappush(self.queue, (self.now + delay_s, number, action))
        return number

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.queue and self.queue[0][0] <= end:
            self.now, number, action = heapq.heappop(self.queue)
            self._running = number
            action()
            self.check()
        self.now = end

    def check(self) -> None:
        hosts = self.hosts()
        self.most_hosts = max(self.most_hosts, len(hosts))
        for one, other in itertools.combinations(hosts, 2):
            has_heard = [self.known[a].get(b) == self.said[b] for a, b in ((one, other), (other, one))]
            assert not all(has_heard), "two that know of each other both host"

    def hosts(self) -> list[bytes]:
        return [node for node, each in self.machines.items() if node not in self.dead and each.is_host(MODEL)]

    def give(self, node: bytes, event: ElectionEvent) -> None:
        if node in self.dead:
            return
        for effect in self.machines[node].handle(event, self.now):
            match effect:
                case SetTimer(key, due):
                    self.timers[node, key] = self.at(due - self.now, lambda key=key: self.fire(node, key))  # type: ignore[misc]
                case CancelTimer(key):
                    self.timers.pop((node, key), None)
                case ClaimsChanged():
                    self.said[node] = self.said[node][0] + 1, self.machines[node].claims()
                    for other in self.machines:
                        self.tell(node, other)

    def fire(self, node: bytes, key: object) -> None:
        if self.timers.get((node, key)) == self._running:
            del self.timers[node, key]
            self.give(node, TimerFired(key))

    def tell(self, origin: bytes, reader: bytes) -> None:
        """What `origin` says now reaches `reader`, if nothing stands between them then."""
        said = self.said[origin]

        def arrive() -> None:
            reachable = self.part[origin] == self.part[reader] and not {origin, reader} & self.dead
            if origin != reader and reachable and self.known[reader].get(origin, (-1, ()))[0] < said[0]:
                self.known[reader][origin] = said
                self.look(reader)

        self.at(self.random.random() * self.delay_s, arrive)

    def look(self, node: bytes) -> None:
        self.give(node, ClaimsSeen({other: said for other, (_, said) in self.known[node].items()}))

    def notice(self) -> None:
        """Everyone drops those that are gone, some seconds later and not at the same time."""
        for reader, origin in itertools.permutations(self.machines, 2):

            def drop(reader: bytes = reader, origin: bytes = origin) -> None:
                gone = origin in self.dead or self.part[origin] != self.part[reader]
                if gone and self.known[reader].pop(origin, None) is not None:
                    self.look(reader)

            self.at(3 + 4 * self.random.random(), drop)

    def divide(self, parts: Iterable[int]) -> None:
        self.part = dict(zip(self.machines, parts, strict=True))
        self.notice()

    def heal(self) -> None:
        self.part = dict.fromkeys(self.machines, 0)
        for origin, reader in itertools.permutations(self.machines, 2):
            self.at(3 * self.random.random(), lambda origin=origin, reader=reader: self.tell(origin, reader))  # type: ignore[misc]

    def kill(self, node: bytes) -> None:
        self.dead.add(node)
        self.notice()


BOUND_S = 7 + OPTIONS.pause_s + OPTIONS.settle_s + OPTIONS.patience_s + 4
"""Noticing, pausing, settling, waiting for worse claims, and delays."""


@pytest.mark.parametrize("seed", range(30))
def test_in_a_whole_mesh_there_is_never_a_second_host(seed: int) -> None:
    """Every node wants to host, at once or soon; hosts die one after the other. Delays stay below half of the wait."""
    world = World(5, seed, delay_s=0.9)
    for node in world.machines:
        world.at(world.random.choice([0.0, 3 * world.random.random()]), lambda node=node: world.give(node, Want(MODEL)))  # type: ignore[misc]
    for _ in range(4):
        world.run(BOUND_S)
        (host,) = world.hosts()
        assert world.most_hosts == 1
        world.kill(host)
    world.run(BOUND_S)
    assert len(world.hosts()) == 1 and world.most_hosts == 1


@pytest.mark.parametrize("seed", range(30))
def test_partitions_end_in_one_host(seed: int) -> None:
    """Each part may get a host of its own; once they have heard of each other there is one, and it stays."""
    world = World(6, 1000 + seed, delay_s=0.5)
    for node in world.machines:
        world.give(node, Want(MODEL))
    for _ in range(3):
        world.divide(world.random.choices([0, 1, 2], k=6))
        world.run(world.random.choice([0.5, 4.0, BOUND_S, 3 * BOUND_S]))
        world.heal()
        world.run(BOUND_S)
        (host,) = world.hosts()
        world.run(2 * BOUND_S)
        assert world.hosts() == [host]


def test_each_part_has_its_host_while_it_lasts() -> None:
    world = World(4, 7, delay_s=0.2)
    for node in world.machines:
        world.give(node, Want(MODEL))
    world.run(BOUND_S)
    world.divide([0, 0, 1, 1])
    world.run(BOUND_S)
    assert sorted(world.part[host] for host in world.hosts()) == [0, 1]
    newer = max(world.hosts(), key=lambda node: world.machines[node].claims()[0].term)
    world.heal()
    world.run(4)
    assert world.hosts() == [newer], "the later claim stays"


@pytest.mark.parametrize("seed", range(12))
def test_giving_up_and_wanting_again(seed: int) -> None:
    world = World(4, 2000 + seed, delay_s=0.6)
    nodes = list(world.machines)
    for _ in range(40):
        node = world.random.choice(nodes)
        wanted = world.random.random() < 0.5
        world.give(node, Want(MODEL) if wanted else GiveUp(MODEL))
        world.run(world.random.choice([0.0, 0.3, 2.0, 5.0]))
        assert world.most_hosts <= 1
    for node in nodes:
        world.give(node, Want(MODEL))
    world.run(BOUND_S)
    assert len(world.hosts()) == 1


def test_the_same_seed_gives_the_same_host() -> None:
    ends = []
    for _ in range(2):
        world = World(6, 99, delay_s=0.5)
        for node in world.machines:
            world.give(node, Want(MODEL))
        world.divide([0, 1, 0, 1, 0, 1])
        world.run(BOUND_S)
        world.heal()
        world.run(BOUND_S)
        ends.append((world.hosts(), world.now, next(world.order)))
    assert ends[0] == ends[1]
