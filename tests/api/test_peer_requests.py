from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from meshnode.api.activity import Activity
from meshnode.api.gate import Gates
from meshnode.api.peer_requests import PeerRequests
from meshnode.api.record import Record
from meshnode.api.request import Limits
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Pipe, UpstreamBroken
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, Received, endless, plain, silent, streaming
from tests.api.raw_http import ask
from tests.api.reading import read
from tests.api.running import CHAT, DONE, HELLO, LAST, STREAM, TOKEN, InOrder, served, until
from tests.api.tunnel import Asked, Reply, TunnelPipe

pytestmark = pytest.mark.anyio


class Node:
    """The serving side of a node with one engine."""

    def __init__(self, *models: Served, capacity: int = 4) -> None:
        self.models = list(models)
        self.gates = Gates(capacity=capacity, timeout_s=30)
        self.records: list[Record] = []
        self.stopping = False
        self.activity = Activity()
        self.requests = PeerRequests(
            models=lambda: self.models,
            gates=self.gates,
            limits=Limits(1 << 20, 30),
            finished=self.records.append,
            stopping=lambda: self.stopping,
            activity=self.activity,
        )

    async def ask(self, path: str = CHAT, body: Any = STREAM, **more: Any) -> Reply:
        reply = Reply()
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.requests.answer(Asked(path, raw, **more), reply)
        return reply


async def test_the_bytes_of_the_engine_pass_untouched(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    llama.script = streaming([TOKEN[:10], TOKEN[10:] + LAST, DONE])
    reply = await node.ask(body={**STREAM, "temperature": 0})
    assert (reply.status, reply.headers) == (200, {"content-type": "text/event-stream"})
    assert reply.content == TOKEN + LAST + DONE and reply.finished
    [received] = llama.requests
    assert received.json == {**STREAM, "temperature": 0}
    assert received.headers["authorization"] == "Bearer inner"
    [record] = node.records
    assert (record.status, record.model, record.tokens_out, record.peer) == (200, "demo", 1, "aa" * 32)


async def test_a_request_of_a_peer_is_under_way_until_its_end(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    pace: asyncio.Queue[None] = asyncio.Queue()
    llama.script = streaming([TOKEN, LAST + DONE], pace=pace)
    asked = asyncio.create_task(node.ask())
    pace.put_nowait(None)
    await until(lambda: [entry["pieces"] for entry in node.activity.running()] == [1])
    [shown] = node.activity.running()
    assert (shown["model"], shown["where"], shown["peer"]) == ("demo", "here", "aa" * 32)
    pace.put_nowait(None)
    await asked
    assert node.activity.running() == []


async def test_a_node_without_models_says_not_found_as_others_may_have_some() -> None:
    node = Node()
    reply = await node.ask()
    assert (reply.status, json.loads(reply.content)["error"]["type"]) == (404, "model_not_found")
    assert node.activity.running() == []


async def test_errors_are_in_llama_servers_form_with_a_status(llama: FakeLlamaServer) -> None:
    node = Node(served(llama), served(llama, "slow", state="loading", connect=None))
    error = {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": 5}
    llama.script = plain(400, json.dumps({"error": error}).encode())
    reply = await node.ask()
    assert (reply.status, json.loads(reply.content), reply.finished) == (400, {"error": error}, True)
    for wanted, asked in (
        (404, {"body": {"model": "other"}}),
        (404, {"path": "/slots"}),
        (404, {"path": "/v1/chat/completions/../../slots"}),
        (404, {"method": "GET"}),
        (400, {"body": b"{"}),
        (400, {"body": {"model": ["demo"]}}),
        (413, {"body": b" " * (1 << 20) + b"{}"}),
        (503, {"body": {"model": "slow"}}),
    ):
        reply = await node.ask(**asked)
        said = json.loads(reply.content)["error"]
        assert (reply.status, said["code"]) == (wanted, wanted) and said["message"] and reply.finished
        assert reply.headers["content-length"] == str(len(reply.content))
    assert reply.headers["retry-after"] == "2"
    llama.script = plain(503, b'{"error":{"message":"Loading model"}}')
    assert (await node.ask()).status == 503
    node.stopping = True
    assert (await node.ask()).status == 503
    assert len(llama.requests) == 2


async def test_a_request_is_never_sent_on_to_a_third_node(llama: FakeLlamaServer) -> None:
    async def elsewhere() -> Pipe:
        raise AssertionError("sent on")

    both = served(llama)
    third = Host("c" * 64, connect=elsewhere)
    node = Node(replace(both, hosts=(third, *both.hosts)), Served("far", "ready", hosts=(third,)))
    llama.script = streaming([TOKEN, LAST, DONE])
    assert (await node.ask()).status == 200
    assert (await node.ask(body={**STREAM, "model": "far"})).status == 404


async def test_peers_take_turns_and_a_full_queue_answers_at_once(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=1), capacity=1)
    llama.script = silent
    first = asyncio.create_task(node.ask())
    await llama.request(0)
    second = asyncio.create_task(node.ask(peer=b"\xbb" * 32))
    await until(lambda: node.gates.snapshot("demo").waiting == 1)
    reply = await node.ask(peer=b"\xcc" * 32)
    assert (reply.status, reply.headers["retry-after"]) == (429, "5")
    llama.script = streaming([TOKEN, LAST, DONE])
    first.cancel()
    assert (await second).status == 200
    with pytest.raises(asyncio.CancelledError):
        await first
    assert [record.status for record in node.records] == [429, 499, 200]
    assert node.gates.snapshot("demo").busy == 0


async def test_an_engine_that_dies_after_the_head_is_raised_for_a_reset(llama: FakeLlamaServer) -> None:
    async def dies(received: Received) -> None:
        await received.head()
        await received.chunk(TOKEN)
        received.writer.transport.abort()

    node = Node(served(llama))
    llama.script = dies
    with pytest.raises(UpstreamBroken):
        await node.ask()
    assert (node.records[0].status, node.records[0].error) == (200, "engine-connection-lost")


async def test_a_slow_peer_holds_the_engine_and_not_the_memory(llama: FakeLlamaServer) -> None:
    sent = 0

    async def flood(received: Received) -> None:
        nonlocal sent
        await received.head()
        for _ in range(1000):
            await received.chunk(b"x" * 65_000)
            sent += 65_000

    node = Node(served(llama))
    llama.script = flood
    reply = Reply()
    reply.open.clear()
    task = asyncio.create_task(node.requests.answer(Asked(CHAT, json.dumps(STREAM).encode()), reply))
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.1)  # the measure itself: nothing moves while nobody reads
    assert 0 < sent < 10 << 20 and reply.content == b""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- both sides -----------------------------------------------------------------------------------------------


async def test_a_gateway_and_a_serving_node_understand_each_other(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    there = Served("demo", "ready", hosts=(Host("b" * 64, connect=TunnelPipe.to(node.requests), radius="trusted"),))
    async with running.gateway(there, router=InOrder(), aliases={"gpt-4": "demo"}) as gateway:
        llama.script = streaming([TOKEN, LAST, DONE])
        reply = await ask(gateway.port, CHAT, {**STREAM, "model": "gpt-4"})
        assert reply.body == TOKEN + LAST + DONE
        assert (reply.headers["x-meshnode-node"], reply.headers["x-meshnode-radius"]) == ("b" * 10, "trusted")
        assert (await ask(gateway.port, CHAT, HELLO)).json["choices"][0]["message"]["content"] == "a"
        llama.script = plain(200, b'{"data": []}')
        assert (await ask(gateway.port, "/v1/embeddings", HELLO)).json == {"data": []}
        llama.script = plain(400, b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}')
        reply = await ask(gateway.port, "/v1/messages", HELLO)
        assert (reply.status, reply.error) == (400, {"type": "invalid_request_error", "message": "no"})
        node.models.clear()
        reply = await ask(gateway.port, CHAT, HELLO)
        assert reply.status == 404


async def test_an_answer_outlives_the_node_that_began_it() -> None:
    def chunk(text: str | None, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
        return b"data: " + json.dumps({"id": "one", "choices": [choice]}).encode() + b"\n\n"

    async def dies(received: Received) -> None:
        await received.head()
        await received.chunk(chunk("one "))
        received.writer.transport.abort()

    async def replays(received: Received) -> None:
        if received.path == CHAT:
            await streaming([chunk("one two"), chunk(None, "stop"), DONE])(received)
        else:
            await plain(400, b'{"error":{"message":"cannot"}}')(received)

    async with FakeLlamaServer.running() as first, FakeLlamaServer.running() as second:
        first.script, second.script = dies, replays
        nodes = [Node(served(first)), Node(served(second))]
        hosts = [
            Host(letter * 64, connect=TunnelPipe.to(node.requests), content_hash="w")
            for letter, node in zip("bc", nodes, strict=True)
        ]
        async with running.gateway(Served("demo", "ready", hosts=tuple(hosts)), router=InOrder()) as gateway:
            reply = await ask(gateway.port, CHAT, {**STREAM, "temperature": 0})
        assert b": meshnode-resumed 1\n\n" in reply.body
        assert read(CHAT, reply.body).told == read(CHAT, chunk("one ") + chunk("two") + chunk(None, "stop") + DONE).told
        assert [(record.status, record.error) for record in nodes[0].records] == [(200, "engine-connection-lost")]


async def test_a_caller_that_leaves_the_gateway_frees_the_slot_of_the_serving_node(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    there = Served("demo", "ready", hosts=(Host("b" * 64, connect=TunnelPipe.to(node.requests)),))
    llama.script = endless(TOKEN)
    async with running.gateway(there, router=InOrder()) as gateway:
        task = asyncio.create_task(ask(gateway.port, CHAT, STREAM))
        received = await llama.request(0)
        task.cancel()
        async with asyncio.timeout(1):
            await received.left.wait()
    await until(lambda: node.gates.snapshot("demo").busy == 0)
