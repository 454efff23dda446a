"""The two ends: jobs do what they say, on each way."""

from __future__ import annotations

import pytest

from bench.transport_ends import Ends


@pytest.mark.parametrize("way", ["stock", "fast"])
def test_jobs(way: str) -> None:
    with Ends(way, 1452) as ends:
        assert 0 < ends.run("bulk", size=1_000_001)["wall_s"] < 20
        assert len(ends.run("ping", size=64, count=20)["trips_s"]) == 18
        ends.run("idle", count=3)
        assert len(ends.run("ping", size=9000, count=10)["trips_s"]) == 9
        ends.run("busy")
        memory = ends.run("memory")
        assert memory["server"] > 10_000_000 and memory["client"] > 10_000_000
        with pytest.raises(RuntimeError, match="nothing_known"):
            ends.run("nothing_known")
        assert ends.run("bulk", size=1000)["wall_s"] > 0


@pytest.mark.alone
def test_a_reader_that_stops_holds_the_sender() -> None:
    with Ends("fast", 1452) as ends:
        outcome = ends.run("stopped", stop_s=3.0, size=4 << 20, count=20)
    assert outcome["accepted"] == 4 << 20
    assert len(outcome["trips_s"]) == 18
    assert set(outcome["growth"]) == {"server", "client"}


def test_the_attack_reaches_no_further_than_the_window() -> None:
    with Ends("tuned", 1452) as ends:
        outcome = ends.run("attack")
    assert outcome["datagrams"] == 1
    assert outcome["reached"] <= 1 << 20
