"""The relayed ends of bench.relay, with little of everything."""

from __future__ import annotations

import asyncio

from bench.record import Run
from bench.relay import WAYS, in_one_process, report, switching, turns
from bench.relay_ends import Three

LITTLE = {"rounds": 1, "bulk_bytes": 1 << 18, "trips": 10, "switches": 1}


def test_both_ways_take_turns() -> None:
    assert turns(2) == ["direct", "relayed", "relayed", "direct"]


def test_one_process() -> None:
    rates, trips = asyncio.run(in_one_process(LITTLE))
    assert [len(rates[way]) for way in WAYS] == [1, 1] and all(trips[way] for way in WAYS)
    run = Run("relay", quick=True)
    report(run, "one process", rates, trips)
    assert [figure.unit for figure in run.figures] == ["MB/s", "MB/s", "%", "ms"]


def test_three_processes() -> None:
    with Three() as processes:
        for way in WAYS:
            assert processes.clients[way].run(job="bulk", size=1 << 16)["wall_s"] > 0


def test_switching() -> None:
    handshakes, switches = asyncio.run(switching(LITTLE))
    assert len(handshakes) == len(switches) == 1 and max(switches) < 1500
