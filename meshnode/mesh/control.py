"""The control stream of one session: frames in and out, and the same messages as datagrams.

What waits to be sent is bounded: a peer that does not read its control stream is told so by `overflow`, and keeps at
most that much memory busy. What comes in is decoded frame by frame; a reader needs no more than one frame.

    datagram   message id u16 | body        the same ids and bodies as in a frame
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from meshnode.net.stream import MeshStream
from meshnode.wire.frames import ID_BYTES, FrameReader, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.registry import LIMIT_DATAGRAM_BYTES
from meshnode.wire.values import WireError

READ_BYTES = 64 << 10
JOINED_BYTES = 32 << 10
TURN_MESSAGES = 64


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """`waiting_bytes` may wait for a peer to read; a frame that has begun is complete after `frame_s`."""

    waiting_bytes: int = 8 << 20
    frame_s: float = 60.0


class Stalled(Exception):
    """The peer began a frame and never ended it."""


def frame_of(message: Any) -> bytes:
    """The frame of a message. Raises WireError for one that is too large: that is our own mistake."""
    return encode_frame(message_id(message), encode_message(message))


def datagram_of(message: Any) -> bytes:
    """The datagram of a message. Raises WireError for one that is too large."""
    data = message_id(message).to_bytes(ID_BYTES, "big") + encode_message(message)
    if len(data) > LIMIT_DATAGRAM_BYTES:
        raise WireError(f"a datagram of {len(data)} bytes, at most {LIMIT_DATAGRAM_BYTES}")
    return data


def message_in(datagram: bytes) -> Any:
    """The message of a datagram, None for an unknown odd id. Raises WireError."""
    if not ID_BYTES <= len(datagram) <= LIMIT_DATAGRAM_BYTES:
        raise WireError(f"a datagram of {len(datagram)} bytes")
    return decode_message(int.from_bytes(datagram[:ID_BYTES], "big"), datagram[ID_BYTES:])


class Control:
    """One control stream after admission. `overflow` is called once, when the peer reads too slowly."""

    def __init__(
        self, stream: MeshStream, *, overflow: Callable[[], None], limits: ControlLimits = ControlLimits()
    ) -> None:
        self._stream = stream
        self._overflow = overflow
        self._limits = limits
        self._queue: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._over = False
        # The membership machine probes its neighbours by itself; a second watch of the same peer would double that.
        stream.watched = False

    @property
    def waiting_bytes(self) -> int:
        """What is queued here and has not been handed to the stream."""
        return self._waiting_bytes

    def send(self, frame: bytes) -> None:
        """Queue a frame. Dropped once the stream is over."""
        if self._over:
            return
        self._queue.append(frame)
        self._waiting_bytes += len(frame)
        if self._waiting_bytes > self._limits.waiting_bytes:
            self._end()
            self._overflow()
            return
        self._empty.clear()
        self._wake.set()

    async def write(self) -> None:
        """Send what is queued, until `close`. Raises OSError when the stream breaks."""
        try:
            while not self._over:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    self._stream.write(self._next())
                    await self._stream.drain()
                self._empty.set()
        finally:
            self._end()

    async def flushed(self) -> None:
        """Wait until nothing is queued here any more."""
        await self._empty.wait()

    async def messages(self) -> AsyncIterator[Any]:
        """Every message that arrives, until the peer ends the stream.

        Raises WireError for a frame that breaks the rules, Stalled, and OSError when the stream breaks.
        """
        frames = FrameReader()
        count = 0
        while True:
            try:
                async with asyncio.timeout(self._limits.frame_s if frames.waiting_bytes else None):
                    data = await self._stream.read(READ_BYTES)
            except TimeoutError:
                raise Stalled from None
            if not data:
                return
            for number, body in frames.feed(data):
                message = decode_message(number, body)
                if message is not None:
                    yield message
                count += 1
                if count % TURN_MESSAGES == 0:
                    await asyncio.sleep(0)  # a peer that sends without pause takes turns with all others

    def _next(self) -> bytes:
        frames = [self._queue.popleft()]
        size = len(frames[0])
        while self._queue and size + len(self._queue[0]) <= JOINED_BYTES:
            size += len(self._queue[0])
            frames.append(self._queue.popleft())
        self._waiting_bytes -= size
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def close(self) -> None:
        """Send nothing any more."""
        self._end()
        self._wake.set()

    def _end(self) -> None:
        self._over = True
        self._queue.clear()
        self._waiting_bytes = 0
        self._empty.set()
