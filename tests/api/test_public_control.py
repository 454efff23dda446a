"""Members and queries are checked before anything is done, and arrive as plain values."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.api.public_control import nothing_public, public_commands, public_questions
from meshnode.errors import BadRequest, NotInMesh

pytestmark = pytest.mark.anyio


class FakeControls:
    """Answers with what it was asked."""

    def __getattr__(self, name: str) -> Any:
        async def answer(*given: object) -> dict[str, Any]:
            return {"call": name, "given": list(given)}

        return answer


COMMANDS = public_commands(FakeControls())
QUESTIONS = public_questions(FakeControls())


@pytest.mark.parametrize(
    ("path", "members", "answer"),
    [
        ("/api/swarm/pause", {"paused": True}, {"call": "pause", "given": [True]}),
        ("/api/swarm/pause", {"paused": False}, {"call": "pause", "given": [False]}),
        ("/api/swarm/join", {}, {"call": "join_public", "given": [None]}),
        ("/api/swarm/join", {"name": "garden"}, {"call": "join_public", "given": ["garden"]}),
        ("/api/swarm/leave", {"x": 1}, {"call": "leave_public", "given": []}),
    ],
)
async def test_members_arrive(path: str, members: dict[str, object], answer: dict[str, Any]) -> None:
    assert await COMMANDS[path](members) == answer


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/api/swarm/pause", {}),
        ("/api/swarm/pause", {"paused": 1}),
        ("/api/swarm/pause", {"paused": "true"}),
        ("/api/swarm/join", {"name": ""}),
        ("/api/swarm/join", {"name": 7}),
        ("/api/swarm/join", {"name": "n" * 41}),
    ],
)
async def test_bad_members_are_refused(path: str, members: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        await COMMANDS[path](members)


@pytest.mark.parametrize(
    ("path", "query", "answer"),
    [
        ("/api/discover", {}, {"call": "discover", "given": ["", ""]}),
        ("/api/discover", {"model": " qwen ", "region": "eu"}, {"call": "discover", "given": ["qwen", "eu"]}),
        ("/api/providers", {"model": "qwen"}, {"call": "providers", "given": ["qwen"]}),
        ("/api/audit", {}, {"call": "audit", "given": [100]}),
        ("/api/audit", {"limit": "1000"}, {"call": "audit", "given": [1000]}),
    ],
)
async def test_queries_arrive(path: str, query: dict[str, str], answer: dict[str, Any]) -> None:
    assert await QUESTIONS[path](query) == answer


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/discover", {"model": "m" * 65}),
        ("/api/discover", {"region": "r" * 41}),
        ("/api/providers", {}),
        ("/api/providers", {"model": " "}),
        ("/api/audit", {"limit": "0"}),
        ("/api/audit", {"limit": "1001"}),
        ("/api/audit", {"limit": "\u0661"}),
        ("/api/audit", {"limit": "-1"}),
    ],
)
async def test_bad_queries_are_refused(path: str, query: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        await QUESTIONS[path](query)


async def test_a_node_that_meets_no_strangers_says_why() -> None:
    controls = nothing_public(lambda: NotInMesh("this node was started with --solo"))
    with pytest.raises(NotInMesh, match="--solo"):
        await controls.pause(True)
    with pytest.raises(NotInMesh, match="--solo"):
        await controls.audit(1)
