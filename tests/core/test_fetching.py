"""Fetching from several sources: order, windows, ranks, the end game, and sources that misbehave."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from meshnode.core.fetching import (
    COPIES,
    FIRST_BYTE_S,
    LEAST_WINDOW_BYTES,
    MOST_FAILURES,
    MOST_WINDOW_BYTES,
    PATIENCE_S,
    STALL_S,
    Ask,
    Fetching,
)

MIB = 1 << 20
CHUNK = 4 * MIB


def chunks(count: int) -> list[tuple[int, int]]:
    return [(number, CHUNK) for number in range(count)]


@dataclass
class Peer:
    """A source in simulated time: so many bytes a second, one answer after the other."""

    rate: float
    has: Callable[[int], bool] = lambda _: True
    second: bool = False
    corrupts: frozenset[int] = frozenset()
    stops_after: int = 1 << 60
    lacks: frozenset[int] = frozenset()
    asks: list[tuple[Ask, int, int]] = field(default_factory=list)
    sent_bytes: int = 0
    brought: list[int] = field(default_factory=list)


class World:
    """Runs a Fetching against peers, in steps of 50 ms."""

    def __init__(self, wanted: Fetching, peers: dict[str, Peer]) -> None:
        self.fetching = wanted
        self.peers = peers
        self.now = 0.0
        self.size = wanted._size
        self.copies: Counter[int] = Counter()
        self.done: list[int] = []
        for name, peer in peers.items():
            wanted.join(name, self.now, has=peer.has, second=peer.second)

    def run(self, limit_s: float = 600.0) -> float:
        while not self.fetching.is_done and not self.fetching.is_stuck and self.now < limit_s:
            self.hand_out()
            self.now += 0.05
            for peer in self.peers.values():
                self.deliver(peer, peer.rate * 0.05)
            self.drop(self.fetching.stalled(self.now))
        return self.now

    def drop(self, needless: tuple[int, ...]) -> None:
        for peer in self.peers.values():
            peer.asks = [entry for entry in peer.asks if entry[0].number not in needless]

    def hand_out(self) -> None:
        for ask in self.fetching.ask(self.now):
            peer = self.peers[ask.source]
            assert all(peer.has(chunk) for chunk in ask.chunks)
            held = [chunk for earlier, at, _ in peer.asks for chunk in earlier.chunks[at:]]
            assert not set(held) & set(ask.chunks), "asked twice of one source"
            peer.asks.append((ask, 0, 0))
        asked = Counter(chunk for peer in self.peers.values() for a, at, _ in peer.asks for chunk in a.chunks[at:])
        assert max((count for chunk, count in asked.items() if chunk not in self.done), default=0) <= COPIES

    def deliver(self, peer: Peer, budget: float) -> None:
        while peer.asks and budget >= 1 and peer.sent_bytes < peer.stops_after:
            ask, at, begun = peer.asks[0]
            if at == len(ask.chunks):
                self.drop((ask.number, *self.fetching.ended(ask.number)))
                continue
            chunk = ask.chunks[at]
            if chunk in peer.lacks:
                peer.asks[0] = ask, at + 1, 0
                self.drop(self.fetching.lacks(ask.number, chunk))
                continue
            count = int(min(budget, self.size[chunk] - begun))
            budget -= count
            peer.sent_bytes += count
            self.fetching.heard(ask.number, count, self.now)
            if begun + count < self.size[chunk]:
                peer.asks[0] = ask, at, begun + count
                continue
            peer.asks[0] = ask, at + 1, 0
            self.copies[chunk] += 1
            if chunk in peer.corrupts:
                self.drop(self.fetching.corrupt(ask.number))
                continue
            peer.brought.append(chunk)
            self.done.append(chunk)
            self.drop(self.fetching.arrived(ask.number, chunk))


def view(fetching: Fetching, name: str) -> tuple[int, str]:
    found = {source.source: source for source in fetching.sources}[name]
    return found.bytes, found.left


def test_one_source_is_asked_in_order_and_within_its_window() -> None:
    fetching = Fetching(chunks(10))
    fetching.join("a", 0.0)
    asks = fetching.ask(0.0)
    assert [chunk for ask in asks for chunk in ask.chunks] == [0, 1]
    assert fetching.ask(0.0) == []
    assert LEAST_WINDOW_BYTES == 2 * CHUNK


def test_the_window_grows_with_the_measured_rate_and_has_an_end() -> None:
    fetching = Fetching(chunks(1000))
    fetching.join("a", 0.0)
    (first, _) = fetching.ask(0.0)
    fetching.heard(first.number, 300 * MIB, 1.0)
    fetching.arrived(first.number, first.chunks[0])
    asked = [chunk for ask in fetching.ask(1.0) for chunk in ask.chunks]
    assert MOST_WINDOW_BYTES - CHUNK <= (len(asked) + 1) * CHUNK <= MOST_WINDOW_BYTES + 4 * CHUNK
    assert fetching.sources[0].rate == 300 * MIB


def test_two_equal_sources_share_the_work() -> None:
    peers = {"a": Peer(50 * MIB), "b": Peer(50 * MIB)}
    fetching = Fetching(chunks(250))
    took_s = World(fetching, peers).run()
    assert took_s < 1.1 * 1000 / 100
    assert abs(len(peers["a"].brought) - len(peers["b"].brought)) < 25


def test_a_slow_source_does_not_hold_up_the_end() -> None:
    """The rate decides the shares, and the last chunks are fetched twice rather than waited for."""
    peers = {"fast": Peer(40 * MIB), "slow": Peer(0.4 * MIB)}
    fetching = Fetching(chunks(100))
    world = World(fetching, peers)
    took_s = world.run()
    assert took_s < 1.2 * 400 / 40
    assert sum(world.copies.values()) <= 100 + 4


def test_a_chunk_that_few_have_is_fetched_from_them_first() -> None:
    peers = {"all": Peer(10 * MIB), "half": Peer(10 * MIB, has=lambda chunk: chunk < 50)}
    fetching = Fetching(chunks(100))
    took_s = World(fetching, peers).run()
    assert peers["all"].brought[:10] == list(range(50, 60))
    assert took_s < 1.1 * 400 / 20


def test_urgent_chunks_come_before_rare_ones() -> None:
    peers = {"all": Peer(10 * MIB), "header": Peer(10 * MIB, has=lambda chunk: chunk < 3)}
    fetching = Fetching(chunks(40), urgent=3)
    world = World(fetching, peers)
    world.run()
    assert sorted(world.done[:3]) == [0, 1, 2]


def test_a_source_of_the_second_rank_brings_only_what_others_lack() -> None:
    peers = {"peer": Peer(10 * MIB, has=lambda chunk: chunk % 2 == 0), "hub": Peer(100 * MIB, second=True)}
    fetching = Fetching(chunks(40))
    World(fetching, peers).run()
    assert fetching.is_done
    assert all(chunk % 2 for chunk in peers["hub"].brought)
    assert len(peers["hub"].brought) == 20


def test_the_second_rank_takes_over_from_one_that_is_left() -> None:
    peers = {"peer": Peer(10 * MIB, stops_after=40 * MIB), "hub": Peer(10 * MIB, second=True)}
    fetching = Fetching(chunks(40))
    World(fetching, peers).run()
    assert fetching.is_done
    assert len(peers["hub"].brought) >= 29


def test_the_second_rank_helps_when_the_first_would_take_too_long() -> None:
    count = int(PATIENCE_S * 1 * MIB / CHUNK) * 2
    peers = {"peer": Peer(1 * MIB), "hub": Peer(50 * MIB, second=True)}
    took_s = World(Fetching(chunks(count)), peers).run()
    assert took_s < PATIENCE_S / 10
    assert peers["peer"].brought


def test_a_source_that_sends_a_damaged_chunk_is_named_and_left_out() -> None:
    peers = {"good": Peer(10 * MIB), "bad": Peer(10 * MIB, corrupts=frozenset(range(0, 100, 5)))}
    fetching = Fetching(chunks(50))
    world = World(fetching, peers)
    world.run()
    assert fetching.is_done
    assert view(fetching, "bad")[1] == "it sent a damaged chunk"
    assert set(peers["good"].brought) | set(peers["bad"].brought) == set(range(50))
    fetching.join("bad", world.now)
    assert view(fetching, "bad")[1], "who was left stays left"


def test_a_source_that_stalls_is_left_and_its_chunks_come_from_others() -> None:
    peers = {"good": Peer(2 * MIB), "silent": Peer(2 * MIB, stops_after=20 * MIB)}
    fetching = Fetching(chunks(60))
    World(fetching, peers).run()
    assert fetching.is_done
    assert view(fetching, "silent") == (20 * MIB, "it sends nothing any more")


def test_the_first_byte_may_take_longer_than_the_next() -> None:
    fetching = Fetching(chunks(4))
    fetching.join("a", 0.0)
    first = fetching.ask(0.0)[0]
    assert fetching.stalled(FIRST_BYTE_S) == ()
    fetching.heard(first.number, 1, FIRST_BYTE_S)
    assert fetching.stalled(FIRST_BYTE_S + STALL_S) == ()
    assert first.number in fetching.stalled(FIRST_BYTE_S + STALL_S + 0.1)
    assert view(fetching, "a")[1] == "it sends nothing any more"
    assert fetching.is_stuck


def test_a_slow_source_that_delivers_is_no_stalled_one() -> None:
    peers = {"slow": Peer(0.1 * MIB)}
    fetching = Fetching(chunks(3))
    World(fetching, peers).run(200.0)
    assert fetching.is_done


def test_requests_that_fail_again_and_again_end_a_source() -> None:
    fetching = Fetching(chunks(4))
    fetching.join("a", 0.0)
    for attempt in range(MOST_FAILURES):
        assert not fetching.is_stuck
        asks = fetching.ask(float(attempt))
        assert asks, "what failed is asked for again"
        fetching.ended(asks[0].number, "the connection is lost")
    assert fetching.is_stuck
    assert view(fetching, "a")[1] == "the connection is lost"


def test_a_success_between_failures_is_a_new_beginning() -> None:
    fetching = Fetching(chunks(20))
    fetching.join("a", 0.0)
    for _ in range(3 * MOST_FAILURES):
        first = fetching.ask(0.0)[0]
        fetching.arrived(first.number, first.chunks[0])
        fetching.ended(first.number, "the connection is lost")
    assert view(fetching, "a")[1] == ""


def test_an_answer_that_ends_early_is_a_failure() -> None:
    fetching = Fetching(chunks(2))
    fetching.join("a", 0.0)
    for _ in range(MOST_FAILURES):
        fetching.ended(fetching.ask(0.0)[0].number)
    assert "does not send" in view(fetching, "a")[1]


def test_what_a_source_turns_out_to_lack_is_asked_of_others() -> None:
    peers = {"forgot": Peer(50 * MIB, lacks=frozenset(range(10, 20))), "other": Peer(10 * MIB)}
    fetching = Fetching(chunks(40))
    World(fetching, peers).run()
    assert fetching.is_done
    assert view(fetching, "forgot")[1] == ""


def test_a_source_that_lacks_most_of_what_it_says_is_left() -> None:
    peers = {"liar": Peer(50 * MIB, lacks=frozenset(range(100))), "other": Peer(10 * MIB)}
    fetching = Fetching(chunks(100))
    World(fetching, peers).run()
    assert fetching.is_done
    assert view(fetching, "liar") == (0, "it does not have what it says")


def test_nobody_has_it_is_said_at_once() -> None:
    fetching = Fetching(chunks(2))
    assert fetching.is_stuck
    fetching.join("a", 0.0, has=lambda chunk: chunk == 0)
    assert not fetching.is_stuck
    ask = fetching.ask(0.0)[0]
    assert ask.chunks == (0,)
    fetching.arrived(ask.number, 0)
    fetching.ended(ask.number)
    assert fetching.is_stuck
    assert not fetching.is_done
    fetching.join("b", 1.0)
    assert not fetching.is_stuck


def test_events_of_requests_that_are_over_change_nothing() -> None:
    fetching = Fetching(chunks(3))
    fetching.join("a", 0.0)
    number = fetching.ask(0.0)[0].number
    assert number in fetching.leave("a", "")
    fetching.heard(number, 5, 1.0)
    fetching.lacks(number, 0)
    fetching.ended(number, "late")
    assert fetching.corrupt(number) == ()
    assert fetching.leave("a", "again") == ()
    assert fetching.left_bytes == 3 * CHUNK
    assert fetching.arrived(number, 0) == (), "a chunk that is right counts, whoever brings it"
    assert fetching.left_bytes == 2 * CHUNK


@pytest.mark.parametrize("seed", range(40))
def test_it_always_ends(seed: int) -> None:
    """Random sources with random faults: everything comes if one honest source has it, and else it is said."""
    chance = random.Random(seed)
    count = chance.randint(1, 60)
    sizes = [(number, chance.randint(1, CHUNK)) for number in range(count)]
    everything = frozenset(range(count))

    def peer() -> Peer:
        held = frozenset(chance.sample(range(count), chance.randint(1, count)))
        bad = frozenset(chance.sample(range(count), chance.randint(0, count // 3)))
        return Peer(
            rate=MIB * 10 ** chance.uniform(-1, 1.5),
            has=held.__contains__,
            second=chance.random() < 0.2,
            corrupts=bad if chance.random() < 0.3 else frozenset(),
            stops_after=chance.randint(0, 20 * MIB) if chance.random() < 0.3 else 1 << 60,
            lacks=bad if chance.random() < 0.3 else frozenset(),
        )

    peers = {f"p{number}": peer() for number in range(chance.randint(1, 6))}
    honest = chance.random() < 0.7
    if honest:
        peers["honest"] = Peer(rate=MIB, has=everything.__contains__)
    fetching = Fetching(sizes, urgent=chance.randint(0, 3))
    World(fetching, peers).run(2000.0)
    assert fetching.is_done or fetching.is_stuck
    assert fetching.is_done or not honest
    assert fetching.left_bytes == 0 if fetching.is_done else fetching.left_bytes > 0
