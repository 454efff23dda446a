"""The mesh in miniature: a Pipe whose far end is another node's PeerRequests, with a FIN and with resets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from meshnode.api.peer_requests import PeerRequests

WINDOW_BYTES = 64 << 10


@dataclass
class Asked:
    """A request as a tunnel hands it over."""

    path: str
    body: bytes
    method: str = "POST"
    content_type: str = "application/json"
    peer: bytes = b"\xaa" * 32
    request_id: str = "req_1"
    payment: Any = None


@dataclass
class Reply:
    """Takes an answer; with a `window`, waits like a stream whose reader is slow."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    finished: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()

    async def head(self, status: int, headers: Sequence[tuple[str, str]], /) -> None:
        self.status, self.headers = status, dict(headers)

    async def body(self, piece: bytes, /) -> None:
        await self.open.wait()
        self.content += piece

    async def finish(self) -> None:
        self.finished = True


class TunnelPipe:
    """One stream to the node that answers with `there`."""

    def __init__(self, there: PeerRequests, peer: bytes = b"\xaa" * 32) -> None:
        self._there = there
        self._peer = peer
        self._sent = b""
        self._pieces: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._room = asyncio.Event()
        self._held = 0
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def to(cls, there: PeerRequests):
        async def connect() -> TunnelPipe:
            return cls(there)

        return connect

    def write(self, data: bytes, /) -> None:
        self._sent += data
        head, end, body = self._sent.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if len(body) == int(headers["content-length"]) and self._task is None:
            method, path, _ = first.split(" ")
            asked = Asked(path, body, method, headers["content-type"], self._peer)
            self._task = asyncio.create_task(self._serve(asked))

    async def _serve(self, asked: Asked) -> None:
        try:
            await self._there.answer(asked, self)
        except Exception as fault:
            self._pieces.put_nowait(ConnectionResetError(104, f"reset: {fault}"))

    async def read(self, limit_bytes: int, /) -> bytes:
        piece = await self._pieces.get()
        if isinstance(piece, OSError):
            raise piece
        self._held -= len(piece)
        self._room.set()
        return piece

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # What the far end calls.

    async def head(self, status: int, headers: Sequence[tuple[str, str]], /) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        await self.body(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode("latin-1"))

    async def body(self, piece: bytes, /) -> None:
        while self._held > WINDOW_BYTES:
            self._room.clear()
            await self._room.wait()
        self._held += len(piece)
        self._pieces.put_nowait(piece)

    async def finish(self) -> None:
        self._pieces.put_nowait(b"")
