"""The benchmark of weights: real processes fetch a small model, and figures are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import weights
from bench.make_model import write_model
from bench.record import Run
from bench.weights_ends import Process


def test_processes_fetch_what_they_say(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_model(model, size_bytes=12_000_000, layers=2, kind="Q4_0")
    with (
        Process("give", str(model), str(tmp_path / "one")) as one,
        Process("give", str(model), str(tmp_path / "two")) as two,
    ):
        assert one.place["manifest"] == two.place["manifest"]
        dialled = [f"{source.place['port']}:{source.place['node']}" for source in (one, two)]
        with Process("fetch", str(model), str(tmp_path / "fetched"), *dialled) as fetcher:
            names = {"sha256": one.place["sha256"], "manifest": one.place["manifest"]}
            for sources in (1, 2):
                outcome = fetcher.run("fetch", **names, sources=sources)
                assert outcome["bytes"] == model.stat().st_size
                assert 0 < outcome["wall_s"] < 30
            assert fetcher.run("ceiling", size=3_000_000, sources=2)["bytes"] == 3_000_000
            assert not (tmp_path / "fetched").exists(), "copies are removed"
            with pytest.raises(RuntimeError, match="WeightsUnavailable"):
                fetcher.run("fetch", sha256="00" * 32, manifest="00" * 32, sources=2)


def test_the_figures() -> None:
    run = Run("weights", quick=False, machine={})
    fetches = [
        {"bytes": 1_000_000_000, "wall_s": wall_s, "processor_s": 5.0, "memory_bytes": 10**8} for wall_s in (12, 13)
    ]
    ceilings = [{"bytes": 1_000_000_000, "wall_s": 10, "processor_s": 2.0}] * 2
    weights.report(run, 2, fetches, ceilings)
    by_name = {figure.name: figure for figure in run.figures}
    times = by_name["1 GB from 2 sources, times the ceiling's time"]
    assert times.value == pytest.approx(1.25)
    assert times.limit == weights.MOST_TIMES and times.reached
    assert by_name["1 GB from 2 sources"].value == pytest.approx(80, abs=1)
    assert by_name["1 GB from 2 sources, processor of the fetching node"].value == pytest.approx(5.0)
    weights.report(run, 1, fetches, ceilings)
    assert run.figures[-3].limit is None
