import asyncio
import json
from pathlib import Path

import pytest

from meshnode.api import request as request_module
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.request import Request
from meshnode.api.served import Host
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, Received, Script, endless, plain, raw, silent, streaming
from tests.api.raw_http import Connection, ask, request
from tests.api.running import CHAT, DONE, HELLO, LAST, STREAM, TOKEN, Gateway, served, until

pytestmark = pytest.mark.anyio
DATA = Path(__file__).parent / "data"
PATHS = {
    "chat": CHAT,
    "chat_choices": CHAT,
    "completion": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


def recorded(name: str) -> list[bytes]:
    return [event + b"\n\n" for event in (DATA / f"{name}.sse").read_bytes().split(b"\n\n")[:-1]]


def by(prompts: dict[str, Script]) -> Script:
    """Another script for each value of `user`."""

    async def script(request: Received) -> None:
        await prompts[str(request.json["user"])](request)

    return script


# --- forwarding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
async def test_a_stream_passes_byte_for_byte(name: str, gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = streaming(recorded(name))
    reply = await ask(gateway.port, PATHS[name], STREAM)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream")
    assert reply.body == (DATA / f"{name}.sse").read_bytes()
    assert reply.headers["x-meshnode-request-id"].startswith("req_")
    assert reply.headers["x-meshnode-node"] == "abc"
    [received] = llama.requests
    assert (received.method, received.path, received.json) == ("POST", PATHS[name], STREAM)


async def test_a_stream_that_ends_without_a_blank_line_passes_too(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = streaming([b"data: 1\n", b"\ndata: 2\n\ndata: [DONE]\n", b": the end"])
    assert (await ask(gateway.port, CHAT, STREAM)).body == b"data: 1\n\ndata: 2\n\ndata: [DONE]\n: the end"


@pytest.mark.parametrize("name", PATHS)
async def test_a_plain_answer_is_what_llama_server_would_have_given(
    name: str, gateway: Gateway, llama: FakeLlamaServer
) -> None:
    llama.script = streaming(recorded(name))
    reply = await ask(gateway.port, PATHS[name], {"model": "demo", "max_tokens": 6})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    wanted = json.loads((DATA / f"{name}.json").read_bytes())
    assert _timeless(reply.json) == _timeless(wanted)
    assert llama.requests[0].json["stream"] is True
    record = await gateway.record(0)
    assert (record.model, record.status, record.stream) == ("demo", 200, False)
    assert record.tokens_out in (3, 4, 6)


def _timeless(value: object) -> object:
    """Without what differs from one run to the next."""
    if isinstance(value, dict):
        moving = ("id", "created", "created_at", "completed_at", "timings")
        return {key: "*" if key in moving and not isinstance(item, int) or key in moving[1:] else _timeless(item)
                for key, item in value.items()}  # fmt: skip
    return [_timeless(item) for item in value] if isinstance(value, list) else value


async def test_only_what_must_change_of_a_plain_body_is_changed(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = streaming([TOKEN, LAST, DONE])
    sent = b'{ "model":"demo",  "seed":1e2, "note":"\\u00e9\xc3\xa9", "stream" : false ,"stream_options":{"x":1} }'
    assert (await ask(gateway.port, CHAT, sent)).status == 200
    assert llama.requests[0].body == (
        b'{ "model":"demo",  "seed":1e2, "note":"\\u00e9\xc3\xa9", "stream" : true ,'
        b'"stream_options":{"x": 1, "include_usage": true} }'
    )


async def test_endpoints_that_do_not_stream_pass_as_they_are(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = plain(200, b'{"input_tokens": 3}', "application/json; charset=utf-8")
    for path in ("/v1/embeddings", "/v1/rerank", "/v1/messages/count_tokens", "/v1/responses/input_tokens"):
        reply = await ask(gateway.port, path, HELLO)
        assert (reply.body, reply.headers["content-type"]) == (
            b'{"input_tokens": 3}',
            "application/json; charset=utf-8",
        )
    assert all(received.json == HELLO for received in llama.requests)


async def test_an_audio_form_is_forwarded_untouched(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = plain(200, b'{"text": "hi"}')
    form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\ndemo\r\n--x--\r\n'
    async with await Connection.open(gateway.port) as connection:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(form)}\r\n"
        await connection.send(head.encode() + b"Content-Type: multipart/form-data; boundary=x; a=\xe9\r\n\r\n" + form)
        assert (await connection.reply()).json == {"text": "hi"}
    assert llama.requests[0].body == form
    assert llama.requests[0].headers["content-type"] == "multipart/form-data; boundary=x; a=\xe9"
    assert (await ask(gateway.port, "/v1/audio/transcriptions", form)).status == 400


async def test_the_secrets_and_headers_of_a_caller_stop_here(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = streaming([TOKEN, LAST, DONE])
    headers = {"authorization": "Bearer canary1", "x_api_key": "canary2", "cookie": "a=canary3"}
    headers |= {"x_conversation_id": "canary4", "x_forwarded_for": "canary5"}
    await ask(gateway.port, CHAT, STREAM, **headers)
    [received] = llama.requests
    assert received.headers["authorization"] == "Bearer inner"
    assert "canary" not in str(received.headers)
    assert set(received.headers) == {"host", "authorization", "content-type", "content-length", "connection"}


async def test_one_connection_may_name_another_model_with_each_request() -> None:
    async with FakeLlamaServer.running() as first, FakeLlamaServer.running() as second:
        first.script, second.script = streaming([b"data: 1\n\n", DONE]), streaming([b"data: 2\n\n", DONE])
        models = (served(first, "one"), served(second, "two", names=("deux",)))
        async with running.gateway(*models, aliases={"gpt-4": "two"}) as gateway:
            async with await Connection.open(gateway.port) as connection:
                for name, number in (("one", b"1"), ("two", b"2"), ("one", b"1"), ("DEUX", b"2"), ("gpt-4", b"2")):
                    reply = await connection.ask(CHAT, {"model": name, "stream": True})
                    assert reply.body == b"data: %s\n\n" % number + DONE
            assert {record.model for record in gateway.records} == {"one", "two"}


async def test_chunked_and_expected_bodies_are_read(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = streaming([DONE])
    body = json.dumps(STREAM).encode()
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(CHAT, b"", headers={"Transfer-Encoding": "chunked"}))
        for byte in body:
            await connection.send(b"1\r\n%c\r\n" % byte)
        await connection.send(b"0\r\n\r\n")
        assert (await connection.reply()).body == DONE
        await connection.send(request(CHAT, b"", headers={"Expect": "100-continue", "Content-Length": str(len(body))}))
        assert (await connection.head()).status == 100
        await connection.send(body)
        assert (await connection.reply()).body == DONE
    assert [received.body for received in llama.requests] == [body, body]


async def test_a_large_body_arrives_whole(llama: FakeLlamaServer) -> None:
    llama.script = streaming([DONE])
    async with running.gateway(served(llama), max_body_bytes=32 << 20) as gateway:
        body = {**STREAM, "messages": [{"role": "user", "content": "é" * 1000}] * 1000}
        assert (await ask(gateway.port, CHAT, body)).body == DONE
        assert llama.requests[0].json == body


# --- refusals -------------------------------------------------------------------------------------------------

OPENAI, ANTHROPIC = CHAT, "/v1/messages"


async def test_bodies_that_cannot_be_understood_are_refused(gateway: Gateway, llama: FakeLlamaServer) -> None:
    for body, part in (
        (b'{"model":"demo","model":"other"}', "'model' appears twice"),
        (b'{"model":"demo","m":"\xff\xfe"}', "not UTF-8 at byte 21"),
        (b"[1]", "expected an object"),
        (b'"text"', "expected an object"),
        (b"", "expected an object"),
        (b'{"model":"demo"', "character 15"),
        (b'{"model":"demo"} {}', "more text"),
        (b'{"model":"demo","t":NaN}', "NaN is not JSON"),
        (b'{"model":"demo","t":-Infinity}', "-Infinity is not JSON"),
        (b'{"model":"demo","a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "too deeply"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "too deeply"),
        (b'{"model":7}', "`model` must be a text"),
        (b'{"model":""}', "`model` must be a text"),
    ):
        reply = await ask(gateway.port, OPENAI, body)
        assert (reply.status, reply.error["type"], reply.error["code"]) == (400, "invalid_request_error", "bad_request")
        assert part in reply.error["message"]
        reply = await ask(gateway.port, ANTHROPIC, body)
        assert (reply.status, reply.json["type"], reply.error["type"]) == (400, "error", "invalid_request_error")
        assert reply.json["request_id"] == reply.headers["x-meshnode-request-id"]
    assert llama.requests == []


async def test_an_unknown_model_is_404_with_the_nearest_names(llama: FakeLlamaServer) -> None:
    async with running.gateway(served(llama, "qwen3:4b"), served(llama, "demo")) as gateway:
        for path in (OPENAI, ANTHROPIC):
            reply = await ask(gateway.port, path, {"model": "qwen3:8b"})
            assert reply.status == 404
            assert "did you mean qwen3:4b?" in reply.error["message"]
        assert reply.error["type"] == "not_found_error"
        reply = await ask(gateway.port, OPENAI, {"model": "\ud800 zzz"})
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert "served here: qwen3:4b, demo" in reply.error["message"]
        assert (await ask(gateway.port, OPENAI, {})).status == 400


async def test_a_model_that_loads_or_failed_is_503_with_retry_after(llama: FakeLlamaServer) -> None:
    loading = served(llama, "slow", state="loading", connect=None)
    failed = served(llama, "bad", state="failed", connect=None, detail="out of memory")
    async with running.gateway(loading, failed) as gateway:
        for name, kind, code in (
            ("slow", "unavailable_error", "model_loading"),
            ("bad", "unavailable_error", "engine_crashed"),
        ):
            reply = await ask(gateway.port, OPENAI, {"model": name})
            assert (reply.status, reply.error["type"], reply.error["code"]) == (503, kind, code)
            assert int(reply.headers["retry-after"]) >= 1
            reply = await ask(gateway.port, ANTHROPIC, {"model": name})
            assert (reply.status, reply.error["type"]) == (503, "overloaded_error")
        gateway.models[0] = served(llama, "slow", connect=None)  # ready, and gone in the moment of forwarding
        assert (await ask(gateway.port, OPENAI, {"model": "slow"})).status == 503


async def test_what_is_asked_for_in_vain_is_remembered_as_wanted(llama: FakeLlamaServer) -> None:
    """The demand for what nobody serves: not for a path of this machine, nor for whatever there is."""
    failed = served(llama, "broken", state="failed", connect=None)
    async with running.gateway(served(llama), failed, aliases={"gpt-4": "qwen"}) as gateway:
        for name, wanted in (
            ("a canary in the coal mine", ""),
            ("x" * 65, ""),
            ("qwen", "qwen"),
            ("gpt-4", "qwen"),
            ("broken", "broken"),
            ("/models/secret.gguf", ""),
            ("~/x", ""),
            (7, ""),
            ("", ""),
        ):
            assert (await ask(gateway.port, CHAT, {**HELLO, "model": name})).status >= 400
            assert (gateway.records[-1].wanted, gateway.records[-1].model) == (wanted, "")
        await ask(gateway.port, CHAT, HELLO)
        assert (gateway.records[-1].wanted, gateway.records[-1].model) == ("", "demo")
        gateway.models.clear()
        for name, wanted in (("auto", ""), ("qwen", "qwen")):
            reply = await ask(gateway.port, CHAT, {**HELLO, "model": name})
            assert (reply.status, reply.error["code"]) == (503, "no_model_served")
            assert reply.headers["retry-after"]
            assert gateway.records[-1].wanted == wanted


async def test_a_request_is_under_way_until_its_end_and_its_events_are_counted(llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    async with running.gateway(served(llama)) as gateway:
        for body in (STREAM, HELLO):  # passed on, and put together
            llama.script = streaming([TOKEN, TOKEN, LAST, DONE], pace=pace)
            asked = asyncio.create_task(ask(gateway.port, CHAT, body))
            for number in (1, 2):
                pace.put_nowait(None)
                await running.until(lambda n=number: [e["pieces"] for e in gateway.activity.running()] == [n])
            [shown] = gateway.activity.running()
            assert (shown["model"], shown["where"], shown["stream"]) == ("demo", "here", body is STREAM)
            assert gateway.activity.tokens_per_s() > 0
            pace.put_nowait(None)
            pace.put_nowait(None)
            assert (await asked).status == 200
            assert gateway.activity.running() == []


async def test_whoever_fails_or_leaves_is_under_way_no_more(llama: FakeLlamaServer) -> None:
    async with running.gateway(served(llama)) as gateway:
        for body in (b"{", {**HELLO, "model": "none"}):
            assert (await ask(gateway.port, CHAT, body)).status >= 400
        llama.script = endless()
        async with await Connection.open(gateway.port) as connection:
            await connection.send(request(CHAT, STREAM))
            await connection.head()
            assert len(gateway.activity.running()) == 1
        await gateway.record(2)
        assert gateway.activity.running() == []


async def test_a_body_over_the_cap_is_413_announced_or_not(llama: FakeLlamaServer) -> None:
    async with (
        running.gateway(served(llama), max_body_bytes=1000) as gateway,
        await Connection.open(gateway.port) as connection,
    ):
        await connection.send(request(CHAT, b"", headers={"Content-Length": "100000000000"}))
        reply = await connection.reply()
        assert (reply.status, reply.error["code"]) == (413, "body_too_large")
        async with await Connection.open(gateway.port) as connection:
            await connection.send(request(CHAT, b"", headers={"Content-Length": "1001", "Expect": "100-continue"}))
            assert (await connection.reply()).status == 413  # and no 100 before it
        async with await Connection.open(gateway.port) as connection:
            await connection.send(request(ANTHROPIC, b"", headers={"Transfer-Encoding": "chunked"}))
            await connection.send(b"1f4\r\n" + b"a" * 500 + b"\r\n1f5\r\n" + b"a" * 501 + b"\r\n")
            reply = await connection.reply()
            assert (reply.status, reply.error["type"]) == (413, "request_too_large")
        exact = json.dumps(STREAM).encode().ljust(1000)
        llama.script = streaming([DONE])
        assert (await ask(gateway.port, CHAT, exact)).status == 200


async def test_a_body_that_pauses_for_too_long_is_408(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "BODY_PAUSE_S", 0.05)
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(CHAT, b'{"mod', headers={"Content-Length": "100"}))
        reply = await connection.reply()
        assert (reply.status, reply.error["code"]) == (408, "request_timeout")
        assert "5 bytes came" in reply.error["message"]


async def test_errors_of_the_engine_arrive_in_the_dialect_of_the_caller(
    gateway: Gateway, llama: FakeLlamaServer
) -> None:
    error = {"code": 400, "type": "exceed_context_size_error", "message": "too long", "n_ctx": 5, "n_prompt_tokens": 9}
    llama.script = plain(400, json.dumps({"error": error}).encode())
    for body in (HELLO, STREAM):
        reply = await ask(gateway.port, OPENAI, body)
        assert (reply.status, reply.error["message"], reply.error["n_ctx"]) == (400, "too long", 5)
        assert (reply.error["type"], reply.error["code"]) == ("invalid_request_error", "exceed_context_size_error")
        reply = await ask(gateway.port, ANTHROPIC, body)
        assert (reply.status, reply.json["type"], reply.error["type"]) == (400, "error", "invalid_request_error")
    for status, body, wanted in (
        (503, b'{"error":{"message":"Loading model"}}', 503),
        (401, b'{"error":{"message":"Invalid API Key"}}', 502),
        (500, b"<html>\xff", 500),
        (500, b'{"error":"text"}', 500),
        (500, b"[" * 100_000, 500),
        (501, b'{"error":{"message":"\\ud800"}}', 501),
    ):
        llama.script = plain(status, body)
        assert (await ask(gateway.port, CHAT, HELLO)).status == wanted, body[:40]


async def test_an_engine_that_does_not_speak_http_is_502(
    gateway: Gateway, llama: FakeLlamaServer, logged: pytest.LogCaptureFixture
) -> None:
    answers: list[Script] = [
        raw(b"garbage\r\n\r\n"),
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
        raw(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
        streaming([b"data: not json\n\n"]),
        streaming([b"data: " + b"[" * 100_000 + b"\n\n"]),
        streaming([b'data: {"choices":[{"no":"index"}]}\n\n']),
        streaming([b'data: {"choices":7}\n\n']),
        streaming([]),
        streaming([TOKEN, TOKEN]),  # ended in form, but without a reason to finish
        plain(200, b'{"choices":[]}'),
    ]
    for script in answers:
        llama.script = script
        reply = await ask(gateway.port, CHAT, HELLO)
        assert (reply.status, reply.error["type"]) == (502, "server_error")
        assert reply.error["code"] == "engine_connection_lost"
    gateway.models[0] = served(llama, connect=_refused)
    assert (await ask(gateway.port, CHAT, STREAM)).status == 502
    assert not [record for record in logged.records if record.name == "meshnode"]


async def _refused() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    raise ConnectionRefusedError(111, "Connection refused")


# --- streams that go wrong ------------------------------------------------------------------------------------


async def test_an_upstream_that_dies_in_mid_stream_becomes_a_last_event(
    gateway: Gateway, llama: FakeLlamaServer
) -> None:
    async def dies(received: Received) -> None:
        await received.head()
        await received.chunk(TOKEN + TOKEN[:20])  # the second event never becomes whole
        received.writer.transport.abort()

    llama.script = dies
    for path, start in (
        (CHAT, b"data: "),
        ("/v1/messages", b"event: error\ndata: "),
        ("/v1/responses", b"event: error\ndata: "),
    ):
        reply = await ask(gateway.port, path, STREAM)
        assert reply.status == 200
        first, last, rest = reply.body.split(b"\n\n")
        assert (first + b"\n\n", rest) == (TOKEN, b"")
        assert last.startswith(start)
        error = json.loads(last.removeprefix(start))
        if path == "/v1/responses":
            assert (error["type"], error["code"]) == ("error", "engine_connection_lost")
        else:
            assert error["error"]["type"] == ("server_error" if path == CHAT else "api_error")
    record = await gateway.record(2)
    assert (record.status, record.error) == (200, "engine-connection-lost")


async def test_an_error_event_of_the_engine_fails_a_plain_answer(gateway: Gateway, llama: FakeLlamaServer) -> None:
    error = {"code": 500, "message": "decode failed", "type": "server_error"}
    llama.script = streaming([TOKEN, b"data: " + json.dumps({"error": error}).encode() + b"\n\n"])
    reply = await ask(gateway.port, OPENAI, HELLO)
    assert (reply.status, reply.error["message"], reply.error["type"]) == (500, "decode failed", "server_error")
    # On /v1/messages llama-server sends the bare error object.
    llama.script = streaming(
        [*recorded("messages")[:3], b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"]
    )
    reply = await ask(gateway.port, ANTHROPIC, HELLO)
    assert (reply.status, reply.error) == (500, {"type": "api_error", "message": "decode failed"})


async def test_pings_keep_a_silent_stream_alive_and_never_fall_into_an_event(llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    llama.script = streaming([TOKEN[:10], TOKEN[10:], DONE], pace=pace)
    async with (
        running.gateway(served(llama), ping_interval_s=0.03) as gateway,
        await Connection.open(gateway.port) as connection,
    ):
        await connection.send(request(CHAT, STREAM))
        head = await connection.head()  # the first ping begins the answer: the prompt is still being processed
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert await connection.event() == b": ping"
        pace.put_nowait(None)
        for _ in range(4):  # half an event has come
            assert await connection.event() == b": ping"
        pace.put_nowait(None)
        events = [await connection.event() for _ in range(4)]
        assert events.count(TOKEN[:-2]) == 1
        assert events.count(b": ping") == 3
        pace.put_nowait(None)
        events = [event async for event in _events(connection)]
    assert events[-1] == DONE[:-2]


async def _events(connection: Connection):
    while event := await connection.event():
        yield event


async def test_a_refusal_after_a_ping_arrives_as_an_event(llama: FakeLlamaServer) -> None:
    go = asyncio.Event()

    async def late(received: Received) -> None:
        await go.wait()
        await plain(400, b'{"error":{"message":"no","type":"invalid_request_error"}}')(received)

    llama.script = late
    async with (
        running.gateway(served(llama), ping_interval_s=0.02) as gateway,
        await Connection.open(gateway.port) as connection,
    ):
        await connection.send(request(ANTHROPIC, STREAM))
        await connection.head()
        assert await connection.event() == b": ping"
        go.set()
        events = [event async for event in _events(connection)]
    assert events[-1].startswith(b'event: error\ndata: {"type": "error", "error": {"type": "invalid_request_error"')


async def test_a_slow_reader_stops_the_upstream_and_not_the_memory(gateway: Gateway, llama: FakeLlamaServer) -> None:
    sent = 0
    piece = b"data: " + b"x" * 65_000 + b"\n\n"

    async def flood(received: Received) -> None:
        nonlocal sent
        await received.head()
        for _ in range(1600):  # 104 MB
            await received.chunk(piece)
            sent += len(piece)
        await received.end()

    llama.script = flood
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(CHAT, STREAM))
        await connection.head()
        before = -1
        async with asyncio.timeout(10):
            while sent != before:
                before = sent
                await asyncio.sleep(0.2)  # the measure itself: nothing moves while nobody reads
        assert 0 < sent < 20 << 20
        assert (await ask(gateway.port, "/health")).status == 200


# --- callers that leave, and turns ----------------------------------------------------------------------------


async def _leaves(gateway: Gateway, llama: FakeLlamaServer, body: object, path: str = CHAT) -> None:
    number = len(llama.requests)
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(path, body))
        received = await llama.request(number)
        left_at = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        await received.left.wait()
    assert received.left_at is not None
    assert received.left_at - left_at < 1


@pytest.mark.parametrize("script", [endless(), silent], ids=["in mid-stream", "before the first token"])
@pytest.mark.parametrize("body", [STREAM, HELLO], ids=["streamed", "plain"])
async def test_a_caller_that_leaves_frees_its_slot(
    body: object, script: Script, gateway: Gateway, llama: FakeLlamaServer
) -> None:
    llama.script = script
    await _leaves(gateway, llama, body)
    assert (await gateway.record(0)).status == 499
    assert gateway.gates.snapshot("demo").busy == 0
    llama.script = streaming([DONE])
    assert (await ask(gateway.port, CHAT, STREAM)).body == DONE


async def test_a_caller_that_leaves_after_the_last_event_had_its_answer(
    gateway: Gateway, llama: FakeLlamaServer
) -> None:
    llama.script = endless(TOKEN + DONE)
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(CHAT, STREAM))
        await connection.head()
        while DONE.strip() not in await connection.event():
            pass
    assert (await gateway.record(0)).status == 200
    assert gateway.gates.snapshot("demo").busy == 0


async def test_a_caller_that_leaves_while_others_stream_frees_its_slot_too(llama: FakeLlamaServer) -> None:
    llama.script = endless(TOKEN)
    async with running.gateway(served(llama, slots=3)) as gateway, await Connection.open(gateway.port) as other:
        await other.send(request(CHAT, STREAM))
        await other.head()
        await _leaves(gateway, llama, HELLO)
        await _leaves(gateway, llama, HELLO, "/v1/embeddings")
        assert gateway.gates.snapshot("demo").busy == 1


async def test_a_caller_that_leaves_the_queue_is_never_forwarded(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = endless()
    async with await Connection.open(gateway.port) as running_one:
        await running_one.send(request(CHAT, STREAM))
        await running_one.head()
        for body in (STREAM, HELLO):
            async with await Connection.open(gateway.port) as queued:
                await queued.send(request(CHAT, body))
                await until(lambda: gateway.gates.snapshot("demo").waiting == 1)
            await until(lambda: gateway.gates.snapshot("demo").waiting == 0)
    await until(lambda: gateway.gates.snapshot("demo").busy == 0)
    assert len(llama.requests) == 1
    assert sorted(record.status for record in gateway.records) == [499, 499, 499]


# --- who answered -----------------------------------------------------------------------------------------------


async def test_a_whole_stream_is_told_with_its_host_and_a_broken_one_is_not(
    llama: FakeLlamaServer,
) -> None:
    told: list[tuple[str, bytes, bool]] = []

    def answered(request: Request, stream: bytes, host: Host) -> None:
        told.append((request.model.id, stream, host.here))

    async with running.gateway(served(llama), answered=answered) as gateway:
        llama.script = streaming([TOKEN, LAST, DONE])
        for body in (STREAM, HELLO):
            assert (await ask(gateway.port, CHAT, body)).status == 200
        assert told == [("demo", TOKEN + LAST + DONE, True)] * 2, "a plain answer was a stream as well"
        told.clear()
        llama.script = plain(400, b'{"error":{"message":"no"}}')
        await ask(gateway.port, CHAT, STREAM)
        llama.script = raw(b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nContent-Length: 999\r\n\r\n" + TOKEN)
        await ask(gateway.port, CHAT, STREAM)
        assert told == []


# --- the rest -------------------------------------------------------------------------------------------------


async def test_a_fault_of_ours_is_logged_once_and_the_next_request_is_answered(
    gateway: Gateway, llama: FakeLlamaServer, logged: pytest.LogCaptureFixture
) -> None:
    async def broken() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise ZeroDivisionError

    gateway.models[0] = served(llama, connect=broken)
    reply = await ask(gateway.port, CHAT, HELLO)
    assert (reply.status, reply.error["type"]) == (500, "server_error")
    assert "hello" not in logged.text
    assert len([record for record in logged.records if record.name == "meshnode"]) == 1
    llama.script = streaming([DONE])
    gateway.models[0] = served(llama)
    assert (await ask(gateway.port, CHAT, STREAM)).status == 200


async def test_only_the_listed_endpoints_reach_the_engine(gateway: Gateway, llama: FakeLlamaServer) -> None:
    for path in ("/slots", "/slots/0?action=erase", "/props", "/lora-adapters", "/completion", "/models/load", "/v1/x"):
        assert (await ask(gateway.port, path, HELLO)).status == 404
        assert (await ask(gateway.port, path)).status == 404
    for path in ENDPOINTS:
        assert (await ask(gateway.port, path)).status == 405
    assert llama.requests == []
