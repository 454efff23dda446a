import asyncio

import pytest

from meshnode.mesh.message_stream import FRAME_BYTES, MOST_PASSED_OVER, MessageStream
from meshnode.net.stream import MeshStream
from meshnode.wire.frames import encode_frame
from meshnode.wire.messages import encode_message
from meshnode.wire.registry import MessageId, RelayCode, Reset
from meshnode.wire.traversal import RELAY_MESSAGES, PunchDone, RelayConnect, RelayEnd, RelayReserve
from meshnode.wire.values import WireError, encode
from tests.mesh.memory_link import memory_links

pytestmark = pytest.mark.anyio
ODD = 0xFFFF


async def ends() -> tuple[MessageStream, MeshStream]:
    """A stream of messages, and the bare other end."""
    opened: asyncio.Queue[MeshStream] = asyncio.Queue()
    near, _ = memory_links(opened.put_nowait)
    bare = near.open_stream()
    bare.write(b"!")
    far = await opened.get()
    assert await far.read(1) == b"!"
    return MessageStream(far, RELAY_MESSAGES), bare


def framed(message: object, number: int) -> bytes:
    return encode_frame(number, encode_message(message))


async def test_messages_in_both_directions_and_the_end() -> None:
    messages, bare = await ends()
    bare.write(framed(RelayReserve(), MessageId.RELAY_RESERVE))
    bare.write(encode_frame(ODD, encode(["of a later version"])))
    bare.write(framed(RelayConnect(b"n" * 32), MessageId.RELAY_CONNECT))
    assert await messages.receive(1.0) == RelayReserve()
    assert await messages.receive(1.0) == RelayConnect(b"n" * 32)
    messages.finish(RelayEnd(RelayCode.DONE))
    assert await bare.read(100) == framed(RelayEnd(RelayCode.DONE), MessageId.RELAY_END)
    assert await bare.read(100) == b""
    bare.write_eof()
    assert await messages.receive(1.0) is None
    messages.send(RelayEnd(RelayCode.DONE))
    messages.finish(RelayEnd(RelayCode.DONE))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (framed(PunchDone(), MessageId.PUNCH_DONE), "of other ones"),
        (encode_frame(0xFFFE, encode({})), "of other ones"),
        ((FRAME_BYTES + 1).to_bytes(4, "big"), "a frame of"),
        ((1).to_bytes(4, "big"), "a frame of"),
        (encode_frame(MessageId.RELAY_CONNECT, b"\xc1"), "not a value"),
        (encode_frame(ODD, b"\xc1"), "not a value"),
        (encode_frame(ODD, encode(0)) * (MOST_PASSED_OVER + 1), "unknown messages"),
    ],
)
async def test_what_breaks_the_rules(data: bytes, why: str) -> None:
    messages, bare = await ends()
    bare.write(data)
    with pytest.raises(WireError, match=why):
        await messages.receive(1.0)


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\4", b"\0\0\0\x10abc"])
async def test_a_frame_that_never_ends(data: bytes) -> None:
    messages, bare = await ends()
    bare.write(data)
    with pytest.raises(TimeoutError):
        await messages.receive(0.02)
    messages, bare = await ends()
    bare.write(data)
    bare.write_eof()
    with pytest.raises(WireError, match="within a frame"):
        await messages.receive(1.0)


async def test_a_stream_that_breaks() -> None:
    messages, bare = await ends()
    bare.reset(Reset.CANCELLED)
    with pytest.raises(OSError, match="reset"):
        await messages.receive(1.0)
    messages.send(RelayEnd(RelayCode.DONE))
