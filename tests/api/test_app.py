import json

import pytest

from meshnode.api.access import Access
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, streaming
from tests.api.raw_http import Connection, ask
from tests.api.running import CHAT, Gateway, served

pytestmark = pytest.mark.anyio
DONE = streaming([b"data: [DONE]\n\n"])
HELLO = {"model": "demo", "stream": True}


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
            for path, body, status in (
                (CHAT, HELLO, 200),
                (CHAT, b"{", 400),
                ("/v1/models", None, 200),
                ("/v1/models/demo", None, 200),
                ("/v1/models/none", None, 404),
                ("/v1/nothing", None, 404),
            ):
                reply = await ask(gateway.port, path, body, origin=origin)
                assert reply.status == status
                assert (reply.headers["access-control-allow-origin"], reply.headers["vary"]) == (origin, "origin")
                assert "x-meshnode-node" in reply.headers["access-control-expose-headers"]
            reply = await ask(gateway.port, CHAT, method="OPTIONS", origin=origin)
            assert (reply.status, reply.headers["access-control-allow-origin"]) == (204, origin)
            allowed = reply.headers["access-control-allow-headers"].split(", ")
            assert "authorization" in allowed and "*" in allowed
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
