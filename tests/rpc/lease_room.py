"""A host and its worker on a real link, with a made-up work behind the book: what the tests of leases share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from meshnode.errors import MeshnodeError
from meshnode.mesh.streams import StreamDispatch
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.rpc.facts import DeviceFacts, WorkerFacts
from meshnode.rpc.held_lease import HeldLease
from meshnode.rpc.leases import LeaseBook
from meshnode.rpc.work import LeaseLimits, Progress
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import Role, RpcKind, StreamType
from meshnode.wire.splits import LeaseAsk, open_header
from tests.net.nodes import IDENTITIES, LIMIT_S, Node, node

PLAN = bytes(range(16))
HELLO = bytes([7, 0, 0]) + bytes(25)
FACTS = WorkerFacts(HELLO, (DeviceFacts(32, (1 << 64) - 1, 1 << 30, 2 << 30),))
HOST, WORKER, THIRD = (bytes(each.node_id) for each in IDENTITIES[:3])
ASK = LeaseAsk(
    term=1,
    model="big",
    sha256=b"s" * 32,
    size_bytes=1 << 30,
    stage=0,
    first_layer=4,
    layers=8,
    needed_bytes=1 << 29,
    workers=(WORKER,),
    rpc_version=7 << 16,
)
FAST = LeaseLimits(asks_burst=100, news_s=0.0)


class FakeWork:
    """A work that echoes its tunnels and writes down what happens to it, in order."""

    def __init__(self, *, has_weights: bool = True, close_s: float = 0.0) -> None:
        self.facts = FACTS
        self.has_weights = has_weights
        self.events: list[str] = []
        self.fetched: asyncio.Queue[tuple[int, int] | MeshnodeError | None] = asyncio.Queue()
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._close_s = close_s

    async def prepare(self, progress: Progress) -> None:
        while not self.has_weights:
            news = await self.fetched.get()
            if isinstance(news, MeshnodeError):
                raise news
            if news is None:
                self.has_weights = True
            else:
                progress(*news)

    async def serve_tunnel(self, stream: MeshStream) -> None:
        await self._echo("tunnel", stream)

    async def serve_push(self, stream: MeshStream, peer: bytes) -> None:
        await self._echo(f"push of {IDENTITIES.index(next(i for i in IDENTITIES if i.node_id == peer))}", stream)

    async def _echo(self, name: str, stream: MeshStream) -> None:
        self.events.append(name)
        try:
            while data := await stream.read(1000):
                stream.write(data)
            stream.write_eof()
        finally:
            self.events.append(f"end of {name}")

    async def failure(self) -> str:
        return await asyncio.shield(self.broken)

    async def close(self) -> None:
        await asyncio.sleep(self._close_s)
        self.events.append("closed")


class Room:
    """Node 0 is the host, node 1 the worker with a book; `third` links another node to the worker."""

    def __init__(self, host: Node, worker: Node, link: Link, limits: LeaseLimits) -> None:
        self.host, self.worker, self.link = host, worker, link
        self.asked: list[tuple[bytes, LeaseAsk, bytes]] = []
        self.works: list[FakeWork] = []
        self.make: Callable[[], Any] = FakeWork
        self.changes = 0
        self.lost: list[str] = []
        self.left = 0
        self.role: Role | None = Role.MEMBER
        self.book = LeaseBook(bytes(worker.node_id), self._grant, changed=self._changed, limits=limits)
        self.dispatch = StreamDispatch(
            {StreamType.RPC: self._serve},
            admission=self._admit,
            offend=lambda link, code: None,
            counters=Counter(),
        )
        self._pump = asyncio.create_task(self._opened())

    async def _admit(self, link: Link) -> Role | None:
        return Role.MEMBER

    async def _serve(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        await self.book.serve(stream, header, self.role)

    async def _opened(self) -> None:
        while True:
            self.dispatch.opened(await self.worker.recorder.streams.get())

    def _changed(self) -> None:
        self.changes += 1

    async def _grant(self, host: bytes, ask: LeaseAsk, plan: bytes) -> FakeWork:
        self.asked.append((host, ask, plan))
        made = self.make()
        work: FakeWork = await made if asyncio.iscoroutine(made) else made
        self.works.append(work)
        return work

    async def open(self, kind: int, plan: bytes = PLAN, link: Link | None = None) -> MeshStream:
        stream = (link or self.link).open_stream()
        stream.write(encode_stream_header(StreamType.RPC, open_header(RpcKind(kind), plan)))
        return stream

    async def lease(
        self, ask: LeaseAsk = ASK, *, plan: bytes = PLAN, link: Link | None = None, **changed: Any
    ) -> HeldLease:
        return await HeldLease.ask(
            partial(self.open, RpcKind.LEASE, plan, link),
            plan,
            replace(ask, **changed),
            lost=self.lost.append,
            leaving=self._leaving,
            timeout_s=LIMIT_S,
        )

    def _leaving(self) -> None:
        self.left += 1

    async def close(self) -> None:
        await self.book.close()
        self._pump.cancel()
        await self.dispatch.close()


@asynccontextmanager
async def room(limits: LeaseLimits = FAST) -> AsyncIterator[Room]:
    """A host and a worker that are linked."""
    async with node(0) as host, node(1) as worker:
        link = await host.dial(worker)
        made = Room(host, worker, link, limits)
        try:
            yield made
        finally:
            await made.close()


async def reset_code(stream: MeshStream) -> int:
    """The code with which the far end resets a stream."""
    async with asyncio.timeout(LIMIT_S):
        error = await stream.broken()
    assert isinstance(error, StreamReset)
    return error.code
