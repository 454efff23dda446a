"""A node that does not exist: the real page over invented facts, for meshes that no test can afford to start.

It serves the console's own files with their own headers, a status and its events, and answers the calls it was told to
answer. `change` replaces members of the status, and every open page hears of it.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from meshnode.console.site import site

TOKEN = "fake-token"
GIB = 1 << 30
Facts = dict[str, Any]


def node_id(number: int) -> str:
    """The id of a node by its number: 64 hex digits, always the same."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def a_peer(number: int, **values: Any) -> Facts:
    """A member as /api/status shows it; every third serves a model, every fifth is a client, some are unreachable."""
    client, host = number % 5 == 4, number % 3 == 0
    offer = {
        "id": f"model-{number % 4}",
        "state": "ready",
        "context_length": 8192,
        "slots": 4,
        "busy": number % 4,
        "waiting": 0,
        "tokens_per_s": 30.0,
        "content_hash": "",
    }
    devices = [
        {"name": "RTX 4090", "total_bytes": 24 * GIB, "free_bytes": 9 * GIB, "bandwidth": 800_000, "layer_us": 20},
        {"name": "host", "total_bytes": 64 * GIB, "free_bytes": 40 * GIB, "bandwidth": 40_000, "layer_us": 50},
    ]
    linked = number % 7 != 3
    return {
        "id": node_id(number),
        "short": node_id(number)[:10],
        "name": f"machine-{number}",
        "state": "alive",
        "reachable": number % 11 != 10,
        "role": "client" if client else "member",
        "address": f"192.0.2.{number % 250}:9337" if linked else None,
        "path": "direct" if linked else None,
        "radius": "trusted",
        "linked": linked,
        "rtt_ms": 0.4 + 3.7 * number if linked else None,
        "estimated_rtt_ms": 40.0 + number,
        "software": "meshnode 0.1.0",
        "models": [offer] if host and not client else [],
        "memory": {"total_bytes": 88 * GIB, "free_bytes": 49 * GIB},
        "devices": [] if client else devices,
    } | values


def a_stage(number: int, first: int, layers: int) -> Facts:
    """Layers of a split on a peer."""
    return {
        "node": node_id(number),
        "device": "CUDA0",
        "device_index": 0,
        "first_layer": first,
        "layers": layers,
        "weights_bytes": layers * GIB // 2,
        "kv_bytes": layers * GIB // 16,
        "compute_bytes": GIB // 4,
        "limit_bytes": 20 * GIB,
        "compute_s": 0.001,
        "delay_s": 0.002,
    }


def a_split(name: str, *workers: int, layers: int = 12) -> Facts:
    """A model of this node whose layers lie on it and on these peers, in that order."""
    stages = [a_stage(number, layers * (at + 1), layers) for at, number in enumerate(workers)]
    return a_model(name) | {
        "plan": {
            "host": node_id(0),
            "host_layers": layers,
            "host_bytes": 3 * GIB,
            "local_devices": [],
            "stages": stages,
            "context": 8192,
            "parallel": 1,
            "kv_type": "f16",
            "gpu_layers": 24,
            "tensor_split": [layers] * len(workers),
            "output_on_host": True,
            "predicted_tokens_per_s": 12.0,
            "reason": "",
        }
    }


def a_model(name: str, **values: Any) -> Facts:
    """A model that this node serves."""
    share = {"device": "host", "layers": 12, "weights_bytes": 2 * GIB, "kv_bytes": GIB, "compute_bytes": GIB // 8}
    return {
        "id": name,
        "canonical": name,
        "state": "ready",
        "detail": "",
        "error": None,
        "since": 1_790_000_000.0,
        "where": "here",
        "size_bytes": 2 * GIB,
        "quantisation": "Q4_K_M",
        "context_length": 8192,
        "parallel": 4,
        "busy": 0,
        "waiting": 0,
        "capabilities": ["completion", "chat"],
        "draft": "",
        "predicted_tokens_per_s": 20.0,
        "plan": {"context": 8192, "parallel": 4, "kv_type": "f16", "shares": [share | {"limit_bytes": 9 * GIB}]},
        "split": None,
        "reason": "",
        "engine": {"pid": 1, "state": "ready", "restarts": 0, "load_s": 1.0},
    } | values


def a_request(node: int, **values: Any) -> Facts:
    """An answer under way on a peer (0: here)."""
    identity = node_id(node) if node else ""
    return {
        "id": f"req-{node}",
        "model": "model-0",
        "node": identity,
        "where": identity[:10] or "here",
        "radius": "trusted",
        "stream": True,
        "since": 1_790_000_000.0,
        "pieces": 3,
    } | values


def a_stranger(number: int, **values: Any) -> Facts:
    """A member of the public mesh; every fourth is reached through a relay."""
    relayed = {"path": "relayed"} if number % 4 == 0 else {}
    return a_peer(number, radius="public", verdict="unknown", **relayed) | values


def a_swarm(*peers: Facts, **values: Any) -> Facts:
    """The public mesh of a node that publishes, with these strangers in it; `values` replace members."""
    relays = [("wss://one.example", "ok", ""), ("wss://two.example", "refused", "blocked: pay first")]
    return {
        "state": "joined",
        "sentence": 'in "orchard" as member',
        "publishing": True,
        "publisher": True,
        "paused": False,
        "listing": {
            "relays": [
                {"url": url, "state": state, "text": text, "count": 1, "elapsed_s": 0.12} for url, state, text in relays
            ],
            "at": 1_790_000_000.0,
        },
        "mesh": {"id": "cd" * 32, "name": "orchard"},
        "role": "member",
        "peers": list(peers),
        "addresses": ["192.0.2.1:9338"],
        "nat": {
            "kind": "symmetric",
            "observed": ["198.51.100.7:40112"],
            "mapped": ["198.51.100.7:9338"],
            "relays": [peers[0]["id"]] if peers else [],
        },
        "strangers": {
            "serving": 1,
            "waiting": 2,
            "served": 1234,
            "refused": 7,
            "tokens_out": 98765,
            "slots": 2,
            "paused": False,
            "inside": 1,
            "tokens_in": 4321,
            "known": 3,
            "reasons": {"tokens": 5, "bad-request": 2},
        },
        "dht": {
            "running": True,
            "peers": 2,
            "records": 3,
            "keys": 3,
            "providing": 1,
            "published": 1,
            "searches": 0,
            "counters": {},
        },
        "counters": {},
    } | values


def a_listed_mesh(number: int, **values: Any) -> Facts:
    """A mesh as GET /api/discover has it: every third has shown nothing and is refused."""
    silent = number % 3 == 2
    shown = {"rtt_s": 0.01 * number, "models": ["model-0"], "nodes": number, "free_slots": 4, "vram_bytes": 24 * GIB}
    models = [
        {"name": f"model-{at}", "hash": f"{at:032x}", "hosts": at + 1, "price_in": 0, "price_out": 0} for at in range(2)
    ]
    return {
        "mesh": node_id(1000 + number),
        "name": f"mesh-{number}",
        "region": "eu",
        "score": 400.0 - number,
        "reasons": [] if silent else [f"{10 * number} ms away", "4 requests could begin now"],
        "refusal": "nobody answered" if silent else "",
        "listed": {
            "models": models,
            "wanted": ["model-9"],
            "nodes": 3 * number,
            "clients": 1,
            "max_clients": 64,
            "vram_bytes": 48 * GIB,
            "publishers": 2,
        },
        "shown": None if silent else shown | {"room": True},
    } | values


def discovered(*meshes: Facts, **values: Any) -> Facts:
    """What GET /api/discover answers."""
    return {
        "meshes": list(meshes),
        "relays": a_swarm()["listing"]["relays"],
        "dropped": {},
        "drops": [],
        "elapsed_s": 0.8,
        "error": None,
    } | values


def audited(*records: Facts) -> Facts:
    """What GET /api/audit answers; the last record was written first."""
    numbered = [
        {"n": len(records) - at, "prev": "0" * 64, "at": 1_790_000_000.0 - at, **record}
        for at, record in enumerate(records, 1)
    ]
    log = {"records": len(records), "head": "ef" * 32, "writable": True, "waiting": 0, "dropped": 0}
    return {"records": numbered, "log": log}


def an_audit_record(kind: str, node: int, **values: Any) -> Facts:
    """A record of a request that went to a stranger ("asked"), or came from one ("served")."""
    return {
        "kind": kind,
        "node": node_id(node),
        "request": f"req_{node}",
        "model": "model-0",
        "endpoint": "/v1/chat/completions",
        "radius": "public",
        "status": 200,
        "outcome": "ok",
        "error": "",
        "tokens_in": 12,
        "tokens_out": 34,
        "cost_micros": 0,
        "output_sha256": "ab" * 32,
        "duration_s": 1.5,
    } | values


def a_status(*peers: Facts, **members: Any) -> Facts:
    """What a node says that knows these peers; `members` replace whole members."""
    return {
        "schema": 1,
        "version": "0.1.0",
        "pid": 1,
        "state": "ready",
        "ready": True,
        "started_at": 1_790_000_000.0,
        "node": {"id": node_id(0), "short": node_id(0)[:10], "name": "workshop"},
        "api": {"url": "http://localhost:9337/v1", "listen_all": False, "key_required": False},
        "console": {"url": "http://localhost:3131"},
        "engine": {"version": "0.5.0", "backend": "cpu"},
        "hardware": {
            "devices": [],
            "processor": {"model": "Ryzen", "logical": 16, "physical": 8, "flags": []},
            "memory": {"total_bytes": 64 * GIB, "available_bytes": 50 * GIB, "source": "machine"},
            "notes": [],
            "system": "Linux 6.1",
        },
        "models": [],
        "mesh": {
            "id": "ab" * 16,
            "name": "workshop's mesh",
            "role": "member",
            "may_invite": True,
            "state": "joined",
            "node": node_id(0)[:10],
            "addresses": ["192.0.2.1:9337"],
            "nat": {"kind": "cone", "observed": ["198.51.100.7:9337"], "mapped": [], "relays": []},
            "peers": list(peers),
            "demand": [],
            "pairing": None,
            "invites": [],
            "counters": {},
        },
        "swarm": None,
        "trust": {"radius": "trusted", "owner": None, "ends_at": None},
        "pool": {"lending": {"lends": True, "why_not": "", "rpc_version": "4.1.1", "leases": []}, "weights": {}},
        "standby": None,
        "requests": {"finished": 0, "active": 0, "waiting": 0, "tokens_per_s": 0.0, "running": [], "recent": []},
        "tasks": [],
        "downloads": [],
        "memory": [],
        "idle": None,
        "problems": [],
    } | members


class FakeMesh:
    """The node. `answers` maps the path of a call to (status, object); `asked` has what came: of a GET, its query."""

    def __init__(self, status: Facts) -> None:
        self.status = status
        self.answers: dict[str, tuple[int, Facts]] = {}
        self.asked: list[tuple[str, Facts]] = []
        self.console_url = ""
        self._number = 0
        self._watchers: set[asyncio.Queue[bytes]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False

    def change(self, **members: Any) -> None:
        """Replace members of the status; may be called from any thread."""
        self.status |= copy.deepcopy(members)
        self._number += 1
        event = self._event("change", members)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._send, event)

    def peers(self, *peers: Facts, **members: Any) -> None:
        """These are the peers now."""
        self.change(mesh=self.status["mesh"] | {"peers": list(peers)}, **members)

    def hang_up(self) -> None:
        """End the events of every page, and begin no more."""
        self._ended = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._send, b"")

    def _send(self, event: bytes) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(event)

    def _event(self, kind: str, members: Facts) -> bytes:
        return f"id: fake-{self._number}\nevent: {kind}\ndata: {json.dumps(members)}\n\n".encode()

    # --- serving --------------------------------------------------------------------------------------------

    async def _stream(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield self._event("snapshot", self.status)
            while event := await queue.get():
                yield event
        finally:
            self._watchers.discard(queue)

    async def _events(self, _: Request) -> Response:
        if self._ended:
            return Response(status_code=503)
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _status(self, _: Request) -> Response:
        return JSONResponse(self.status)

    async def _call(self, request: Request) -> Response:
        path = request.url.path
        self.asked.append((path, dict(request.query_params) if request.method == "GET" else await request.json()))
        missing = {"error": {"code": "not-found", "message": f"nothing answers {path}", "fix": ""}}
        status, answer = self.answers.get(path, (404, missing))
        return JSONResponse(answer, status)

    def app(self) -> Starlette:
        """The application; as on a real node, everything that is not a call is a file of the console."""
        return Starlette(
            routes=[
                Route("/api/events", self._events),
                Route("/api/status", self._status),
                Route("/api/{call:path}", self._call, methods=["GET", "POST"]),
                Mount("/", site(TOKEN)),
            ]
        )

    def run(self, server: uvicorn.Server, listener: socket.socket) -> None:
        """Serve until the server is told to end."""

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await server.serve(sockets=[listener])

        asyncio.run(serve())


@contextmanager
def fake_mesh(status: Facts) -> Iterator[FakeMesh]:
    """A running FakeMesh on a free port of the loopback."""
    fake = FakeMesh(status)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        fake.console_url = f"http://localhost:{listener.getsockname()[1]}"
        server = uvicorn.Server(
            uvicorn.Config(fake.app(), log_level="error", timeout_graceful_shutdown=1, lifespan="off")
        )
        thread = threading.Thread(target=fake.run, args=(server, listener), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            threading.Event().wait(0.01)
        try:
            yield fake
        finally:
            server.should_exit = True
            fake.hang_up()
            thread.join(10)
