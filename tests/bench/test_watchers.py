"""The watchers of the console benchmark count what they are sent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.watchers import Got, watch

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
EVENTS = [b"id: 1\nevent: snapshot\ndata: {}\n\n", b": here\n\n", b"id: 2\nevent: change\ndata: {}\n\n"]


async def test_events_are_counted_wherever_they_are_cut() -> None:
    whole = b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(EVENTS)
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        for at in range(0, len(whole), 5):
            writer.write(whole[at : at + 5])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    got = Got()
    await watch(f"http://127.0.0.1:{port}", got)
    server.close()
    await server.wait_closed()
    assert (got.events, got.received_bytes) == (2, len(whole))
    assert asked[0].startswith(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_it_ends_with_its_input_and_says_what_came() -> None:
    came = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS[0])
        await writer.drain()
        came.set()
        await reader.read()  # until the watcher goes
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.watchers", url, "--count", "1"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        await came.wait()
        words, _ = await program.communicate(b"")
    server.close()
    await server.wait_closed()
    found = json.loads(words)
    assert program.returncode == 0 and len(found["events"]) == len(found["bytes"]) == 1
