import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshnode.api import control as control_module
from meshnode.api.inference import Record
from meshnode.errors import ModelNotFound
from tests.api.console import TERMINAL, TOKEN, Console, console
from tests.api.fake_llama import FakeLlamaServer, streaming
from tests.api.raw_http import Connection, ask, request
from tests.api.running import CHAT, DONE, HELLO, LAST, STREAM, Gateway, served
from tests.api.running import TOKEN as PIECE

pytestmark = pytest.mark.anyio
CALLS = Console().calls()
PAGE = {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}


# --- who may call ---------------------------------------------------------------------------------------------

STRANGERS: list[dict[str, str]] = [
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:5173"},
    {"origin": "http://localhost"},
    {"origin": "https://localhost:PORT"},
    {"origin": "http://127.0.0.1:PORT"},
    {"origin": "http://localhost:PORT.evil.example"},
    {"host": "evil.example"},
    {
        "host": "rebound.evil.example:3131",
        "origin": "http://rebound.evil.example:3131",
        "sec_fetch_site": "same-origin",
    },
]


@pytest.mark.parametrize("headers", STRANGERS, ids=str)
async def test_pages_of_others_reach_nothing_with_and_without_the_token(headers: dict[str, str]) -> None:
    """The place of a caller is judged before its token, its method and its body, for every call there is."""
    async with console() as node, await Connection.open(node.port) as connection:
        given = {"host": "localhost:PORT", **headers}
        headers = {name: value.replace("PORT", str(node.port)) for name, value in given.items()}
        paths = [*sorted({call.path for call in CALLS}), CHAT, "/v1/models", "/", "/app.js", "/api/nothing"]
        for path in paths:
            for token in ({}, {"x_meshnode_token": TOKEN}):
                for method, body in (("POST", b"{"), ("GET", None)):
                    reply = await connection.ask(path, body, method=method, **headers, **token)
                    what = (method, path, token)
                    assert (reply.status, reply.error["code"]) == (403, "forbidden"), what
                    assert b"token" not in reply.body, what
                    assert not [name for name in reply.headers if name.startswith("access-control")], what
        assert node.asked == []


async def test_a_link_may_lead_to_the_page_and_to_nothing_else() -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    async with console() as node, await Connection.open(node.port) as connection:
        assert (await connection.ask("/", **link)).body == b"the page"
        assert (await connection.ask("/?a=1", **link)).status == 200
        for path in (*sorted({call.path for call in CALLS}), "/app.js", "//", CHAT):
            assert (await connection.ask(path, **link)).status == 403, path
        assert (await connection.ask("/", b"", **link)).status == 403
        assert (await connection.ask("/", **(link | {"sec_fetch_dest": "iframe"}))).status == 403
        assert (await connection.ask("/", **(link | {"sec_fetch_mode": "no-cors"}))).status == 403


async def test_calls_that_change_or_show_more_need_the_token_before_their_body_is_read() -> None:
    async with console() as node, await Connection.open(node.port) as connection:
        for call in CALLS:
            if not call.token:
                continue
            body = None if call.method == "GET" else b"{"
            for headers in ({}, {"x_meshnode_token": "wrong"}, {"x_meshnode_token": "é"}, {"x_meshnode_token": ""}):
                reply = await connection.ask(call.path, body, **PAGE, **headers)
                assert (reply.status, reply.error["code"]) == (403, "forbidden"), call.path
                assert TOKEN not in reply.error["message"]
            both = {"x_meshnode_token": TOKEN, "x_meshnode_terminal": TERMINAL}
            assert (await connection.ask(call.path, body, **both)).status != 403, call.path
        assert {call.path for call in CALLS if call.method == "POST" and not call.token} == set()


async def test_what_is_open_says_so_and_no_page_may_read_it_elsewhere() -> None:
    async with console() as node, await Connection.open(node.port) as connection:
        own = f"http://localhost:{node.port}"
        for call in CALLS:
            if call.token or call.path in ("/api/events", "/health", "/api/search"):
                continue
            reply = await connection.ask(call.path, host=f"localhost:{node.port}", origin=own)
            assert reply.status == 200, call.path
            assert reply.headers["cross-origin-resource-policy"] == "same-origin"
            assert reply.headers["cache-control"] == "no-store"
            assert not [name for name in reply.headers if name.startswith("access-control")]
        reply = await connection.ask("/api/status", method="OPTIONS", host=f"localhost:{node.port}", origin=own)
        assert reply.status == 405


async def test_wrong_methods_and_paths() -> None:
    async with console() as node, await Connection.open(node.port) as connection:
        for call in CALLS:
            other = "POST" if call.method == "GET" else "GET"
            reply = await connection.ask(call.path, method=other, x_meshnode_token=TOKEN)
            assert (reply.status, reply.error["code"]) == (
                405,
                "method-not-allowed" if "/api" in call.path else "method_not_allowed",
            )
        reply = await connection.ask("/api/nothing", x_meshnode_token=TOKEN)
        assert (reply.status, reply.error["code"]) == (404, "endpoint-not-found")
        assert "/api/openapi.json" in reply.error["fix"]
        for path in ("/", "/app.js", "/apix", "/v1", "/metrics/x"):
            assert (await connection.ask(path)).body == b"the page"


# --- what the calls do ----------------------------------------------------------------------------------------


async def test_status_is_that_of_the_moment() -> None:
    async with console() as node:
        for name in ("é", "\ud800", "b"):
            node.status["name"] = name
            reply = await ask(node.port, "/api/status")
            assert (reply.status, reply.json) == (200, node.status)
            assert reply.headers["content-type"] == "application/json"


async def test_commands_reach_the_node() -> None:
    async with console() as node:
        for path, name, status in (
            ("/api/load", "load", 202),
            ("/api/unload", "unload", 200),
            ("/api/plan", "plan", 200),
            ("/api/pull", "pull", 202),
            ("/api/pull/stop", "stop_pull", 200),
            ("/api/remove", "remove", 200),
        ):
            reply = await node.ask(path, {"model": "demo"})
            assert (reply.status, reply.json) == (status, {"call": name, "given": ["demo"]})
            for body in ({}, {"model": ""}, {"model": 3}, b"[]", b"\xff", b""):
                assert (await node.ask(path, body)).status == 400
            reply = await node.ask(path, {"model": "nothing"})
            assert (reply.status, reply.error) == (404, ModelNotFound("'nothing'").as_dict())
            assert (await node.ask(path, b" " * 70_000)).status == 413
        assert (await node.ask("/api/stop", {"now": True})).status == 202
        assert (await node.ask("/api/stop", b"")).json == {"stopping": True}
        assert (await node.ask("/api/join", {"token": "mn1abc"})).json["call"] == "join"
        assert node.asked[-3:] == [("stop", True), ("stop", False), ("join", "mn1abc")]


async def test_queries_are_checked_and_arrive() -> None:
    async with console() as node:
        assert (await node.ask("/api/search?q=%20gemma%20%C3%A9")).json["given"] == ["gemma é"]
        assert (await node.ask("/api/logs")).json["given"] == ["node", 200]
        assert (await node.ask("/api/logs?source=engine&lines=1000")).json["given"] == ["engine", 1000]
        assert len((await node.ask("/api/requests")).json["requests"]) == 50
        assert len((await node.ask("/api/requests?limit=500")).json["requests"]) == 500
        for path in (
            "/api/search",
            "/api/search?q=",
            "/api/search?q=%20",
            "/api/search?q=" + "x" * 201,
            "/api/logs?source=../../etc/passwd",
            "/api/logs?lines=1001",
            "/api/requests?limit=0",
            "/api/requests?limit=-1",
            "/api/requests?limit=1e2",
            "/api/requests?limit=%D9%A1",
            "/api/requests?limit=" + "9" * 5000,
        ):
            reply = await node.ask(path)
            assert (reply.status, reply.error["code"]) == (400, "bad-request"), path


async def test_a_caller_that_leaves_in_its_body_is_no_fault(logged: pytest.LogCaptureFixture) -> None:
    async with console() as node:
        async with await Connection.open(node.port) as connection:
            headers = {"Content-Length": "100", "x-meshnode-token": TOKEN, "Expect": "100-continue"}
            await connection.send(request("/api/load", b"", headers=headers))
            assert (await connection.head()).status == 100  # the node is reading the body now
        assert (await ask(node.port, "/health")).status == 503
        assert node.asked == []
    assert not logged.records


async def test_a_fault_is_logged_once_and_hides_its_particulars(logged: pytest.LogCaptureFixture) -> None:
    def broken(_: int) -> list[dict[str, Any]]:
        raise ZeroDivisionError("particulars")

    async with console(controls=replace(Console().controls, requests=broken)) as node:
        reply = await node.ask("/api/requests")
        assert (reply.status, reply.error["code"]) == (500, "error")
        assert b"particulars" not in reply.body
        assert (await ask(node.port, "/")).status == 200
    assert len(logged.records) == 1


# --- events, metrics, the gateway -----------------------------------------------------------------------------


async def test_events_begin_with_a_snapshot_and_tell_changes() -> None:
    async with console() as node, await Connection.open(node.port) as connection:
        await connection.send(request("/api/events"))
        head = await connection.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        first = await connection.event()
        assert first.splitlines()[:2] == [b"id: ab-1", b"event: snapshot"]
        assert json.loads(first.partition(b"data: ")[2]) == node.status
        node.status["models"] = ["demo"]
        node.events.touch()
        change = await connection.event()
        assert change.splitlines()[:2] == [b"id: ab-2", b"event: change"]
        assert json.loads(change.partition(b"data: ")[2]) == {"models": ["demo"]}
    async with console(events=node.events) as node, await Connection.open(node.port) as connection:
        await connection.send(request("/api/events", headers={"Last-Event-ID": "ab-1"}))
        await connection.head()
        assert await connection.event() == change


async def test_watchers_are_limited_and_forgotten_when_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "MAX_WATCHERS", 2)
    async with console() as node:
        opened = [await Connection.open(node.port) for _ in range(2)]
        for connection in opened:
            await connection.send(request("/api/events"))
            await connection.head()
            await connection.event()
        reply = await ask(node.port, "/api/events")
        assert (reply.status, reply.headers["retry-after"]) == (429, "30")
        for connection in opened:
            await connection.leave()
        async with asyncio.timeout(2):
            while node.events.watchers:
                await asyncio.sleep(0.005)
        async with await Connection.open(node.port) as connection:
            await connection.send(request("/api/events"))
            assert (await connection.head()).status == 200


async def test_metrics_parse_and_health_answers(llama: FakeLlamaServer) -> None:
    async with console() as node:
        node.metrics.finished(Record("req_1", CHAT, 0.0, model="demo", status=200, tokens_out=3))
        reply = await ask(node.port, "/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name for family in text_string_to_metric_families(reply.body.decode())}
        assert {"meshnode_requests", "meshnode_up", "meshnode_tokens"} <= families
        assert (await ask(node.port, "/health")).status == 503
        node.models.append(served(llama))
        assert (await ask(node.port, "/health")).status == 200


async def test_the_page_chats_through_the_same_gateway_with_the_token(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = streaming([PIECE, LAST, DONE])
    own = {"host": "localhost:3131", "origin": "http://localhost:3131"}
    async with console(gateway.app) as node:
        for path, body in ((CHAT, STREAM), ("/v1/models", None), ("/v1/messages", HELLO)):
            reply = await ask(node.port, path, body, authorization="Bearer key", **own)
            assert reply.status == 403
            assert ("type" in reply.json) == (path == "/v1/messages")  # in the dialect of the endpoint
        assert llama.requests == []
        reply = await node.ask(CHAT, STREAM, **own)
        assert (reply.status, reply.body) == (200, PIECE + LAST + DONE)
        assert not [name for name in reply.headers if name.startswith("access-control")]
        assert (await gateway.record(0)).id == reply.headers["x-meshnode-request-id"]
        assert (await node.ask("/v1/models")).json["data"][0]["id"] == "demo"
        assert (await node.ask("/v1/nothing")).status == 404
        gateway.stopping = True
        reply = await node.ask(CHAT, STREAM, **own)
        assert (reply.status, reply.error["code"]) == (503, "node_stopping")


async def test_the_page_with_the_token_may_send_a_request_further_than_the_node_says(
    gateway: Gateway, llama: FakeLlamaServer
) -> None:
    llama.script = streaming([PIECE, LAST, DONE])
    own = {"host": "localhost:3131", "origin": "http://localhost:3131", "x_meshnode_radius": "public"}
    async with console(gateway.app) as node:
        assert (await node.ask(CHAT, STREAM, **own)).status == 200
        assert (await ask(node.port, CHAT, STREAM, **own)).status == 403
    page = {"host": f"localhost:{gateway.port}", "origin": f"http://localhost:{gateway.port}"}
    assert (await ask(gateway.port, CHAT, STREAM, x_meshnode_radius="public", **page)).status == 403


async def test_the_api_port_has_nothing_of_the_console(gateway: Gateway) -> None:
    for path in ("/api/status", "/api/stop", "/metrics", "/"):
        assert (await ask(gateway.port, path, x_meshnode_token=TOKEN)).status == 404
