"""Requests over several hosts, with fake engines; and answers cut at many places, with the real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from meshnode.api.served import Host, Served
from meshnode.api.upstream import Connect, Pipe
from tests.api import running, streams
from tests.api.cutting import Cut
from tests.api.fake_llama import FakeLlamaServer, Received, Script, plain, raw, silent, streaming
from tests.api.raw_http import ask
from tests.api.reading import Read, read
from tests.api.running import CHAT, DONE, HELLO, LAST, STREAM, TOKEN, InOrder

pytestmark = pytest.mark.anyio
A, B, C = "a" * 64, "b" * 64, "c" * 64
MESSAGES, COMPLETIONS, RESPONSES = "/v1/messages", "/v1/completions", "/v1/responses"


def host(node: str, connect: Connect | None, *, here: bool = False, **more: Any) -> Host:
    values = {"content_hash": "w", "context_length": 4096, "radius": "local" if here else "trusted"}
    return Host(node, here, connect, **(values | more))


def model(*hosts: Host) -> Served:
    return Served("demo", "ready", slots=4, context_length=4096, hosts=hosts)


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[FakeLlamaServer, FakeLlamaServer]]:
    async with FakeLlamaServer.running() as first, FakeLlamaServer.running() as second:
        yield first, second


@dataclass
class Stage:
    """A gateway before two fake engines; the first is tried first."""

    gateway: running.Gateway
    first: FakeLlamaServer
    second: FakeLlamaServer
    router: InOrder

    @property
    def port(self) -> int:
        return self.gateway.port


@asynccontextmanager
async def stage(*, here: bool = False, **options: Any) -> AsyncIterator[Stage]:
    router = InOrder()
    async with two_engines() as (first, second):
        hosts = (host(A, first.connect, here=here), host(B, second.connect))
        async with running.gateway(model(*hosts), router=router, **options) as gateway:
            yield Stage(gateway, first, second, router)


# --- before the first byte ------------------------------------------------------------------------------------


async def _refused() -> Pipe:
    raise ConnectionRefusedError(111, "Connection refused")


WHOLE = [TOKEN, LAST, DONE]


@pytest.mark.parametrize(
    ("script", "cools"),
    [
        (raw(b""), True),
        (raw(b"garbage\r\n\r\n"), True),
        (plain(503, b'{"error":{"message":"Loading model"}}'), True),
        (plain(429, b'{"error":{"message":"full"}}'), True),
        (plain(404, b'{"error":{"message":"gone"}}'), True),
        (plain(500, b'{"error":{"message":"perhaps the request"}}'), False),
        (streaming([]), True),
        (streaming([b'data: {"error":{"code":500,"message":"decode failed"}}\n\n']), True),
    ],
)
@pytest.mark.parametrize("body", [STREAM, HELLO], ids=["streamed", "plain"])
async def test_a_host_that_fails_is_replaced_before_the_first_byte(body: object, script: Script, cools: bool) -> None:
    async with stage() as made:
        made.first.script, made.second.script = script, streaming(WHOLE)
        reply = await ask(made.port, CHAT, body)
        assert reply.status == 200
        assert reply.headers["x-meshnode-node"] == "b" * 10 and reply.headers["x-meshnode-radius"] == "trusted"
        assert "x-meshnode-resumed" not in reply.headers
        record = await made.gateway.record(0)
        assert (record.node, record.radius, record.retries, record.resumed) == (B, "trusted", 1, 0)
        assert made.router.told == [*([("failed", A)] if cools else []), ("succeeded", B)]
        assert made.router.under_way == 0


async def test_a_refusal_that_is_the_callers_own_is_passed_on_at_once() -> None:
    async with stage() as made:
        for status in (400, 413, 422, 501):
            made.first.script = plain(status, b'{"error":{"message":"no"}}')
            assert (await ask(made.port, CHAT, STREAM)).status == status
        assert made.second.requests == [] and ("failed", A) not in made.router.told


async def test_no_more_than_three_hosts_are_tried_and_the_last_one_speaks() -> None:
    async with FakeLlamaServer.running() as llama:
        llama.script = plain(503, b'{"error":{"message":"busy","type":"unavailable_error"}}')
        hosts = [host(f"{number:064x}", llama.connect) for number in range(1, 6)]
        async with running.gateway(model(*hosts), router=InOrder()) as gateway:
            reply = await ask(gateway.port, CHAT, HELLO)
            assert (reply.status, reply.error["message"]) == (503, "busy")
            assert len(llama.requests) == 3
            assert (await gateway.record(0)).retries == 2


async def test_when_every_host_is_gone_each_dialect_gets_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.api.comebacks.WAIT_S", 0.1)
    async with running.gateway(model(host(A, _refused), host(B, _refused)), router=InOrder()) as gateway:
        for body in (STREAM, HELLO):
            reply = await ask(gateway.port, CHAT, body)
            assert (reply.status, reply.error["code"]) == (502, "engine_connection_lost")
            reply = await ask(gateway.port, MESSAGES, body)
            assert (reply.status, reply.json["type"]) == (502, "error")
        gateway.models[0] = model(host(A, None, state="loading"))
        assert (await ask(gateway.port, CHAT, HELLO)).status == 503


async def test_a_full_queue_here_sends_the_request_to_a_peer() -> None:
    async with stage(here=True, capacity=0) as made:
        made.gateway.models[0] = model(
            host(A, made.first.connect, here=True, slots=1), host(B, made.second.connect, slots=1)
        )
        made.first.script, made.second.script = silent, streaming(WHOLE)
        waiting = asyncio.create_task(ask(made.port, CHAT, STREAM))
        await made.first.request(0)
        assert (await ask(made.port, CHAT, STREAM)).headers["x-meshnode-node"] == "b" * 10
        assert made.router.told == [("succeeded", B)]  # a full queue is no reason to avoid a node
        waiting.cancel()


async def test_a_peer_is_asked_by_the_models_id_and_without_a_key() -> None:
    async with FakeLlamaServer.running() as llama:
        llama.script = streaming(WHOLE)
        named = Served("demo", "ready", ("other",), hosts=(host(A, llama.connect),))
        async with running.gateway(named, aliases={"gpt-4": "demo"}) as gateway:
            for name in ("demo", "other", "gpt-4"):
                assert (await ask(gateway.port, CHAT, {**STREAM, "model": name})).status == 200
        assert [received.json["model"] for received in llama.requests] == ["demo"] * 3
        assert "authorization" not in llama.requests[0].headers
        assert llama.requests[0].headers["x-meshnode-request-id"] == gateway.records[0].id
        assert llama.requests[0].json == STREAM


# --- after it -------------------------------------------------------------------------------------------------


def chunk(text: str | None, finish: str | None = None, **more: object) -> bytes:
    delta: dict[str, object] = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "one", "created": 1, "choices": [choice], **more}).encode() + b"\n\n"


def dying(*events: bytes) -> Script:
    """Sends these events and half of another, and dies."""

    async def script(request: Received) -> None:
        await request.head()
        await request.chunk(b"".join(events) + TOKEN[:20])
        request.writer.transport.abort()

    return script


def replaying(*events: bytes, refuse: Callable[[Received], bool] = lambda _: False) -> Script:
    """An engine that can count, and answers any request for text with these events."""

    async def script(request: Received) -> None:
        if request.path == CHAT and not refuse(request):
            await streaming(events)(request)
        else:
            await plain(400, b'{"error":{"message":"cannot"}}')(request)

    return script


GREEDY = {**STREAM, "temperature": 0}


async def test_an_answer_goes_on_where_it_broke_off() -> None:
    async with stage() as made:
        made.first.script = dying(chunk("one "), chunk("two "))
        made.second.script = replaying(
            chunk("one ", id="two"), chunk("two three", id="two"), chunk(None, "stop", id="two"), DONE
        )
        reply = await ask(made.port, CHAT, GREEDY)
        marked = b": meshnode-resumed 1\n\n"
        assert reply.body.startswith(chunk("one ") + chunk("two ") + marked)
        found = read(CHAT, reply.body)
        assert (found.texts, found.names, found.errors) == ({0: "one two three"}, {"one"}, [])
        record = await made.gateway.record(0)
        assert (record.resumed, record.resume_failed, record.node, record.error) == (1, False, B, "")
        assert made.router.told == [("failed", A), ("succeeded", B)]


async def test_a_plain_answer_goes_on_too_and_says_so_in_its_head() -> None:
    async with stage() as made:
        made.first.script = dying(chunk("one "))
        made.second.script = replaying(chunk("one two"), chunk(None, "stop"), DONE)
        reply = await ask(made.port, CHAT, {**HELLO, "temperature": 0})
        assert reply.json["choices"][0]["message"]["content"] == "one two"
        assert (reply.headers["x-meshnode-resumed"], reply.headers["x-meshnode-node"]) == ("1", "b" * 10)


async def test_a_plain_answer_that_cannot_go_on_begins_anew() -> None:
    async with stage() as made:
        other = host(C, made.second.connect, content_hash="other weights")
        made.gateway.models[0] = model(host(A, made.first.connect), other)
        made.first.script = dying(chunk("one "))
        made.second.script = replaying(chunk("eins"), chunk(None, "stop"), DONE)
        reply = await ask(made.port, CHAT, {**HELLO, "temperature": 0})
        assert reply.json["choices"][0]["message"]["content"] == "eins"
        assert "x-meshnode-resumed" not in reply.headers


@pytest.mark.parametrize(
    "second",
    [
        replaying(chunk("ONE "), chunk(None, "stop"), DONE),  # another text
        replaying(chunk("on"), chunk(None, "stop"), DONE),  # an end too early
        replaying(chunk("one "), refuse=lambda _: True),
        raw(b""),
    ],
)
async def test_a_wrong_text_is_never_sent(second: Script) -> None:
    async with stage() as made:
        made.first.script, made.second.script = dying(chunk("one "), chunk("two ")), second
        reply = await ask(made.port, CHAT, GREEDY)
        found = read(CHAT, reply.body)
        assert found.texts == {0: "one two "} and len(found.errors) == 1
        record = await made.gateway.record(0)
        assert record.resume_failed and record.resumed == 0 and record.error


@pytest.mark.parametrize("how", ["refuses", "answers otherwise"])
async def test_where_the_text_so_far_is_no_use_the_request_is_replayed(how: str) -> None:
    """Some templates know no begun message of the assistant, or change it."""

    async def second(request: Received) -> None:
        if request.path != CHAT:
            count = len(request.json.get("messages", ()))  # type: ignore[arg-type]
            said: dict[str, object] = {"input_tokens": count, "tokens": [{"id": 1, "piece": "one "}]}
            await plain(200, json.dumps(said).encode())(request)
        elif request.json == GREEDY:
            await streaming([chunk("one two"), chunk(None, "stop"), DONE])(request)
        elif how == "refuses":
            await plain(400, b'{"error":{"message":"no such thing"}}')(request)
        else:
            await streaming([chunk("ONE two"), chunk(None, "stop"), DONE])(request)

    async with stage() as made:
        made.first.script, made.second.script = dying(chunk("one ")), second
        found = read(CHAT, (await ask(made.port, CHAT, GREEDY)).body)
        assert (found.texts, found.errors) == ({0: "one two"}, [])
        assert [len(received.json["messages"]) for received in made.second.requests if received.path == CHAT] == [2, 1]
        assert (await made.gateway.record(0)).resumed == 1


async def test_the_last_host_that_can_end_an_answer_is_waited_for_while_it_is_busy(monkeypatch: Any) -> None:
    monkeypatch.setattr("meshnode.api.answering.BUSY_PAUSES_S", (0.0, 0.0, 0.0))
    for refusals, texts in ((3, {0: "one two"}), (4, {0: "one "})):
        left = refusals

        async def second(request: Received) -> None:
            nonlocal left
            if request.path == CHAT and (left := left - 1) >= 0:
                await plain(429, b'{"error":{"message":"full"}}')(request)
            else:
                await replaying(chunk("one two"), chunk(None, "stop"), DONE)(request)

        async with stage() as made:
            made.first.script, made.second.script = dying(chunk("one ")), second
            found = read(CHAT, (await ask(made.port, CHAT, GREEDY)).body)
            assert (found.texts, len(found.errors)) == (texts, refusals > 3)


async def test_only_the_same_weights_go_on() -> None:
    for first, second in (("w", "v"), ("", "")):
        async with stage() as made:
            made.gateway.models[0] = model(
                host(A, made.first.connect, content_hash=first), host(B, made.second.connect, content_hash=second)
            )
            made.first.script, made.second.script = dying(chunk("one ")), streaming(WHOLE)
            found = read(CHAT, (await ask(made.port, CHAT, GREEDY)).body)
            assert found.texts == {0: "one "} and found.errors[0]["error"]["code"] == "engine_connection_lost"
            assert made.second.requests == []


async def test_an_answer_that_lacks_nothing_but_its_form_ends_well_even_without_another_host(
    gateway: running.Gateway, llama: FakeLlamaServer
) -> None:
    for path, events in (
        (CHAT, [chunk("one"), chunk(None, "stop")]),
        (COMPLETIONS, [b'data: {"id":"i","choices":[{"index":0,"text":"one","finish_reason":"stop"}]}\n\n']),
        (MESSAGES, streams.events(streams.recorded("messages"))[:-1]),
    ):
        llama.script = dying(*events)
        reply = await ask(gateway.port, path, STREAM)
        stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
        assert reply.body == b"".join(events) + (stop if path == MESSAGES else DONE)
        assert gateway.records[-1].error == "" and not gateway.records[-1].resume_failed
    llama.script = dying(chunk("one"))
    assert len(read(CHAT, (await ask(gateway.port, CHAT, STREAM)).body).errors) == 1


async def test_a_thought_goes_on_as_a_thought() -> None:
    async def second(request: Received) -> None:
        if request.path == CHAT:
            last = request.json["messages"][-1]  # type: ignore[index]
            assert last == {"role": "assistant", "content": "", "reasoning_content": "hm"}
            echo = [{"reasoning_content": "hm"}, {"reasoning_content": ", so"}, {"content": "yes"}]
            await streaming(streams.events(streams.chat(*echo, name="two")))(request)
        else:
            count = 5 + len(request.json.get("messages", ()))  # type: ignore[arg-type]
            await plain(200, json.dumps({"input_tokens": count, "tokens": []}).encode())(request)

    async with stage() as made:
        thought = streams.events(streams.chat({"reasoning_content": "hm"}))[:2]
        made.first.script, made.second.script = dying(*thought), second
        found = read(CHAT, (await ask(made.port, CHAT, STREAM)).body)
        assert found.texts == {(0, "reasoning"): "hm, so", 0: "yes"}
        assert (found.usages, found.names, found.errors) == ([(4, 10)], {"chatcmpl-1"}, [])


async def test_an_error_inside_the_stream_is_a_failure_of_the_host_or_the_callers() -> None:
    async with stage() as made:
        made.second.script = replaying(chunk("one two"), chunk(None, "stop"), DONE)
        for code, texts in ((500, {0: "one two"}), (400, {0: "one "})):
            error = b'data: {"error":{"code":%d,"message":"no"}}\n\n' % code
            made.first.script = streaming([chunk("one "), error])
            found = read(CHAT, (await ask(made.port, CHAT, GREEDY)).body)
            assert found.texts == texts and bool(found.errors) == (code == 400)


async def test_a_host_that_falls_silent_is_left_if_there_is_another() -> None:
    async def stalls(request: Received) -> None:
        await request.head()
        await request.chunk(chunk("one "))
        await request.left.wait()

    async with stage(stall_s=0.05) as made:
        made.first.script = stalls
        made.second.script = replaying(chunk("one two"), chunk(None, "stop"), DONE)
        assert read(CHAT, (await ask(made.port, CHAT, GREEDY)).body).texts == {0: "one two"}
        assert made.first.requests[0].left.is_set()


async def test_a_host_that_falls_silent_is_waited_for_if_nobody_else_can_go_on() -> None:
    go_on = asyncio.Event()

    async def pauses(request: Received) -> None:
        await request.head()
        await request.chunk(chunk("one "))
        await go_on.wait()
        await request.chunk(chunk("two") + chunk(None, "stop") + DONE)
        await request.end()

    async with stage(stall_s=0.02) as made:
        made.first.script = pauses
        forced = {**STREAM, "temperature": 0.7, "response_format": {"type": "json_object"}}
        for body, alone in ((GREEDY, True), (forced, False)):
            go_on.clear()
            if alone:
                made.gateway.models[0] = model(host(A, made.first.connect))
            else:
                made.gateway.models[0] = model(host(A, made.first.connect), host(B, made.second.connect))
            task = asyncio.create_task(ask(made.port, CHAT, body))
            await asyncio.sleep(0.1)  # several times the limit
            assert not task.done()
            go_on.set()
            assert read(CHAT, (await task).body).texts == {0: "one two"}
        assert made.second.requests == []


# --- the real engine ------------------------------------------------------------------------------------------

COUNT = [{"role": "user", "content": "count from 1 to 15"}]
USAGE = {"stream_options": {"include_usage": True}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 9}}}
TOOL = {
    "name": "add",
    "description": "adds",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": COUNT, **USAGE}),
    "greedy chat": (CHAT, {"messages": COUNT, "temperature": 0}),
    "chat with a limit": (CHAT, {"messages": COUNT, "max_tokens": 21, **USAGE}),
    "chat with logprobs": (CHAT, {"messages": COUNT, "logprobs": True, "top_logprobs": 1, **USAGE}),
    "two choices": (CHAT, {"messages": COUNT, "n": 2, "temperature": 0, **USAGE}),
    "a schema": (
        CHAT,
        {
            "messages": COUNT,
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        },
    ),
    "tools": (CHAT, {"messages": COUNT, "tools": [{"type": "function", "function": TOOL}], **USAGE}),
    "a begun answer": (CHAT, {"messages": [*COUNT, {"role": "assistant", "content": "1, 2, 3,"}], "temperature": 0}),
    "completion": (COMPLETIONS, {"prompt": "1, 2, 3, 4", "max_tokens": 40}),
    "completion of tokens": (COMPLETIONS, {"prompt": [49, 44, 645], "max_tokens": 20, "temperature": 0}),
    "completion with stops": (
        COMPLETIONS,
        {"prompt": "count from 1 to 30: 1, 2, 3", "max_tokens": 60, "stop": [" 5, 7", " 20"], "temperature": 0},
    ),
    "two prompts": (COMPLETIONS, {"prompt": ["1, 2, 3", "count"], "max_tokens": 12, "temperature": 0}),
    "messages": (MESSAGES, {"messages": COUNT, "max_tokens": 100}),
    "messages with a limit": (MESSAGES, {"messages": COUNT, "max_tokens": 17}),
    "responses": (RESPONSES, {"input": "count from 1 to 15"}),
    "responses with a limit": (RESPONSES, {"input": "count from 1 to 15", "max_output_tokens": 19}),
}
CUTS = 10


@pytest.mark.engine
@pytest.mark.parametrize("case", CASES)
async def test_an_answer_cut_anywhere_is_the_one_that_was_never_cut(case: str, real_llama: Connect) -> None:
    """Cut after any byte, most densely at the end: within events, between the last ones, inside [DONE]."""
    path, body = CASES[case]
    cut = Cut(real_llama)
    hosts = (host(A, cut.connect, here=True, slots=4), host(B, real_llama, slots=4))
    async with running.gateway(model(*hosts), router=InOrder()) as gateway:
        request = {"model": "demo", "stream": True, **body}
        await ask(gateway.port, path, request)  # what the prompt cache holds is the same from now on
        cut.passed.clear()
        whole: Read = read(path, (await ask(gateway.port, path, request)).body)
        size = sum(map(len, cut.passed))
        assert whole.texts and not whole.errors
        step = size // CUTS
        for number, place in enumerate((*range(150, size, step), *range(max(150, size - 700), size, 53))):
            cut.after_bytes, cut.how = place, ("reset", "end")[number % 2]
            found = read(path, (await ask(gateway.port, path, request)).body)
            assert found.told == whole.told, f"cut after {place} of {size} bytes"
        assert sum(record.resumed for record in gateway.records) > CUTS / 2
        assert not any(record.resume_failed or record.error for record in gateway.records)


@pytest.mark.engine
@pytest.mark.parametrize("case", ["chat", "completion", "messages", "responses"])
async def test_a_plain_answer_cut_anywhere_is_whole(case: str, real_llama: Connect) -> None:
    path, body = CASES[case]
    cut = Cut(real_llama)
    async with running.gateway(
        model(host(A, cut.connect, here=True), host(B, real_llama)), router=InOrder()
    ) as gateway:
        whole = (await ask(gateway.port, path, {"model": "demo", **body})).json
        size = sum(map(len, cut.passed))
        for place in range(200, size, size // 12):
            cut.after_bytes = place
            reply = await ask(gateway.port, path, {"model": "demo", **body})
            assert _timeless(reply.json) == _timeless(whole)
            assert reply.headers.get("x-meshnode-resumed") == str(gateway.records[-1].resumed or None) or (
                gateway.records[-1].retries == 1
            )


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        moving = ("id", "created", "created_at", "completed_at", "timings", "cached_tokens")
        value = {key: _timeless(item) for key, item in value.items() if key not in moving}
        if "cache_read_input_tokens" in value:
            value["input_tokens"] += value.pop("cache_read_input_tokens")
        return value
    return [_timeless(item) for item in value] if isinstance(value, list) else value


@pytest.mark.engine
async def test_an_answer_survives_one_host_after_another(real_llama: Connect) -> None:
    cuts = [Cut(real_llama, place) for place in (1200, 2100, 2500, 1700)]
    nodes = [host(f"{number:064x}", cut.connect, here=not number) for number, cut in enumerate(cuts)]
    async with running.gateway(model(*nodes, host(B, real_llama)), router=InOrder()) as gateway:
        body = {"model": "demo", "stream": True, "messages": COUNT, **USAGE}
        found = read(CHAT, (await ask(gateway.port, CHAT, body)).body)
        assert found.texts == {0: ", ".join(str(number) for number in range(1, 16))}
        assert (found.form["role"], found.form["stop"], found.form["DONE"], len(found.names)) == (1, 1, 1, 1)
        assert found.usages == [(17, 30)]
        assert gateway.records[0].resumed >= 3
