"""A bidirectional stream of bytes to a peer, with backpressure in both directions.

What the application does not read, the peer may not send (`credit.py`); what the peer does not take, `drain()` waits
for. The two directions end one by one with `write_eof()`. A reset, by either side, ends both at once: that is how a
request that nobody waits for is cancelled at the far end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from meshnode.net.credit import StreamCredit
from meshnode.wire.registry import Reset

if TYPE_CHECKING:
    from meshnode.net.link import Link
    from meshnode.net.multiplexer import Multiplexer

HIGH_WATER_BYTES = 256 << 10
LOW_WATER_BYTES = 128 << 10
CRUMB_BYTES = 1024


class LinkLost(ConnectionResetError):
    """The connection to the peer is over, and all its streams with it. `code` is the close code, 0 if not known."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class StreamReset(ConnectionResetError):
    """The stream was ended before its time, here or there. `code` is one of the reset codes of the registry."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stream reset ({code:#x})")
        self.code = code


class MeshStream:
    """Made by `Link.open_stream` or handed to `Handler.stream_opened`. One task reads, one writes."""

    def __init__(self, link: Link, multiplexer: Multiplexer, stream_id: int, now: float) -> None:
        self.link = link
        self._multiplexer = multiplexer
        self.id = stream_id
        self.credit = StreamCredit(now)
        self._watched = True
        self._chunks: deque[bytes] = deque()
        self._begun = 0
        """So many bytes of the first chunk have been read."""
        self._waiting_bytes = 0
        self._peer_done = False
        self._done = False
        self._broken: OSError | None = None
        self._readable: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._broke: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"MeshStream({self.id})"

    # --- reading ---------------------------------------------------------------------------------------------

    async def read(self, limit_bytes: int) -> bytes:
        """At most `limit_bytes` (above 0), as soon as there are any; b"" after the peer's end.

        Raises StreamReset or LinkLost, also when bytes were left unread. Cancelling loses no data.
        """
        while not self._chunks:
            self._check()
            if self._peer_done:
                return b""
            await self._wait_readable()
        data = self._take(limit_bytes)
        self._waiting_bytes -= len(data)
        self._multiplexer.taken(self, len(data))
        return data

    async def read_exactly(self, n: int) -> bytes:
        """Exactly `n` bytes. Raises asyncio.IncompleteReadError when the peer ends before; else as `read`."""
        pieces: list[bytes] = []
        missing = n
        while missing:
            piece = await self.read(missing)
            if not piece:
                raise asyncio.IncompleteReadError(b"".join(pieces), n)
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _wait_readable(self) -> None:
        assert self._readable is None, "two tasks read one stream"
        self._readable = self._multiplexer.loop.create_future()
        try:
            await self._readable
        finally:
            self._readable = None

    def _take(self, limit_bytes: int) -> bytes:
        """As many whole chunks as fit, or a part of the first: a chunk is one packet's, and callers want more."""
        chunks, start = self._chunks, self._begun
        if len(chunks[0]) - start > limit_bytes:
            self._begun += limit_bytes
            return chunks[0][start : self._begun]
        data = chunks.popleft()[start:]
        self._begun = 0
        if not chunks or len(data) + len(chunks[0]) > limit_bytes:
            return data
        pieces, size = [data], len(data)
        while chunks and size + len(chunks[0]) <= limit_bytes:
            pieces.append(chunks.popleft())
            size += len(pieces[-1])
        return b"".join(pieces)

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken.with_traceback(None)

    # --- writing ---------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue `data`. Raises StreamReset or LinkLost when it cannot be sent any more."""
        self._check()
        assert not self._done, "write after write_eof"
        if data:
            self._multiplexer.send(self, data, False)

    async def drain(self) -> None:
        """Wait while more than HIGH_WATER_BYTES are unsent, until no more than half of it are. Raises as `write`."""
        if self._broken is None and self._multiplexer.unsent_bytes(self) > HIGH_WATER_BYTES:
            if self._drained is None:
                self._drained = self._multiplexer.loop.create_future()
                self._multiplexer.wait_drained(self)
            await asyncio.shield(self._drained)
        self._check()

    def write_eof(self) -> None:
        """End this direction; the peer reads b"" after the last byte. The other direction stays open. Idempotent."""
        if not self._done and self._broken is None:
            self._done = True
            self._multiplexer.send(self, b"", True)

    # --- ending ----------------------------------------------------------------------------------------------

    def reset(self, code: int) -> None:
        """End both directions at once; the peer gets StreamReset(code). Idempotent, and nothing after the end."""
        if self._broken is None:
            self._multiplexer.abandon(self.id, code)
            self.broke(StreamReset(code))

    def abort(self) -> None:
        """Nobody waits for this any more: reset(CANCELLED)."""
        self.reset(Reset.CANCELLED)

    def is_closing(self) -> bool:
        """Whether writing is over: after `write_eof`, a reset by either side, or the loss of the link."""
        return self._done or self._broken is not None

    @property
    def silent(self) -> bool:
        """Nothing is heard of the peer at the moment, though it was asked: it may be gone, or come back."""
        return self.link.silent

    async def broken(self) -> OSError:
        """Wait until the stream is reset by either side or the link is lost, and return that error.

        For whoever works for the peer without reading or writing at the moment, and would stop if it went away.
        """
        if self._broken is None:
            if self._broke is None:
                self._broke = self._multiplexer.loop.create_future()
            await asyncio.shield(self._broke)
        assert self._broken is not None
        return self._broken

    # --- importance ------------------------------------------------------------------------------------------

    @property
    def watched(self) -> bool:
        """Whether the liveness of the peer is watched closely while this stream is open (the default).

        Set to False for a stream that stays open for long without anybody waiting for it.
        """
        return self._watched

    @watched.setter
    def watched(self, watched: bool) -> None:
        if watched != self._watched:
            self._watched = watched
            self._multiplexer.watch_changed()

    # --- called by the link ----------------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        """What has arrived and was not read."""
        return self._waiting_bytes

    @property
    def is_finished(self) -> bool:
        """Whether both directions came to their orderly end."""
        return self._done and self._peer_done and not self._chunks

    def arrived(self, data: bytes, end: bool) -> None:
        """The next bytes of the peer, and whether they are its last."""
        if data:
            # Crumbs are put together, as each piece has a price in memory.
            if self._chunks and len(self._chunks[-1]) + len(data) <= CRUMB_BYTES:
                self._chunks[-1] += data
            else:
                self._chunks.append(data)
            self._waiting_bytes += len(data)
        self._peer_done = self._peer_done or end
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def drained(self) -> None:
        """Little enough is unsent."""
        waiter, self._drained = self._drained, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def broke(self, reason: OSError) -> None:
        """Both directions are over. Whoever waits is told."""
        if self._broken is not None:
            return
        self._broken = reason
        self._chunks.clear()
        self._waiting_bytes = 0
        for waiter in (self._readable, self._broke):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self.drained()
