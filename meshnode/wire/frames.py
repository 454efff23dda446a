"""Frames: how messages lie in a control stream, and how every stream begins.

    frame           length u32 | message id u16 | body          length counts id and body
    stream header   type u8    | length u32     | header        length counts the header alone

Integers are big-endian. A reader needs no more memory than one frame.
"""

from __future__ import annotations

from collections.abc import Iterator

from meshnode.wire.registry import LIMIT_FRAME_BYTES, LIMIT_STREAM_HEADER_BYTES
from meshnode.wire.values import WireError

LENGTH_BYTES = 4
ID_BYTES = 2
MAX_ID = 0xFFFF
MAX_KIND = 0xFF
HEADER_BYTES = 1 + LENGTH_BYTES


def encode_frame(message_id: int, body: bytes) -> bytes:
    """One frame. Raises WireError for one that is too large."""
    size = ID_BYTES + len(body)
    if not 0 <= message_id <= MAX_ID:
        raise WireError(f"no message has the id {message_id}")
    if size > LIMIT_FRAME_BYTES:
        raise WireError(f"a frame of {size} bytes, at most {LIMIT_FRAME_BYTES}")
    return size.to_bytes(LENGTH_BYTES, "big") + message_id.to_bytes(ID_BYTES, "big") + body


class FrameReader:
    """Cuts what arrives into frames. What has been taken out is forgotten at the next `feed`.

    The work is linear in the bytes, also when they come one by one. After a WireError there is no way on: a reader
    that has lost the beginning of a frame cannot find the next.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._at = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have come and are not part of a frame that was taken."""
        return len(self._held) - self._at

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(message id, body) of every frame that is complete now. Raises WireError for an impossible length, as soon
        as that length is there. What a caller does not take from the iterator comes with the next one.
        """
        if self._at:
            del self._held[: self._at]
            self._at = 0
        self._held += data
        return self._complete()

    def _complete(self) -> Iterator[tuple[int, bytes]]:
        while self.waiting_bytes >= LENGTH_BYTES:
            id_at = self._at + LENGTH_BYTES
            size = int.from_bytes(self._held[self._at : id_at], "big")
            if not ID_BYTES <= size <= LIMIT_FRAME_BYTES:
                raise WireError(f"a frame of {size} bytes")
            body_at, end = id_at + ID_BYTES, id_at + size
            if len(self._held) < end:
                return
            self._at = end
            yield int.from_bytes(self._held[id_at:body_at], "big"), bytes(self._held[body_at:end])


def encode_stream_header(kind: int, header: bytes) -> bytes:
    """What a stream begins with. Raises WireError for a type that is no byte, or a header that is too large."""
    if not 0 <= kind <= MAX_KIND:
        raise WireError(f"no stream has the type {kind}")
    if len(header) > LIMIT_STREAM_HEADER_BYTES:
        raise WireError(f"a stream header of {len(header)} bytes, at most {LIMIT_STREAM_HEADER_BYTES}")
    return bytes((kind,)) + len(header).to_bytes(LENGTH_BYTES, "big") + header


def decode_stream_header(begin: bytes) -> tuple[int, int]:
    """(type, bytes of the header that follows) from the first five bytes of a stream. Raises WireError."""
    if len(begin) != HEADER_BYTES:
        raise WireError("a stream that ends in its header")
    size = int.from_bytes(begin[1:], "big")
    if size > LIMIT_STREAM_HEADER_BYTES:
        raise WireError(f"a stream header of {size} bytes")
    return begin[0], size
