import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.mesh.control import Control, ControlLimits, Stalled, datagram_of, frame_of, message_in
from meshnode.net.stream import MeshStream
from meshnode.wire.frames import encode_frame
from meshnode.wire.messages import IHave, Probe, Prune, Statements
from meshnode.wire.registry import LIMIT_DATAGRAM_BYTES
from meshnode.wire.values import WireError, encode
from tests.mesh.memory_link import memory_links

pytestmark = pytest.mark.anyio
LIMITS = ControlLimits()


@asynccontextmanager
async def two_ends(limits: ControlLimits = LIMITS) -> AsyncIterator[tuple[Control, MeshStream, list[str]]]:
    """A Control whose writer runs, the peer's bare stream, and what overflowed."""
    accepted: asyncio.Queue[MeshStream] = asyncio.Queue()
    overflows: list[str] = []
    near, _ = memory_links(accepted.put_nowait)
    stream = near.open_stream()
    stream.write(b"!")
    peer = await accepted.get()
    assert await peer.read(1) == b"!"
    control = Control(stream, overflow=lambda: overflows.append("too slow"), limits=limits)
    writer = asyncio.ensure_future(control.write())
    yield control, peer, overflows
    writer.cancel()
    with suppress(asyncio.CancelledError, OSError):
        await writer


async def collected(control: Control) -> list[Any]:
    return [message async for message in control.messages()]


async def test_messages_travel_both_ways_in_order() -> None:
    messages = [Probe(1), IHave((b"0123456789",) * 300), Prune(), Statements((b"x" * 900,) * 40), Probe(2)]
    async with two_ends() as (control, peer, _):
        for message in messages:
            control.send(frame_of(message))
            peer.write(frame_of(message))
        await control.flushed()
        peer.write_eof()
        assert await collected(control) == messages
        whole = b"".join(frame_of(message) for message in messages)
        assert await peer.read_exactly(len(whole)) == whole
        assert control.waiting_bytes == 0


async def test_frames_may_come_byte_by_byte_and_unknown_odd_ones_are_passed_over() -> None:
    async with two_ends() as (control, peer, _):
        for byte in frame_of(Probe(7)) + encode_frame(9999, encode({0: b"later"})) + frame_of(Prune()):
            peer.write(bytes((byte,)))
        peer.write_eof()
        assert await collected(control) == [Probe(7), Prune()]


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(9998, b""),
        encode_frame(6, b"\xff"),
        encode_frame(6, b""),
        (1 << 30).to_bytes(4, "big") + b"ab",
        b"\0\0\0\0",
    ],
)
async def test_a_frame_that_breaks_the_rules(data: bytes) -> None:
    async with two_ends() as (control, peer, _):
        peer.write(frame_of(Probe(1)) + data)
        seen = []
        with pytest.raises(WireError):
            async for message in control.messages():
                seen.append(message)
        assert seen == [Probe(1)]


async def test_half_a_frame_is_waited_for_only_so_long() -> None:
    async with two_ends(ControlLimits(frame_s=0.02)) as (control, peer, _):
        peer.write(frame_of(Probe(1))[:-1])
        with pytest.raises(Stalled):
            await collected(control)


async def test_a_peer_that_never_reads_holds_so_much_memory_and_no_more() -> None:
    frame = frame_of(Statements((b"x" * 1000,) * 40))
    async with two_ends(ControlLimits(waiting_bytes=1 << 20)) as (control, peer, overflows):
        for _ in range(1000):
            control.send(frame)
            assert control.waiting_bytes <= 1 << 20
            await asyncio.sleep(0)
            if overflows:
                break
        assert overflows == ["too slow"]
        control.send(frame)
        assert control.waiting_bytes == 0
        assert peer.link.other.most_unsent_bytes < 1 << 20  # type: ignore[attr-defined]
        await control.flushed()


async def test_a_peer_that_sends_without_pause_leaves_the_loop_to_others() -> None:
    async with two_ends() as (control, peer, _):
        peer.write(frame_of(Prune()) * 5000)
        peer.write_eof()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        other = asyncio.ensure_future(count())
        assert len(await collected(control)) == 5000
        other.cancel()
        assert turns >= 5000 // 64


async def test_the_writer_ends_with_the_stream() -> None:
    async with two_ends() as (control, peer, _):
        peer.abort()
        await asyncio.sleep(0.01)
        control.send(frame_of(Prune()))
        with pytest.raises(OSError):
            await collected(control)
        await control.flushed()


def test_datagrams() -> None:
    assert message_in(datagram_of(Probe(5))) == Probe(5)
    assert message_in((9999).to_bytes(2, "big") + encode({0: b"later"})) is None
    with pytest.raises(WireError):
        datagram_of(IHave((b"0123456789",) * 200))


@given(st.binary(max_size=LIMIT_DATAGRAM_BYTES + 10))
def test_any_datagram_is_a_message_or_an_error(data: bytes) -> None:
    with suppress(WireError):
        message_in(data)
