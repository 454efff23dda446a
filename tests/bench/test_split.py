"""The split benchmark: its arithmetic, and one short run of some of its parts against real nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import split
from bench.llama import Decoded
from bench.pipeline import Pipeline, far, machines, spread
from bench.place import Place
from bench.record import Run
from bench.split_recovery import recovery
from meshnode.models.catalog import DEMO_TARGET
from tests.lab.far_network import why_not

namespaces = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def run() -> Run:
    return Run("split", quick=True, machine={})


def answers(*speeds: float) -> list[Decoded]:
    return [Decoded("1, 2", 4, speed) for speed in speeds]


def test_layers_are_spread_evenly() -> None:
    assert [spread(stages) for stages in (1, 2, 3, 4)] == [(12,), (6, 6), (4, 4, 4), (3, 3, 3, 3)]
    for stages in range(1, 9):
        found = spread(stages, 32)
        assert sum(found) == 32 and max(found) - min(found) <= 1


def test_machines_and_lines() -> None:
    assert machines(2) == ["host", "w1", "w2"]
    assert (far(20).delay_s, far(20).loss) == (0.02, 0)


def test_a_comparison_is_the_median_of_pairs(run: Run) -> None:
    split.compare(run, "x", answers(20, 30, 10), answers(10, 10, 10), limit=1.5)
    (figure,) = run.figures
    assert (figure.value, figure.low, figure.high, figure.reached) == (2.0, 1.0, 3.0, True)
    assert "stock 10.0" in figure.note and "here 20.0" in figure.note
    assert split.token_s(answers(10, 20, 50)) == 0.05


@pytest.mark.alone
@pytest.mark.engine
@namespaces
def test_a_pipeline_says_what_it_is(engine_bin: Path) -> None:
    with Place(machines(2), far(0)) as place, Pipeline(place, str(DEMO_TARGET), spread(2), context=1024) as pipeline:
        assert sorted(pipeline.stages()) == ["w1", "w2"]
        line = pipeline.stock_line()
        assert (
            Path(line.server[0]).parent == engine_bin
            and [Path(argv[0]).name for argv in line.workers] == ["ggml-rpc-server"] * 2
        )
        whole_s, engine_s = pipeline.reload_s()
        assert 0 < engine_s < whole_s < 10
        assert pipeline.llama().decode(12).text.startswith("1, 2, 3")


@pytest.mark.alone
@pytest.mark.engine
@namespaces
def test_delays_beside_stock(engine_bin: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_bin.exists()
    monkeypatch.setattr(split, "DELAYS_MS", (20.0,))
    split.delays(run, replace(split.QUICK, most_stages=1, tokens=16))
    (figure,) = run.figures
    assert figure.name.startswith("network delays per token, k=1") and 1.5 < figure.value < 2.5


@pytest.mark.engine
@namespaces
def test_a_worker_is_killed(engine_bin: Path, run: Run) -> None:
    assert engine_bin.exists()
    recovery(run, 1)
    gap, wrong = run.figures
    assert 0 < gap.value < 20 and wrong.value == 0
