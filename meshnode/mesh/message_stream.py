"""Messages on a stream of their own: frames of bounded size, and only those that have a place there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from meshnode.wire.frames import ID_BYTES, LENGTH_BYTES, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.values import WireError

FRAME_BYTES = 1024
"""Longer than any message of `relay` and `punch` streams can be."""
MOST_PASSED_OVER = 64
"""Messages of a later version that may stand before one that is understood."""


class Stream(Protocol):
    """What is needed of net.stream.MeshStream."""

    async def read_exactly(self, n: int) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def reset(self, code: int) -> None: ...
    def is_closing(self) -> bool: ...


class MessageStream:
    """Both directions of one stream. One task reads; what is sent is small and queued at once.

    `accepts` are the ids and shapes of the messages that may come.
    """

    def __init__(self, stream: Stream, accepts: Mapping[int, type[Any]], *, frame_bytes: int = FRAME_BYTES) -> None:
        self.stream = stream
        self._accepts = accepts
        self._frame_bytes = frame_bytes

    def send(self, message: Any) -> None:
        """Queue a message. Nothing happens when the stream is over: whoever reads hears of that."""
        if not self.stream.is_closing():
            self.stream.write(encode_frame(message_id(message), encode_message(message)))

    def finish(self, last: Any = None) -> None:
        """End this direction, with a last word or without."""
        if last is not None:
            self.send(last)
        self.stream.write_eof()

    async def receive(self, timeout_s: float | None = None) -> Any:
        """The next message; None after the peer's end. Unknown odd ones are passed over.

        Raises WireError for what breaks the rules or has no place on this stream, OSError when the stream breaks,
        TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            for _ in range(MOST_PASSED_OVER):
                frame = await self._frame()
                if frame is None:
                    return None
                number = int.from_bytes(frame[:ID_BYTES], "big")
                if number not in self._accepts and number % 2 == 0:
                    raise WireError(f"the message {number} on a stream of other ones")
                message = decode_message(number, frame[ID_BYTES:])
                if message is not None and number in self._accepts:
                    return message
            raise WireError("nothing but unknown messages")

    async def _frame(self) -> bytes | None:
        within = False
        try:
            head = await self.stream.read_exactly(LENGTH_BYTES)
            size, within = int.from_bytes(head, "big"), True
            if not ID_BYTES <= size <= self._frame_bytes:
                raise WireError(f"a frame of {size} bytes, at most {self._frame_bytes}")
            return await self.stream.read_exactly(size)
        except asyncio.IncompleteReadError as error:
            if within or error.partial:
                raise WireError("a stream that ends within a frame") from None
            return None
