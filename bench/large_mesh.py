"""A large mesh as one of its nodes sees it, made up: members with devices and models, all of which move at once."""

from __future__ import annotations

from typing import Any

from meshnode.core.effects import Member
from meshnode.offers import peer_facts
from meshnode.wire.registry import Role
from meshnode.wire.statements import Device, Dynamic, Identity, ModelState, Offer
from tests.console.fake_mesh import a_model, a_status


def a_member(number: int, rtt_s: float) -> Member:
    """A member of a large mesh, with two devices and a model."""
    devices = (Device("CUDA0", 24 << 30, 9 << 30, 800_000, 20), Device("host", 64 << 30, 40 << 30, 40_000, 50))
    offer = Offer(f"owner/model-{number % 4}-GGUF:Q4_K_M", bytes([number % 4]) * 16, ModelState.READY, 8192, 4)
    return Member(
        node=number.to_bytes(4, "big") * 8,
        state="alive",
        incarnation=1,
        role=Role.MEMBER,
        identity=Identity(bytes(96), (), f"machine-{number}", "meshnode 0.1.0"),
        dynamic=Dynamic(devices, (offer,)),
        demand=None,
        linked=number % 50 == 0,
        reachable=True,
        rtt_s=rtt_s if number % 50 == 0 else None,
        estimated_rtt_s=rtt_s,
        since=0.0,
        heard_at=0.0,
    )


class LargeMesh:
    """A mesh of so many in which everybody is somewhere else after `move`."""

    def __init__(self, members: int) -> None:
        self._places = [
            [a_member(number, (20 + far + number % 97) / 1000) for number in range(members)] for far in (0, 1)
        ]
        self.moves = 0

    def move(self) -> None:
        """Another distance to every member."""
        self.moves += 1

    @property
    def members(self) -> list[Member]:
        """All of them, where they are now."""
        return self._places[self.moves % 2]

    def status(self) -> dict[str, Any]:
        """What a node of it says of itself, its peers made into facts anew."""
        return a_status(*(peer_facts(member, "192.0.2.1:9337") for member in self.members), models=[a_model("demo")])
