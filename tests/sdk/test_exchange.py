"""Requests to an application in this process: its answer, its backpressure, and its end from either side."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from meshnode.errors import EngineCrashed, MeshnodeError, NodeStopping, RequestError, TooManyRequests
from meshnode.sdk.exchange import BUFFER_BYTES, Api, Exchange
from tests.sdk.application import Scripted, settle

pytestmark = pytest.mark.anyio


async def begun(app: Any, path: str = "/a b", body: bytes = b"") -> Exchange:
    exchange = Exchange(app, "POST", path, body)
    await exchange.begin()
    return exchange


async def test_an_answer_in_one_piece() -> None:
    app = Scripted()
    app.answers["/v1/things"] = {"found": True}
    value, headers = await Api(app).json("POST", "/v1/things", {"wanted": "é\ud800"})
    assert value == {"found": True} and headers["x-meshnode-node"] == "ab" * 5
    assert app.asked == [("/v1/things", {"wanted": "é\ud800"})]


async def test_the_scope_is_that_of_a_loopback_caller() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    exchange = await begun(app, body=b"{}")
    assert (await exchange.read_all(), exchange.status) == (b"", 204)
    assert (seen["path"], seen["raw_path"]) == ("/a b", b"/a%20b")
    assert dict(seen["headers"])[b"host"] == b"localhost" and dict(seen["headers"])[b"content-length"] == b"2"


async def test_a_slow_reader_holds_the_application_up() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(BUFFER_BYTES // 8), "more_body": True})
            sent += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    exchange = await begun(app)
    await settle()
    assert sent == 8, "the ninth piece waits"
    assert len(await exchange.read()) == BUFFER_BYTES // 8 * 9
    await settle()
    assert sent == 17
    assert len(await exchange.read_all()) == BUFFER_BYTES // 8 * 55


async def test_who_leaves_is_heard_of_at_once_even_while_the_application_sends() -> None:
    heard = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        flood = asyncio.create_task(endless(send))
        assert (await receive())["type"] == "http.disconnect"
        heard.set()
        await flood

    async def endless(send: Any) -> None:
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(BUFFER_BYTES), "more_body": True})

    exchange = await begun(app)
    exchange.abandon()
    exchange.abandon()
    async with asyncio.timeout(5):
        await heard.wait()
    await exchange.ended(1)
    with pytest.raises(NodeStopping):
        await exchange.read()


async def test_leaving_from_another_thread() -> None:
    app = Scripted()
    app.answers["/s"], app.hold = b"x", True
    exchange = await begun(app, "/s")
    thread = threading.Thread(target=exchange.abandon)
    thread.start()
    async with asyncio.timeout(5):
        await exchange.ended(5)
    thread.join()
    assert app.left == 1


async def test_leaving_before_the_head_came() -> None:
    app_left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        app_left.set()

    api = Api(app)
    waiting = asyncio.create_task(api.open("GET", "/"))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5):
        await app_left.wait()


async def test_closing_ends_all_answers() -> None:
    app = Scripted()
    app.answers["/s"], app.hold = b"x", True
    api = Api(app)
    first, second = await api.open("POST", "/s", {}), await api.open("POST", "/s", {})
    reading = asyncio.create_task(first.read_all())
    await settle()
    await api.close()
    assert app.left == 2
    with pytest.raises(NodeStopping):
        await reading
    with pytest.raises(NodeStopping):
        await second.read()


async def test_an_application_that_does_not_hear_is_cancelled() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    exchange = await begun(app)
    exchange.abandon()
    async with asyncio.timeout(5):
        await exchange.ended(0.01)


@pytest.mark.parametrize("begins", [True, False])
async def test_an_application_that_fails_or_ends_early(begins: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    with pytest.raises(MeshnodeError, match="fault") as raised:
        await (await begun(app)).read()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(RequestError, match="given up"):
        await begun(silent)


async def test_refusals_are_raised() -> None:
    app = Scripted()
    app.status, app.headers = 429, {"retry-after": "3"}
    app.answers["/s"] = {"error": {"message": "Every slot is busy", "code": "too_many_requests"}}
    with pytest.raises(TooManyRequests) as raised:
        await Api(app).open("POST", "/s", {})
    assert raised.value.retry_after_s == 3


async def test_answers_and_questions_that_are_no_json() -> None:
    app = Scripted()
    app.answers["/s"] = b"<html>"
    with pytest.raises(EngineCrashed, match="not JSON"):
        await Api(app).json("GET", "/s")
    for body in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(RequestError, match="cannot be written as JSON"):
            await Api(app).json("POST", "/s", body)
    assert app.asked == [("/s", None)]
