import itertools

import pytest

from meshnode.core import prediction
from meshnode.core.placement import MIN_CONTEXT, MODEST_CONTEXT
from meshnode.core.split import NodeFacts, SplitWishes, speed_of
from meshnode.core.staging import Loads
from meshnode.core.teams import (
    ALL_SETS,
    PERMUTED,
    Choice,
    Rtts,
    Search,
    as_given,
    choices,
    counted,
    in_order,
    plan_of,
    rtt_between,
    search,
)
from tests.core.split_samples import SEVEN, SEVENTY, cpu, gpu, machine

HOST = machine("h", gpu(10), here=True)


def rtts_of(*pairs: tuple[str, str, float]) -> Rtts:
    return {key: rtt_s for a, b, rtt_s in pairs for key in ((a, b), (b, a))}


def all_rtts(nodes: list[NodeFacts], rtt_s: float = 0.01) -> Rtts:
    return rtts_of(*((a.node, b.node, rtt_s) for a, b in itertools.combinations([HOST, *nodes], 2)))


def found(pool: list[NodeFacts], rtts: Rtts | None = None, wishes: SplitWishes = SplitWishes()) -> Search:  # noqa: B008
    return search(SEVENTY, HOST, pool, rtts or all_rtts(pool), wishes)


# --- what is chosen before layers -----------------------------------------------------------------------------


def test_choices_go_from_the_most_comfortable_down_and_q8_comes_late() -> None:
    made = choices(131072, SplitWishes())
    comforts = [comfort for comfort, _ in made]
    assert comforts == sorted(comforts, reverse=True) and comforts[0] == 1.0
    assert made[0][1] == Choice(32768, 4, "f16")
    order = [choice for _, choice in made]
    # A conversation of a quarter of the length costs less than another number format, one too short to work with more.
    assert order.index(Choice(MODEST_CONTEXT, 4, "f16")) < order.index(Choice(32768, 4, "q8_0"))
    assert order.index(Choice(32768, 4, "q8_0")) < order.index(Choice(MODEST_CONTEXT // 2, 4, "f16"))
    assert min(choice.context for choice in order) == MIN_CONTEXT
    assert len(order) == len(set(order)) == 5 * 3 * 2


def test_wishes_and_the_model_bound_the_choices() -> None:
    assert choices(131072, SplitWishes(context=5000, parallel=3, kv_type="q4_0")) == [(1.0, Choice(5000, 3, "q4_0"))]
    assert {choice.context for _, choice in choices(4096, SplitWishes())} == {4096, 2048}
    assert choices(0, SplitWishes())[0][1].context == 32768


# --- the order of workers -------------------------------------------------------------------------------------


def test_workers_stand_in_the_order_of_the_shortest_way() -> None:
    nodes = [machine(name, gpu(10)) for name in "abc"]
    # A line h - c - a - b, with the way back from b as long as the way to it.
    rtts = rtts_of(
        ("h", "c", 0.002), ("h", "a", 0.020), ("h", "b", 0.022), ("c", "a", 0.004), ("a", "b", 0.002), ("c", "b", 0.022)
    )
    team = in_order(HOST, nodes, rtts, 0)
    ways = [sum(as_given(HOST, order, rtts, 0).legs_s) for order in itertools.permutations(nodes)]
    assert sum(team.legs_s) == pytest.approx(min(ways))
    assert "".join(node.node for node in team.workers) in ("cab", "bac")
    assert len(team.legs_s) == 4


def test_of_many_workers_the_nearest_is_next() -> None:
    nodes = [machine(f"w{n}", gpu(10)) for n in range(PERMUTED + 2)]
    places = {"h": 0, **{node.node: 3 * n + 1 for n, node in enumerate(nodes)}}
    rtts = rtts_of(*((a, b, abs(places[a] - places[b]) / 1000) for a, b in itertools.combinations(places, 2)))
    team = in_order(HOST, nodes[::-1], rtts, 0)
    assert [node.node for node in team.workers] == [node.node for node in nodes]


def test_two_workers_that_never_met_are_as_far_as_over_the_host() -> None:
    rtts = rtts_of(("h", "a", 0.01), ("h", "b", 0.02))
    assert rtt_between("a", "b", "h", rtts) == pytest.approx(0.03)
    assert rtt_between("a", "h", "h", rtts) == 0.01
    assert 0 < rtt_between("x", "y", "h", rtts) < 1


# --- sets -----------------------------------------------------------------------------------------------------


def test_one_near_worker_that_holds_the_rest_is_enough() -> None:
    pool = [machine("a", gpu(40)), machine("b", gpu(40)), machine("c", gpu(40))]
    result = found(pool, rtts_of(("h", "a", 0.03), ("h", "b", 0.004), ("h", "c", 0.02)))
    assert result.best is not None
    assert result.best.plan.workers == ("b",)
    assert set(result.with_worker) == {"a", "b", "c"}
    assert result.with_worker["a"].worth < result.best.worth


def test_a_second_worker_is_taken_where_it_saves_more_than_its_leg() -> None:
    slow, fast = machine("a", gpu(60, speed=100e9)), machine("b", gpu(20, speed=1500e9))
    assert found([slow, fast], all_rtts([slow, fast], 0.002)).best.plan.workers != ("a",)  # type: ignore[union-attr]
    assert found([slow, fast], rtts_of(("h", "a", 0.002), ("h", "b", 0.9), ("a", "b", 0.9))).best.plan.workers == (  # type: ignore[union-attr]
        "a",
    )


def test_no_set_holds_what_is_too_large() -> None:
    pool = [machine("a", gpu(5)), machine("b", gpu(5))]
    assert found(pool).best is None
    assert found(pool).with_worker == {}
    assert found([]).best is None


@pytest.mark.parametrize("count", [ALL_SETS + 1, 20, 40])
def test_growing_finds_about_what_trying_everything_would(count: int) -> None:
    # Twelve equal pieces are needed: however they are found, the nearest ones make the plan.
    pool = [machine(f"w{n:02}", gpu(6), host=0) for n in range(count)]
    rtts = {
        key: 0.001 + 0.001 * max(int(a.node[1:]) if a is not HOST else 0, int(b.node[1:]) if b is not HOST else 0)
        for a, b in itertools.combinations([HOST, *pool], 2)
        for key in ((a.node, b.node), (b.node, a.node))
    }
    result = found(pool, rtts)
    assert result.best is not None
    assert set(result.best.plan.workers) <= {f"w{n:02}" for n in range(9)}
    assert sum(stage.layers for stage in (*result.best.plan.stages, *result.best.plan.local_devices)) <= 80


def test_counts_are_met_by_as_many_devices() -> None:
    assert counted(32, (12, 20)) == (0, 12, 20)
    assert counted(32, (12, 21)) == (0, 12, 20)
    assert counted(32, (4, 4, 5)) == (19, 4, 4, 5)
    assert counted(32, (12, 22)) is None
    assert counted(32, (33, 0)) is None
    host = machine("h", cpu(8), here=True, host=8)
    pool = [machine("a", gpu(10)), machine("b", gpu(10))]
    result = search(SEVEN, host, pool, all_rtts(pool), SplitWishes(tensor_split=(12, 18)))
    assert result.best is not None
    assert (result.best.plan.host_layers, result.best.plan.tensor_split) == (2, (12, 19))
    assert result.best.plan.gpu_layers == 31
    for impossible in ((4, 4, 5), (0, 20), (12, 22)):
        made = search(SEVEN, host, pool, all_rtts(pool), SplitWishes(tensor_split=impossible))
        assert made.best is None


# --- the plan of a team ---------------------------------------------------------------------------------------


def test_the_prediction_is_stages_and_legs() -> None:
    host = machine("h", cpu(8), here=True, host=8)
    workers = [machine("a", gpu(3)), machine("b", gpu(3))]
    rtts = rtts_of(("h", "a", 0.04), ("a", "b", 0.02), ("b", "h", 0.06))
    passed = prediction.activation_bytes(4096)
    made = plan_of(Loads(SEVEN, Choice(4096, 1, "f16")), as_given(host, workers, rtts, passed), SplitWishes())
    assert made is not None
    plan, rate = made
    legs = [prediction.leg_s(rtt_s, passed) for rtt_s in (0.04, 0.02, 0.06)]
    assert [stage.delay_s for stage in plan.stages] == pytest.approx(legs[:2])
    head = speed_of(host.devices[0])[0].decode_s(plan.host_layers, plan.host_layers * 125 * 2**20 + 410 * 2**20)
    seconds = sum(stage.compute_s for stage in plan.stages) + sum(legs) + head
    assert 1 / rate == pytest.approx(seconds, abs=3e-4)
    assert plan.predicted_tokens_per_s == pytest.approx(rate, rel=0.01)


def test_two_devices_of_one_server_cost_a_round_trip_of_the_host() -> None:
    host = machine("h", cpu(4), here=True, host=4)
    worker = machine("a", gpu(3), gpu(3, name="CUDA1"))
    rtts = rtts_of(("h", "a", 0.04))
    made = plan_of(Loads(SEVEN, Choice(4096, 1, "f16")), as_given(host, [worker], rtts, 0), SplitWishes())
    assert made is not None
    one, other = made[0].stages
    assert (one.node, other.node, one.device_index, other.device_index) == ("a", "a", 0, 1)
    assert other.delay_s == pytest.approx(2 * one.delay_s)
