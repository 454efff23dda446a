"""Requests of strangers against an engine in miniature: on which terms, in which order, and what is kept of them."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from typing import Any

import pytest

from meshnode.api.activity import Activity
from meshnode.api.endpoints import COUNTING_ENDPOINTS, PEER_ENDPOINTS, PUBLIC_ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.guest_bounds import MOST_BODY_BYTES
from meshnode.api.guest_requests import GuestRequests, guest_gauges
from meshnode.api.peer_requests import PeerRequests
from meshnode.api.record import Record
from meshnode.api.request import Limits
from meshnode.api.served import Host, Served
from meshnode.core.guests import GuestLimits, Guests
from meshnode.wire.address import Address
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, Received, endless, plain, silent, streaming
from tests.api.raw_http import ask
from tests.api.running import CHAT, DONE, HELLO, LAST, STREAM, TOKEN, InOrder, served, until
from tests.api.tunnel import Asked, Reply, TunnelPipe

pytestmark = pytest.mark.anyio

FRIEND = b"\xff" * 32


class Trail:
    """An audit log in memory."""

    def __init__(self) -> None:
        self.writable = True
        self.records: list[tuple[str, dict[str, Any]]] = []

    def record(self, kind: str, /, **facts: Any) -> None:
        self.records.append((kind, facts))

    def mask(self, prefix: str, /) -> str:
        return f"masked {len(prefix)}" if prefix else ""


class Node:
    """The serving side of a node of a public mesh. Strangers are told apart by the first byte of their id, and come
    from a /24 each; `now` is the clock of their windows."""

    def __init__(self, *models: Served, slots: int = 2, **limits: int) -> None:
        self.models = list(models)
        self.gates = Gates(capacity=8, timeout_s=30)
        self.guests = Guests(GuestLimits(**limits))
        self.trail = Trail()
        self.records: list[Record] = []
        self.now = 1000.0
        self.activity = Activity()
        self.requests = GuestRequests(
            models=lambda: self.models,
            gates=self.gates,
            guests=self.guests,
            slots=slots,
            trail=self.trail,
            finished=self.records.append,
            stopping=lambda: False,
            activity=self.activity,
            address_of=lambda node: Address(f"11.7.{node[0]}.5", 9338) if node[0] < 250 else None,
            is_near=lambda node: node == FRIEND,
            clock=lambda: self.now,
        )
        self.own = PeerRequests(
            models=lambda: self.models,
            gates=self.gates,
            limits=Limits(1 << 20, 30),
            finished=self.records.append,
            stopping=lambda: False,
        )

    async def ask(self, who: int = 1, path: str = CHAT, body: Any = STREAM, **more: Any) -> Reply:
        reply = Reply()
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.requests.answer(Asked(path, raw, peer=bytes([who]) * 32, **more), reply)
        return reply

    async def ask_near(self, number: int = 0) -> Reply:
        reply = Reply()
        await self.own.answer(Asked(CHAT, json.dumps(STREAM | {"user": f"own{number}"}).encode()), reply)
        return reply

    @property
    def facts(self) -> dict[str, Any]:
        return self.requests.facts()


def error(reply: Reply) -> dict[str, Any]:
    return dict(json.loads(reply.content)["error"])


class Engine:
    """Answers when it is told to, by the order in which requests came."""

    def __init__(self, llama: FakeLlamaServer) -> None:
        self.order: list[str] = []
        self._begun: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self.at_once = self.most = 0
        llama.script = self.script

    async def script(self, received: Received) -> None:
        self.order.append(str(received.json.get("user", received.json.get("seed"))))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        go = asyncio.Event()
        self._begun.put_nowait(go)
        await received.head()
        await go.wait()
        self.at_once -= 1
        await received.chunk(TOKEN + LAST + DONE)
        await received.end()

    async def end_one(self) -> None:
        """Let the request end that has been running for longest."""
        (await asyncio.wait_for(self._begun.get(), 2)).set()


# --- what is answered -----------------------------------------------------------------------------------------


async def test_a_stranger_gets_the_bytes_of_the_engine_and_one_record(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=2))
    llama.script = streaming([TOKEN[:10], TOKEN[10:] + LAST, DONE])
    reply = await node.ask(body={**STREAM, "temperature": 0, "lora_scaled": 1})
    assert (reply.status, reply.content, reply.finished) == (200, TOKEN + LAST + DONE, True)
    [received] = llama.requests
    assert received.json == {**STREAM, "temperature": 0, "max_tokens": 4096, "cache_prompt": False}
    [(kind, facts)] = node.trail.records
    assert kind == "served" and facts.pop("duration_s") > 0
    assert facts == {
        "request": "req_1",
        "node": "01" * 32,
        "prefix": "masked 11",
        "model": "demo",
        "endpoint": CHAT,
        "radius": "public",
        "status": 200,
        "outcome": "ok",
        "error": "",
        "tokens_in": facts["tokens_in"],
        "tokens_out": 1,
        "cost_micros": 0,
        "output_sha256": sha256(TOKEN + LAST + DONE).hexdigest(),
    }
    assert node.records[0].output_sha256 == facts["output_sha256"]
    seen = node.facts
    assert (seen["serving"], seen["waiting"], seen["served"], seen["refused"], seen["tokens_out"]) == (0, 0, 1, 0, 1)


async def test_nothing_that_a_stranger_said_or_got_and_no_address_is_in_its_record(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    llama.script = streaming([TOKEN.replace(b'"a"', b'"canary-answer"'), LAST, DONE])
    await node.ask(body={**STREAM, "messages": [{"role": "user", "content": "canary-prompt"}]})
    kept = json.dumps(node.trail.records)
    assert "canary" not in kept and "11.7." not in kept


@pytest.mark.parametrize("path", sorted(COUNTING_ENDPOINTS))
async def test_counting_costs_a_stranger_a_request_and_no_slot(llama: FakeLlamaServer, path: str) -> None:
    node = Node(served(llama), requests=2)
    llama.script = plain(200, b'{"input_tokens":3}')
    body = {"model": "demo", "content": "a", "messages": [{"role": "user", "content": "a"}], "id_slot": 3, "x": 1}
    for _ in range(2):
        reply = await node.ask(path=path, body=body)
        assert reply.status == 200
    assert "id_slot" not in llama.requests[0].json and "x" not in llama.requests[0].json
    assert node.facts["served"] == 0 and node.trail.records == [], "nothing was answered"
    reply = await node.ask(path=path, body=body)
    assert (reply.status, error(reply)["type"]) == (429, "stranger_limit")


@pytest.mark.parametrize("path", sorted(set(PEER_ENDPOINTS) - set(PUBLIC_ENDPOINTS) - set(COUNTING_ENDPOINTS)))
async def test_what_members_may_ask_for_is_not_all_for_strangers(llama: FakeLlamaServer, path: str) -> None:
    node = Node(served(llama))
    reply = await node.ask(path=path)
    assert (reply.status, error(reply)["type"]) == (404, "endpoint_not_found")
    assert llama.requests == [] and node.trail.records == []
    assert node.facts["reasons"] == {"endpoint-not-found": 1}


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *(("/slots", "GET"), ("/slots/0?action=save", "POST"), ("/props", "POST"), ("/lora-adapters", "POST")),
        *(("/tokenize", "GET"), ("/apply-template", "POST"), ("/metrics", "GET"), ("/v1/models", "GET")),
        *((f"{CHAT}/../../slots", "POST"), (f"{CHAT}?a", "POST"), (CHAT, "GET"), ("rpc", "POST"), ("/infill", "POST")),
    ],
)
async def test_slots_adapters_and_all_that_is_not_listed_are_refused(
    llama: FakeLlamaServer, path: str, method: str
) -> None:
    node = Node(served(llama))
    reply = await node.ask(path=path, method=method)
    said = error(reply)
    assert reply.status == 404 and CHAT in said["message"] and reply.finished
    assert llama.requests == []


@pytest.mark.parametrize(
    ("status", "asked", "words"),
    [
        (400, {"body": {**STREAM, "max_tokens": 10**6}}, "1,000,000 tokens"),
        (400, {"body": {**STREAM, "n": 50}}, "`n` is at most 1"),
        (400, {"body": {**STREAM, "logprobs": True, "top_logprobs": 5000}}, "at most 20"),
        (400, {"body": {**STREAM, "grammar": "root ::= " + "x" * 9000}}, "8,192"),
        (400, {"body": {**STREAM, "lora": [{"id": 0, "scale": 9}]}}, "adapters"),
        (400, {"body": {**STREAM, "id_slot": 0}}, "slots"),
        (400, {"body": HELLO}, "streamed"),
        (400, {"body": b"{"}, "JSON"),
        (413, {"body": b" " * (MOST_BODY_BYTES + 1)}, "bytes"),
        (404, {"body": {**STREAM, "model": "other"}}, "not served here"),
    ],
)
async def test_bad_input_is_refused_in_words_counted_and_not_recorded(
    llama: FakeLlamaServer, status: int, asked: dict[str, Any], words: str
) -> None:
    node = Node(served(llama))
    reply = await node.ask(**asked)
    assert (reply.status, words in error(reply)["message"], reply.finished) == (status, True, True), reply.content
    assert llama.requests == [] and node.trail.records == []
    assert node.facts["refused"] == 1 and node.facts["inside"] == 0 and node.facts["served"] == 0


async def test_a_large_body_is_judged_beside_the_loop(llama: FakeLlamaServer) -> None:
    node = Node(served(llama), tokens=1 << 20)
    llama.script = streaming([TOKEN, LAST, DONE])
    reply = await node.ask(body={**STREAM, "messages": [{"role": "user", "content": "word " * 100_000}]})
    assert reply.status == 200


# --- how much -------------------------------------------------------------------------------------------------


async def test_requests_a_minute_then_429_with_the_time_to_come_again(llama: FakeLlamaServer) -> None:
    node = Node(served(llama), requests=2)
    llama.script = streaming([TOKEN, LAST, DONE])
    replies = [await node.ask() for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert error(replies[2])["type"] == "stranger_limit" and "2 requests in a minute" in error(replies[2])["message"]
    assert 50 <= int(replies[2].headers["retry-after"]) <= 62
    assert (await node.ask(2)).status == 200  # another stranger does not notice
    node.now += int(replies[2].headers["retry-after"])
    assert (await node.ask()).status == 200


async def test_tokens_are_counted_from_the_usage_of_the_engine(llama: FakeLlamaServer) -> None:
    node = Node(served(llama), tokens=1000, requests=100)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":300,"completion_tokens":250}}\n\n'
    llama.script = streaming([TOKEN, usage, DONE])
    assert (await node.ask()).status == 200
    assert (node.facts["tokens_in"], node.facts["tokens_out"]) == (300, 250)
    await node.ask()
    assert llama.requests[1].json["max_tokens"] < 450  # what is left of the hour
    reply = await node.ask()
    assert reply.status == 429 and "1000 tokens in an hour" in error(reply)["message"]


async def test_without_usage_the_pieces_are_counted_and_the_prompt_by_its_size(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    llama.script = streaming([TOKEN, TOKEN, TOKEN, DONE])
    prompt = "word " * 400
    await node.ask(body={**STREAM, "messages": [{"role": "user", "content": prompt}]})
    [record] = node.records
    assert record.tokens_out == 3 and 500 <= record.tokens_in <= 600
    [(_, facts)] = node.trail.records
    assert (facts["tokens_in"], facts["tokens_out"]) == (record.tokens_in, 3)


async def test_an_embedding_costs_its_prompt(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    llama.script = plain(200, b'{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}')
    reply = await node.ask(path="/v1/embeddings", body={"model": "demo", "input": "hello"})
    assert reply.status == 200 and node.facts["tokens_in"] == 7
    assert node.trail.records[0][1]["output_sha256"] == sha256(reply.content).hexdigest()


async def test_two_at_a_time_and_the_third_is_told_so(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=4))
    engine = Engine(llama)
    tasks = [asyncio.create_task(node.ask()) for _ in range(2)]
    await until(lambda: engine.at_once == 2)
    reply = await node.ask()
    assert reply.status == 429 and "2 requests here at a time" in error(reply)["message"]
    for _ in tasks:
        await engine.end_one()
    assert [reply.status for reply in await asyncio.gather(*tasks)] == [200, 200]
    assert node.facts["inside"] == 0


async def test_an_engine_that_refuses_is_recorded_with_its_status(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    llama.script = plain(400, b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}')
    assert (await node.ask()).status == 400
    [(_, facts)] = node.trail.records
    assert (facts["status"], facts["outcome"], facts["output_sha256"], facts["tokens_in"]) == (400, "refused", "", 0)


# --- who goes first -------------------------------------------------------------------------------------------


async def test_strangers_never_hold_more_than_their_slots_in_all(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, "demo", slots=8), served(llama, "other", slots=8), slots=3)
    engine = Engine(llama)
    tasks = [
        asyncio.create_task(node.ask(who, body={**STREAM, "model": model}))
        for who in range(1, 5)
        for model in ("demo", "other")
    ]
    await until(lambda: node.facts["waiting"] == 5)
    assert node.facts["serving"] == 3
    for _ in tasks:
        await engine.end_one()
    assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}
    assert engine.most == 3 and node.facts["serving"] == node.facts["waiting"] == 0


async def test_with_several_slots_one_is_always_left_for_those_who_are_nearer(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=3), slots=64)
    engine = Engine(llama)
    strangers = [asyncio.create_task(node.ask(who)) for who in range(1, 6)]
    await until(lambda: node.facts["waiting"] == 3 and engine.at_once == 2)
    assert node.facts["serving"] == 2
    own = asyncio.create_task(node.ask_near())
    await until(lambda: engine.at_once == 3)  # without waiting for anybody
    for _ in range(6):
        await engine.end_one()
    assert (await own).status == 200
    assert {reply.status for reply in await asyncio.gather(*strangers)} == {200}


async def test_where_all_slots_are_busy_our_own_wait_for_one_stranger_at_most(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=1), slots=64)
    engine = Engine(llama)
    strangers = []
    for who in range(1, 9):
        strangers.append(asyncio.create_task(node.ask(who, body={**STREAM, "seed": who})))
        await until(lambda who=who: node.facts["serving"] + node.facts["waiting"] == who)
    await until(lambda: engine.at_once == 1)
    own = [asyncio.create_task(node.ask_near(number)) for number in range(3)]
    await until(lambda: node.gates.snapshot("demo").waiting == 3)
    for _ in range(11):
        await engine.end_one()
    await asyncio.gather(*own, *strangers)
    assert engine.order[:4] == ["1", "own0", "own1", "own2"]
    assert engine.order[4:] == [str(who) for who in range(2, 9)]
    assert engine.most == 1


async def test_a_stranger_cannot_go_ahead_by_saying_that_it_continues_an_answer(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=1))
    engine = Engine(llama)
    first = asyncio.create_task(node.ask(1, body={**STREAM, "seed": 1}))
    await until(lambda: engine.at_once == 1)
    sly = asyncio.create_task(node.ask(2, body={**STREAM, "seed": 2}, request_id="req_2.part"))
    await until(lambda: node.facts["waiting"] == 1)
    own = asyncio.create_task(node.ask_near())
    await until(lambda: node.gates.snapshot("demo").waiting == 1)
    for _ in range(3):
        await engine.end_one()
    await asyncio.gather(first, sly, own)
    assert engine.order == ["1", "own0", "2"]


async def test_a_busy_stranger_does_not_starve_another(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=1), at_once=6)
    engine = Engine(llama)
    busy = [asyncio.create_task(node.ask(1, body={**STREAM, "seed": 100 + number})) for number in range(6)]
    await until(lambda: node.facts["waiting"] == 5 and engine.at_once == 1)
    calm = asyncio.create_task(node.ask(2, body={**STREAM, "seed": 200}))
    await until(lambda: node.facts["waiting"] == 6)
    for _ in range(7):
        await engine.end_one()
    await asyncio.gather(calm, *busy)
    assert engine.order.index("200") <= 2


async def test_what_waits_is_bounded_and_the_others_are_told_at_once(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=1), slots=1)
    engine = Engine(llama)
    tasks = [asyncio.create_task(node.ask(who)) for who in range(1, 100)]
    await until(lambda: sum(task.done() for task in tasks) == 99 - 33)
    replies = [task.result() for task in tasks if task.done()]
    assert {reply.status for reply in replies} == {429}
    assert {error(reply)["type"] for reply in replies} == {"stranger_limit"}
    assert (node.facts["serving"], node.facts["waiting"], node.facts["inside"]) == (1, 32, 33)
    for _ in range(33):
        await engine.end_one()
    await asyncio.gather(*tasks)
    assert node.facts["reasons"] == {"stranger-limit": 66} and node.facts["served"] == 33


# --- pause, audit, leaving ------------------------------------------------------------------------------------


async def test_a_pause_lets_running_answers_end_and_sends_all_others_away(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=1))
    engine = Engine(llama)
    runs = asyncio.create_task(node.ask(1))
    await until(lambda: engine.at_once == 1)
    waits = asyncio.create_task(node.ask(2))
    await until(lambda: node.facts["waiting"] == 1)
    node.requests.pause(True)
    for reply in (await waits, await node.ask(3)):
        assert (reply.status, error(reply)["type"]) == (503, "public_paused")
        assert "paused" in error(reply)["message"] and reply.headers["retry-after"] == "60"
    assert node.facts["paused"] and node.requests.paused
    await engine.end_one()
    assert (await runs).status == 200
    node.requests.pause(False)
    again = asyncio.create_task(node.ask(3))
    await engine.end_one()
    assert (await again).status == 200
    assert node.facts["reasons"] == {"paused": 1, "public-paused": 1}


async def test_nothing_is_served_that_would_not_be_recorded(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    llama.script = streaming([TOKEN, LAST, DONE])
    node.trail.writable = False
    reply = await node.ask()
    assert reply.status == 503 and "audit log" in error(reply)["message"]
    assert llama.requests == [] and node.facts["reasons"] == {"audit": 1}
    node.trail.writable = True
    assert (await node.ask()).status == 200


@pytest.mark.parametrize("stage", ["waiting", "prompt", "answer"])
async def test_a_stranger_that_leaves_frees_its_slot_and_is_settled(llama: FakeLlamaServer, stage: str) -> None:
    node = Node(served(llama, slots=1))
    llama.script = endless(TOKEN * 5) if stage == "answer" else silent
    if stage == "waiting":
        first = asyncio.create_task(node.ask(9))
        await llama.request(0)
    task = asyncio.create_task(node.ask(1))
    if stage == "waiting":
        await until(lambda: node.facts["waiting"] == 1)
    elif stage == "prompt":
        await llama.request(0)
    else:
        await until(lambda: [entry["pieces"] > 2 for entry in node.activity.running()] == [True])
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    if stage == "waiting":
        assert (node.facts["serving"], node.facts["waiting"], node.facts["inside"]) == (1, 0, 1)
        assert node.trail.records == [] and node.facts["reasons"] == {"cancelled": 1}
        first.cancel()
        await asyncio.wait({first})
        return
    assert (node.facts["serving"], node.facts["inside"], node.gates.snapshot("demo").busy) == (0, 0, 0)
    async with asyncio.timeout(1):
        await llama.requests[0].left.wait()  # the engine knows as well
    [(_, facts)] = node.trail.records
    assert facts["tokens_in"] > 0 and (facts["tokens_out"] > 2) == (stage == "answer")


async def test_a_slow_stranger_does_not_keep_a_slot_for_ever(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.api.guest_requests.LONGEST_ANSWER_S", 0.1)
    node = Node(served(llama))
    llama.script = endless()
    with pytest.raises(TimeoutError):
        await node.ask()
    assert (node.facts["serving"], node.facts["inside"]) == (0, 0)


async def test_a_stranger_waits_for_a_while_and_is_told_then(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.api.gate.GUEST_WAIT_S", 0.05)
    node = Node(served(llama, slots=1))
    engine = Engine(llama)
    first = asyncio.create_task(node.ask(1))
    await until(lambda: engine.at_once == 1)
    reply = await node.ask(2)
    assert (reply.status, reply.headers["retry-after"]) == (429, "10")
    await engine.end_one()
    await first


# --- friends, both sides --------------------------------------------------------------------------------------


async def test_a_friend_in_the_public_mesh_is_no_stranger(llama: FakeLlamaServer) -> None:
    node = Node(served(llama), requests=1)
    llama.script = streaming([TOKEN, LAST, DONE])
    node.requests.pause(True)
    for _ in range(3):
        assert (await node.ask(255, body={**STREAM, "cache_prompt": True})).status == 200
    assert llama.requests[0].json["cache_prompt"] is True
    assert node.trail.records == [] and node.facts["served"] == 0
    assert (await node.ask(255, path="/v1/rerank", body={"query": "a"})).status == 404


async def test_both_ends_of_a_request_have_the_same_hash(llama: FakeLlamaServer) -> None:
    node = Node(served(llama, slots=2))
    host = Host("b" * 64, connect=TunnelPipe.to(node.requests), radius="public")  # type: ignore[arg-type]
    there = Served("demo", "ready", slots=2, hosts=(host,))
    async with running.gateway(there, router=InOrder()) as gateway:
        for body, script in (
            (STREAM, streaming([TOKEN[:9], TOKEN[9:] + LAST, DONE])),
            (HELLO, streaming([TOKEN, LAST, DONE])),
        ):
            llama.script = script
            reply = await ask(gateway.port, CHAT, body, **{"x-meshnode-radius": "public"})
            assert reply.status == 200
        llama.script = plain(200, b'{"data": []}')
        embedding = {"model": "demo", "input": "a"}
        await ask(gateway.port, "/v1/embeddings", embedding, **{"x-meshnode-radius": "public"})
    hashes = [facts["output_sha256"] for _, facts in node.trail.records]
    assert len(hashes) == 3 and all(hashes)
    assert [record.output_sha256 for record in gateway.records] == hashes


async def test_everything_shows_in_the_metrics(llama: FakeLlamaServer) -> None:
    node = Node(served(llama))
    llama.script = streaming([TOKEN, LAST, DONE])
    await node.ask()
    await node.ask(body={**STREAM, "n": 9})
    found: dict[tuple[str, str], float] = {
        (name, "".join(labels.values())): value for name, _, labels, value in guest_gauges(node.facts)
    }
    assert found["meshnode_strangers_served", ""] == 1
    assert found["meshnode_strangers_refused", "stranger-limit"] == 1
    assert found["meshnode_strangers_tokens", "out"] == 1
    assert found["meshnode_strangers_paused", ""] == found["meshnode_strangers_serving", ""] == 0
