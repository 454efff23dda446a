"""One question or answer of the hash table on its stream: exactly one frame of bounded size, and then the end."""

from __future__ import annotations

from typing import Any

from meshnode.net.stream import MeshStream
from meshnode.wire.dht import DhtFind, DhtFound, DhtStore, DhtStored
from meshnode.wire.frames import FrameReader, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.registry import LIMIT_DHT_PEERS, LIMIT_DHT_RECORD_BYTES, LIMIT_DHT_RECORDS
from meshnode.wire.values import WireError

QUESTIONS = (DhtFind, DhtStore)
ANSWERS = (DhtFound, DhtStored)
MOST_PEER_BYTES = 256
MOST_BYTES = LIMIT_DHT_RECORDS * (LIMIT_DHT_RECORD_BYTES + 8) + LIMIT_DHT_PEERS * MOST_PEER_BYTES + 256
"""Longer than any message of the table can be: nobody is read further."""
READ_BYTES = 8192


def send(stream: MeshStream, message: DhtFind | DhtStore | DhtFound | DhtStored) -> None:
    """Queue a message and end this direction. Raises OSError when the stream is over."""
    stream.write(encode_frame(message_id(message), encode_message(message)))
    stream.write_eof()


async def receive(stream: MeshStream, shapes: tuple[type[Any], ...]) -> Any:
    """The one message of the peer, of one of these shapes.

    Raises WireError for anything else, OSError when the stream breaks.
    """
    frames = FrameReader()
    found: list[tuple[int, bytes]] = []
    size = 0
    while data := await stream.read(READ_BYTES):
        size += len(data)
        if size > MOST_BYTES:
            raise WireError("a message of the hash table is too long")
        found += frames.feed(data)
    if len(found) != 1 or frames.waiting_bytes:
        raise WireError("a stream of the hash table carries one message in each direction")
    [(number, body)] = found
    message = decode_message(number, body)
    if not isinstance(message, shapes):
        raise WireError(f"the message {number} has no place here")
    return message
