"""The web applications are made of the settings that a person gave."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.api.app import Controls
from meshnode.api.events import Events
from meshnode.api.gate import Gates
from meshnode.api.mesh_control import no_mesh
from meshnode.api.metrics import Metrics
from meshnode.config import Settings
from meshnode.doors import DoorParts, api_door, console_door, peer_door
from meshnode.errors import NotInMesh
from tests.api.raw_http import ask
from tests.api.running import serving

pytestmark = pytest.mark.anyio


def parts(**settings: Any) -> DoorParts:
    return DoorParts(
        settings=Settings(**settings),
        gates=Gates(capacity=1, timeout_s=1),
        here=list,
        models=list,
        stopping=lambda: False,
    )


async def nothing(name: str) -> dict[str, Any]:
    return {"model": name}


async def test_the_api_wants_the_key_of_the_settings() -> None:
    door = api_door(parts(api_key="secret", listen_all=True), node="ab" * 32, finished=lambda record: None)
    async with serving(door) as port:
        refused = await ask(port, "/v1/models")
        let_in = await ask(port, "/v1/models", **{"x-api-key": "secret"})
    assert refused.status == 401 and let_in.status == 200


async def test_the_console_shows_the_status_that_it_is_given() -> None:
    controls = Controls(
        lambda: {"schema": 1, "models": []},
        nothing,
        nothing,
        nothing,
        lambda now: None,
        token="t",
        mesh=no_mesh(NotInMesh),
    )
    door = console_door(
        parts(), controls=controls, events=Events(lambda: {"schema": 1}), metrics=Metrics(lambda: iter(()))
    )
    async with serving(door) as port:
        answer = await ask(port, "/api/status")
    assert answer.status == 200 and b'"schema"' in answer.body


def test_peers_are_answered_from_here_alone() -> None:
    made = peer_door(parts(), finished=lambda record: None)
    assert callable(made.answer)
