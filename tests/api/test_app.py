import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshnode.api import app as app_module
from meshnode.api.access import Access
from meshnode.api.app import CONTROL_TOKEN_HEADER, Controls, control_app
from meshnode.api.events import Events
from meshnode.api.inference import Record
from meshnode.api.mesh_control import no_mesh
from meshnode.api.metrics import Metrics
from meshnode.api.served import Served
from meshnode.errors import ModelNotFound, NotInMesh
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, plain, streaming
from tests.api.raw_http import Connection, ask, request
from tests.api.running import CHAT, Gateway, served, serving

pytestmark = pytest.mark.anyio
DONE = streaming([b"data: [DONE]\n\n"])
HELLO = {"model": "demo", "stream": True}


@asynccontextmanager
async def control(**more: Any) -> AsyncIterator["Control"]:
    started = Control()
    for name, value in more.items():
        setattr(started, name, value)
    controls = Controls(
        started.get_status,
        started.load,
        started.unload,
        started.plan,
        started.stop,
        token="secret",
        mesh=no_mesh(NotInMesh),
    )
    app = control_app(
        controls=controls,
        events=started.events,
        metrics=started.metrics,
        models=lambda: started.models,
        access=Access(),
    )
    async with serving(app) as started.port:
        yield started


class Control:
    """A control port and what was asked of the node behind it."""

    def __init__(self) -> None:
        self.port = 0
        self.models: list[Served] = []
        self.status: dict[str, Any] = {"schema": 1, "models": [], "name": "é"}
        self.asked: list[object] = []
        self.events = Events(self.get_status)
        self.metrics = Metrics(lambda: [("meshnode_up", "Whether", {"node": "a"}, 1.0)])

    def get_status(self) -> dict[str, Any]:
        return dict(self.status)

    async def load(self, name: str) -> dict[str, Any]:
        if name == "nothing":
            raise ModelNotFound("'nothing'")
        self.asked.append(("load", name))
        return {"model": name}

    async def unload(self, name: str) -> dict[str, Any]:
        self.asked.append(("unload", name))
        return {"model": name}

    async def plan(self, name: str) -> dict[str, Any]:
        self.asked.append(("plan", name))
        return {"model": name}

    def stop(self, now: bool) -> None:
        self.asked.append(("stop", now))


# --- the model API --------------------------------------------------------------------------------------------


async def test_models_are_listed_and_found_by_id_name_and_alias(llama: FakeLlamaServer) -> None:
    models = (
        served(llama, "owner/repo:Q4_K_M", names=("short",), capabilities=("completion",), size_bytes=7, created=5),
        served(llama, "slow", state="loading"),
    )
    async with running.gateway(*models, aliases={"gpt-4": "owner/repo:Q4_K_M"}) as gateway:
        listed = (await ask(gateway.port, "/v1/models")).json
        assert listed["object"] == "list"
        assert [(entry["id"], entry["status"]["value"]) for entry in listed["data"]] == [
            ("owner/repo:Q4_K_M", "loaded"),
            ("slow", "loading"),
        ]
        entry = listed["data"][0]
        assert (entry["object"], entry["created"], entry["owned_by"]) == ("model", 5, "meshnode")
        assert (entry["context_length"], entry["max_model_len"], entry["meta"]["n_ctx"]) == (4096, 4096, 4096)
        for name in ("owner/repo:Q4_K_M", "owner%2Frepo:Q4_K_M", "short", "SHORT", "gpt-4"):
            assert (await ask(gateway.port, f"/v1/models/{name}")).json == entry
        assert (await ask(gateway.port, "/v1/models/slow")).json["id"] == "slow"
        reply = await ask(gateway.port, "/v1/models/shart")
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert "did you mean short?" in reply.error["message"]


async def test_health_is_503_until_one_model_answers(llama: FakeLlamaServer) -> None:
    async with running.gateway() as gateway:
        for models, status, message in (
            ([], 503, "No model is being served"),
            ([served(llama, state="loading")], 503, "Loading model"),
            ([served(llama, state="failed", detail="no memory")], 503, "demo: no memory"),
            ([served(llama, state="failed"), served(llama, "b", state="restarting")], 503, "Loading model"),
            ([served(llama, "b", state="loading"), served(llama)], 200, None),
        ):
            gateway.models[:] = models
            for path in ("/health", "/v1/health"):
                reply = await ask(gateway.port, path)
                assert reply.status == status
                assert ("retry-after" in reply.headers) == (status == 503)
                assert reply.json.get("error", {}).get("message") == message
            assert (await ask(gateway.port, "/livez")).status == 200


async def test_a_stopping_node_says_so_and_lets_health_answer(gateway: Gateway) -> None:
    gateway.stopping = True
    reply = await ask(gateway.port, CHAT, HELLO)
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "node_stopping", "5")
    assert (await ask(gateway.port, "/health")).status == 200


async def test_hosts_are_checked_before_anything_else(gateway: Gateway, llama: FakeLlamaServer) -> None:
    body = json.dumps(HELLO)
    for hosts, status in (
        ([], 400),
        (["localhost", "localhost"], 400),
        (["localhost", "evil.example"], 400),
        (["a b"], 400),
        (["localhost/path"], 400),
        (["user@localhost"], 400),
        (["localhost:99999999"], 400),
        (["evil.example"], 403),
        (["evil.example:9337"], 403),
        (["192.168.0.4"], 403),
        (["localhost.evil.example"], 403),
        (["0.0.0.0"], 403),
    ):
        lines = "".join(f"Host: {host}\r\n" for host in hosts)
        for first in (f"POST {CHAT}", "GET /v1/models", "GET /health", "GET /nothing"):
            async with await Connection.open(gateway.port) as connection:
                length = f"Content-Length: {len(body)}\r\n\r\n{body}" if first.startswith("POST") else "\r\n"
                await connection.send(f"{first} HTTP/1.1\r\n{lines}{length}".encode())
                assert (await connection.reply()).status == status, (hosts, first)
    assert llama.requests == []
    for host in ("localhost:1", "LOCALHOST", "a.localhost", "127.0.0.1:9337", "127.9.9.9", "[::1]:80", "localhost."):
        assert (await ask(gateway.port, "/health", host=host)).status == 200, host


async def test_web_pages_of_strangers_get_nothing(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = DONE
    strange: list[dict[str, str]] = [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "file://"},
        {"sec_fetch_site": "cross-site"},
    ]
    for headers in strange:
        for path in (CHAT, "/v1/messages"):
            reply = await ask(gateway.port, path, HELLO, content_type="text/plain", **headers)
            assert reply.status == 403
            assert reply.error["type"] == "permission_error"
            assert "access-control-allow-origin" not in reply.headers
        assert (await ask(gateway.port, CHAT, method="OPTIONS", **headers)).status in (403, 405)
    assert llama.requests == []
    for headers in ({"sec_fetch_site": "same-origin"}, {"sec_fetch_site": "none"}):
        assert (await ask(gateway.port, CHAT, HELLO, **headers)).status == 200


async def test_pages_of_this_machine_and_trusted_ones_may_read_the_answers(llama: FakeLlamaServer) -> None:
    llama.script = DONE
    async with running.gateway(served(llama), access=Access(origins=["https://App.example/"])) as gateway:
        for origin in ("http://localhost:5173", "http://127.0.0.1", "http://[::1]:80", "https://app.example"):
            for path, body in ((CHAT, HELLO), (CHAT, b"{"), ("/v1/models", None), ("/v1/models/demo", None)):
                reply = await ask(gateway.port, path, body, origin=origin)
                if path != CHAT or body == HELLO:
                    assert reply.status == 200
                assert (reply.headers["access-control-allow-origin"], reply.headers["vary"]) == (origin, "origin")
            reply = await ask(gateway.port, CHAT, method="OPTIONS", origin=origin)
            assert (reply.status, reply.headers["access-control-allow-origin"]) == (204, origin)
            assert "authorization" in reply.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in reply.headers


async def test_a_key_is_asked_for_in_both_dialects(llama: FakeLlamaServer) -> None:
    llama.script = DONE
    async with running.gateway(served(llama), access=Access(api_key="right")) as gateway:
        wrong: list[dict[str, str]] = [
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "right"},
            {"authorization": "Basic right"},
            {"authorization": "Bearer"},
            {"x_api_key": "righ"},
            {"x_api_key": ""},
        ]
        for headers in wrong:
            reply = await ask(gateway.port, CHAT, HELLO, **headers)
            assert (reply.status, reply.error["type"]) == (401, "authentication_error")
            assert reply.headers["www-authenticate"] == "Bearer"
            reply = await ask(gateway.port, "/v1/messages", HELLO, **headers)
            assert (reply.status, reply.json["type"], reply.error["type"]) == (401, "error", "authentication_error")
            assert (await ask(gateway.port, "/v1/models", **headers)).status == 401
        assert llama.requests == []
        for headers in ({"authorization": "Bearer right"}, {"authorization": "bearer  right"}, {"x_api_key": "right"}):
            assert (await ask(gateway.port, CHAT, HELLO, **headers)).status == 200
        for path in ("/health", "/livez"):
            assert (await ask(gateway.port, path)).status == 200
        # A page that has the key may use the node from anywhere; its preflight carries no key.
        reply = await ask(gateway.port, CHAT, HELLO, origin="https://page.example", x_api_key="right")
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "https://page.example")


async def test_wrong_paths_and_methods_are_named_in_the_dialect(gateway: Gateway) -> None:
    reply = await ask(gateway.port, "/v1/nothing", HELLO)
    assert (reply.status, reply.error["code"]) == (404, "endpoint_not_found")
    reply = await ask(gateway.port, "/v1/messages")
    assert (reply.status, reply.json["type"], reply.error["type"]) == (405, "error", "invalid_request_error")
    assert reply.headers["x-meshnode-request-id"].startswith("req_")
    assert (await ask(gateway.port, "//evil.example/v1/models")).status == 404
    assert (await ask(gateway.port, "/v1/models", method="DELETE")).status == 405


# --- the control API ------------------------------------------------------------------------------------------


async def test_status_is_open_and_commands_need_the_token() -> None:
    async with control() as node:
        reply = await ask(node.port, "/api/status")
        assert (reply.status, reply.json) == (200, node.status)
        for path in ("/api/load", "/api/unload", "/api/stop"):
            for headers in ({}, {"x_meshnode_token": "wrong"}, {"x_meshnode_token": "é"}):
                reply = await ask(node.port, path, {"model": "demo"}, **headers)
                assert (reply.status, reply.error["code"]) == (403, "forbidden")
            assert (await ask(node.port, path)).status == 405
        assert node.asked == []


async def test_commands_reach_the_node() -> None:
    async with control() as node, await Connection.open(node.port) as connection:

        async def command(path: str, body: object) -> tuple[int, Any]:
            reply = await connection.ask(path, body, **{CONTROL_TOKEN_HEADER: "secret"})
            return reply.status, reply.json

        assert await command("/api/load", {"model": "demo"}) == (202, {"model": "demo"})
        assert await command("/api/unload", {"model": "demo"}) == (200, {"model": "demo"})
        assert await command("/api/stop", {"now": True}) == (202, {"stopping": True})
        assert await command("/api/stop", b"") == (202, {"stopping": True})
        assert node.asked == [("load", "demo"), ("unload", "demo"), ("stop", True), ("stop", False)]
        for body in ({}, {"model": ""}, {"model": 3}, b"[]", b"\xff"):
            assert (await command("/api/load", body))[0] == 400
        status, value = await command("/api/load", {"model": "nothing"})
        assert (status, value["error"]) == (404, ModelNotFound("'nothing'").as_dict())
        assert (await command("/api/load", b" " * 70_000))[0] == 413


async def test_the_control_port_never_lets_a_page_read() -> None:
    async with control() as node:
        reply = await ask(node.port, "/api/status", origin="http://localhost:3000")
        assert "access-control-allow-origin" not in reply.headers
        assert (await ask(node.port, "/api/status", origin="https://evil.example")).status == 403
        assert (await ask(node.port, "/api/status", host="evil.example")).status == 403


async def test_a_caller_that_leaves_in_its_body_is_no_fault(logged: pytest.LogCaptureFixture) -> None:
    async with control() as node:
        async with await Connection.open(node.port) as connection:
            headers = {"Content-Length": "100", CONTROL_TOKEN_HEADER: "secret", "Expect": "100-continue"}
            await connection.send(request("/api/load", b"", headers=headers))
            assert (await connection.head()).status == 100  # the node is reading the body now
        assert (await ask(node.port, "/health")).status == 503
        assert node.asked == []
    assert not logged.records


async def test_a_fault_is_logged_once_and_hides_its_particulars(logged: pytest.LogCaptureFixture) -> None:

    def broken() -> dict[str, Any]:
        raise ZeroDivisionError("particulars")

    async with control(get_status=broken) as node:
        reply = await ask(node.port, "/api/status")
        assert (reply.status, reply.error["code"]) == (500, "error")
        assert b"particulars" not in reply.body
        assert (await ask(node.port, "/")).status == 200
    assert len(logged.records) == 1


async def test_events_begin_with_a_snapshot_and_tell_changes() -> None:
    async with control() as node, await Connection.open(node.port) as connection:
        await connection.send(request("/api/events"))
        head = await connection.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        first = await connection.event()
        assert first.splitlines()[1] == b"event: snapshot"
        assert json.loads(first.partition(b"data: ")[2]) == node.status
        node.status["models"] = ["demo"]
        node.events.touch()
        change = await connection.event()
        assert change.splitlines()[:2] == [b"id: 1", b"event: change"]
        assert json.loads(change.partition(b"data: ")[2]) == {"models": ["demo"]}


async def test_watchers_are_limited_and_forgotten_when_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_WATCHERS", 2)
    async with control() as node:
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


async def test_metrics_parse_and_health_answers_on_the_console_port(llama: FakeLlamaServer) -> None:
    async with control() as node:
        node.metrics.finished(Record("req_1", CHAT, 0.0, model="demo", status=200, tokens_out=3))
        reply = await ask(node.port, "/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name for family in text_string_to_metric_families(reply.body.decode())}
        assert {"meshnode_requests", "meshnode_up", "meshnode_tokens"} <= families
        assert (await ask(node.port, "/health")).status == 503
        node.models.append(served(llama))
        assert (await ask(node.port, "/health")).status == 200


async def test_the_two_ports_do_not_share_routes(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = plain(200, b"{}")
    for path in ("/api/status", "/api/stop", "/metrics"):
        assert (await ask(gateway.port, path)).status == 404
    async with control() as node:
        assert (await ask(node.port, CHAT, HELLO)).status == 404
