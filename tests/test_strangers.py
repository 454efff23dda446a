"""What a node has to do with strangers is begun only when it is told to, written down, and looked at."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnode.api.body import JsonObject
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.record import Record
from meshnode.api.request import Request
from meshnode.api.served import Host, Served
from meshnode.audit_reading import records
from meshnode.config import Places
from meshnode.core.verification import Scored
from meshnode.doors import DoorParts
from meshnode.errors import NotInMesh
from meshnode.identity import load_or_create
from meshnode.strangers import StrangerParts, Strangers, _FoundOut
from meshnode.telemetry import ProblemBoard
from meshnode.wire.statements import Dynamic
from tests.stage import QUIET

pytestmark = pytest.mark.anyio

NODE = "ab" * 32
WEIGHTS = "cd" * 16


async def nowhere() -> Any:
    raise ConnectionError


class Stage:
    """Strangers, and the rest of a node made up around them."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.models: list[Served] = []
        self.told: list[tuple[str, str]] = []
        chosen = dataclasses.replace(QUIET, **settings)
        gates = Gates(capacity=4, timeout_s=1)
        doors = DoorParts(settings=chosen, gates=gates, here=list, models=lambda: self.models, stopping=lambda: False)
        self.strangers = Strangers(
            StrangerParts(
                settings=chosen,
                places=Places(home, home / "cache", home / "config.toml"),
                identity=load_or_create(home / "node.key"),
                doors=doors,
                gates=gates,
                problems=ProblemBoard(),
                tell=lambda label, text: self.told.append((label, text)),
                changed=lambda: None,
                has=Dynamic,
                offers=tuple,
                models=lambda: self.models,
                trust=lambda node: "public",
                known_private=list,
                finished=lambda record: None,
            )
        )

    def written(self) -> list[dict[str, Any]]:
        """The records of the audit log."""
        return list(records(self.home))


@asynccontextmanager
async def running(home: Path, **settings: Any) -> AsyncIterator[Stage]:
    stage = Stage(home, **settings)
    await stage.strangers.start()
    try:
        yield stage
    finally:
        await stage.strangers.stop(now=True)
        await stage.strangers.close()


def record(**values: Any) -> Record:
    made = Record("req_1", "/v1/chat/completions", time.monotonic(), model="demo", node=NODE)
    for name, value in values.items():
        setattr(made, name, value)
    return made


async def test_a_node_that_was_not_told_to_go_public_opens_and_writes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        strangers = stage.strangers
        assert strangers.mesh is None and strangers.facts() is None and list(strangers.gauges()) == []
        strangers.finished(record(reached="public"))
        assert strangers.hosts([Served("demo", "ready")]) == [Served("demo", "ready")]
        with pytest.raises(NotInMesh):
            await strangers.leave_public()
    assert [file.name for file in tmp_path.iterdir()] == ["node.key"]


async def test_what_went_to_strangers_is_written_down_and_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path, publish=True) as stage:
        assert stage.strangers.mesh is not None and (stage.strangers.facts() or {})["state"] != "failed"
        stage.strangers.finished(record(reached="trusted", radius="trusted"))
        stage.strangers.finished(record(reached="public", radius="public", tokens_out=7))
        told = await stage.strangers.audit(10)
        assert [(each["kind"], each["tokens_out"], each["node"]) for each in told["records"]] == [("asked", 7, NODE)]
        names = {name for name, *_ in stage.strangers.gauges()}
        assert "meshnode_strangers_serving" in names
    assert len(stage.written()) == 1


async def test_it_can_be_joined_and_left_while_the_node_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        await stage.strangers.join_public("garden")
        assert stage.strangers.mesh is not None
        stage.strangers.finished(record(reached="public"))
        assert len((await stage.strangers.audit(5))["records"]) == 1
        await stage.strangers.leave_public()


# --- answers that are looked at ---------------------------------------------------------------------------------


def an_answer() -> tuple[Request, bytes, Host]:
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}).encode()
    endpoint = ENDPOINTS["/v1/chat/completions"]
    asked = Request(endpoint, Served("demo", "ready"), "me", body, "a/b", True, False, JsonObject.parse(body))
    choices = [{"index": 0, "delta": {"content": text}} for text in "abcdefgh"]
    stream = b"".join(b"data: " + json.dumps({"choices": [each]}).encode() + b"\n\n" for each in choices)
    return asked, stream, Host(NODE, connect=nowhere, content_hash=WEIGHTS, radius="public")


@pytest.mark.parametrize(("verify", "looks"), [("off", 0), ("spot", 1)])
async def test_answers_are_looked_at_where_that_was_asked_for(tmp_path: Path, verify: str, looks: int) -> None:
    async with running(tmp_path, publish=True, verify=verify) as stage:
        stage.strangers.answered(*an_answer())
        await stage.strangers._verifier.settled()
        assert stage.strangers._verifier.counters["nobody_to_ask"] == looks


async def test_who_was_found_out_is_asked_no_more_and_not_forgotten(tmp_path: Path) -> None:
    bad = Host(NODE, connect=nowhere, content_hash=WEIGHTS, radius="public")
    other = dataclasses.replace(bad, node="ef" * 32)
    both, only = Served("both", "ready", hosts=(bad, other)), Served("only", "ready", hosts=(bad,))
    async with running(tmp_path, publish=True) as stage:
        strangers = stage.strangers
        assert strangers.hosts([both, only]) == [both, only]
        for _ in range(3):
            strangers._reputations.add(NODE, WEIGHTS, [Scored((-0.01, -5.0), ())] * 8, 0.0)
        strangers._looked_at(NODE, "unknown", "bad")
        assert strangers.hosts([both, only]) == [dataclasses.replace(both, hosts=(other,))]
        assert any(NODE[:10] in text for _, text in stage.told)
        file = tmp_path / "public" / "found-out.json"
        async with asyncio.timeout(5):
            while not file.exists():
                await asyncio.sleep(0.01)
    assert [(each["kind"], each["verdict"]) for each in stage.written()] == [("checked", "bad")]
    async with running(tmp_path, publish=True) as stage:
        assert stage.strangers.hosts([only]) == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[[1]]", "[" * 5000, '{"a":1}', "null", "[[1,2,3]]"])
def test_a_damaged_file_is_no_proof(tmp_path: Path, text: str) -> None:
    file = tmp_path / "found-out.json"
    file.write_text(text)
    assert _FoundOut(file).read() == []


def test_what_was_found_out_is_kept_and_bounded(tmp_path: Path) -> None:
    found = _FoundOut(tmp_path / "public" / "found-out.json")
    assert found.read() == []
    found.write([(NODE, WEIGHTS)])
    assert found.read() == [(NODE, WEIGHTS)] and (tmp_path / "public" / "found-out.json").stat().st_mode & 0o77 == 0
    (tmp_path / "public" / "found-out.json").write_text(json.dumps([["a", "b"]] * 9000))
    assert len(found.read()) == 4096
