"""Requests that are wrong, hostile or too many, against a real node: the right status, and the next one works."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.api.raw_http import Connection, Reply, ask, request
from tests.conftest import NodeProcess, StartNode
from tests.e2e.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.anyio]

CHAT = "/v1/chat/completions"
ORDINARY: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
OTHERS_WAIT_AT_MOST_S = 2.0


def port_of(node: NodeProcess) -> int:
    return urlsplit(node.base_url).port or 0


@pytest.fixture
async def port(demo_server: NodeProcess) -> AsyncIterator[int]:
    """The port of a node that must answer an ordinary request after the test, by the engine it had before."""
    before = demo_server.status()["models"][0]["engine"]
    yield port_of(demo_server)
    assert (await ask(port_of(demo_server), CHAT, ORDINARY)).status == 200
    after = demo_server.status()
    assert after["models"][0]["engine"] == before and after["problems"] == []
    eventually(lambda: demo_server.status()["requests"]["active"] == 0)


async def refusal(port: int, raw: bytes) -> Reply:
    """The answer to exactly these bytes."""
    async with await Connection.open(port) as connection:
        await connection.send(raw)
        return await connection.reply()


def body_of(**changes: Any) -> bytes:
    return json.dumps({**ORDINARY, **changes}).encode()


# --- wrong bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model": "demo", "messages": [], "model": "other"}', "'model' appears twice"),
        (b'{"model": "demo", "messages": "\xff\xfe"}', "not UTF-8 at byte"),
        (b'{"model": "demo", "messages": [', "not valid JSON"),
        (b"[1, 2]", "expected an object"),
        (b"", "not valid JSON"),
        (b'{"model": "demo", "temperature": NaN}', "NaN is not JSON"),
        (b'{"model": "demo", "messages": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"model": 5, "messages": []}', "`model` must be a text"),
        (b'{"model": "demo"} {"model": "demo"}', "more text after the object"),
    ],
)
async def test_wrong_body_is_400(body: bytes, words: str, port: int) -> None:
    reply = await ask(port, CHAT, body)
    assert reply.status == 400 and words in reply.error["message"]
    reply = await ask(port, "/v1/messages", body)
    assert reply.status == 400 and reply.json["type"] == "error" and words in reply.error["message"]


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": {"a": 1}}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}
            ]
        },
        {"grammar": "root ::= ("},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}}},
        {"tools": "hammer"},
        {"max_tokens": "many"},
        {"temperature": "hot"},
        {"n": 1_000_000},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_values_that_the_engine_refuses(changes: dict[str, Any], stream: bool, port: int) -> None:
    reply = await ask(port, CHAT, {**ORDINARY, **changes, "stream": stream})
    assert reply.status in (400, 500, 501) and len(reply.error["message"]) > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 1 << 62},
        {"seed": -(1 << 40)},
        {"temperature": 1e308},
        {"top_k": -(1 << 30)},
        {"stop": ["x"] * 10_000},
        {"logit_bias": {str(number): -100 for number in range(5000)}},
        {
            "messages": [
                {"role": "user", "content": "\x00\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace")}
            ]
        },
        {"messages": [{"role": "nobody", "content": "hello"}]},
        {"messages": []},
        {"id_slot": 3},
        {"id_slot": 99},
        {"n_predict": -2, "max_tokens": 3},
        {"lora": [{"id": 0, "scale": 1.0}]},
        {"grammar": 'root ::= "a" | ' * 200 + '"b"'},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_odd_values_neither_hang_nor_crash_the_engine(changes: dict[str, Any], port: int) -> None:
    begun = time.monotonic()
    reply = await ask(port, CHAT, {"max_tokens": 2, **ORDINARY, **changes})
    assert reply.status in (200, 400) and time.monotonic() - begun < 10
    assert reply.json.get("choices") or reply.error["message"]


@pytest.mark.alone
async def test_prompt_of_20_megabytes(port: int) -> None:
    body = body_of(messages=[{"role": "user", "content": "count from 1 to 20, " * 1_000_000}])
    assert len(body) > 20_000_000
    reply = await ask(port, CHAT, body)
    assert reply.status == 400 and reply.error["code"] == "exceed_context_size_error"
    assert reply.error["n_ctx"] == 4096 and "4096" in reply.error["message"]


async def test_body_beyond_the_cap_is_refused_before_it_is_sent(port: int) -> None:
    head = request(CHAT, b"", headers={"Content-Length": str(10 << 30)})
    reply = await refusal(port, head)
    assert reply.status == 413 and "MESHNODE_MAX_BODY" in reply.error["message"]


# --- wrong framing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Host: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked", 400),
        ("Host: localhost\r\nContent-Length: 4\r\nContent-Length: 5", 400),
        ("Host: localhost\r\nContent-Length: -1", 400),
        ("Host: localhost\r\nX-Long: " + "x" * (1 << 20), 431),
        ("\r\n".join(["Host: localhost", *(f"X-{number}: y" for number in range(20_000))]), 431),
        ("Host: evil.example\r\nContent-Length: 4", 403),
        ("Host: localhost\r\nOrigin: https://evil.example\r\nContent-Length: 4", 403),
        ("Host: localhost\r\nHost: localhost\r\nContent-Length: 4", 400),
        ("X-None: 1\r\nContent-Length: 4", 400),
        ("Host: localhost\r\nBad Header: 1", 400),
    ],
    ids=["two framings", "two lengths", "negative", "1 MB header", "20,000 headers", "host", "origin", "two hosts",
         "no host", "space in a name"],
)  # fmt: skip
async def test_wrong_head(head: str, status: int, port: int) -> None:
    reply = await refusal(port, f"POST {CHAT} HTTP/1.1\r\n{head}\r\n\r\n{{}}{{}}".encode())
    assert reply.status == status and reply.error["message"]


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"SSH-2.0-x\r\n\r\n"])
async def test_other_protocols(raw: bytes, port: int) -> None:
    reply = await refusal(port, raw)
    assert reply.status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("GET", "/slots", 404),
        ("GET", "/props", 404),
        ("POST", "/completion", 404),
        ("POST", "/lora-adapters", 404),
        ("POST", "/models/load", 404),
        ("GET", "/v1/../slots", 404),
        ("GET", "/metrics", 404),
        ("GET", "/api/status", 404),
        ("POST", "/v1/chat/completions/../../slots/0?action=erase", 404),
        ("POST", "//v1/chat/completions", 404),
    ],
)
async def test_what_llama_server_has_beside_is_not_reachable(method: str, path: str, status: int, port: int) -> None:
    reply = await ask(port, path, b"{}" if method == "POST" else None, method=method)
    assert reply.status == status


async def test_expect_continue_and_chunks(port: int) -> None:
    body = body_of()
    async with await Connection.open(port) as connection:
        await connection.send(request(CHAT, b"", headers={"Content-Length": str(len(body)), "Expect": "100-continue"}))
        assert (await connection.head()).status == 100
        await connection.send(body)
        assert (await connection.reply()).status == 200
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:9], body[9:])) + b"0\r\n\r\n"
        head = request(CHAT, b"", headers={"Transfer-Encoding": "chunked"})
        await connection.send(head + chunks)
        assert (await connection.reply()).status == 200


# --- slow and many --------------------------------------------------------------------------------------------


@pytest.mark.alone
async def test_half_open_connections_cost_nobody_anything(port: int) -> None:
    body = body_of()
    partial = [
        b"",
        b"POST ",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        request(CHAT, b"", headers={"Content-Length": str(len(body))}) + body[:20],
    ]
    async with AsyncExitStack() as stack:
        for number in range(200):
            connection = await stack.enter_async_context(await Connection.open(port))
            await connection.send(partial[number % len(partial)])
        for _ in range(5):
            begun = time.monotonic()
            assert (await ask(port, CHAT, body)).status == 200
            assert time.monotonic() - begun < OTHERS_WAIT_AT_MOST_S


@pytest.mark.alone
async def test_slow_sender_is_answered_when_it_is_done(port: int) -> None:
    body = body_of()
    async with await Connection.open(port) as slow:
        await slow.send(request(CHAT, b"", headers={"Content-Length": str(len(body))}))
        for at in range(0, len(body), 40):
            await slow.send(body[at : at + 40])
            assert (await ask(port, "/health")).status == 200
        assert (await slow.reply()).status == 200


@pytest.mark.alone
async def test_readers_that_never_read(port: int) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(20):
            connection = await stack.enter_async_context(await Connection.open(port))
            await connection.send(request(CHAT, body_of(stream=True, max_tokens=200)))
        begun = time.monotonic()
        reply = await ask(port, CHAT, ORDINARY)
        assert reply.status == 200 and time.monotonic() - begun < 10


async def test_overload_is_refused_at_once(start_node: StartNode) -> None:
    node = start_node("--model", "demo", "--parallel", "1", "--queue", "8")
    port = port_of(node)
    body = body_of(max_tokens=30, ignore_eos=True)
    slowest_refusal = 0.0

    async def one() -> int:
        nonlocal slowest_refusal
        async with await Connection.open(port) as connection:
            begun = time.monotonic()
            await connection.send(request(CHAT, body))
            reply = await connection.reply()
            if reply.status == 429:
                slowest_refusal = max(slowest_refusal, time.monotonic() - begun)
                assert int(reply.headers["retry-after"]) >= 1 and reply.error["code"] == "too_many_requests"
            return reply.status

    statuses = await asyncio.gather(*(one() for _ in range(300)))
    assert set(statuses) == {200, 429} and statuses.count(200) >= 9
    assert slowest_refusal < OTHERS_WAIT_AT_MOST_S
    assert (await ask(port, CHAT, ORDINARY)).status == 200
    assert node.status()["requests"]["finished"] == 301
