"""Who publishes and when: the few, take-over, refresh, full meshes, failures."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.publishing import (
    GRACE_S,
    HOPELESS_S,
    PUBLISHERS,
    REFRESH_S,
    STALE_S,
    Do,
    Publishing,
    publishers,
)
from meshnode.wire.listings import Listing
from tests.wire.listing_samples import listing
from tests.wire.samples import STEADY, Signer

MESH = listing().mesh
WALL = 1_800_000_000


def nodes(number: int) -> list[bytes]:
    return [hashlib.sha256(bytes([each])).digest() for each in range(number)]


class World:
    """Publishing parts of several nodes over one clock; a relay that shows all listings to all of them."""

    def __init__(self, number: int) -> None:
        self.now = 1000.0
        self.alive = set(nodes(number))
        chance = random.Random(7)
        self.parts = {node: Publishing(MESH, node, chance.random) for node in self.alive}
        self.relay: dict[bytes, int] = {}
        self.cut_off: set[bytes] = set()
        self.clients = 0
        self.sent: Counter[bytes] = Counter()

    @property
    def wall(self) -> float:
        return WALL + self.now

    def step(self) -> None:
        for node in sorted(self.alive):
            part = self.parts[node]
            do = part.step(self.now, self.wall, alive=self.alive, clients=self.clients, max_clients=10)
            if do is Do.NOTHING:
                continue
            ok = node not in self.cut_off
            self.sent[node] += 1
            if ok and do is Do.PUBLISH:
                self.relay[node] = int(self.wall)
            elif ok:
                self.relay.pop(node, None)
            part.done(self.now, do, ok)

    def run(self, seconds: float) -> None:
        """A second at a time; everybody looks at the relay every 20 s."""
        for _ in range(int(seconds)):
            self.now += 1
            self.relay = {node: at for node, at in self.relay.items() if self.wall - at < 180}
            if self.now % 20 == 0:
                self.look()
            self.step()

    def look(self) -> None:
        for node in self.alive - self.cut_off:
            self.parts[node].heard(self.listings(), self.now)

    def listings(self) -> list[Listing]:
        return [_listed(node, at) for node, at in self.relay.items()]

    @property
    def publishing(self) -> set[bytes]:
        return {node for node in self.alive if self.parts[node].is_publisher}


def _listed(node: bytes, at: int) -> Listing:
    return replace(listing(), node=node, created_at=at)


# --- the few ----------------------------------------------------------------------------------------------------------


@STEADY
@given(st.sets(st.integers(0, 200), min_size=1, max_size=60))
def test_everybody_finds_the_same_few(numbers: set[int]) -> None:
    members = [hashlib.sha256(bytes([number])).digest() for number in numbers]
    few = publishers(MESH, members)
    assert few == publishers(MESH, reversed(members))
    assert len(few) == min(PUBLISHERS, len(members))
    gone = few[0]
    after = publishers(MESH, [each for each in members if each != gone])
    assert after[: len(few) - 1] == few[1:]


def test_every_mesh_has_others() -> None:
    members = nodes(100)
    assert publishers(MESH, members) != publishers(listing(name="another").mesh, members)
    chosen = Counter(node for n in range(200) for node in publishers(hashlib.sha256(bytes([n])).digest(), members))
    assert max(chosen.values()) < 30


# --- when -------------------------------------------------------------------------------------------------------------


def test_one_node_publishes_at_once_and_again_before_it_is_forgotten() -> None:
    world = World(1)
    world.step()
    (node,) = world.alive
    assert set(world.relay) == {node}
    times = {world.relay[node]}
    for _ in range(600):
        world.run(1)
        assert node in world.relay
        times.add(world.relay[node])
    gaps = [later - sooner for sooner, later in zip(sorted(times), sorted(times)[1:], strict=False)]
    assert all(REFRESH_S - 11 <= gap <= REFRESH_S + 11 for gap in gaps)
    assert len(set(gaps)) > 1, "no jitter"


def test_of_many_five_publish() -> None:
    world = World(40)
    world.run(200)
    assert len(world.publishing) == PUBLISHERS
    assert set(world.relay) == world.publishing
    assert sum(world.sent.values()) <= PUBLISHERS * 5


def test_the_next_in_line_steps_in_at_once_when_one_dies() -> None:
    world = World(40)
    world.run(100)
    before = world.publishing
    victim = min(before)
    world.alive.discard(victim)
    world.step()
    assert len(world.publishing) == PUBLISHERS
    assert world.publishing > before - {victim}
    assert world.publishing <= set(world.relay)


def test_one_whose_listing_grows_old_is_passed_over() -> None:
    """Alive, but no relay hears it: another one lists within the time that its listing lasts."""
    world = World(10)
    world.run(100)
    before = world.publishing
    victim = min(before)
    world.cut_off.add(victim)
    world.run(STALE_S + 21)
    assert len(set(world.relay) - {victim}) == PUBLISHERS
    world.cut_off.clear()
    world.run(HOPELESS_S)
    assert world.publishing == before
    assert set(world.relay) == before


def test_one_that_never_lists_is_passed_over_after_its_grace() -> None:
    world = World(10)
    world.cut_off = set(publishers(MESH, world.alive)[:2])
    world.run(GRACE_S + 41)
    assert len(set(world.relay) - world.cut_off) == PUBLISHERS


def test_nobody_is_passed_over_where_nobody_looks() -> None:
    part = Publishing(MESH, nodes(10)[0], lambda: 0.5)
    alive = set(nodes(10))
    first = [part.step(now, WALL, alive=alive, clients=0, max_clients=9) for now in range(0, 400, 20)]
    chosen = nodes(10)[0] in publishers(MESH, alive)
    assert part.is_publisher is chosen
    assert (Do.PUBLISH in first) is chosen


def test_listings_of_other_meshes_and_strangers_mean_nothing() -> None:
    world = World(6)
    world.run(100)
    part = world.parts[min(world.alive)]
    strangers = [_listed(Signer.named(f"{n}").node, int(world.wall)) for n in range(1000)]
    part.heard(strangers, world.now)
    part.step(world.now, world.wall, alive=world.alive, clients=0, max_clients=9)
    assert len(part._heard) <= len(world.alive)


# --- full, paused, leaving --------------------------------------------------------------------------------------------


def test_a_full_mesh_is_delisted_and_comes_back_when_there_is_room() -> None:
    world = World(1)
    world.run(10)
    assert world.relay
    world.clients = 10
    world.run(1)
    assert not world.relay
    world.clients = 9
    world.run(120)
    assert not world.relay, "back for every one that leaves"
    world.clients = 8
    world.run(1)
    assert world.relay


def test_a_paused_node_lists_nothing() -> None:
    part = Publishing(MESH, nodes(1)[0], lambda: 0.5)
    step = {"alive": (), "clients": 0, "max_clients": 9}
    assert part.step(0, WALL, **step, paused=True) is Do.NOTHING
    assert part.step(0, WALL, **step) is Do.PUBLISH
    part.done(0, Do.PUBLISH, True)
    assert part.step(1, WALL, **step, paused=True) is Do.DELETE


def test_one_that_leaves_takes_its_listing_back() -> None:
    part = Publishing(MESH, nodes(1)[0], lambda: 0.5)
    assert part.leave() is Do.NOTHING
    part.done(0, Do.PUBLISH, True)
    assert part.leave() is Do.DELETE


def test_one_that_is_no_publisher_any_more_takes_its_listing_back() -> None:
    world = World(5)
    world.run(10)
    assert len(world.relay) == 5
    newcomers = [hashlib.sha256(b"new" + bytes([n])).digest() for n in range(100)]
    world.alive |= set(newcomers)
    world.parts |= {node: Publishing(MESH, node, lambda: 0.5) for node in newcomers}
    world.step()
    assert set(world.relay) == world.publishing
    assert len(world.relay) == PUBLISHERS


# --- failures ---------------------------------------------------------------------------------------------------------


def test_what_fails_is_tried_again_ever_more_slowly() -> None:
    world = World(1)
    world.cut_off = set(world.alive)
    tried = []
    for _ in range(300):
        before = sum(world.sent.values())
        world.run(1)
        if sum(world.sent.values()) > before:
            tried.append(world.now)
    gaps = [later - sooner for sooner, later in zip(tried, tried[1:], strict=False)]
    assert gaps == [5, 10, 20, 40, 60, 60, 60]
    world.cut_off.clear()
    world.run(60)
    assert world.relay


def test_a_delisting_that_fails_is_tried_again_but_not_every_moment() -> None:
    world = World(1)
    world.run(5)
    world.cut_off, world.clients, before = set(world.alive), 10, sum(world.sent.values())
    world.run(30)
    assert 2 <= sum(world.sent.values()) - before <= 4
    world.cut_off.clear()
    world.run(60)
    assert not world.relay


def test_news_are_listed_before_their_time() -> None:
    world = World(1)
    world.run(5)
    (part,) = world.parts.values()
    before = sum(world.sent.values())
    world.run(5)
    assert sum(world.sent.values()) == before
    part.changed()
    world.run(1)
    assert sum(world.sent.values()) == before + 1


def test_the_next_step_is_never_far_and_never_at_once_for_nothing() -> None:
    world = World(1)
    (part,) = world.parts.values()
    for _ in range(200):
        world.run(1)
        assert 0 < part.next_s(world.now) <= REFRESH_S / 4
