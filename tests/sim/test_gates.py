"""What the membership must reach, in simulation: fixed seeds, hundred and thousand nodes.

Full node-hours, bursty loss and ten thousand nodes are measured by `python -m bench.membership`; here the hunt for
false verdicts takes 12 node-hours of the 500.
"""

import pytest

from meshnode.core.events import Publish
from tests.sim.meshes import (
    Watch,
    agree,
    crashes,
    grown,
    identity,
    load,
    percentile,
    publish_always,
    settled,
    stall_some,
    traffic,
    updates,
)
from tests.sim.world import World

LOSSES = pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])


def mesh(seed: int, count: int, *, loss: float = 0.0, burst: float = 1.0) -> tuple[World, Watch]:
    """A mesh that has settled, and who came to know what when."""
    world = World(seed, loss=loss, burst=burst)
    settled(world, count)
    world.run(3)
    return world, Watch(world)


@LOSSES
def test_a_crash_among_a_hundred(loss: float) -> None:
    world, watch = mesh(11, 100, loss=loss)
    found = crashes(world, watch, range(5, 95, 6), apart_s=3.0)
    assert percentile(found["avoided"], 0.5) <= 1.5, world.seed
    assert percentile(found["unreachable"], 0.95) <= 3.0, world.seed
    assert percentile(found["dead"], 0.95) <= 8.5, world.seed
    assert watch.false_dead == []


def test_a_crash_and_farewells_among_a_thousand() -> None:
    world, watch = mesh(12, 1000)
    found = crashes(world, watch, (17, 403), apart_s=0.5)
    assert percentile(found["avoided"], 0.5) <= 1.5, world.seed
    assert percentile(found["unreachable"], 1) <= 3.0, world.seed
    assert percentile(found["dead"], 1) <= 8.5, world.seed
    at = world.now
    for subject in (9, 500):
        world.leave(subject)
    world.run(1.5)
    assert percentile((watch.known_to(0.99, subject, ("left",), at) for subject in (9, 500)), 1) <= 0.6, world.seed
    assert watch.false_dead == []


@LOSSES
def test_farewells_among_a_hundred(loss: float) -> None:
    world, watch = mesh(13, 100, loss=loss)
    times = []
    for subject in range(3, 93, 9):
        at = world.now
        world.leave(subject)
        world.run(1.5)
        times.append(watch.known_to(0.99, subject, ("left",), at))
    assert percentile(times, 0.95) <= 0.6, world.seed


def test_nobody_is_taken_for_dead_at_20_percent_loss() -> None:
    world, watch = mesh(14, 100, loss=0.2)
    world.run(240)
    assert watch.false_dead == [], world.seed
    assert agree(world, range(100)), world.seed


def test_nobody_is_taken_for_dead_in_bursts_of_loss() -> None:
    world, watch = mesh(15, 100, loss=0.1, burst=4)
    world.run(60)
    assert watch.false_dead == [], world.seed


def test_nobody_is_taken_for_dead_while_some_stand_still() -> None:
    world, watch = mesh(16, 100)
    stalling = stall_some(world)
    world.run(150)
    assert watch.false_dead == [], world.seed
    for index in stalling:
        world.nodes[index].still_until = 0.0
    world.run(15)
    assert any(node.counted["loop_lags"] for node in world.nodes)


@pytest.mark.parametrize("count", [30, 100])
def test_half_of_the_nodes_die_at_once(count: int) -> None:
    world, watch = mesh(17, count)
    dying = world.chance.sample(range(count), count // 2)
    at = world.now
    for index in dying:
        world.crash(index)
    world.run(30)
    assert percentile((watch.known_to(1.0, index, ("dead",), at) for index in dying), 1) <= 30.0, world.seed
    assert watch.false_dead == []


@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_a_healed_partition_merges(count: int) -> None:
    world, _ = mesh(18, count)
    world.cut(lambda one, other: (one < count // 2) != (other < count // 2))
    world.run(60)
    assert not agree(world, range(count))
    world.heal()
    healed = world.now
    while not agree(world, range(count)):
        assert world.now - healed <= 35, world.seed
        world.run(1)
    world.run(10)
    assert agree(world, range(count)), world.seed


def test_a_way_that_works_in_one_direction_only_kills_nobody() -> None:
    world, watch = mesh(19, 12)
    world.cut(lambda one, other: (one, other) in ((0, 1), (2, 5)))
    world.run(90)
    assert watch.false_dead == [], world.seed
    incarnations = [node.incarnation for node in world.nodes]
    assert max(incarnations) <= 4, "accusations that are answered are not repeated for ever"


def test_steady_traffic_of_a_hundred() -> None:
    world, _ = mesh(20, 100)
    publish_always(world)
    world.run(10)
    assert traffic(world, 30) <= 5_000, world.seed


def test_steady_traffic_of_a_thousand() -> None:
    world, _ = mesh(21, 1000)
    publish_always(world)
    world.run(2)
    assert traffic(world, 6) <= 8_000, world.seed


def test_an_update_reaches_a_thousand() -> None:
    world, _ = mesh(22, 1000)
    times = updates(world, range(10, 990, 200))
    assert percentile(times, 0.95) <= 0.6 + world.options.ihave_s / 2, world.seed


def test_a_mesh_that_grows_from_one() -> None:
    world = World(23)
    grown(world, 60, for_s=8.0)
    assert agree(world, range(60)), world.seed
    assert all(len(node.machine.snapshot().members) == 60 for node in world.nodes)


def test_a_node_that_was_killed_comes_back() -> None:
    world, _ = mesh(24, 8)
    world.crash(3)
    world.run(10)
    assert world.nodes[0].machine.snapshot().members[world.name(3)].state == "dead"
    node = world.add(index=3, incarnation=2)
    world.give(node, Publish(identity(world, 3)))
    world.give(node, Publish(load()))
    world.link(3, 5)
    world.run(10)
    assert agree(world, range(8)), world.seed


def test_the_same_seed_is_the_same_run() -> None:
    sums = []
    for _ in range(2):
        world, _ = mesh(25, 20, loss=0.1)
        world.crash(4)
        world.run(12)
        sums.append((world.events, [node.sent_bytes for node in world.nodes]))
    assert sums[0] == sums[1]
