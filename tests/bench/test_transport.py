"""The benchmark of the transport: who goes when, what is compared with what, and that each part yields its figures."""

from __future__ import annotations

from typing import Any, Self

import pytest

from bench import transport
from bench.record import Run
from bench.transport import QUICK, Effort, alternate, compared, rates


class Fake:
    """Ends that take as long as their way says."""

    speeds = {"stock": 1e6, "tuned": 3e6, "fast": 6e6}
    log: list[tuple[str, str]] = []

    def __init__(self, way: str, datagram_bytes: int, route: Any = None) -> None:
        self.way = way
        self.datagram_bytes = datagram_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, job: str, **arguments: Any) -> dict[str, Any]:
        self.log.append((self.way, job))
        speed = self.speeds[self.way]
        if job == "bulk":
            return {"wall_s": arguments["size"] / speed}
        if job == "ping":
            return {"trips_s": [arguments["size"] / speed] * arguments["count"]}
        if job == "memory":
            return {"server": 1_000_000 * len(self.log), "client": 0}
        if job == "attack":
            return {"datagrams": 1, "reached": 5}
        if job == "stopped":
            return {"growth": {"server": 3e6, "client": 2e6}, "trips_s": [0.0001], "accepted": 5}
        return {}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "Ends", Fake)
    monkeypatch.setattr(Fake, "log", [])


def ends(*ways: str) -> list[Any]:
    return [Fake(way, 1452) for way in ways]


def test_turns() -> None:
    assert [each.way for each in alternate(ends("a", "b"), 3)] == ["a", "b", "b", "a", "a", "b"]


def test_rates_are_bytes_by_seconds() -> None:
    found = rates(ends("stock", "fast"), 2, 4_000_000)
    assert found == {"stock": [[1.0], [1.0]], "fast": [[6.0], [6.0]]}
    assert Fake.log[:2] == [("stock", "bulk"), ("fast", "bulk")]
    assert len(Fake.log) == 6


@pytest.mark.parametrize("limit, reached", [(2.5, True), (3.5, False)])
def test_limits_are_on_the_ratio(limit: float, reached: bool) -> None:
    run = Run("transport", quick=True, machine={})
    compared(run, "tuned over stock", {"stock": [[1.0]], "tuned": [[3.0]]}, "tuned", limit=limit)
    assert run.figures[0].value == 3.0
    assert run.figures[0].reached is reached


def test_every_part_has_figures() -> None:
    run = Run("transport", quick=True, machine={})
    for part in transport.PARTS.values():
        part(run, QUICK)
    names = [figure.name for figure in run.figures]
    assert len(names) == len(set(names))
    values = {figure.name: figure for figure in run.figures}
    assert values["bulk, with aioquic's own connection class, over stock"].value == pytest.approx(3)
    assert values["bulk, with the hot path, over stock"].reached
    assert values["bulk over 5 ms and 1 % loss, over stock"].value == pytest.approx(6)
    assert values["round trip, 64 B, p50"].unit == "ms"
    assert values["bulk beside 100 idle streams, share of bulk alone"].value == pytest.approx(100)
    assert values["a reader stops for 5 s: growth of the receiver"].value == 3
    limited = {name for name, figure in values.items() if figure.limit is not None}
    assert len(limited) == 10


def test_the_full_run_waits_a_minute_for_its_reader() -> None:
    assert Effort().stop_s == 60
