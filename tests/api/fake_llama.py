"""A llama-server in miniature on a Unix socket: it answers as a script says, and notices when its caller leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from meshnode.api.upstream import Pipe, SocketPipe


@dataclass
class Received:
    """One request as it arrived. `left` is set when the caller has closed the connection."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    left: asyncio.Event = field(default_factory=asyncio.Event)
    left_at: float | None = None

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.body)

    async def head(self, status: int = 200, content_type: str = "text/event-stream", length: int | None = None) -> None:
        """Send the head of an answer; chunked unless a length is given."""
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        await self.raw(f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n{framing}\r\n\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()


Script = Callable[[Received], Awaitable[None]]


def streaming(events: Sequence[bytes], *, pace: asyncio.Queue[None] | None = None) -> Script:
    """Sends the events as a stream; with `pace`, one for each item that is put there."""

    async def script(request: Received) -> None:
        await request.head()
        for event in events:
            if pace is not None:
                await pace.get()
            await request.chunk(event)
        await request.end()

    return script


def endless(event: bytes = b'data: {"choices":[]}\n\n') -> Script:
    """Sends one event and then nothing, until its caller leaves."""

    async def script(request: Received) -> None:
        await request.head()
        await request.chunk(event)
        await request.left.wait()

    return script


def plain(status: int, body: bytes, content_type: str = "application/json") -> Script:
    """Sends one whole answer."""

    async def script(request: Received) -> None:
        await request.head(status, content_type, len(body))
        await request.raw(body)

    return script


def raw(data: bytes) -> Script:
    """Sends these bytes and closes the connection."""

    async def script(request: Received) -> None:
        await request.raw(data)

    return script


async def silent(request: Received) -> None:
    """Never answers."""
    await request.left.wait()


class FakeLlamaServer:
    """Answers every request by `script`. `requests` keeps them; `arrived` is set with each."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.script: Script = plain(200, b"{}")
        self.requests: list[Received] = []
        self.arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> Pipe:
        return SocketPipe(*await asyncio.open_unix_connection(str(self.socket)))

    async def request(self, number: int) -> Received:
        """The request of that number (from 0), once it has arrived."""
        async with asyncio.timeout(5):
            while len(self.requests) <= number:
                self.arrived.clear()
                await self.arrived.wait()
        return self.requests[number]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            request = await _read(reader, writer)
            watcher = asyncio.create_task(_watch(request))
            self.requests.append(request)
            self.arrived.set()
            try:
                await self.script(request)
            finally:
                watcher.cancel()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[FakeLlamaServer]:
        # pytest's folders are too long for the 108 bytes of a socket's name.
        with TemporaryDirectory(prefix="meshnode-") as folder:
            fake = cls(Path(folder) / "llama.sock")
            server = await asyncio.start_unix_server(fake._serve, str(fake.socket))
            try:
                yield fake
            finally:
                server.close()
                for task in list(fake._tasks):
                    task.cancel()
                await asyncio.gather(*fake._tasks, return_exceptions=True)
                await server.wait_closed()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body, reader, writer)


async def _watch(request: Received) -> None:
    with suppress(ConnectionError):
        await request.reader.read()
    request.left_at = asyncio.get_running_loop().time()
    request.left.set()
