"""The real applications on the real listener, in the event loop of the test, on a free port of loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from meshnode.api.access import Access
from meshnode.api.activity import Activity
from meshnode.api.app import api_app, gateway_app
from meshnode.api.gate import Gates
from meshnode.api.http_server import HttpServer, listen
from meshnode.api.inference import Answered, Inference, nobody, trusted_by_default
from meshnode.api.paying import Purse
from meshnode.api.record import Record
from meshnode.api.request import Limits
from meshnode.api.served import Served
from meshnode.core.radius import Radius
from meshnode.core.routing import HostView, Ranked, Wanted
from tests.api.fake_llama import FakeLlamaServer

CHAT = "/v1/chat/completions"
HELLO = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**HELLO, "stream": True}
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[int]:
    """The port on which `app` answers."""
    sockets = listen(0, public=False, purpose="the test")
    server = HttpServer(app)
    task = asyncio.create_task(server.serve(sockets))
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.stop(now=True)
        await task


def served(llama: FakeLlamaServer, name: str = "demo", **more: Any) -> Served:
    """A model that is ready on `llama`."""
    connect = more.pop("connect", llama.connect)
    values = {"state": "ready", "slots": 1, "context_length": 4096}
    return Served(name, **(values | more)).here(connect, "inner")


@dataclass
class Gateway:
    """A running API port. `models` may be changed while it runs; `records` are the finished requests, `app` is what
    answers behind the Door of the port."""

    models: list[Served]
    gates: Gates
    port: int = 0
    app: Any = None
    records: list[Record] = field(default_factory=list)
    stopping: bool = False
    activity: Activity = field(default_factory=Activity)
    _finished: asyncio.Event = field(default_factory=asyncio.Event)

    def finished(self, record: Record) -> None:
        self.records.append(record)
        self._finished.set()

    async def record(self, number: int) -> Record:
        """The record of that number (from 0), once its request has ended."""
        async with asyncio.timeout(5):
            while len(self.records) <= number:
                self._finished.clear()
                await self._finished.wait()
        return self.records[number]


class InOrder:
    """A Router that keeps the order in which the hosts are given, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.wanted: list[Wanted] = []
        self.under_way = 0

    def rank(self, wanted: Wanted, hosts: Sequence[HostView], now: float) -> list[Ranked]:
        self.wanted.append(wanted)
        return [Ranked(host.node, 0.1 if host.state == "ready" else None, "") for host in hosts]

    def started(self, node: str, model: str) -> None:
        self.under_way += 1

    def ended(self, node: str, model: str) -> None:
        self.under_way -= 1

    def failed(self, node: str, model: str, now: float) -> None:
        self.told.append(("failed", node))

    def succeeded(self, node: str, model: str, prefix: object, now: float, *, prompt_tokens: int = 0) -> None:
        self.told.append(("succeeded", node))


@asynccontextmanager
async def gateway(
    *models: Served,
    capacity: int = 8,
    timeout_s: float = 30,
    max_body_bytes: int = 4 << 20,
    ping_interval_s: float = 30,
    access: Access | None = None,
    aliases: Mapping[str, str] | None = None,
    wrap: Callable[[Any], Any] = lambda app: app,
    router: InOrder | None = None,
    stall_s: float = 10,
    radius: Callable[[], Radius] = trusted_by_default,
    pages_may_widen: bool = False,
    answered: Answered = nobody,
    purse: Purse | None = None,
) -> AsyncIterator[Gateway]:
    """The model API in front of `models`."""
    running = Gateway(list(models), Gates(capacity=capacity, timeout_s=timeout_s))
    inference = Inference(
        models=lambda: running.models,
        gates=running.gates,
        limits=Limits(max_body_bytes, ping_interval_s, aliases or {}, stall_s),
        headers={"x-meshnode-node": "abc"},
        finished=running.finished,
        router=router,  # type: ignore[arg-type]
        activity=running.activity,
        radius=radius,
        pages_may_widen=pages_may_widen,
        answered=answered,
        purse=purse,
    )
    running.app = gateway_app(
        inference=inference,
        models=lambda: running.models,
        aliases=aliases or {},
        owner="meshnode",
        stopping=lambda: running.stopping,
    )
    async with serving(wrap(api_app(running.app, access or Access()))) as running.port:
        yield running


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is true, for a second at most."""
    async with asyncio.timeout(1):
        while not condition():
            await asyncio.sleep(0.005)
