"""The small HTTP client against a scripted listener: bounds, deadlines and broken answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from meshnode.engine.client import BODY_BYTES, request
from meshnode.engine.commands import Address

pytestmark = pytest.mark.anyio
Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


async def ask(script: Script, **options: object) -> tuple[int, bytes]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(await reader.readuntil(b"\r\n\r\n"), writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        return await request(Address(port=server.sockets[0].getsockname()[1]), "GET", "/health", **options)


async def test_request_and_answer_in_single_bytes() -> None:
    seen = []

    async def script(head: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(head)
        for (
            byte
        ) in b"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()

    assert await ask(script, api_key="k") == (503, b"abcde")
    assert seen[0].startswith(b"GET /health HTTP/1.1\r\n") and b"\r\nAuthorization: Bearer k\r\n" in seen[0]


async def test_a_body_is_sent_as_json() -> None:
    async def script(head: bytes, writer: asyncio.StreamWriter) -> None:
        assert b"Content-Length: 2\r\nContent-Type: application/json" in head
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    assert await ask(script, body=b"{}") == (200, b"")


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\xff" * 100],
)
async def test_broken_answers(answer: bytes) -> None:
    async def script(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    with pytest.raises(ConnectionError):
        await ask(script)


async def test_an_endless_body_is_cut_off() -> None:
    sent = 0

    async def script(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    with pytest.raises(ConnectionError):
        await ask(script, deadline_s=30)
    assert sent < 4 * BODY_BYTES


async def test_silence_ends_at_the_deadline() -> None:
    async def script(_: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await ask(script, deadline_s=0.1)
    assert time.monotonic() - began < 5


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        await request(Address(socket=tmp_path / "absent.sock"), "GET", "/health")
