"""A node among others, and one that is alone: both have the same face."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any, cast

import pytest

from meshnode.api.mesh_control import mesh_commands
from meshnode.api.public_control import public_commands
from meshnode.company import Alone, Company
from meshnode.config import Settings
from meshnode.errors import NotInMesh
from meshnode.node import Node
from meshnode.serving import Serving
from meshnode.telemetry import silent
from tests.test_node import places_in

pytestmark = pytest.mark.anyio
PARTS = ("mesh", "swarm", "trust", "pool", "standby")


class ServesNothing:
    """A fake of Serving."""

    def served(self) -> list[Any]:
        return []


def face(kind: type) -> dict[str, list[str]]:
    """The public methods of a class with the names of their arguments."""
    return {
        name: list(inspect.signature(value).parameters)
        for name, value in vars(kind).items()
        if not name.startswith("_") and callable(value)
    }


def test_both_have_the_same_face() -> None:
    company, alone = face(Company), face(Alone)
    # Whatever only a Company has is called by its own parts, or handed in by the constructor of the other.
    assert set(company) - set(alone) == {"finished_for_peer", "models"}
    assert {name: company[name] for name in alone} == alone


async def test_who_is_alone_refuses_in_words_and_tells_of_nobody() -> None:
    alone = Alone(cast(Serving, ServesNothing()))
    assert alone.models() == []
    assert alone.facts("trusted") == dict.fromkeys(PARTS)
    assert list(alone.gauges()) == [] == list(alone.lenders())
    assert not alone.asked_for("demo")
    assert await alone.invitation(invite=True) is None
    with pytest.raises(NotInMesh, match="--solo") as told:
        await alone.plan("demo")
    assert "meshnode show" in told.value.fix
    assert mesh_commands(alone.mesh_controls) and public_commands(alone.public_controls)
    with pytest.raises(NotInMesh):
        await alone.public_controls.leave_public()
    for ending in (alone.start(), alone.leave(1.0), alone.stop(now=True), alone.close()):
        await ending


@pytest.mark.parametrize("solo", [True, False])
async def test_a_node_tells_of_others_as_far_as_there_are_any(tmp_path: Path, solo: bool) -> None:
    up = asyncio.Event()

    def tell(label: str, text: str) -> None:
        if label == "up":
            up.set()

    settings = Settings(solo=solo, port=0, console=0, bind_host="127.0.0.1", bind_port=0, lan="off", port_map="off")
    node = Node(settings, places_in(tmp_path), report=silent, tell=tell, idle=True)
    task = asyncio.create_task(node.run())
    try:
        async with asyncio.timeout(20):
            await asyncio.wait({task, asyncio.ensure_future(up.wait())}, return_when=asyncio.FIRST_COMPLETED)
        facts = node.status()
        assert set(PARTS) <= set(facts)
        if solo:
            assert [facts[part] for part in PARTS] == [None] * len(PARTS)
        else:
            assert facts["trust"]["radius"] == "trusted"
            assert facts["pool"]["lending"]["leases"] == []
    finally:
        node.stop(now=True)
        await asyncio.wait({task}, timeout=20)
    task.result()
