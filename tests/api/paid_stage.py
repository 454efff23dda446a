"""A provider and a payer over real QUIC on loopback, with all of api and mesh in between, and an engine in miniature.

Their money is that of fake_money.py, or any other Till and Purse.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from meshnode.api.charging import Till
from meshnode.api.endpoints import COUNTING_ENDPOINTS, PUBLIC_ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.guest_requests import GuestRequests
from meshnode.api.paying import Purse
from meshnode.api.record import Record
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Pipe
from meshnode.core.guests import GuestLimits, Guests
from meshnode.core.prices import Price
from meshnode.identity import Identity
from meshnode.mesh.tunnel import TunnelLimits, TunnelServer
from meshnode.net.endpoint import Endpoint, EndpointOptions
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.wire.frames import HEADER_BYTES, decode_stream_header, encode_stream_header
from meshnode.wire.payments import PAID_HEADER
from meshnode.wire.registry import StreamType
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, Received
from tests.api.fake_money import CHAIN, PRICE, PROMPT_TOKENS, WEIGHTS
from tests.api.test_guest_requests import Trail
from tests.net.nodes import IDENTITIES

# --- an engine --------------------------------------------------------------------------------------------------------


def chunk(text: str, number: int, *, counts: bool = True) -> bytes:
    """The event of one token, as llama-server sends it with `timings_per_token`."""
    choice = {"finish_reason": None, "index": 0, "delta": {"content": text}}
    event: dict[str, Any] = {"choices": [choice], "id": "chatcmpl-1", "object": "chat.completion.chunk"}
    if counts:
        event["timings"] = {"cache_n": 0, "prompt_n": PROMPT_TOKENS, "predicted_n": number, "predicted_ms": 1.5}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def last(tokens: int, reason: str = "stop") -> bytes:
    """The end of an answer: the reason, the usage with the counts, and the mark."""
    head: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk"}
    end = {"choices": [{"finish_reason": reason, "index": 0, "delta": {}}], **head}
    usage = {"completion_tokens": tokens, "prompt_tokens": PROMPT_TOKENS, "total_tokens": tokens + PROMPT_TOKENS}
    timings = {"cache_n": 0, "prompt_n": PROMPT_TOKENS, "predicted_n": tokens}
    both = (end, {"choices": [], **head, "usage": usage, "timings": timings})
    return b"".join(b"data: %s\n\n" % json.dumps(e, separators=(",", ":")).encode() for e in both) + b"data: [DONE]\n\n"


@dataclass
class Engine:
    """Writes `tokens` tokens; with a `pace`, one for each item that is put there. `written` is how far it came."""

    llama: FakeLlamaServer
    tokens: int = 100
    pace: asyncio.Queue[None] | None = None
    written: int = 0
    delay_s: float = 0.0
    text: str = "word"
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.llama.script = self.script

    async def script(self, request: Received) -> None:
        most = min(self.tokens, int(str(request.json.get("max_tokens", self.tokens))))
        counts = request.json.get("timings_per_token") is True
        await request.head()
        begun = asyncio.get_running_loop().time()
        for number in range(1, most + 1):
            if self.pace is not None:
                await self.pace.get()
            if self.delay_s:
                await asyncio.sleep(max(0.0, begun + number * self.delay_s - asyncio.get_running_loop().time()))
            await request.chunk(chunk(f"{self.text} ", number, counts=counts))
            self.written = number
            self.moved.set()
        await request.chunk(last(most, "length" if most < self.tokens else "stop"))
        await request.end()


# --- both, and QUIC between them --------------------------------------------------------------------------------------


class _Handler:
    """Serves the http streams that a peer opens."""

    def __init__(self, server: TunnelServer | None) -> None:
        self._server = server
        self.tasks: set[asyncio.Task[None]] = set()
        self.up = asyncio.Event()

    def link_up(self, link: Link) -> None:
        self.up.set()

    def link_down(self, link: Link, code: int, reason: str) -> None: ...

    def datagram(self, link: Link, data: bytes) -> None: ...

    def link_silent(self, link: Link, silent: bool) -> None: ...

    def stream_opened(self, stream: MeshStream) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(stream))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, stream: MeshStream) -> None:
        assert self._server is not None
        _, size = decode_stream_header(await stream.read_exactly(HEADER_BYTES))
        await self._server.serve(stream, await stream.read_exactly(size) if size else b"")


class Provider:
    """A node of a public mesh that sells a model of `llama`."""

    def __init__(
        self,
        llama: FakeLlamaServer,
        till: Till | None,
        *,
        near: bool = False,
        model: str = "demo",
        weights: str = WEIGHTS,
        identity: Identity = IDENTITIES[1],
        **limits: int,
    ) -> None:
        self.identity = identity
        self.trail = Trail()
        self.records: list[Record] = []
        self.counters: Counter[str] = Counter()
        self.gates = Gates(capacity=8, timeout_s=30)
        self.served = Served(model, "ready", slots=4).here(llama.connect, "inner", content_hash=weights)
        self.requests = GuestRequests(
            models=lambda: [self.served],
            gates=self.gates,
            guests=Guests(GuestLimits(**limits)),
            slots=4,
            trail=self.trail,
            finished=self.records.append,
            stopping=lambda: False,
            is_near=lambda node: near,
            till=till,
        )
        self.server = TunnelServer(
            self.requests.answer,
            admitted=[("POST", path) for path in (*PUBLIC_ENDPOINTS, *COUNTING_ENDPOINTS)],
            limits=TunnelLimits(),
            counters=self.counters,
        )
        self.handler = _Handler(self.server)
        self.endpoint: Endpoint

    async def idle(self) -> None:
        """Wait until nothing of it runs."""
        async with asyncio.timeout(5):
            while self.handler.tasks:
                await asyncio.wait(list(self.handler.tasks))


@dataclass
class Line:
    """A link from a payer to a provider."""

    provider: Provider
    link: Link

    def opener(self, header: bytes) -> Callable[[], Awaitable[Pipe]]:
        """What opens an http stream with this header."""

        async def connect() -> Pipe:
            stream = self.link.open_stream()
            stream.write(encode_stream_header(StreamType.HTTP, header))
            return stream

        return connect

    def stream(self) -> MeshStream:
        """A fresh paid stream, for one who does not keep to the rules."""
        stream = self.link.open_stream()
        stream.write(encode_stream_header(StreamType.HTTP, PAID_HEADER))
        return stream

    def host(self, price: Price = PRICE, **more: Any) -> Host:
        """The provider as a host of its model."""
        node, here = self.provider.identity.node_id.hex(), self.provider.served.hosts[0]
        weights = here.content_hash
        host = Host(node=node, connect=self.opener(b""), content_hash=weights, radius="public", chain=CHAIN, **more)
        return host if price.is_free else replace(host, price=price, connect_paid=self.opener(PAID_HEADER))


@asynccontextmanager
async def line_to(
    provider: Provider, payer: Identity = IDENTITIES[0], *, through: Callable[[int], int] = lambda port: port
) -> AsyncIterator[Line]:
    """A payer that is linked with a provider; `through` leads from the port of the provider to the one to dial."""
    seller, options = provider.identity, EndpointOptions()
    provider.endpoint = await Endpoint.open(seller, provider.handler, host="127.0.0.1", options=options)
    endpoint = await Endpoint.open(payer, _Handler(None), host="127.0.0.1", options=options)
    try:
        address = replace(provider.endpoint.address, port=through(provider.endpoint.address.port))
        link = await endpoint.dial([address], expected=seller.node_id)
        async with asyncio.timeout(5):
            await provider.handler.up.wait()
        yield Line(provider, link)
    finally:
        await endpoint.close()
        await provider.endpoint.close()
        for task in list(provider.handler.tasks):
            task.cancel()


@asynccontextmanager
async def paid_gateway(
    line: Line, purse: Purse | None, *others: Host, price: Price = PRICE, chain: int = CHAIN, **more: Any
) -> AsyncIterator[running.Gateway]:
    """The gateway of the payer, whose only model is the provider's (and that of `others`)."""
    hosts = (replace(line.host(price), chain=chain), *others)
    served = Served(line.provider.served.id, "ready", hosts=hosts)
    async with running.gateway(served, purse=purse, radius=lambda: "public", **more) as gateway:
        yield gateway
