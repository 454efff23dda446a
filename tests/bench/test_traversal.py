"""What the contacts of a NAT lab amount to."""

from __future__ import annotations

import pytest

from bench.traversal import figures_of, raw_of
from tests.lab.nat_mesh import Meeting

CONE = [Meeting("full", "open", usable_s=0.1 * n, path="direct", direct_s=0.2 * n) for n in range(1, 11)]
MIXED = [
    Meeting("symmetric", "open", usable_s=0.1, path="relayed", direct_s=4.0),
    Meeting("masquerade", "symmetric", usable_s=0.1, path="relayed"),
]
LOST = Meeting("full", "full", fault="PeerUnreachable: nobody")
BOTH = Meeting("symmetric", "symmetric", usable_s=0.1, path="relayed")


def test_kinds() -> None:
    assert [each.kind for each in (CONE[0], *MIXED, BOTH)] == ["cone", "mixed", "mixed", "symmetric"]


def test_figures() -> None:
    found = {figure.name: figure for figure in figures_of([*CONE, *MIXED, BOTH], 0)}
    assert found["pairs connected"].value == 100 and found["pairs connected"].reached
    assert found["first answer, p95"].value == pytest.approx(0.94, abs=0.01)
    assert found["first answer, p95"].reached is False
    assert found["direct, no symmetric router, slowest"].value == 2.0
    assert found["direct, no symmetric router, p95"].reached is False
    assert found["direct in the end, no symmetric router"].reached
    assert (
        found["direct in the end, one symmetric router"].value,
        found["direct in the end, one symmetric router"].reached,
    ) == (50, False)
    assert (
        found["direct, one symmetric router, p95"].value == 4.0 and found["direct, one symmetric router, p95"].reached
    )


def test_a_pair_that_was_not_connected() -> None:
    found = {figure.name: figure for figure in figures_of([*CONE, LOST], 20)}
    assert found["pairs connected, 20 % loss"].value == pytest.approx(100 * 10 / 11)
    assert found["pairs connected, 20 % loss"].reached is False
    assert found["direct, no symmetric router, p95, 20 % loss"].limit == 3.0
    assert found["first answer, p95, 20 % loss"].limit is None
    before = figures_of([*CONE, Meeting("full", "open", usable_s=99.0, path="direct", direct_s=99.0, first=False)], 20)
    assert all(figure.value < 90 or figure.unit == "%" for figure in before), "no first contact"
    assert not any("one symmetric" in name for name in found)


def test_raw_values_are_short() -> None:
    assert raw_of([LOST]) == [{"one": "full", "other": "full", "fault": "PeerUnreachable: nobody"}]
    assert raw_of([Meeting("full", "open", 0.123456, "direct", 0.2)])[0]["usable_s"] == 0.1235
