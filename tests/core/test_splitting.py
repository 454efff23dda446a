"""Decisions: a table of situations, what holds for every plan, what is kept, and what every node is told."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.core.memory import ENGINE_OVERHEAD_BYTES, GIB
from meshnode.core.placement import SoloPlan
from meshnode.core.split import MOST_DEVICES, Candidate, Decision, NodeFacts, SplitPlan, SplitWishes, same
from meshnode.core.splitting import LEAVING_RTT_S, MOST_RTT_S, decide
from tests.core.split_samples import MIXTURE, SEVEN, SEVENTY, SMALL, Line, Model, cpu, gpu, machine

NO_WISHES = SplitWishes()


def split_of(
    model: Model,
    nodes: Sequence[NodeFacts],
    line: Line | None = None,
    wishes: SplitWishes = NO_WISHES,
    current: SplitPlan | None = None,
) -> SplitPlan:
    decision = decide(model, nodes, line or Line(), wishes, current)
    assert decision.split is not None, decision.refusal
    check(model, nodes, decision)
    return decision.split


def said_of(decision: Decision, node: str) -> Candidate:
    return next(candidate for candidate in decision.candidates if candidate.node == node)


def check(model: Model, nodes: Sequence[NodeFacts], decision: Decision) -> None:
    """What holds for every decision, whatever led to it."""
    assert sum(each is not None for each in (decision.solo, decision.split, decision.refusal)) == 1
    assert sorted(candidate.node for candidate in decision.candidates) == sorted({node.node for node in nodes})
    assert all(candidate.reason for candidate in decision.candidates)
    plan = decision.split
    if plan is None:
        return
    known = {node.node: node for node in nodes}
    stages = (*plan.stages, *plan.local_devices)
    assert plan.stages and all(stage.layers >= 1 for stage in plan.stages)
    assert len(stages) <= MOST_DEVICES
    # Every layer lies somewhere exactly once, in llama.cpp's order.
    layers = [*range(plan.host_layers), *(n for x in stages for n in range(x.first_layer, x.first_layer + x.layers))]
    assert layers == list(range(len(model.layers)))
    # Nobody holds more than it may, and main memory all that stays there.
    assert all(stage.total_bytes <= stage.limit_bytes for stage in stages if stage.layers)
    assert all(x.limit_bytes <= known[x.node].devices[x.device_index].usable_bytes for x in stages)
    assert plan.host_bytes <= known[plan.host].host_bytes
    assert plan.host_bytes >= model.embedding_bytes + ENGINE_OVERHEAD_BYTES
    kv = [x.kv_bytes(plan.context, sequences=plan.parallel, cache_type=plan.kv_type) for x in model.layers]
    for stage in stages:
        held = range(stage.first_layer, stage.first_layer + stage.layers)
        assert stage.kv_bytes == sum(kv[n] for n in held)
        assert stage.weights_bytes >= sum(model.layers[n].weights_bytes for n in held)
    # What llama-server makes of the counts is the plan.
    assert len(plan.tensor_split) == len(stages)
    assert plan.gpu_layers == sum(plan.tensor_split) == len(model.layers) - plan.host_layers + 1
    expected = [n for n, stage in enumerate(stages) for _ in range(stage.layers)]
    on_last = max(n for n, count in enumerate(plan.tensor_split) if count)
    assert devices_by_llama_cpp(plan) == [*expected, on_last]
    assert plan.output_on_host or (plan.local_devices and on_last == len(stages) - 1)
    # Workers are members that may work, near enough.
    assert plan.host not in plan.workers
    assert all(known[worker].lends and not known[worker].why_not for worker in plan.workers)
    roles = {candidate.node: candidate.verdict for candidate in decision.candidates}
    assert {node for node, verdict in roles.items() if verdict == "worker"} == set(plan.workers)
    assert [node for node, verdict in roles.items() if verdict == "host"] == [plan.host]


def devices_by_llama_cpp(plan: SplitPlan) -> list[int]:
    """The device of each unit from the first on a device on, the head last (llama-model.cpp, load_tensors)."""
    total = sum(plan.tensor_split)
    cumulated = [part / total for part in itertools.accumulate(plan.tensor_split)]
    return [bisect.bisect_right(cumulated, unit / plan.gpu_layers) for unit in range(plan.gpu_layers)]


# --- situations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Situation:
    """Machines and a model; `expected` is "solo X", "split H+W1+W2" in the order of the pipeline, or "refused"."""

    label: str
    model: Model
    nodes: tuple[NodeFacts, ...]
    expected: str
    line: Line = field(default_factory=Line)
    wishes: SplitWishes = NO_WISHES


BIG, MIDDLE = gpu(23), gpu(11)
SITUATIONS = [
    Situation("alone and enough", SEVEN, (machine("h", BIG, here=True),), "solo h"),
    Situation("alone and too small", SEVENTY, (machine("h", BIG, here=True),), "refused"),
    Situation("two halves", SEVENTY, (machine("h", BIG, here=True), machine("a", BIG)), "split h+a"),
    Situation(
        "a third is not needed",
        SEVENTY,
        (machine("h", BIG, here=True), machine("a", BIG), machine("b", BIG)),
        "split h+a",
        Line({("h", "b"): 0.03, ("a", "b"): 0.03}),
    ),
    Situation(
        "the nearer of two",
        SEVENTY,
        (machine("h", BIG, here=True), machine("a", BIG), machine("b", BIG)),
        "split h+b",
        Line({("h", "a"): 0.03}),
    ),
    Situation(
        "three small ones together",
        SEVENTY,
        (machine("h", MIDDLE, here=True), machine("a", gpu(18)), machine("b", gpu(18))),
        "split h+a+b",
    ),
    Situation(
        "in the order of the shortest way",
        SEVENTY,
        (machine("h", MIDDLE, here=True), machine("a", gpu(13)), machine("b", gpu(13)), machine("c", gpu(13))),
        "split h+b+a+c",
        Line({("h", "c"): 0.001, ("c", "a"): 0.001, ("a", "b"): 0.001, ("b", "h"): 0.001}, rest=0.05),
    ),
    Situation(
        "a faraway machine does not help", SEVENTY, (machine("h", BIG, here=True), machine("a", BIG)), "refused",
        Line(rest=0.142),
    ),
    Situation(
        "at the limit it does", SEVENTY, (machine("h", BIG, here=True), machine("a", BIG)), "split h+a",
        Line(rest=MOST_RTT_S),
    ),
    Situation(
        "beyond the limit only who works already", SEVENTY,
        (machine("h", BIG, here=True), machine("a", BIG, incumbent=True)), "split h+a", Line(rest=0.095),
    ),
    Situation(
        "nobody knows how far", SEVENTY, (machine("h", BIG, here=True), machine("a", BIG)), "refused", Line(rest=None)
    ),
    Situation(
        "who does not lend is left alone", SEVENTY, (machine("h", BIG, here=True), machine("a", BIG, lends=False)),
        "refused",
    ),
    Situation(
        "who cannot is left out", SEVENTY,
        (machine("h", BIG, here=True), machine("a", BIG, why_not="draining"), machine("b", BIG)), "split h+b",
    ),
    Situation(
        "a host without a GPU keeps the head", SEVENTY, (machine("h", cpu(8), here=True), machine("a", gpu(48))),
        "split h+a",
    ),
    Situation(
        "processors only", SEVEN,
        (machine("h", cpu(3), host=3, here=True), machine("a", cpu(3), host=3), machine("b", cpu(3), host=3)),
        "split h+a+b",
    ),
    Situation(
        "a shared memory", SEVENTY,
        (machine("h", gpu(24, kind="unified"), host=28, here=True), machine("a", gpu(24, kind="unified"), host=28)),
        "split h+a",
    ),
    Situation("a split that was asked for", SMALL, (machine("h", cpu(4), host=4, here=True), machine("a", cpu(4))),
        "split h+a", wishes=SplitWishes(split=True)),
    Situation("asked for and nobody there", SMALL, (machine("h", cpu(4), host=4, here=True),),
        "refused", wishes=SplitWishes(split=True)),
    Situation(
        "another one holds it alone", SEVEN,
        (machine("h", cpu(2), host=2, here=True), machine("a", BIG, weights=True)), "solo a",
    ),
    Situation(
        "another one without weights does not host", SEVEN,
        (machine("h", cpu(2), host=2, here=True), machine("a", gpu(4), gpu(4, name="CUDA1"))), "split h+a",
    ),
    Situation(
        "another host, far better placed", SEVENTY,
        (machine("h", cpu(8), here=True), machine("a", BIG, weights=True), machine("b", BIG)), "split a+b",
        Line({("a", "b"): 0.001}, rest=0.07),
    ),
    Situation(
        "nobody measured", SEVENTY, (machine("h", gpu(23, speed=None), here=True), machine("a", gpu(23, speed=None))),
        "split h+a",
    ),
    Situation("a mixture over two", MIXTURE, (machine("h", BIG, host=4, here=True), machine("a", BIG)), "split h+a"),
    Situation(
        "memory that cannot be is none", SEVENTY,
        (machine("h", BIG, here=True), machine("a", gpu(-9)), machine("b", gpu(1 << 40))), "refused",
    ),
]  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.label)
def test_situation(situation: Situation) -> None:
    decision = decide(situation.model, situation.nodes, situation.line, situation.wishes)
    check(situation.model, situation.nodes, decision)
    if decision.solo:
        found = f"solo {decision.solo[0]}"
    elif decision.split:
        found = f"split {'+'.join((decision.split.host, *decision.split.workers))}"
    else:
        found = "refused"
    assert found == situation.expected, decision
    for seed in range(3):
        shuffled = random.Random(seed).sample(situation.nodes, len(situation.nodes))
        assert decide(situation.model, shuffled, situation.line, situation.wishes) == decision


# --- plans ----------------------------------------------------------------------------------------------------

PAIR = (machine("h", BIG, here=True), machine("a", BIG))


def test_the_head_lies_on_the_hosts_gpu_or_in_its_main_memory() -> None:
    plan = split_of(SEVENTY, PAIR)
    assert (plan.output_on_host, plan.host_layers) == (False, 0)
    assert plan.tensor_split == (plan.stages[0].layers, plan.local_devices[0].layers + 1)
    plan = split_of(SEVENTY, [machine("h", cpu(8), here=True), machine("a", gpu(48))])
    assert (plan.output_on_host, plan.local_devices) == (True, ())
    assert plan.tensor_split[-1] == plan.stages[-1].layers + 1
    # A GPU with no room for the head still takes layers.
    plan = split_of(SEVENTY, [machine("h", gpu(0.9), here=True), machine("a", gpu(47))])
    assert plan.output_on_host


def test_a_shared_memory_is_not_planned_twice() -> None:
    nodes = [machine("h", gpu(24, kind="unified"), host=26, here=True), machine("a", gpu(24))]
    plan = split_of(SEVENTY, nodes)
    assert plan.host_layers == 0
    assert plan.host_bytes + sum(stage.total_bytes for stage in plan.local_devices) <= 26 * GIB


def test_context_gives_way_before_the_number_format() -> None:
    large = [machine("h", gpu(46), here=True), machine("a", gpu(46))]
    roomy = split_of(SEVENTY, large, wishes=SplitWishes(split=True))
    assert (roomy.context, roomy.parallel, roomy.kv_type) == (32768, 4, "f16")
    tight = split_of(SEVENTY, PAIR)
    assert (tight.context, tight.kv_type) == (16384, "f16")
    assert "context 16384 of 131072" in tight.reason
    tightest = split_of(SEVENTY, [machine("h", gpu(20.2), host=2, here=True), machine("a", gpu(20.2))])
    assert (tightest.context, tightest.kv_type) == (8192, "q8_0")
    assert "cache as q8_0" in tightest.reason


def test_wishes_are_kept_or_the_model_is_refused() -> None:
    plan = split_of(SEVENTY, PAIR, wishes=SplitWishes(context=3000, parallel=2, kv_type="q8_0"))
    assert (plan.context, plan.parallel, plan.kv_type) == (3000, 2, "q8_0")
    decision = decide(SEVENTY, PAIR, Line(), SplitWishes(context=131072, parallel=4, kv_type="f16"))
    check(SEVENTY, PAIR, decision)
    assert decision.refusal and decision.refusal.needed_bytes > decision.refusal.available_bytes
    assert "short" in decision.refusal.reason


def test_counts_are_respected_as_given_or_refused_with_words() -> None:
    nodes = [machine("h", cpu(8), here=True), machine("a", gpu(10)), machine("b", gpu(10))]
    plan = split_of(SEVEN, nodes, wishes=SplitWishes(tensor_split=(10, 20)))
    assert (plan.host_layers, [stage.layers for stage in plan.stages]) == (2, [10, 20])
    for counts, words in (((10, 24), "more layers than the 32"), ((1, 1, 1), "not so many devices")):
        refusal = decide(SEVEN, nodes, Line(), SplitWishes(tensor_split=counts)).refusal
        assert refusal and words in refusal.reason
        assert ",".join(map(str, counts)) in refusal.reason
    # It is not read as less than it says: too many layers for a device are too many.
    assert decide(SEVENTY, PAIR, Line(), SplitWishes(tensor_split=(60, 20))).refusal


def test_unknown_speeds_are_not_promised_but_planned_by_memory() -> None:
    nodes = [machine("h", cpu(8), here=True), machine("a", gpu(30, speed=None)), machine("b", gpu(15, speed=None))]
    plan = split_of(SEVENTY, nodes, wishes=SplitWishes(context=4096, parallel=1))
    assert plan.predicted_tokens_per_s is None
    layers = {stage.node: stage.layers for stage in plan.stages}
    assert layers["a"] == pytest.approx(2 * layers["b"], rel=0.15)
    half_known = split_of(SEVENTY, [machine("h", BIG, here=True), machine("a", gpu(23, speed=None))])
    assert half_known.predicted_tokens_per_s is None


def test_more_workers_are_taken_where_they_are_faster() -> None:
    slow, fast = machine("a", gpu(48, speed=60e9)), machine("b", gpu(23))
    plan = split_of(SEVENTY, [machine("h", BIG, here=True), slow, fast])
    assert plan.workers == ("b",)
    plan = split_of(SEVENTY, [machine("h", gpu(12), here=True), slow, fast])
    assert set(plan.workers) == {"a", "b"}
    by_node = {stage.node: stage for stage in plan.stages}
    assert by_node["b"].layers > by_node["a"].layers


def test_no_more_devices_than_llama_server_takes() -> None:
    nodes = [machine("h", gpu(1), host=4, here=True)]
    nodes += [machine(f"w{n:02}", *[gpu(1.3, name=f"CUDA{i}") for i in range(4)]) for n in range(12)]
    decision = decide(SEVENTY, nodes, Line(rest=0.001), NO_WISHES)
    check(SEVENTY, nodes, decision)
    assert decision.refusal and "too much is lost" in decision.refusal.reason


# --- what is kept ---------------------------------------------------------------------------------------------


def test_a_plan_in_force_is_kept_for_less_than_15_percent() -> None:
    nodes = [machine("h", BIG, here=True), machine("a", BIG)]
    current = split_of(SEVENTY, nodes)
    assert same(split_of(SEVENTY, nodes, current=current), current)
    near = [*nodes, machine("b", BIG)]
    line = Line({("h", "b"): 0.006, ("a", "b"): 0.006})
    assert split_of(SEVENTY, near, line).workers == ("b",)
    kept = split_of(SEVENTY, near, line, current=current)
    assert same(kept, current)
    line = Line({("h", "b"): 0.0005, ("h", "a"): 0.03})
    changed = split_of(SEVENTY, near, line, current=current)
    assert changed.workers == ("b",)
    # And not back again.
    back = Line({("h", "b"): 0.005, ("h", "a"): 0.0045})
    assert same(split_of(SEVENTY, near, back, current=changed), changed)


def test_a_plan_that_wavers_about_the_limit_of_distance_is_kept() -> None:
    current = split_of(SEVENTY, PAIR, Line(rest=0.079))
    for rtt_s in (0.081, 0.099, LEAVING_RTT_S):
        assert same(split_of(SEVENTY, PAIR, Line(rest=rtt_s), current=current), current)
    assert decide(SEVENTY, PAIR, Line(rest=0.101), NO_WISHES, current).refusal


@pytest.mark.parametrize(
    "nodes",
    [
        (machine("h", BIG, here=True), machine("b", BIG)),
        (machine("h", BIG, here=True), machine("a", BIG, why_not="leaving"), machine("b", BIG)),
        (machine("h", BIG, here=True), machine("a", BIG, lends=False), machine("b", BIG)),
        (machine("h", BIG, here=True), machine("a", gpu(5, name="other"), gpu(1)), machine("b", BIG)),
    ],
    ids=["gone", "leaving", "no longer lends", "other devices"],
)
def test_a_plan_whose_worker_is_lost_is_made_anew(nodes: tuple[NodeFacts, ...]) -> None:
    current = split_of(SEVENTY, PAIR)
    decision = decide(SEVENTY, nodes, Line(), NO_WISHES, current)
    assert decision.split is not None
    if nodes[1].devices == (BIG,):
        assert decision.split.workers == ("b",)


def test_a_plan_that_is_no_longer_wished_is_made_anew() -> None:
    current = split_of(SEVENTY, PAIR)
    for wishes in (SplitWishes(context=4096), SplitWishes(parallel=2), SplitWishes(kv_type="q8_0")):
        assert not same(split_of(SEVENTY, PAIR, wishes=wishes, current=current), current)
    wishes = SplitWishes(tensor_split=(40, 40))
    assert split_of(SEVENTY, PAIR, wishes=wishes, current=current).stages[0].layers == 40


def test_memory_of_a_plan_in_force_is_not_judged_again() -> None:
    current = split_of(SEVENTY, PAIR)
    full = [machine("h", gpu(0.5), host=0.5, here=True), machine("a", gpu(0), incumbent=True)]
    decision = decide(SEVENTY, full, Line(), NO_WISHES, current)
    assert decision.split and same(decision.split, current)


def test_one_machine_that_holds_all_takes_over_where_that_is_clearly_faster() -> None:
    current = split_of(SEVENTY, PAIR)
    larger = [machine("h", gpu(48), here=True), PAIR[1]]
    decision = decide(SEVENTY, larger, Line(), NO_WISHES, current)
    assert decision.solo and decision.solo[0] == "h"
    slower = [machine("h", BIG, host=60, here=True), PAIR[1]]
    decision = decide(SEVENTY, slower, Line(), NO_WISHES, current)
    assert decision.split and same(decision.split, current)


# --- solo -----------------------------------------------------------------------------------------------------


def test_this_machine_is_preferred_unless_another_is_clearly_faster() -> None:
    for speed, expected in ((850e9, "h"), (1500e9, "a"), (None, "h")):
        nodes = [machine("h", gpu(23), here=True), machine("a", gpu(23, speed=speed), weights=True)]
        decision = decide(SEVEN, nodes, Line(), NO_WISHES)
        check(SEVEN, nodes, decision)
        assert decision.solo and decision.solo[0] == expected
        assert isinstance(decision.solo[1], SoloPlan)
        other = "a" if expected == "h" else "h"
        assert said_of(decision, other).verdict == "spare"
        assert said_of(decision, expected).verdict == "solo"


def test_among_others_the_fastest_serves() -> None:
    nodes = [machine("h", cpu(1), host=1, here=True)]
    nodes += [machine(name, gpu(23, speed=speed), weights=True) for name, speed in (("a", 700e9), ("b", 750e9))]
    decision = decide(SEVEN, nodes, Line(), NO_WISHES)
    assert decision.solo and decision.solo[0] == "b"


# --- words ----------------------------------------------------------------------------------------------------


def test_everybody_is_told_why() -> None:
    nodes = [
        machine("h", BIG, here=True),
        machine("a", BIG),
        machine("b", gpu(12)),
        machine("c", BIG, lends=False),
        machine("d", BIG, path="relay"),
        machine("e", BIG, why_not="speaks RPC 6.0"),
        machine("f", BIG),
        machine("g"),
    ]
    line = Line({("h", "d"): 0.142, ("h", "f"): None, ("h", "a"): 0.005})
    decision = decide(SEVENTY, nodes, line, NO_WISHES)
    check(SEVENTY, nodes, decision)
    assert {candidate.node: candidate.verdict for candidate in decision.candidates} == {
        "h": "host", "a": "worker", "b": "spare", "c": "rejected", "d": "rejected", "e": "rejected", "f": "rejected",
        "g": "rejected",
    }  # fmt: skip
    assert "layers 0-" in said_of(decision, "a").reason and "CUDA0" in said_of(decision, "a").reason
    assert said_of(decision, "b").reason == "the plan is no faster with it"
    assert said_of(decision, "c").reason == "does not lend"
    assert said_of(decision, "d").reason.startswith("142 ms away over a relay")
    assert said_of(decision, "e").reason == "speaks RPC 6.0"
    assert "nobody has measured" in said_of(decision, "f").reason
    assert said_of(decision, "g").reason == "has no memory left"
    assert said_of(decision, "a").rtt_s == 0.005 and said_of(decision, "h").rtt_s is None
    assert said_of(decision, "a").memory_bytes == 31 * GIB
    whole, with_b = said_of(decision, "a").predicted_tokens_per_s, said_of(decision, "b").predicted_tokens_per_s
    assert whole and with_b and with_b < whole


def test_a_refusal_says_what_is_missing() -> None:
    nodes = [machine("h", gpu(10), here=True), machine("a", gpu(10))]
    refusal = decide(SEVENTY, nodes, Line(), NO_WISHES).refusal
    assert refusal and refusal.needed_bytes > refusal.available_bytes
    assert "2 machines together have 28.0 GiB" in refusal.reason and "short" in refusal.reason
    nobody = decide(SEVENTY, [machine("a", BIG, lends=True)], Line(), NO_WISHES)
    assert nobody.refusal and "no member that may host it" in nobody.refusal.reason
    assert decide(SEVENTY, [], Line(), NO_WISHES).refusal
    alone = decide(SMALL, [machine("h", cpu(4), here=True)], Line(), SplitWishes(split=True))
    assert alone.refusal and alone.refusal.reason.startswith("a split was asked for")


# --- anything -------------------------------------------------------------------------------------------------

DEVICES = st.builds(
    gpu,
    st.floats(-1, 40),
    speed=st.sampled_from([None, 100e9, 800e9, 1000e9, float("nan"), -5.0]),
    name=st.sampled_from(["CUDA0", "CUDA1"]),
    kind=st.sampled_from(["gpu", "gpu", "unified", "cpu"]),
)
NODES = st.builds(
    lambda node, devices, **facts: machine(node, *devices, **facts),
    st.sampled_from("abcdefgh"),
    st.lists(DEVICES, max_size=3),
    host=st.floats(0, 20),
    weights=st.booleans(),
    lends=st.sampled_from([True, True, False]),
    why_not=st.sampled_from(["", "", "busy"]),
    incumbent=st.booleans(),
)
RTTS = st.sampled_from([None, 0.0, 0.001, 0.02, 0.09, 5.0, -1.0])
LINES = st.builds(
    Line,
    st.dictionaries(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), RTTS, max_size=8),
    RTTS,
)
WISHES = st.builds(
    SplitWishes,
    context=st.sampled_from([None, None, 300, 8192]),
    parallel=st.sampled_from([None, 2]),
    kv_type=st.sampled_from([None, "f16", "q8_0"]),
    split=st.booleans(),
    tensor_split=st.sampled_from([(), (), (), (4, 8), (1,), (0,), (100,)]),
)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from([SEVEN, MIXTURE, SMALL]), st.lists(NODES, max_size=7), LINES, WISHES, st.randoms())
def test_every_decision_is_sound_and_does_not_depend_on_the_order_of_nodes(
    model: Model, others: list[NodeFacts], line: Line, wishes: SplitWishes, chance: random.Random
) -> None:
    unique = list({node.node: node for node in others}.values())
    nodes = [replace(node, here=i == 0, has_weights=node.has_weights or i == 0) for i, node in enumerate(unique)]
    decision = decide(model, nodes, line, wishes)
    check(model, nodes, decision)
    assert not (wishes.split and decision.solo)
    assert decide(model, chance.sample(nodes, len(nodes)), line, wishes) == decision
    if decision.split:
        again = decide(model, nodes, line, wishes, decision.split)
        assert again.split and same(again.split, decision.split)
