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
HEADER_BYTES = 1 + LENGTH_BYTES


def encode_frame(message_id: int, body: bytes) -> bytes:
    """One frame. Raises WireError for one that is too large."""
    size = ID_BYTES + len(body)
    if size > LIMIT_FRAME_BYTES:
        raise WireError(f"a frame of {size} bytes, at most {LIMIT_FRAME_BYTES}")
    return size.to_bytes(LENGTH_BYTES, "big") + message_id.to_bytes(ID_BYTES, "big") + body


class FrameReader:
    """Cuts what arrives into frames. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(message id, body) of every frame that is complete now. Raises WireError for an impossible length."""
        data = self._rest + data if self._rest else data
        at = 0
        try:
            while len(data) - at >= LENGTH_BYTES:
                size = int.from_bytes(data[at : at + LENGTH_BYTES], "big")
                if not ID_BYTES <= size <= LIMIT_FRAME_BYTES:
                    raise WireError(f"a frame of {size} bytes")
                end = at + LENGTH_BYTES + size
                if len(data) < end:
                    break
                body = at + LENGTH_BYTES + ID_BYTES
                at = end
                yield int.from_bytes(data[body - ID_BYTES : body], "big"), data[body:end]
        finally:
            self._rest = data[at:]


def encode_stream_header(kind: int, header: bytes) -> bytes:
    """What a stream begins with. Raises WireError for a header that is too large."""
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
