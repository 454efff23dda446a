"""A node that answers chats as a script says: for what no real model writes, and no real network does on time.

It serves the console's own files with their own headers, and beside the status of a FakeMesh the one endpoint that the
chat needs. A script is a list of what is sent: bytes as they are, events to wait for and seconds to pause before the
next, and BREAK for a connection that ends in the middle of the answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from meshnode.console.site import site

TOKEN = "fake-token"
NODE = "ab" * 32
END = b"data: [DONE]\n\n"
BREAK = "break"

Part = bytes | threading.Event | float | str
Headers = list[tuple[bytes, bytes]]


def chunk(content: str | None = None, **more: Any) -> bytes:
    """One event of a chat completion; `reasoning`, `finish`, `usage` and `timings` by name."""
    delta = {"content": content} if content is not None else {}
    if "reasoning" in more:
        delta["reasoning_content"] = more.pop("reasoning")
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}], **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def answer(text: str, pieces: int = 1) -> list[Part]:
    """The script of a whole answer, sent in so many pieces."""
    size = max(1, -(-len(text) // pieces))
    parts: list[Part] = [chunk(text[at : at + size]) for at in range(0, len(text), size)]
    usage = {"prompt_tokens": 7, "completion_tokens": pieces}
    return [*parts, chunk(finish="stop"), chunk(usage=usage), END]


def status(**model: Any) -> dict[str, Any]:
    """What this node says of itself; `model` replaces members of the one that it serves."""
    served = {
        "id": "parrot",
        "canonical": "parrot",
        "state": "ready",
        "detail": "",
        "error": None,
        "since": 1.0,
        "where": "here",
        "size_bytes": 1 << 30,
        "quantisation": "Q8_0",
        "context_length": 8192,
        "parallel": 4,
        "busy": 0,
        "waiting": 0,
        "capabilities": ["completion", "chat"],
        "plan": None,
        "split": None,
        "engine": None,
    } | model
    return {
        "schema": 1,
        "version": "0.1.0",
        "state": "ready",
        "ready": True,
        "started_at": 1.0,
        "node": {"id": NODE, "short": NODE[:10], "name": "workshop"},
        "api": {"url": "http://localhost:9337/v1", "listen_all": False, "key_required": False},
        "console": {"url": "http://localhost:3131"},
        "models": [served],
        "swarm": None,
        "trust": {"radius": "trusted", "owner": None, "ends_at": None},
        "mesh": {"id": "cd" * 32, "name": "a mesh", "state": "alone", "peers": [], "invites": []},
        "requests": {"running": [], "recent": [], "tokens_per_s": 0.0},
        "tasks": [],
        "downloads": [],
        "memory": [],
        "idle": None,
        "problems": [],
    }


@dataclass
class FakeChat:
    """The node. Each chat takes the next of `scripts`; `asked` has the bodies that came, `left` counts callers gone.

    `radius` is that of all answers, `radii` has what each request named; "" where it named none.
    """

    status: dict[str, Any] = field(default_factory=status)
    scripts: list[Sequence[Part]] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    radius: str = "local"
    radii: list[str] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    console_url: str = ""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/api/events":
            await self._events(receive, send)
        elif path == "/v1/chat/completions":
            await self._chat(scope, receive, send)
        else:
            await site(TOKEN)(scope, receive, send)

    async def _events(self, receive: Any, send: Any) -> None:
        await _head(send, 200, "text/event-stream")
        data = f"id: fake-1\nevent: snapshot\ndata: {json.dumps(self.status)}\n\n".encode()
        await send({"type": "http.response.body", "body": data, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _chat(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        assert (b"x-meshnode-token", TOKEN.encode()) in scope["headers"]
        self.asked.append(json.loads(body))
        self.radii += [value.decode() for name, value in scope["headers"] if name == b"x-meshnode-radius"] or [""]
        if self.refusals:
            code, error = self.refusals.pop(0)
            await _head(send, code, "application/json")
            await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
            return
        headers = [(b"x-meshnode-node", NODE[:10].encode()), (b"x-meshnode-radius", self.radius.encode())]
        await _head(send, 200, "text/event-stream", headers)
        watch = asyncio.create_task(self._watch(receive))
        for part in self.scripts.pop(0):
            if watch.done():
                return
            if part == BREAK:
                raise ConnectionError("as the script says")  # uvicorn closes the connection
            if isinstance(part, float):
                await asyncio.sleep(part)
                continue
            if isinstance(part, threading.Event):
                await self._wait(part, watch)
                continue
            await send({"type": "http.response.body", "body": part, "more_body": True})
        watch.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _wait(self, event: threading.Event, watch: asyncio.Task[None]) -> None:
        """Until the test sets the event, or nobody waits for the answer any more."""
        while not event.is_set() and not watch.done():
            await asyncio.sleep(0.005)

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


async def _head(send: Any, code: int, media_type: str, more: Headers | None = None) -> None:
    headers = [(b"content-type", media_type.encode()), *(more or [])]
    await send({"type": "http.response.start", "status": code, "headers": headers})


@contextmanager
def fake_chat(**members: Any) -> Iterator[FakeChat]:
    """A running FakeChat on a free port of the loopback; `members` are those of its class."""
    fake = FakeChat(**members)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        fake.console_url = f"http://localhost:{listener.getsockname()[1]}"
        config = uvicorn.Config(fake, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            server.should_exit = True
            thread.join(10)
