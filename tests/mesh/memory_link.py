"""A fake link: two ends in one event loop, with the real streams of net/stream.py on top and no network below.

Bytes are handed over one turn of the loop later, as far as the reader's credit goes; the rest counts as unsent. A link
is as fast as memory and loses nothing; what a real one adds is tested in test_mesh.py.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from meshnode.net.stream import LinkLost, MeshStream, StreamReset


class MemoryLink:
    """One end. `opened` gets the streams that the other end opens."""

    def __init__(self, peer: bytes, opened: Callable[[MeshStream], None] = lambda _: None) -> None:
        self.peer = peer
        self.loop = asyncio.get_running_loop()
        self.opened = opened
        self.other: MemoryLink = self
        self.streams: dict[int, MeshStream] = {}
        self.closed: tuple[int, str] | None = None
        self.alive = True
        self.unsent: defaultdict[int, list[tuple[bytes, bool]]] = defaultdict(list)
        self.most_unsent_bytes = 0
        self._next = 0
        self._draining: set[int] = set()

    def open_stream(self, *, priority: int = 0) -> MeshStream:
        if self.closed:
            raise LinkLost("closed")
        stream = self.streams[self._next] = self._stream(self._next)
        self._next += 4
        return stream

    def close(self, code: int, reason: str = "") -> None:
        for end in (self, self.other):
            end.closed = end.closed or (code, reason)
            for stream in end.streams.values():
                stream.broke(LinkLost("closed", code))

    def _stream(self, number: int) -> MeshStream:
        return MeshStream(self, self, number, 0.0)  # type: ignore[arg-type]

    # --- called by the streams, whose multiplexer this is -------------------------------------------------------

    def send(self, stream: MeshStream, data: bytes, end: bool) -> None:
        self.unsent[stream.id].append((data, end))
        self.most_unsent_bytes = max(self.most_unsent_bytes, self.unsent_bytes(stream))
        self.loop.call_soon(self.pump, stream.id)

    def pump(self, number: int) -> None:
        """Hand over what the reader's credit allows."""
        if self.closed or number not in self.streams:
            return
        other = self.other
        if number not in other.streams:
            other.streams[number] = other._stream(number)
            other.opened(other.streams[number])
        reader = other.streams[number]
        waiting = self.unsent[number]
        while waiting and reader.waiting_bytes < reader.credit.window_bytes:
            reader.arrived(*waiting.pop(0))
        stream = self.streams[number]
        if number in self._draining and self.unsent_bytes(stream) <= 128 << 10:
            self._draining.discard(number)
            stream.drained()

    def taken(self, stream: MeshStream, count: int) -> None:
        self.loop.call_soon(self.other.pump, stream.id)

    def unsent_bytes(self, stream: MeshStream) -> int:
        return sum(len(data) for data, _ in self.unsent[stream.id])

    def wait_drained(self, stream: MeshStream) -> None:
        self._draining.add(stream.id)

    def abandon(self, number: int, code: int) -> None:
        self.unsent[number].clear()
        self.loop.call_soon(self._break_other, number, code)

    def _break_other(self, number: int, code: int) -> None:
        if number not in self.other.streams:
            self.other.streams[number] = self.other._stream(number)
            self.other.opened(self.other.streams[number])
        self.other.unsent[number].clear()
        self.other.streams[number].broke(StreamReset(code))

    def watch_changed(self) -> None: ...


def memory_links(opened: Callable[[Any], None] = lambda _: None) -> tuple[MemoryLink, MemoryLink]:
    """Two ends of one link: of the caller, and of the node whose `opened` is told of the caller's streams."""
    caller, server = MemoryLink(b"s" * 32), MemoryLink(b"c" * 32, opened)
    caller.other, server.other = server, caller
    return caller, server


async def code_of(stream: MeshStream) -> int:
    """The code with which the other end resets `stream`, whatever it sends before."""
    try:
        while await stream.read(1 << 20):
            pass
    except StreamReset as reset:
        return reset.code
    raise AssertionError("the stream ended in order")
