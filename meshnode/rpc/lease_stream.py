"""The messages of one lease on their stream: frames of bounded size, and nothing but those of a lease."""

from __future__ import annotations

import asyncio

from meshnode.net.stream import MeshStream
from meshnode.wire.frames import ID_BYTES, LENGTH_BYTES, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.registry import LIMIT_LEASE_FRAME_BYTES
from meshnode.wire.splits import LEASE_MESSAGES, LeaseMessage
from meshnode.wire.values import WireError


class LeaseStream:
    """Both directions of a lease. One task reads; what is sent is small and queued at once."""

    def __init__(self, stream: MeshStream) -> None:
        self.stream = stream

    def send(self, message: LeaseMessage) -> None:
        """Queue a message. Nothing happens when the stream is over: whoever reads hears of that."""
        if not self.stream.is_closing():
            self.stream.write(encode_frame(message_id(message), encode_message(message)))

    def finish(self) -> None:
        """End this direction."""
        self.stream.write_eof()

    async def receive(self) -> LeaseMessage | None:
        """The next message; None after the peer's end. Unknown odd ones are passed over.

        Raises WireError for what breaks the rules or has no place on this stream, OSError when the stream breaks.
        """
        while True:
            try:
                size = int.from_bytes(await self.stream.read_exactly(LENGTH_BYTES), "big")
                if not ID_BYTES <= size <= LIMIT_LEASE_FRAME_BYTES:
                    raise WireError(f"a frame of {size} bytes on a lease stream")
                frame = await self.stream.read_exactly(size)
            except asyncio.IncompleteReadError as error:
                if error.partial or error.expected != LENGTH_BYTES:
                    raise WireError("a lease stream that ends within a frame") from None
                return None
            number = int.from_bytes(frame[:ID_BYTES], "big")
            if number not in LEASE_MESSAGES and number % 2 == 0:
                raise WireError(f"the message {number} on a lease stream")
            message: LeaseMessage | None = decode_message(number, frame[ID_BYTES:])
            if message is not None:
                return message
