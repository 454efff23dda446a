"""The benchmark of the hash table runs, and keeps its limits when small."""

from __future__ import annotations

from dataclasses import replace

from bench import dht
from bench.record import Run


def test_the_parts_give_figures_within_their_limits() -> None:
    run = Run("dht", quick=True, machine={})
    effort = replace(dht.QUICK, nodes=120, models=8, hours=0.05, searches=40, crowded_nodes=100, sybils=100)
    for part in dht.PARTS.values():
        part(run, effort)
    assert len(run.figures) == 11
    assert [figure.name for figure in run.figures if figure.reached is False] == []


def test_percentiles() -> None:
    values = [float(value) for value in range(100)]
    assert (dht.percentile(values, 0.5), dht.percentile(values, 0.99), dht.percentile([3.0], 0.5)) == (50.0, 99.0, 3.0)
