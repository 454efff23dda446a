"""A made-up mesh that moves, and looks like what a real node tells."""

from __future__ import annotations

from bench.large_mesh import LargeMesh
from tests.console.fake_mesh import a_peer


def test_the_large_mesh_is_somewhere_else_after_every_move() -> None:
    mesh = LargeMesh(100)
    before = mesh.status()["mesh"]["peers"]
    mesh.move()
    after = mesh.status()["mesh"]["peers"]
    assert len({peer["id"] for peer in before}) == 100
    assert all(one["estimated_rtt_ms"] != other["estimated_rtt_ms"] for one, other in zip(before, after, strict=True))
    # What else is told of a peer is what a real node tells.
    assert set(before[0]) == set(a_peer(1))
