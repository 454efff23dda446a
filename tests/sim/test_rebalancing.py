"""Standby nodes follow what the mesh asks for: soon enough, one at a time, and without running to and fro."""

from __future__ import annotations

import pytest

from meshnode.core.needs import Known
from meshnode.core.rebalancing import StepDown
from tests.sim.demand import GIB, World

A, B, C = (Known(name, name[-1] * 32, 8 * GIB) for name in ("model-a", "model-b", "model-c"))
ALL = (A, B, C)
WITHIN_S = 60.0


def steady(**rates: float):
    """Every gateway asks for models at these rates, in requests per minute."""
    return lambda gateway, model, now: rates.get(model.replace("-", "_"), 0.0)


def first_ready(world: World, model: str, since: float, limit_s: float = 200.0) -> float:
    """Seconds until a node answers for a model."""
    while not world.hosts(model):
        assert world.now - since < limit_s, f"nobody serves {model}"
        world.run(0.5)
    return world.now - since


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 5, 30])
def test_a_model_that_nobody_serves_has_one_host_within_a_minute(seed: int, count: int) -> None:
    world = World(seed)
    world.add(asks=["model-a"], standby=False)
    for _ in range(count):
        world.add(ALL)
    world.run(60)
    assert world.changes == [], "nobody asks, nobody moves"
    since = world.now
    world.rate = steady(model_a=1.0)
    while not world.nodes[next(iter(world.nodes))].meter.wishes(world.now):
        world.run(1)
        since = world.now
    assert first_ready(world, "model-a", since) < WITHIN_S
    world.run(600)
    assert len(world.promotions()) == 1 and len(world.changes) == 1


@pytest.mark.parametrize("seed", range(2))
def test_nodes_that_do_not_take_part_or_fail_cost_their_turns_only(seed: int) -> None:
    world = World(seed)
    gateway = world.add(asks=["model-a"], standby=False)
    for index in range(12):
        world.add(ALL, refuses=["model-a"] if index % 3 == 0 else [], standby=index % 3 != 1)
    world.rate = steady(model_a=6.0)
    world.run(20)
    since = world.now
    assert first_ready(world, "model-a", since) < 2 * WITHIN_S
    world.run(900)
    assert len(world.hosts("model-a")) == 1
    assert gateway.meter.wishes(world.now)


@pytest.mark.parametrize("seed", range(2))
def test_a_host_that_dies_is_replaced_within_a_minute(seed: int) -> None:
    world = World(seed)
    world.add(asks=["model-a"], standby=False)
    server = world.add(ALL, serves="model-a")
    for _ in range(8):
        world.add(ALL)
    world.rate = steady(model_a=6.0)
    world.run(300)
    assert world.changes == []
    world.crash(server)
    assert first_ready(world, "model-a", world.now) < WITHIN_S
    world.run(300)
    assert len(world.promotions()) == 1


@pytest.mark.parametrize("seed", range(2))
def test_a_hot_model_gets_as_many_hosts_as_it_needs_one_by_one(seed: int) -> None:
    world = World(seed)
    for _ in range(3):
        world.add(asks=["model-a", "model-b"], standby=False)
    world.add(ALL, serves="model-a")
    world.add(ALL, serves="model-b")
    for _ in range(8):
        world.add(ALL)
    world.rate = steady(model_a=1.0, model_b=0.5)
    world.run(900)
    assert world.changes == []
    world.rate = steady(model_a=25.0, model_b=0.5)  # 75 a minute; a host can answer 40
    world.run(WITHIN_S)
    assert len(world.promotions()) == 1
    world.run(1800)
    assert 2 <= len(world.hosts("model-a")) <= 5 and len(world.hosts("model-b")) == 1
    moments = [change.at for change in world.promotions("model-a")]
    assert all(after - before > 60 for before, after in zip(moments, moments[1:], strict=False))
    count = len(world.changes)
    world.run(3600)
    assert len(world.changes) <= count + 1, "it is enough now"


@pytest.mark.parametrize("nodes", [2, 7])
@pytest.mark.parametrize("period_s", [30, 120, 600, 2400])
def test_an_oscillating_load_moves_little(period_s: float, nodes: int) -> None:
    """Four models take turns at the load, with fewer nodes than models and with nodes to spare."""
    models = (*ALL, Known("model-d", "d" * 32, 8 * GIB))
    names = [model.name for model in models]
    world = World(int(period_s))
    for _ in range(2):
        world.add(asks=names, standby=False)
    for _ in range(nodes):
        world.add(models, room_bytes=10 * GIB)
    world.rate = lambda gateway, model, now: 15.0 if names[int(now / period_s) % len(names)] == model else 0.0
    hours = 1.5
    world.run(hours * 3600)
    assert len(world.changes) / nodes / hours <= 8, "changes of a node in an hour"
    for node in world.nodes:
        own = [change for change in world.changes if change.node == node]
        for one, two in zip(own, own[1:], strict=False):
            gave_way = isinstance(two.decision, StepDown) and "same time" in two.decision.reason
            assert isinstance(one.decision, StepDown) or gave_way or two.at - one.at >= 600
    if nodes > len(models):
        late = [change for change in world.changes if change.at > 1000 + 3600]
        assert len(late) <= 6, "with nodes to spare everything has a host in the end"


@pytest.mark.parametrize("seed", range(2))
def test_a_cold_model_goes_only_when_another_is_wanted(seed: int) -> None:
    world = World(seed)
    world.add(asks=["model-a", "model-b"], standby=False)
    world.add(ALL, room_bytes=10 * GIB)
    world.add(ALL, room_bytes=10 * GIB, serves="model-c")
    world.rate = steady(model_a=6.0)
    world.run(120)
    assert len(world.hosts("model-a")) == 1
    world.rate = steady()
    world.run(7200)
    assert len(world.hosts("model-a")) == 1, "nothing else is wanted"
    world.rate = steady(model_b=6.0)
    assert first_ready(world, "model-b", world.now) < 3 * WITHIN_S
    assert world.hosts("model-a") == [] and len(world.hosts("model-c")) == 1, "what a person asked for stays"
    assert [type(change.decision).__name__ for change in world.changes] == ["Promote", "StepDown", "Promote"]


@pytest.mark.parametrize("seed", range(2))
def test_a_model_in_use_is_not_given_up(seed: int) -> None:
    world = World(seed)
    world.add(asks=["model-a", "model-b"], standby=False)
    world.add(ALL, room_bytes=10 * GIB)
    world.rate = steady(model_a=2.0)
    world.run(120)
    world.rate = steady(model_a=2.0, model_b=20.0)
    world.run(3600)
    assert len(world.hosts("model-a")) == 1 and world.hosts("model-b") == []


@pytest.mark.parametrize("seed", range(2))
def test_hosts_that_are_too_many_make_room(seed: int) -> None:
    """After a burst, several nodes hold one model of which a little is asked: one of them goes to what is wanted."""
    world = World(seed)
    for _ in range(2):
        world.add(asks=["model-a", "model-b"], standby=False)
    for _ in range(3):
        world.add(ALL, room_bytes=10 * GIB)
    world.rate = steady(model_a=60.0)
    world.run(1200)
    assert len(world.hosts("model-a")) == 3
    world.rate = steady(model_a=0.6)
    world.run(1200)
    world.rate = steady(model_a=0.6, model_b=2.0)
    assert first_ready(world, "model-b", world.now) < 3 * WITHIN_S
    world.run(1800)
    assert len(world.hosts("model-a")) == 2 and len(world.hosts("model-b")) == 1


@pytest.mark.parametrize("seed", range(3))
def test_old_news_cost_no_second_promotion(seed: int) -> None:
    world = World(seed, delay_s=(0.5, 5.0))
    for _ in range(2):
        world.add(asks=["model-a"], standby=False)
    for _ in range(20):
        world.add(ALL)
    world.rate = steady(model_a=2.0)
    world.run(900)
    assert len(world.promotions()) <= 2 and len(world.hosts("model-a")) == 1
    if len(world.promotions()) == 2:
        assert isinstance(world.changes[-1].decision, StepDown), "one has given way"


@pytest.mark.parametrize("seed", range(2))
def test_each_side_of_a_partition_helps_itself_once(seed: int) -> None:
    world = World(seed)
    left = [world.add(asks=["model-a"], standby=False), *(world.add(ALL) for _ in range(3))]
    right = [world.add(asks=["model-a"], standby=False), *(world.add(ALL) for _ in range(3))]
    sides = {node.name: side for side, nodes in enumerate((left, right)) for node in nodes}
    server = world.add(ALL, serves="model-a")
    sides[server.name] = 0
    world.rate = steady(model_a=4.0)
    world.run(120)
    assert world.changes == []
    world.cut = lambda one, other: sides[one] != sides[other]
    since = world.now
    world.run(WITHIN_S + 20)
    assert [sides[change.node] for change in world.promotions()] == [1]
    assert world.promotions()[0].at - since < WITHIN_S
    world.cut = lambda one, other: False
    world.run(3600)
    assert len(world.changes) == 1, "one too many is no reason to move"
    for round_ in range(5):  # a way that comes and goes
        world.cut = lambda one, other: sides[one] != sides[other]
        world.run(40)
        world.cut = lambda one, other: False
        world.run(40 + round_)
    assert len(world.changes) == 1


def test_a_joiner_goes_where_it_is_needed() -> None:
    world = World(7)
    world.add(asks=["model-a", "model-b"], standby=False)
    world.add(ALL, serves="model-a")
    world.rate = steady(model_a=1.0, model_b=3.0)
    world.run(300)
    assert world.hosts("model-b") == []
    joined = world.add(ALL)
    assert first_ready(world, "model-b", world.now) < WITHIN_S
    assert world.hosts("model-b") == [joined.name]


def test_the_same_seed_is_the_same_run() -> None:
    runs = []
    for _ in range(2):
        world = World(3)
        world.add(asks=["model-a", "model-b"], standby=False)
        for _ in range(5):
            world.add(ALL)
        world.rate = steady(model_a=30.0, model_b=5.0)
        world.run(600)
        runs.append((world.changes, world.answered, len(world.lost)))
    assert runs[0] == runs[1] and runs[0][1] > 100
