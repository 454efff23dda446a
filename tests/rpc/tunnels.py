"""Hosts and workers on real QUIC links, with fake rpc-servers behind the workers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from meshnode.net.stream import MeshStream
from meshnode.rpc.facts import References, TunnelOptions, WorkerFacts
from meshnode.rpc.host_end import HostEnd
from meshnode.rpc.worker_end import WorkerEnd
from meshnode.wire.ggml_rpc import Command
from tests.net.nodes import Node, node, until
from tests.rpc.fake_rpc_server import FACTS, FakeRpcServer, fake_rpc_server
from tests.wire.rpc_frames import frame

LIMIT_S = 10.0
TUNNEL, PUSH = b"\2", b"\4"
SHA256 = bytes(range(32))


class FileReferences:
    """References to tensors that lie in one file, one after the other."""

    def __init__(self, path: Path, tensors: dict[str, bytes], sha256: bytes = SHA256) -> None:
        self.sha256 = sha256
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        at = 16
        for name, data in tensors.items():
            self._places[name] = at, len(data)
            at += len(data)
        path.write_bytes(bytes(16) + b"".join(tensors.values()))

    def find(self, tensor: str, offset: int, size: int) -> tuple[Path, int] | None:
        at, length = self._places.get(tensor, (0, -1))
        return (self._path, at + offset) if offset + size <= length else None


class Client:
    """What llama-server does with its connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        """Connect and say hello, as llama.cpp's client does."""
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        assert len(await client.ask(frame(Command.HELLO, bytes(24)))) == 28
        return client

    def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    async def reply(self) -> bytes:
        """The payload of the next reply."""
        async with asyncio.timeout(LIMIT_S):
            (size,) = struct.unpack("<Q", await self._reader.readexactly(8))
            return await self._reader.readexactly(size)

    async def ask(self, *frames: bytes) -> bytes:
        """Send frames, the last of which has a reply."""
        self.send(*frames)
        return await self.reply()

    async def allocate(self, size: int) -> int:
        """Get a buffer; 0 when there is no room."""
        reply = await self.ask(frame(Command.ALLOC_BUFFER, struct.pack("<IQ", 0, size)))
        buffer: int = struct.unpack("<QQ", reply)[0]
        return buffer

    async def ended(self) -> bool:
        """Wait until the tunnel closes the connection. True if nothing more came before."""
        with suppress(ConnectionError):
            async with asyncio.timeout(LIMIT_S):
                return await self._reader.read(1) == b""
        return True

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class Plan:
    """A host and its workers. `ends[i]` is the tunnel to stage i; `lost` and `failed` have what was told."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.servers: list[FakeRpcServer] = []
        self.workers: list[WorkerEnd] = []
        self.ends: list[HostEnd] = []
        self.lost: list[str] = []
        self.failed: list[str] = []
        self.streams: list[MeshStream] = []
        """The tunnels, at the host."""
        self.tasks: list[asyncio.Task[Any]] = []
        self._stack = AsyncExitStack()

    def route(self, port: int) -> int | None:
        """The stage behind a port."""
        ports = [end.port for end in self.ends]
        if port in ports:
            return ports.index(port)
        return port - 100 if 100 <= port < 100 + len(self.workers) else None

    async def client(self, stage: int = 0) -> Client:
        client = await Client.connect(self.ends[stage].port)
        self._stack.push_async_callback(client.close)
        return client

    async def serve(self, place: int) -> None:
        """Serve the streams that are opened to a worker."""
        while True:
            stream = await self.nodes[place + 1].recorder.streams.get()
            self.tasks.append(asyncio.create_task(self._serve_one(place, stream)))

    async def _serve_one(self, place: int, stream: MeshStream) -> None:
        if await stream.read_exactly(1) == TUNNEL:
            await self.workers[place].serve_tunnel(stream)
        else:
            await self.workers[place].serve_push(stream, stream.link.peer)

    async def open_stream(self, source: int, target: int, header: bytes) -> MeshStream:
        """A stream from one node to another: 0 is the host."""
        link = await self.nodes[source].dial(self.nodes[target])
        stream = link.open_stream()
        stream.write(header)
        return stream

    async def open_tunnel(self, stage: int) -> MeshStream:
        stream = await self.open_stream(0, stage + 1, TUNNEL)
        self.streams.append(stream)
        return stream

    async def close(self) -> None:
        await self._stack.aclose()
        for end in self.ends:
            await end.close()
        for worker in self.workers:
            await worker.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def plan(
    stages: int = 1,
    *,
    options: TunnelOptions | None = None,
    limit_bytes: int = 1 << 30,
    references: References | None = None,
    host_references: References | None = None,
    working: Callable[[], bool] = lambda: True,
    converters: Sequence[Callable[[bytes], bytes] | None] = (None, None),
    real: Sequence[tuple[int, WorkerFacts, Callable[[], bool]]] = (),
) -> AsyncIterator[Plan]:
    """A host with tunnels to so many workers. The port of stage i is known to `route` as 100 + i, as fake clients do
    not know the others' ports when they begin; with `real` servers (port, facts, working) it is the port itself.
    """
    made = Plan()
    wishes = options or TunnelOptions(stage=0, stages=stages)
    async with AsyncExitStack() as stack:
        for number in range(stages + 1):
            made.nodes.append(await stack.enter_async_context(node(number)))
        ids = [each.node_id for each in made.nodes[1:]]
        for place in range(stages):
            works = working
            if real:
                port, facts, works = real[place]
            else:
                server = await stack.enter_async_context(fake_rpc_server())
                made.servers.append(server)
                port, facts = server.port, FACTS

            async def open_push(peer: bytes, place: int = place) -> MeshStream:
                return await made.open_stream(place + 1, ids.index(peer) + 1, PUSH)  # type: ignore[arg-type]

            made.workers.append(
                WorkerEnd(
                    port=port,
                    facts=facts,
                    workers=ids,
                    stage=place,
                    limit_bytes=limit_bytes,
                    references=references,
                    open_push=open_push,
                    working=works,
                    to_half=converters[0],
                    from_half=converters[1],
                    failed=made.failed.append,
                )
            )
            made.tasks.append(asyncio.create_task(made.serve(place)))
        stack.push_async_callback(made.close)
        for stage in range(stages):
            made.ends.append(
                await HostEnd.open(
                    facts=real[stage][1] if real else FACTS,
                    connect=lambda stage=stage: made.open_tunnel(stage),  # type: ignore[misc]
                    route=made.route,
                    options=replace(wishes, stage=stage, stages=stages),
                    references=host_references,
                    lost=made.lost.append,
                )
            )
        for server in made.servers:
            await until(lambda server=server: server.log == [Command.HELLO])  # type: ignore[misc]
        yield made
