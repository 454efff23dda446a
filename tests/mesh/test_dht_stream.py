"""One frame in each direction, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshnode.mesh.dht_stream import ANSWERS, MOST_BYTES, QUESTIONS, receive, send
from meshnode.net.stream import MeshStream
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFind, DhtFound, DhtPeer, DhtStore, DhtStored
from meshnode.wire.frames import encode_frame
from meshnode.wire.messages import encode_message, message_id
from meshnode.wire.registry import LIMIT_DHT_PEERS, LIMIT_DHT_RECORD_BYTES, LIMIT_DHT_RECORDS
from meshnode.wire.values import WireError
from tests.mesh.memory_link import memory_links

pytestmark = pytest.mark.anyio

WHERE = tuple(Address(f"2001:db8:{number}::1", 9337) for number in range(1, 9))
LARGEST = DhtFound(
    tuple(DhtPeer(bytes((number,)) * 32, WHERE) for number in range(LIMIT_DHT_PEERS)),
    tuple(bytes((number,)) * LIMIT_DHT_RECORD_BYTES for number in range(LIMIT_DHT_RECORDS)),
    b"t" * 16,
)


def frame(message: Any) -> bytes:
    return encode_frame(message_id(message), encode_message(message))


async def received(data: bytes, shapes: tuple[type[Any], ...]) -> Any:
    opened: asyncio.Queue[MeshStream] = asyncio.Queue()
    near, _ = memory_links(opened.put_nowait)
    stream: MeshStream = near.open_stream()
    stream.write(data)
    stream.write_eof()
    return await receive(await opened.get(), shapes)


@pytest.mark.parametrize(
    "message", [DhtFind(b"k" * 32, True, True), DhtStore(b"t" * 16, (b"r",)), LARGEST, DhtStored(2)]
)
async def test_a_message_there_and_back(message: Any) -> None:
    opened: asyncio.Queue[MeshStream] = asyncio.Queue()
    near, _ = memory_links(opened.put_nowait)
    send(near.open_stream(), message)
    assert await receive(await opened.get(), (*QUESTIONS, *ANSWERS)) == message
    assert len(frame(message)) <= MOST_BYTES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        frame(DhtStored(1))[:-1],
        frame(DhtStored(1)) * 2,
        frame(DhtStored(1)) + b"\0",
        frame(DhtFind(b"k" * 32)),
        encode_frame(0xFFFF, b"\x80"),
        encode_frame(0xFFFE, b"\x80"),
        bytes(MOST_BYTES + 1),
    ],
)
async def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(WireError):
        await received(data, ANSWERS)
