"""Machines behind every pair of routers find each other: real meshes, one process a machine, packet filters in between.

The limits are those of protocol/14-traversal.md for a machine that does nothing else; here the median holds them, and
bench/traversal.py has the percentiles.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.lab.nat_lab import TYPES, why_no_mapping, why_not
from tests.lab.nat_mesh import Meeting, NatMesh, meet

pytestmark = [pytest.mark.alone, pytest.mark.skipif(bool(why_not()), reason=why_not())]

USABLE_S = 0.3
DIRECT_S = {"cone": 0.5, "mixed": 10.0}
DIRECT_AT_LOSS_S = 3.0
LOSS_PERCENT = 20
LIVE_BYTES, LIVE_PAUSE_S = 24 << 20, 0.01
"""An answer of about four seconds: it goes on long after the move."""
RELAYED_BYTES = 16 << 20
RELAYED_MB_S = 10.0
CALM = 2.0
"""How much slower single figures may be than the limit where other tests run on the same processors."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatMesh]:
    with NatMesh(tmp_path_factory.mktemp("mesh"), spare=4, fast_relays=True) as built:
        yield built


@pytest.fixture(scope="module")
def meetings(mesh: NatMesh) -> list[Meeting]:
    """First contacts of a client behind each type of router with a member behind each."""
    with mesh.visited_by(*TYPES) as clients:
        return meet(mesh, dict(zip(TYPES, clients, strict=True)), direct_s=DIRECT_S["mixed"] * CALM)


def direct_s(meetings: Sequence[Meeting], kind: str) -> list[float]:
    """All of that kind are direct in the end; how long that took."""
    found = {(each.one, each.other): each.direct_s for each in meetings if each.kind == kind}
    assert [pair for pair, seconds in found.items() if seconds is None] == []
    return [seconds for seconds in found.values() if seconds is not None]


def test_all_25_pairs_are_connected(meetings: list[Meeting]) -> None:
    assert len({(each.one, each.other) for each in meetings}) == 25
    assert [each for each in meetings if each.fault] == []


def test_the_first_answer_comes_soon(meetings: list[Meeting]) -> None:
    """Through a relay where there is no other way yet."""
    assert statistics.median(each.usable_s for each in meetings) < USABLE_S
    assert {each.path for each in meetings} == {"direct", "relayed"}
    assert all(each.path == "direct" for each in meetings if each.other == "open")


def test_a_direct_path_is_found_unless_both_are_symmetric(meetings: list[Meeting]) -> None:
    """One symmetric router is not enough to keep two machines apart: ports are guessed."""
    assert statistics.median(direct_s(meetings, "cone")) < DIRECT_S["cone"]
    assert max(direct_s(meetings, "mixed")) < DIRECT_S["mixed"] * CALM
    assert [(each.path, each.direct_s) for each in meetings if each.kind == "symmetric"] == [("relayed", None)]


def test_every_fifth_packet_is_lost(mesh: NatMesh) -> None:
    kinds = ("port_restricted", "symmetric")
    with mesh.visited_by(*kinds) as clients:
        mesh.lab.lose(LOSS_PERCENT)
        try:
            meetings = meet(mesh, dict(zip(kinds, clients, strict=True)), call_s=20, direct_s=20)
        finally:
            mesh.lab.lose(0)
    assert [each for each in meetings if each.fault] == []
    assert statistics.median(direct_s(meetings, "cone")) < DIRECT_AT_LOSS_S


def test_a_running_answer_moves_to_the_direct_path_and_loses_nothing(mesh: NatMesh) -> None:
    with mesh.visited_by("port_restricted") as (client,):
        node = mesh.members["port_restricted"].id
        done = client.ask("download", node=node, size_bytes=LIVE_BYTES, pause_s=LIVE_PAUSE_S)
    assert done["whole"]
    assert done["paths"] == ["relayed", "direct"]


def test_what_a_relay_carries(mesh: NatMesh) -> None:
    """Without its quota: as much as the processors can."""
    with mesh.visited_by("symmetric") as (client,):
        done = client.ask("download", node=mesh.members["symmetric"].id, size_bytes=RELAYED_BYTES)
    assert done["whole"] and done["paths"] == ["relayed"]
    assert RELAYED_BYTES / 1e6 / done["s"] > RELAYED_MB_S / CALM


@pytest.mark.skipif(bool(why_no_mapping()), reason=why_no_mapping())
def test_a_port_that_the_router_forwards_makes_the_worst_pair_direct(tmp_path: Path) -> None:
    """Two symmetric routers, one of which does as it is asked (PCP): nobody punches, and no relay is needed."""
    with (
        NatMesh(tmp_path, types=("symmetric",), mapping=True) as mesh,
        mesh.visited_by("symmetric") as (client,),
    ):
        (meeting,) = meet(mesh, {"symmetric": client})
        assert (meeting.path, meeting.fault) == ("direct", "")
        assert meeting.usable_s < USABLE_S * CALM
        assert client.ask("facts")["counters"].get("punches_tried", 0) == 0
