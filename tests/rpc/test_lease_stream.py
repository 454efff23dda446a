import asyncio

import pytest

from meshnode.rpc.lease_stream import LeaseStream
from meshnode.wire.frames import encode_frame
from meshnode.wire.messages import encode_message, message_id
from meshnode.wire.registry import LIMIT_LEASE_FRAME_BYTES, MessageId
from meshnode.wire.splits import LeaseEnd, LeaseLeaving, LeaseReady, LeaseWeights
from meshnode.wire.values import WireError, encode
from tests.mesh.memory_link import memory_links
from tests.net.nodes import LIMIT_S
from tests.rpc.lease_room import ASK

pytestmark = pytest.mark.anyio
MESSAGES = (ASK, LeaseWeights(1, 2), LeaseReady(True), LeaseLeaving(), LeaseEnd(3, "words"))


async def pair() -> tuple[LeaseStream, LeaseStream]:
    """Both ends of one stream, the first byte of which has been taken."""
    opened: asyncio.Queue[LeaseStream] = asyncio.Queue()
    link, _ = memory_links(lambda stream: opened.put_nowait(LeaseStream(stream)))
    near = LeaseStream(link.open_stream())
    near.stream.write(b"x")
    far = await opened.get()
    await far.stream.read_exactly(1)
    return near, far


async def test_messages_come_as_they_were_sent() -> None:
    near, far = await pair()
    for message in MESSAGES:
        near.send(message)
    near.finish()
    async with asyncio.timeout(LIMIT_S):
        assert [await far.receive() for _ in MESSAGES] == list(MESSAGES)
        assert await far.receive() is None


async def test_byte_by_byte() -> None:
    near, far = await pair()
    whole = b"".join(encode_frame(message_id(each), encode_message(each)) for each in MESSAGES)

    async def trickle() -> None:
        for byte in whole:
            near.stream.write(bytes((byte,)))
            await asyncio.sleep(0)

    async with asyncio.timeout(LIMIT_S):
        sending = asyncio.create_task(trickle())
        assert [await far.receive() for _ in MESSAGES] == list(MESSAGES)
        await sending


async def test_unknown_odd_messages_are_passed_over_if_they_are_values() -> None:
    near, far = await pair()
    near.stream.write(encode_frame(0xFFFF, encode([1])) + encode_frame(0xFFFF, b"\xc1"))
    with pytest.raises(WireError):
        await far.receive()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((LIMIT_LEASE_FRAME_BYTES + 1).to_bytes(4, "big"), "a frame of 4097 bytes"),
        (b"\x00\x00\x00\x01x", "a frame of 1 bytes"),
        (encode_frame(MessageId.PROBE, encode({0: 1})), "the message 6 on a lease stream"),
        (encode_frame(0xFFFE, encode({})), "the message 65534"),
        (encode_frame(MessageId.LEASE_READY, encode({})), "lacks has_weights"),
        (b"\x00\x00", "ends within a frame"),
        (encode_frame(MessageId.LEASE_END, encode({}))[:-1], "ends within a frame"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
async def test_what_breaks_the_rules(data: bytes, words: str) -> None:
    near, far = await pair()
    near.stream.write(data)
    near.finish()
    with pytest.raises(WireError, match=words):
        await far.receive()


async def test_nothing_is_sent_after_the_end() -> None:
    near, far = await pair()
    near.finish()
    near.send(LeaseLeaving())
    assert await far.receive() is None
    far.stream.abort()
    far.send(LeaseLeaving())
    far.finish()
