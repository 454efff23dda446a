"""Strangers at a real llama-server: what is sent for them is understood, bounded by it, and freed when they leave."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from meshnode.api.gate import Gates
from meshnode.api.guest_requests import GuestRequests
from meshnode.api.record import Record
from meshnode.api.served import Served
from meshnode.api.upstream import over_sockets
from meshnode.audit import Audit
from meshnode.audit_reading import records, verify
from meshnode.config import Settings
from meshnode.doors import DoorParts, guest_door, guests_of
from meshnode.models.catalog import DEMO_TARGET
from meshnode.telemetry import ProblemBoard
from tests.api.tunnel import Asked, Reply

pytestmark = pytest.mark.anyio

SLOTS = 2
COUNT = [{"role": "user", "content": "count from 1 to 100"}]
CHAT = "/v1/chat/completions"


class Guarded:
    """A llama-server behind the door for strangers, and an audit log beside it."""

    def __init__(self, socket: Path, home: Path, **settings: Any) -> None:
        connect = over_sockets(lambda: asyncio.open_unix_connection(str(socket)))
        served = Served("demo", "ready", slots=SLOTS, context_length=2048).here(connect)
        parts = DoorParts(
            settings=Settings(**settings),
            gates=Gates(capacity=9, timeout_s=30),
            here=lambda: [served],
            models=lambda: [served],
            stopping=lambda: False,
        )
        self.socket = socket
        self.home = home
        self.finished: list[Record] = []
        self.audit = Audit(home, problems=ProblemBoard())
        self.door: GuestRequests = guest_door(
            parts,
            guests_of(parts.settings),
            self.audit,
            self.finished.append,
            address_of=lambda node: None,
            is_near=lambda node: False,
        )

    async def ask(self, path: str, who: int = 1, **members: Any) -> Reply:
        reply = Reply()
        body = json.dumps({"model": "demo", **members}).encode()
        await self.door.answer(Asked(path, body, peer=bytes([who]) * 32), reply)
        return reply

    async def busy(self) -> float:
        """Requests that the engine itself says it works on."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = await reader.read()
        writer.close()
        [line] = [line for line in text.splitlines() if line.startswith(b"llamacpp:requests_processing ")]
        return float(line.split()[1])


@asynccontextmanager
async def guarded(engine: Path, folder: Path, **settings: Any) -> AsyncIterator[Guarded]:
    socket = folder / "engine.sock"
    argv = [str(engine / "llama-server"), "--model", str(DEMO_TARGET), "--host", str(socket), "--threads", "1"]
    argv += ["--ctx-size", "4096", "--parallel", str(SLOTS), "--jinja", "--no-slots", "--metrics", "--no-ui"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            found = Guarded(socket, folder / "home", **settings)
            await found.audit.start()
            async with asyncio.timeout(60):
                while not await is_ready(socket):
                    await asyncio.sleep(0.05)
            yield found
            await found.audit.close()
        finally:
            process.terminate()


async def is_ready(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found = await reader.read()
        writer.close()
    except OSError:
        return False
    return found.startswith(b"HTTP/1.1 200")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_every_dialect_is_understood_cut_counted_and_recorded(engine_bin: Path, tmp_path: Path) -> None:
    async with guarded(engine_bin, tmp_path, public_answer=20) as node:
        replies = [
            await node.ask(CHAT, messages=COUNT, stream=True),
            await node.ask(CHAT, messages=COUNT, stream=True, max_tokens=32_000, seed=1, lora_x=1, cache_prompt=True),
            await node.ask("/v1/completions", prompt="count from 1 to 100", stream=True, max_completion_tokens=900),
            await node.ask("/v1/completions", prompt=["count", 5, 7], stream=True, n_predict=-1),
            await node.ask("/v1/responses", input="count from 1 to 100", stream=True, max_output_tokens=900),
            await node.ask("/v1/messages", messages=COUNT, stream=True, max_tokens=32_000, system="be brief"),
        ]
        assert [reply.status for reply in replies] == [200] * 6, [reply.content[:200] for reply in replies]
        assert all(0 < record.tokens_out <= 20 for record in node.finished)
        assert max(record.tokens_out for record in node.finished) == 20
        assert await node.audit.flush()
        kept = list(records(node.home))
        assert [record["output_sha256"] for record in kept] == [sha256(reply.content).hexdigest() for reply in replies]
        assert [record["tokens_out"] for record in kept] == [record.tokens_out for record in node.finished]
        assert all(record["tokens_in"] > 0 for record in kept)
    assert verify(tmp_path / "home").findings == ()
    assert b"count" not in (tmp_path / "home" / "audit.log").read_bytes()


async def test_the_question_of_a_check_is_understood(engine_bin: Path, tmp_path: Path) -> None:
    async with guarded(engine_bin, tmp_path) as node:
        reply = await node.ask(
            CHAT, messages=COUNT, stream=False, max_tokens=1, temperature=0, logprobs=True, top_logprobs=20
        )
        told = json.loads(reply.content)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert reply.status == 200 and len(told) == 20


async def test_a_crowd_never_has_the_last_slot_and_leaves_it_when_it_goes(engine_bin: Path, tmp_path: Path) -> None:
    async with guarded(engine_bin, tmp_path) as node:
        endless = {"messages": COUNT, "stream": True, "ignore_eos": True}
        crowd = [asyncio.create_task(node.ask(CHAT, who, **endless)) for who in range(1, 9)]
        await until(lambda: node.door.facts()["serving"] == SLOTS - 1 and node.door.facts()["waiting"] == 7)
        most = 0.0
        for _ in range(20):
            most = max(most, await node.busy())
        assert most == SLOTS - 1
        for task in crowd:
            task.cancel()
        await asyncio.wait(crowd)
        facts = node.door.facts()
        assert (facts["serving"], facts["waiting"], facts["inside"]) == (0, 0, 0)
        async with asyncio.timeout(1):  # the engine has stopped as well
            while await node.busy():
                await asyncio.sleep(0.01)
        assert (await node.ask(CHAT, 20, messages=COUNT, stream=True, max_tokens=3)).status == 200
