"""One lookup: it finds the nearest, costs no more than it may, and is led astray by nobody."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from meshnode.core.dht_lookup import (
    A_PREFIX_AMONG_THE_NEAREST,
    A_PREFIX_ASKED,
    LIES,
    MOST_PROVIDERS,
    WAITING,
    Lookup,
    LookupLimits,
    Step,
)
from meshnode.core.dht_space import place
from meshnode.core.dht_table import ADDRESSES
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtPeer, Provider

OWN, KEY = b"o" * 32, b"k" * 32
LIMITS = LookupLimits()


def where(number: int) -> Address:
    return Address(f"11.{number >> 8}.{number & 255}.1", 9337)


def distance(node: bytes) -> int:
    return place(node) ^ int.from_bytes(KEY, "big")


class Crowd:
    """Honest nodes, each of which knows the nearest of a random half of the others."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        names = sorted((self.chance.randbytes(32) for _ in range(count)), key=distance)
        self.peers = {name: DhtPeer(name, (where(number),)) for number, name in enumerate(names)}
        self.ranked = names
        self.asked: list[bytes] = []
        self.dead: set[bytes] = set()
        self.lie: dict[bytes, Callable[[], Iterable[DhtPeer]]] = {}

    def seeds(self, count: int) -> list[DhtPeer]:
        return [self.peers[name] for name in self.chance.sample(self.ranked[len(self.ranked) // 2 :], count)]

    def tell(self, node: bytes) -> Iterable[DhtPeer]:
        if node in self.lie:
            return self.lie[node]()
        known = set(self.chance.sample(self.ranked, len(self.ranked) // 2))
        return [self.peers[name] for name in self.ranked if name in known and name != node][:20]

    def run(self, lookup: Lookup, now: float = 0.0, *, records: dict[bytes, list[Provider]] | None = None) -> float:
        """Answer everything a tenth of a second later, or never. Gives the time of the end."""
        answers: list[tuple[float, Step]] = []
        while True:
            steps = lookup.step(now)
            self.asked += [step.node for step in steps]
            answers += [(now + 0.1, step) for step in steps if step.node in self.peers and step.node not in self.dead]
            if lookup.is_done:
                return now
            following = min([lookup.next_after(now), *(at for at, _ in answers)])
            assert following > now, "time must go on"
            now = following
            for at, step in [each for each in answers if each[0] <= now]:
                answers.remove((at, step))
                at_address = self.peers[step.node].addresses[0]
                lookup.answered(
                    step.node, at_address, self.tell(step.node), (records or {}).get(step.node, []), b"t" * 16
                )


def lookup_of(crowd: Crowd, *, seeds: int = 6, records: bool = False, limits: LookupLimits = LIMITS) -> Lookup:
    return Lookup(KEY, crowd.seeds(seeds), own=OWN, records=records, now=0.0, limits=limits)


def provider(name: int, expires_at: int = 100) -> Provider:
    return Provider(KEY, name.to_bytes(4, "big") * 8, b"m" * 32, expires_at)


def test_the_nearest_are_found() -> None:
    crowd = Crowd(300)
    lookup = lookup_of(crowd)
    ended_at = crowd.run(lookup)
    assert [each.node for each in lookup.nearest] == crowd.ranked[:8]
    assert [each.token for each in lookup.nearest] == [b"t" * 16] * 8
    assert len(crowd.asked) == len(set(crowd.asked)) == lookup.asked <= 30, "nobody is asked twice"
    assert ended_at < 2.0
    assert lookup.step(ended_at) == []


def test_alone_and_among_few() -> None:
    nobody = Lookup(KEY, [], own=OWN, records=True, now=0.0)
    assert (nobody.step(0.0), nobody.is_done, nobody.nearest, nobody.providers) == ([], True, [], [])
    itself = Lookup(KEY, [DhtPeer(OWN, (where(1),))], own=OWN, records=True, now=0.0)
    assert (itself.step(0.0), itself.is_done) == ([], True)
    few = Crowd(3)
    few.lie = dict.fromkeys(few.ranked, lambda: few.peers.values())
    lookup = lookup_of(few, seeds=1)
    few.run(lookup)
    assert [each.node for each in lookup.nearest] == few.ranked


def test_those_who_never_answer_cost_time_and_nothing_else() -> None:
    crowd = Crowd(300)
    crowd.dead = set(crowd.chance.sample(crowd.ranked, 100))
    lookup = lookup_of(crowd, seeds=12)
    ended_at = crowd.run(lookup)
    living = [name for name in crowd.ranked if name not in crowd.dead]
    assert [each.node for each in lookup.nearest] == living[:8]
    assert ended_at <= LIMITS.lookup_s and lookup.asked <= LIMITS.questions


def test_a_slow_node_gives_its_turn_away_and_may_still_answer() -> None:
    seeds = [DhtPeer(bytes((number,)) * 32, (where(number),)) for number in range(6)]
    limits = LookupLimits(paths=1, at_once=2)
    lookup = Lookup(KEY, seeds, own=OWN, records=False, now=0.0, limits=limits)
    first = lookup.step(0.0)
    assert len(first) == 2 and lookup.step(0.1) == []
    assert lookup.next_after(0.1) == limits.slow_s
    assert len(lookup.step(limits.slow_s)) == 2, "the next ones are asked meanwhile"
    lookup.answered(first[0].node, where(1), [], [], b"")
    assert [each.node for each in lookup.nearest] == [first[0].node]
    lookup.step(limits.question_s)
    assert lookup.answered(first[1].node, where(2), [], [], b"") == 0, "too late"
    assert len(lookup.nearest) == 1


def test_everybody_lies_without_end_and_it_ends() -> None:
    """Each answer names twenty more nodes, ever nearer to the key, that all exist; so do theirs."""
    crowd = Crowd(10)
    made = 0

    def nearer() -> Iterable[DhtPeer]:
        nonlocal made
        for _ in range(20):
            made += 1
            name = min((crowd.chance.randbytes(32) for _ in range(made)), key=distance)
            crowd.peers[name] = DhtPeer(name, (where(1000 + made),))
            crowd.lie[name] = nearer
            yield crowd.peers[name]

    crowd.lie = dict.fromkeys(crowd.ranked, nearer)
    lookup = lookup_of(crowd, seeds=5)
    assert crowd.run(lookup) <= LIMITS.lookup_s
    assert lookup.asked <= LIMITS.questions
    assert all(len(path.waiting) <= WAITING for path in lookup._paths)


def test_nobody_exists_of_whom_they_tell_and_it_ends() -> None:
    crowd = Crowd(10)
    chance = random.Random(9)

    def invented() -> Iterable[DhtPeer]:
        return [DhtPeer(chance.randbytes(32), (where(chance.randrange(1 << 16)),)) for _ in range(20)]

    crowd.lie = dict.fromkeys(crowd.ranked, invented)
    lookup = lookup_of(crowd, seeds=5)
    assert crowd.run(lookup) <= LIMITS.lookup_s
    assert lookup.asked <= 5 + 5 * (LIES + 3 * LIMITS.at_once)
    assert {each.node for each in lookup.nearest} <= set(crowd.ranked)


def test_circles_lead_nowhere() -> None:
    crowd = Crowd(2)
    one, two = crowd.ranked
    crowd.lie = {one: lambda: [crowd.peers[two], crowd.peers[one]] * 9, two: lambda: [crowd.peers[one]] * 20}
    lookup = lookup_of(crowd, seeds=1)
    crowd.run(lookup)
    assert sorted(crowd.asked) == sorted(crowd.ranked)


def test_one_liar_spoils_its_own_path_alone() -> None:
    """A seed names a thousand nodes around the key that do not exist: the other two paths find their way."""
    crowd = Crowd(300)
    seeds = crowd.seeds(6)
    liar = min(seeds, key=lambda seed: distance(seed.node))
    fakes = sorted((crowd.chance.randbytes(32) for _ in range(50_000)), key=distance)[:20]
    crowd.lie = {liar.node: lambda: [DhtPeer(name, (where(7000 + number),)) for number, name in enumerate(fakes)]}
    lookup = Lookup(KEY, seeds, own=OWN, records=False, now=0.0)
    crowd.run(lookup)
    assert [each.node for each in lookup.nearest] == crowd.ranked[:8]
    in_the_time_of_one = LIMITS.at_once * (1 + LIMITS.question_s / LIMITS.slow_s)
    assert sum(node in fakes for node in crowd.asked) <= in_the_time_of_one


def test_a_name_with_a_false_address_on_one_path_is_found_on_another() -> None:
    crowd = Crowd(300)
    seeds = crowd.seeds(6)
    liar = min(seeds, key=lambda seed: distance(seed.node))
    crowd.lie = {liar.node: lambda: [DhtPeer(name, (where(9999),)) for name in crowd.ranked[:20]]}
    real = dict(crowd.peers)
    lookup = Lookup(KEY, seeds, own=OWN, records=False, now=0.0)
    now, waiting = 0.0, []
    while not lookup.is_done:
        for step in lookup.step(now):
            if step.addresses == real[step.node].addresses:
                waiting.append((now + 0.1, step))
        following = min([lookup.next_after(now), *(at for at, _ in waiting)])
        now = max(following, now + 1e-6)
        for at, step in [each for each in waiting if each[0] <= now]:
            waiting.remove((at, step))
            lookup.answered(step.node, step.addresses[0], crowd.tell(step.node), [], b"")
    assert {each.node for each in lookup.nearest} == set(crowd.ranked[:8])


def test_a_crowd_from_one_network_is_passed_by() -> None:
    crowd = Crowd(300)
    near = sorted((crowd.chance.randbytes(32) for _ in range(100_000)), key=distance)[:200]
    rogues = [DhtPeer(name, (Address(f"203.1.113.{number + 1}", 1),)) for number, name in enumerate(near)]
    crowd.peers |= {rogue.node: rogue for rogue in rogues}
    seeds = [*crowd.seeds(4), *rogues[-4:]]

    def friends() -> Iterable[DhtPeer]:
        return crowd.chance.sample(rogues, 20)

    crowd.lie = {rogue.node: friends for rogue in rogues}
    lookup = Lookup(KEY, seeds, own=OWN, records=False, now=0.0)
    crowd.run(lookup)
    assert sum(node in near for node in crowd.asked) <= A_PREFIX_ASKED
    honest = [each.node for each in lookup.nearest if each.node not in near]
    assert honest == crowd.ranked[: 8 - A_PREFIX_AMONG_THE_NEAREST]


def test_addresses_that_lie_nearer_than_the_informer_are_refused() -> None:
    crowd = Crowd(2)
    lookup = lookup_of(crowd, seeds=1)
    [step] = lookup.step(0.0)
    far = tuple(where(number) for number in range(6))
    told = [
        DhtPeer(b"1" * 32, (Address("127.0.0.1", 80),)),
        DhtPeer(b"2" * 32, (Address("192.168.1.1", 80), Address("100::7", 1))),
        DhtPeer(b"3" * 32, (Address("10.0.0.1", 80), where(77))),
        DhtPeer(b"4" * 32, far),
    ]
    assert lookup.answered(step.node, step.addresses[0], told, [], b"") == 3
    asked = {each.node: each.addresses for each in lookup.step(0.1)}
    assert asked == {b"3" * 32: (where(77),), b"4" * 32: far[:ADDRESSES]}


def test_a_search_ends_when_enough_have_told() -> None:
    crowd = Crowd(300)
    lookup = lookup_of(crowd, records=True)
    everybody = {name: [provider(1), provider(2, 50)] for name in crowd.ranked[:40]}
    crowd.run(lookup, records=everybody)
    assert lookup.asked < 20
    assert [each.node for each in lookup.providers] == [provider(1).node, provider(2).node]


def test_what_most_networks_tell_comes_first_and_the_longest_lasting_record_counts() -> None:
    crowd = Crowd(8)
    lookup = Lookup(KEY, list(crowd.peers.values()), own=OWN, records=True, now=0.0, limits=LookupLimits(enough=99))
    told = {name: [provider(1, 100 + number)] for number, name in enumerate(crowd.ranked[:3])}
    told[crowd.ranked[4]] = [provider(2, 999)]
    lookup.knows(provider(3, 500))
    crowd.run(lookup, records=told)
    assert [(each.node[3], each.expires_at) for each in lookup.providers] == [(1, 102), (2, 999), (3, 500)]


def test_one_network_alone_never_tells_enough() -> None:
    seeds = [DhtPeer(bytes((number,)) * 32, (Address(f"203.1.113.{number + 1}", 1),)) for number in range(6)]
    lookup = Lookup(KEY, seeds, own=OWN, records=True, now=0.0)
    for step in lookup.step(0.0):
        lookup.answered(step.node, step.addresses[0], [], [provider(step.node[0])], b"")
    lookup.step(0.1)
    assert lookup._voices(provider(0).node) <= 1 and not lookup._is_enough()


def test_no_more_providers_than_so_many() -> None:
    crowd = Crowd(8)
    lookup = Lookup(KEY, list(crowd.peers.values()), own=OWN, records=True, now=0.0, limits=LookupLimits(enough=99))
    for number in range(1000):
        lookup.knows(provider(number))
    assert len(lookup.providers) == MOST_PROVIDERS
    assert len(lookup._found) <= 4 * MOST_PROVIDERS
