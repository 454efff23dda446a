"""The document says what the calls do: all of them, with their token, their bounds and their answers."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from meshnode.api.openapi import document
from tests.api.console import Console, console
from tests.api.schemas import faults, resolved
from tests.conftest import NodeProcess, StartNode
from tests.e2e.waiting import eventually
from tests.lab.nostr_relay import relay

DOCUMENT = json.loads(document())
CALLS = {(call.method, call.path): call for call in Console().calls()}
PUBLIC = {f"/api/{name}" for name in ("swarm/pause", "swarm/join", "swarm/leave", "discover", "providers")}
"""Calls that need strangers; /api/radius and /api/audit do without."""
MONEY = {f"/api/wallet/{name}" for name in ("deposit", "withdraw", "close", "claim", "panic")}
"""Calls that need a wallet; /api/spending and /api/receipts do without."""
OPERATIONS = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def references(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def schema_of(method: str, path: str, status: int) -> dict[str, Any]:
    """The schema of the answer with that status. Raises KeyError for one that is not documented."""
    answer = resolved(OPERATIONS[method, path]["responses"][str(status)], DOCUMENT)
    return dict(answer["content"]["application/json"]["schema"])


# --- the document and the calls -------------------------------------------------------------------------------


def test_every_call_is_in_the_document_and_nothing_else() -> None:
    assert set(OPERATIONS) == set(CALLS)


def test_the_token_is_asked_for_where_the_document_says_so() -> None:
    named = DOCUMENT["components"]["securitySchemes"]["token"]
    assert (named["in"], named["name"]) == ("header", "x-meshnode-token")
    money = DOCUMENT["components"]["securitySchemes"]["terminal"]
    assert (money["in"], money["name"]) == ("header", "x-meshnode-terminal")
    told = {key: operation["security"] for key, operation in OPERATIONS.items()}
    assert told == {
        key: [{"token": [], "terminal": []}] if call.terminal else [{"token": []}] if call.token else []
        for key, call in CALLS.items()
    }


def test_the_document_holds_together() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    used = {reference["$ref"] for reference in references(DOCUMENT)}
    for reference in used:
        assert resolved({"$ref": reference}, DOCUMENT)
    parts = DOCUMENT["components"]
    there = {f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in parts[kind]}
    assert there == used, "a part that nothing uses"
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    for (method, path), operation in OPERATIONS.items():
        assert operation["summary"] and not operation["summary"].endswith("."), path
        assert ("requestBody" in operation) == (method == "POST"), path
        statuses = set(operation["responses"])
        assert path in ("/metrics", "/health") or {"400", "403", "405", "500"} <= statuses, path
        assert any(status.startswith("2") for status in statuses), path


@pytest.mark.anyio
async def test_it_is_served_as_it_is() -> None:
    async with console() as node:
        reply = await node.ask("/api/openapi.json", x_meshnode_token="")
        assert reply.headers["content-type"] == "application/json" and reply.body == document()


@pytest.mark.anyio
async def test_bounds_of_queries_and_bodies_are_those_of_the_document() -> None:
    async with console() as node:
        for (method, path), operation in OPERATIONS.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "header":
                    continue
                for value, good in values_for(parameter["schema"]):
                    status = (await node.ask(f"{path}?{parameter['name']}={value}")).status
                    assert (status == 200) == good, (path, parameter["name"], value)
            if method == "GET":
                continue
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            needed = {name: a_value(schema["properties"][name]) for name in schema.get("required", ())}
            success = next(int(status) for status in operation["responses"] if status.startswith("2"))
            assert (await node.ask(path, needed)).status == success, path
            for name in needed:
                rest = {other: value for other, value in needed.items() if other != name}
                assert (await node.ask(path, rest)).status == 400, (path, name)
            for name, member in schema["properties"].items():
                if member["type"] == "boolean":
                    continue
                for value, good in values_for(member):
                    status = (await node.ask(path, {**needed, name: value})).status
                    assert (status == success) == good, (path, name, value)


def a_value(schema: dict[str, Any]) -> object:
    """A good value for a member."""
    if schema["type"] == "integer":
        return schema["minimum"]
    return True if schema["type"] == "boolean" else schema.get("enum", schema.get("examples", ["demo"]))[0]


def values_for(schema: dict[str, Any]) -> Iterator[tuple[object, bool]]:
    """Values at the bounds of a schema and just beyond, and whether each is good."""
    if "enum" in schema:
        yield from ((value, True) for value in schema["enum"])
        yield "neither", False
    elif "pattern" in schema:
        yield from ((value, True) for value in schema["examples"])
        yield "0x", False
    elif schema["type"] == "integer":
        low, high = schema["minimum"], schema["maximum"]
        assert low <= schema.get("default", low) <= high
        yield from ((low, True), (high, True), (low - 1, False), (high + 1, False))
    elif "maxLength" in schema:
        yield from (("x" * schema["maxLength"], True), ("x" * (schema["maxLength"] + 1), False))


@pytest.mark.anyio
async def test_errors_are_as_the_document_says() -> None:
    async with console() as node:
        for (method, path), operation in OPERATIONS.items():
            if not path.startswith("/api/"):
                continue
            body = None if method == "GET" else {"model": "nothing"}
            replies = [
                await node.ask(path, body, origin="https://evil.example"),
                await node.ask(path, method="GET" if method == "POST" else "POST"),
            ]
            if method == "POST":
                replies += [await node.ask(path, b"{"), await node.ask(path, b" " * 70_000)]
            if "404" in operation["responses"] and body:
                replies.append(await node.ask(path, body | {"node": "x"}))
            for reply in replies[: None if method == "POST" else 2]:
                if reply.status < 400:
                    continue
                assert list(faults(reply.json, schema_of(method, path, reply.status), DOCUMENT)) == [], path


def test_the_checker_finds_what_is_wrong() -> None:
    """A checker that finds nothing would make the test below worthless."""
    good = {"model": "demo", "freed_bytes": 1}
    removed = {"$ref": "#/components/schemas/Removed"}
    assert list(faults(good, removed, DOCUMENT)) == []
    for wrong, word in (
        ({"model": "demo"}, "missing"),
        ({**good, "freed_bytes": "1"}, "no integer"),
        ({**good, "freed_bytes": True}, "no integer"),
        ({**good, "more": 1}, "not documented"),
        ([], "no object"),
    ):
        [fault] = faults(wrong, removed, DOCUMENT)
        assert word in fault
    fit = {"$ref": "#/components/schemas/Fit"}
    assert list(faults({"verdict": "perhaps", "sentence": ""}, fit, DOCUMENT))
    assert list(faults(None, {"anyOf": [fit, {"type": "null"}]}, DOCUMENT)) == []
    assert list(faults({"verdict": "no"}, {"anyOf": [fit, {"type": "null"}]}, DOCUMENT)) == ["$: sentence is missing"]


# --- the answers of a real node -------------------------------------------------------------------------------


class Asking:
    """Asks a node and compares every answer with the document. `asked` are the calls that were answered well."""

    def __init__(self, node: NodeProcess) -> None:
        self._url = node.console_url
        self._token = str(json.loads((node.home / "runtime.json").read_text())["token"])
        self.asked: set[tuple[str, str]] = set()

    def ask(self, path: str, body: object = None, status: int = 200) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"x-meshnode-token": self._token})
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as refused:
            answer = refused
        with answer:
            value = json.load(answer)
        assert answer.status == status, value
        key = ("GET" if body is None else "POST", path.partition("?")[0])
        if key in OPERATIONS:  # not those of /v1
            assert list(faults(value, schema_of(*key, status), DOCUMENT)) == []
            if status < 400:
                self.asked.add(key)
        return value

    def snapshot(self) -> Any:
        """The first event of /api/events."""
        with urllib.request.urlopen(f"{self._url}/api/events", timeout=10) as stream:
            self.asked.add(("GET", "/api/events"))
            lines = [stream.readline().decode().rstrip("\n") for _ in range(3)]
        assert re.fullmatch(r"id: [0-9a-f]+-[0-9]+", lines[0]) and lines[1] == "event: snapshot"
        return json.loads(lines[2].removeprefix("data: "))


@pytest.mark.engine
def test_the_answers_of_nodes_are_as_the_document_says(start_node: StartNode) -> None:
    here = Asking(start_node("--model", "demo", environment={"HF_HUB_OFFLINE": "1"}))
    chat = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
    assert here.ask("/v1/chat/completions", chat)["choices"]
    for path in ("models", "search?q=demo", "agents", "requests?limit=1", "settings", "logs?lines=5", "openapi.json"):
        here.ask(f"/api/{path}")
    here.ask("/api/logs?source=engine")
    here.ask("/health")
    here.ask("/api/plan", {"model": "demo"})
    here.ask("/api/pull", {"model": "demo"}, 202)
    here.ask("/api/pull/stop", {"model": "demo"}, 404)
    here.ask("/api/load", {"model": "demo"}, 409)
    here.ask("/api/remove", {"model": "demo"}, 409)
    here.ask("/api/unload", {"model": "other"}, 404)
    here.ask("/api/ping", {"node": "nobody"}, 404)
    here.ask("/api/join", {"token": "mn1abc"}, 400)
    here.ask("/api/pair", {})
    assert here.ask("/api/radius", {"radius": "local"}) == {"radius": "local", "before": "trusted"}
    assert here.ask("/api/audit?limit=1")["records"] == []
    assert here.ask("/api/spending")["paying"] is False and here.ask("/api/receipts")["receipts"] == []
    here.ask("/api/wallet/panic", {}, 409)
    here.ask("/api/swarm/leave", {}, 409)
    here.ask("/api/providers?model=demo", status=409)
    here.ask("/api/invite/revoke", {"id": here.ask("/api/invite", {})["id"]})

    there = Asking(start_node())
    assert there.ask("/api/status")["idle"]
    assert there.ask("/v1/chat/completions", chat, 503)["error"]["code"] == "no_model_served"
    there.ask("/api/join", {"token": here.ask("/api/invite", {"qr": True})["token"]})
    [peer] = there.ask("/api/status")["mesh"]["peers"]
    there.ask("/api/ping", {"node": peer["id"], "count": 1})
    status = here.ask("/api/status")
    assert status["models"][0]["plan"] and status["requests"]["recent"] and status["mesh"]["invites"]
    assert list(faults(here.snapshot(), {"$ref": "#/components/schemas/Status"}, DOCUMENT)) == []
    here.asked |= there.asked

    here.ask("/api/unload", {"model": "demo"})
    here.ask("/api/load", {"model": "demo"}, 202)
    here.ask("/api/leave", {})
    assert here.ask("/api/stop", {"now": True}, 202) == {"stopping": True}
    # What is left needs a model that may be thrown away; the metrics are no JSON.
    left = {"/api/remove", "/api/pull/stop", "/metrics"}
    assert {path for _, path in set(OPERATIONS) - here.asked} == left | PUBLIC | MONEY


@pytest.mark.engine
def test_the_answers_of_nodes_in_a_public_mesh_are_as_the_document_says(start_node: StartNode) -> None:
    with relay() as url:
        environment = {"MESHNODE_NOSTR_RELAY": url, "MESHNODE_DRAIN_TIMEOUT": "1"}
        here = Asking(start_node("--model", "demo", "--publish", environment=environment))
        there = Asking(start_node("--no-standby", environment=environment))
        assert there.ask("/api/status")["swarm"] is None
        eventually(lambda: here.ask("/api/status")["swarm"]["listing"])
        there.ask("/api/swarm/join", {"name": "\n%"}, 400)
        assert there.ask("/api/swarm/join", {"name": "MeshNode"}) == {"state": "looking", "name": "meshnode"}
        eventually(lambda: [each for each in there.ask("/api/status")["models"] if each["where"] == "public (1)"])
        there.ask("/api/radius", {"radius": "public"})
        chat = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
        assert there.ask("/v1/chat/completions", chat)["choices"]
        assert there.ask("/api/status")["requests"]["recent"][0]["output_sha256"]
        [asked], [served] = there.ask("/api/audit")["records"], here.ask("/api/audit")["records"]
        assert asked["output_sha256"] == served["output_sha256"]
        [mesh] = eventually(lambda: there.ask("/api/discover?model=demo&region=")["meshes"])
        assert mesh["shown"]
        assert there.ask("/api/providers?model=demo")["content_hash"]
        assert here.ask("/api/swarm/pause", {"paused": True}) == {"paused": True}
        assert here.ask("/api/status")["swarm"]["strangers"]["served"] == 1
        assert there.ask("/api/swarm/leave", {}) == {"left": "meshnode"}
        assert {path for _, path in here.asked | there.asked} >= PUBLIC
