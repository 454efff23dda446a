"""The mesh benchmark: one short run of its parts against real nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import mesh
from bench.load import LoadProcess
from bench.record import Run


@pytest.fixture
def run() -> Run:
    return Run("mesh", quick=True, machine={})


@pytest.mark.engine
def test_a_hop(engine_bin: Path, run: Run) -> None:
    assert engine_bin.exists()
    effort = replace(mesh.QUICK, latency_requests=4, stream_rounds=1)
    with LoadProcess() as load, mesh.hop("demo", "--parallel", "16") as both:
        direct, far = both.targets()
        assert direct.socket and far.port and direct.model == far.model
        mesh.latency(run, both, load, effort)
        mesh.streams(run, both, load, effort)
    assert [figure.unit for figure in run.figures] == ["ms", "ms", "%"]
    assert all(figure.name.startswith("one hop") for figure in run.figures)


@pytest.mark.engine
def test_slow_streams(engine_bin: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_bin.exists()
    monkeypatch.setattr(mesh, "SLOW_STREAMS", 20)
    monkeypatch.setattr(mesh, "SLOW_SLOTS", 8)
    mesh.slow(run, replace(mesh.QUICK, slow_tokens=10))
    whole, pause, *memory = run.figures
    assert (whole.value, whole.reached, pause.reached) == (20, True, True)
    assert len(memory) == 2


@pytest.mark.engine
def test_failover(engine_bin: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_bin.exists()
    monkeypatch.setattr(mesh, "FAILOVER_STREAMS", 8)
    mesh.failover(run, mesh.QUICK)
    assert [figure.unit for figure in run.figures] == ["streams", "s", "streams", "s"]
    assert [figure.value for figure in run.figures[::2]] == [0, 0]
    assert all(figure.value > 0 for figure in run.figures[1::2])
