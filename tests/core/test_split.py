from dataclasses import replace

import pytest

from meshnode.core import prediction
from meshnode.core.memory import GIB
from meshnode.core.split import (
    MOST_DEVICES,
    MOST_MEMORY_BYTES,
    DeviceFacts,
    SplitPlan,
    Stage,
    checked,
    checked_rtt_s,
    lent,
    main_speed,
    same,
    speed_of,
)
from tests.core.split_samples import Line, cpu, gpu, machine


@pytest.mark.parametrize("claim", [-1, -(1 << 62), MOST_MEMORY_BYTES + 1, 1 << 80])
def test_memory_that_cannot_be_is_no_memory(claim: int) -> None:
    (node,) = checked([replace(machine("a", replace(gpu(1), usable_bytes=claim)), host_bytes=claim)])
    assert (node.devices[0].usable_bytes, node.host_bytes, node.memory_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("bandwidth", "layer_s"),
    [
        (0.0, 1e-5), (-1e9, 1e-5), (float("inf"), 1e-5), (float("nan"), 1e-5), (1e30, 1e-5), (1.0, 1e-5),
        (1e9, -1.0), (1e9, float("nan")), (1e9, float("inf")), (1e9, 3600.0), (1e9, None), (None, 1e-5),
    ],
)  # fmt: skip
def test_a_speed_that_cannot_be_is_unknown(bandwidth: float | None, layer_s: float | None) -> None:
    (node,) = checked([machine("a", DeviceFacts("CUDA0", GIB, bandwidth, layer_s, "gpu"))])
    assert (node.devices[0].bandwidth_bytes_per_s, node.devices[0].layer_s) == (None, None)
    assert node.devices[0].usable_bytes == GIB


@pytest.mark.parametrize(("flops", "kept"), [(1e12, 1e12), (0.0, None), (float("nan"), None), (None, None)])
def test_arithmetic_that_cannot_be_is_unknown(flops: float | None, kept: float | None) -> None:
    (node,) = checked([machine("a", replace(gpu(1), flops_per_s=flops))])
    assert node.devices[0].flops_per_s == kept
    assert node.devices[0].bandwidth_bytes_per_s == 800e9


def test_nodes_come_once_and_in_the_order_of_their_ids() -> None:
    found = checked([machine("b"), machine("a", gpu(1)), machine("a", gpu(2)), machine("c", *[gpu(1)] * 40)])
    assert [node.node for node in found] == ["a", "b", "c"]
    assert found[0].devices == (gpu(1),)
    assert len(found[2].devices) == MOST_DEVICES


def test_memory_of_a_node_counts_what_is_shared_once() -> None:
    assert machine("a", gpu(8), gpu(4, name="CUDA1"), host=16).memory_bytes == 28 * GIB
    assert machine("a", gpu(12, kind="unified"), host=16).memory_bytes == 16 * GIB
    assert machine("a", cpu(16), host=16).memory_bytes == 16 * GIB
    assert machine("a", gpu(8), cpu(16), host=16).memory_bytes == 24 * GIB


def test_round_trips_hold_both_ways_and_have_limits() -> None:
    line = Line({("a", "b"): 0.02, ("a", "c"): -1.0, ("c", "a"): 0.03, ("d", "a"): float("nan")}, rest=None)
    assert checked_rtt_s(line, "b", "a") == 0.02
    assert checked_rtt_s(line, "a", "c") == 0.03
    assert checked_rtt_s(line, "a", "d") is None
    assert checked_rtt_s(Line(rest=1e9), "a", "b") is None
    assert checked_rtt_s(Line(rest=0.0), "a", "b") == 0.0


def stage(node: str, first: int, layers: int) -> Stage:
    return Stage(node, "CUDA0", 0, first, layers, 100, 10, 1, 1000, 0.01, 0.02)


PLAN = SplitPlan(
    "h", 2, 500, (), (stage("a", 2, 4), stage("b", 6, 6)), 8192, 1, "f16", 11, (4, 7), True, 12.0, "because"
)


def test_what_is_only_said_of_a_plan_changes_nothing() -> None:
    said = replace(PLAN, predicted_tokens_per_s=99.0, reason="other", host_bytes=501)
    said = replace(said, stages=(replace(PLAN.stages[0], limit_bytes=1, compute_s=9.0, delay_s=9.0), PLAN.stages[1]))
    assert same(PLAN, said)
    assert PLAN.workers == ("a", "b")
    assert PLAN.stages[0].total_bytes == 111


@pytest.mark.parametrize(
    "changed",
    [
        replace(PLAN, host="g"),
        replace(PLAN, context=4096),
        replace(PLAN, parallel=2),
        replace(PLAN, kv_type="q8_0"),
        replace(PLAN, stages=(stage("a", 2, 5), stage("b", 7, 5)), tensor_split=(5, 6)),
        replace(PLAN, stages=(stage("a", 2, 4), stage("c", 6, 6))),
        replace(PLAN, stages=(PLAN.stages[0], replace(PLAN.stages[1], device_index=1))),
        replace(PLAN, output_on_host=False, local_devices=(stage("h", 12, 0),)),
    ],
)
def test_what_the_engine_would_see_is_a_change(changed: SplitPlan) -> None:
    assert not same(PLAN, changed)


def test_what_a_worker_lends_and_what_speed_is_assumed() -> None:
    mixed = machine("a", cpu(8), gpu(3), gpu(4, name="CUDA1"))
    assert [(index, device.name) for index, device in lent(mixed)] == [(1, "CUDA0"), (2, "CUDA1")]
    assert [device.name for _, device in lent(machine("a", cpu(8)))] == ["CPU"]
    assert lent(machine("a")) == ()
    assert speed_of(gpu(1, speed=None)) == (prediction.GPU, False)
    assert speed_of(cpu(1, speed=None)) == (prediction.PROCESSOR, False)
    assert speed_of(gpu(1))[1] is True
    assert main_speed(machine("a", gpu(3))) == (prediction.PROCESSOR, True)
    assert main_speed(machine("a", gpu(3, speed=None))) == (prediction.PROCESSOR, False)
    assert main_speed(mixed) == speed_of(cpu(8))
