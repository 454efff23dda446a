"""The gateway benchmark: its plain parts, and one short run against a real node."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import gateway
from bench.load import Job, LoadProcess, Outcome, Target
from bench.node import BenchNode
from bench.record import Run

DIRECT, OURS = Target("direct", model="m"), Target("meshnode", model="m")


def test_the_order_alternates() -> None:
    names = ["".join(target.name[0] for target in order) for order in gateway.alternate([DIRECT, OURS], 5)]
    assert names == ["dm", "md", "dm", "md", "dm"]


def test_bodies() -> None:
    body = json.loads(gateway.chat(stream=True, max_tokens=3, user="x"))
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True} and body["user"] == "x"
    assert (body["max_tokens"], body["ignore_eos"], body["model"]) == (3, True, "{model}")
    assert "stream" not in json.loads(gateway.chat(stream=False, max_tokens=3))


def test_a_mixture_of_lengths() -> None:
    lengths = [json.loads(body)["max_tokens"] for body in gateway.mixed(64)]
    assert sorted(lengths)[0] == 32 and sorted(lengths)[-1] == 96 and len(set(lengths)) == 16
    assert sum(lengths) / 16 == pytest.approx(64, abs=1)
    assert lengths != sorted(lengths)


def test_throughput_is_a_share_in_percent() -> None:
    run = Run("gateway", quick=True, machine={})
    ours = [Outcome(wall_s=1.0, processor_s=0.1, tokens=count) for count in (95, 190)]
    theirs = [Outcome(wall_s=1.0, processor_s=0.1, tokens=count) for count in (100, 200)]
    gateway.throughput(run, "x", ours, theirs, limit=90)
    (figure,) = run.figures
    assert (figure.value, figure.low, figure.high) == pytest.approx((95, 95, 95))
    assert figure.reached is True and "10% of a core" in figure.note


class FakeLoad(LoadProcess):
    """Answers with what the test says, without a process."""

    def __init__(self, status: int) -> None:
        self.asked: list[str] = []
        self.status = status

    def run(self, target: Target, job: Job) -> Outcome:
        self.asked.append(target.name)
        return Outcome(wall_s=1, processor_s=0, tokens=1, statuses={str(self.status): 1})


def test_pairs_are_warmed_up_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    load, rests = FakeLoad(400), list[float]()
    monkeypatch.setattr("time.sleep", rests.append)
    found = gateway.paired(load, [DIRECT, OURS], Job(["{}"]), 2, 400, pause_s=0.5)
    assert rests == [0.5] * 4
    assert load.asked == ["direct", "meshnode", "direct", "meshnode", "meshnode", "direct"]
    assert {name: len(outcomes) for name, outcomes in found.items()} == {"direct": 2, "meshnode": 2}
    with pytest.raises(RuntimeError, match="'400': 1"):
        gateway.paired(load, [DIRECT], Job(["{}"]), 1)


@pytest.mark.engine
def test_a_short_run(engine_bin: Path) -> None:
    assert engine_bin.exists()
    effort = replace(
        gateway.QUICK, latency_requests=4, stream_rounds=1, plain_requests=20, memory_requests=500, memory_warm_up=250
    )
    run = Run("gateway", quick=True, machine={})
    with LoadProcess() as load, BenchNode("demo", "--parallel", "16") as node:
        assert node.direct_target().socket and node.gateway_target().port
        for part in (gateway.latency, gateway.streams, gateway.plain, gateway.memory):
            part(run, node, load, effort)
    assert len(run.figures) == 7
    assert len(run.raw["memory_mb"]) == 2 and all(20 < size < 500 for _, size in run.raw["memory_mb"])


@pytest.mark.engine
def test_a_node_on_loopback(engine_bin: Path) -> None:
    assert engine_bin.exists()
    with LoadProcess() as load, BenchNode("demo", loopback=True) as node:
        direct = node.direct_target()
        assert direct.port and not direct.socket
        assert load.run(direct, Job([gateway.chat(stream=True, max_tokens=4)])).check(200).tokens == 4
