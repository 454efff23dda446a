"""Two ends of a connection in memory, with what the greeting needs of net.link.Link and net.stream.MeshStream."""

from __future__ import annotations

import asyncio
from typing import Any

from meshnode.wire.address import Address


class FakeLinkLost(ConnectionResetError):
    """As net.stream.LinkLost: `code` is why the link was closed."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the link is lost ({code:#x})")
        self.code = code


class FakeStream:
    """One end of a stream; what it writes the other end reads."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self.other: FakeStream | None = None
        self.written = b""

    async def read(self, limit_bytes: int) -> bytes:
        return await self.reader.read(limit_bytes)

    async def read_exactly(self, n: int) -> bytes:
        return await self.reader.readexactly(n)

    def write(self, data: bytes) -> None:
        if self.reader.exception():
            raise self.reader.exception()  # type: ignore[misc]
        self.written += data
        assert self.other is not None
        if data and not self.other.reader.exception():
            self.other.reader.feed_data(data)

    async def drain(self) -> None:
        pass

    def write_eof(self) -> None:
        assert self.other is not None
        if not self.other.reader.exception():
            self.other.reader.feed_eof()


class FakeLink:
    """One end of a connection to `peer`. `closed_with` is the code of whoever closed it first."""

    def __init__(self, peer: bytes, address: Address) -> None:
        self.peer = peer
        self.address = address
        self.closed_with: int | None = None
        self.reason = ""
        self.secret = b"\7" * 32
        self.other: FakeLink | None = None
        self.streams: list[FakeStream] = []
        self.opened: asyncio.Queue[FakeStream] = asyncio.Queue()

    def open_stream(self, *, priority: int = 0) -> FakeStream:
        here, there = FakeStream(), FakeStream()
        here.other, there.other = there, here
        assert self.other is not None
        self.streams.append(here)
        self.other.streams.append(there)
        self.other.opened.put_nowait(there)
        return here

    def exporter(self, label: str, length: int) -> bytes:
        assert label.startswith("EXPORTER-")
        return self.secret[:length]

    def close(self, code: int, reason: str = "") -> None:
        assert self.other is not None
        if self.closed_with is not None:
            return
        for link in (self, self.other):
            link.closed_with, link.reason = int(code), reason
            for stream in link.streams:
                stream.reader.set_exception(FakeLinkLost(int(code)))


def connected(dialler: bytes, acceptor: bytes) -> tuple[Any, Any]:
    """The dialler's end of a new connection, and the acceptor's."""
    here = FakeLink(acceptor, Address("192.0.2.2", 9337))
    there = FakeLink(dialler, Address("192.0.2.1", 40000))
    here.other, there.other = there, here
    return here, there
