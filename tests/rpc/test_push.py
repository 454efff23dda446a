import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from meshnode.net.stream import LinkLost, MeshStream
from meshnode.rpc.push import ENOUGH_BYTES, MOST_WAITING_BYTES, THREAD_BYTES, Arrivals, PushTarget, outgoing, receive
from meshnode.wire.tunnel_blocks import MOST_PUSH_BYTES, PushFlag, PushReader, push_head
from meshnode.wire.values import WireError
from tests.net.nodes import linked, read_all, until
from tests.wire.rpc_frames import reply

pytestmark = pytest.mark.anyio


def halve(data: bytes) -> bytes:
    """Two bytes of every four."""
    return bytes(memoryview(data)[2::4]) + bytes(memoryview(data)[3::4])


def double(data: bytes) -> bytes:
    return data * 2


@asynccontextmanager
async def pushing(receiving: Arrivals | None = None) -> AsyncIterator[tuple[PushTarget, MeshStream, list[OSError]]]:
    """A target, the stream of its pushes at the far end, and what was told to be broken."""
    async with linked() as (_, other, link, _far):
        errors: list[OSError] = []

        async def open_stream() -> MeshStream:
            await asyncio.sleep(0)
            stream = link.open_stream()
            stream.write(b"\4")
            return stream

        target = PushTarget(open_stream, lambda: None, lambda: None, errors.append)
        target.prepare()
        far = await other.stream()
        await far.read_exactly(1)
        yield target, far, errors
        target.close()


async def test_replies_become_pushes_in_order() -> None:
    async with pushing() as (target, far, errors):
        for number, size in ((1, 5), (2, 300_000), (7, 1)):
            data = reply(bytes([number]) * size)
            sink = outgoing(target, number, size, None)
            sink(data[:10], len(data) <= 10)
            if len(data) > 10:
                sink(data[10:], True)
        target.close()
        found = PushReader().feed(await read_all(far))
        assert [(number, body) for number, _, body in found] == [(1, b"\1" * 5), (2, b"\2" * 300_000), (7, b"\7")]
        assert errors == []


async def test_halves_keep_the_order_also_when_a_thread_makes_them() -> None:
    async with pushing() as (target, far, _):
        for number, size in ((1, 4 * THREAD_BYTES), (2, 8), (3, 2 * THREAD_BYTES)):
            sink = outgoing(target, number, size, halve)
            data = reply(bytes([0, 0, number, number]) * (size // 4))
            sink(data[:9], False)
            sink(data[9:], True)
        reader, found = PushReader(), []
        async with asyncio.timeout(5):
            while len(found) < 3:
                found += reader.feed(await far.read(1 << 20))
        assert [(number, flags, len(body)) for number, flags, body in found] == [
            (1, PushFlag.HALF, 2 * THREAD_BYTES),
            (2, PushFlag.HALF, 4),
            (3, PushFlag.HALF, THREAD_BYTES),
        ]
        assert found[1][2] == b"\2\2\2\2"


async def test_what_halves_cannot_hold_is_pushed_whole() -> None:
    def refuse(data: bytes) -> bytes:
        raise ValueError("a value is beyond what 16 bits hold")

    async with pushing() as (target, far, errors):
        sizes = {1: 2 * THREAD_BYTES, 2: 8}
        for number, size in sizes.items():
            outgoing(target, number, size, refuse)(reply(bytes([number]) * size), True)
        outgoing(target, 3, 8, halve)(reply(b"\0\0\3\3" * 2), True)
        reader, found = PushReader(), []
        async with asyncio.timeout(5):
            while len(found) < 3:
                found += reader.feed(await far.read(1 << 20))
        assert found[:2] == [(number, PushFlag(0), bytes([number]) * size) for number, size in sizes.items()]
        assert found[2] == (3, PushFlag.HALF, b"\3" * 4) and errors == []


async def test_sizes_that_no_push_may_have_are_refused() -> None:
    async with pushing() as (target, _, _errors):
        for size in (0, MOST_PUSH_BYTES + 1):
            with pytest.raises(WireError):
                outgoing(target, 1, size, None)


async def test_a_stream_that_cannot_be_opened_is_told() -> None:
    errors: list[OSError] = []

    async def open_stream() -> MeshStream:
        raise LinkLost("no connection")

    target = PushTarget(open_stream, lambda: None, lambda: None, errors.append)
    target.write(b"data")
    await until(lambda: bool(errors))
    assert isinstance(errors[0], LinkLost)
    target.close()


# --- arrivals -----------------------------------------------------------------------------------------------------


def test_a_push_waits_for_its_command_and_a_command_for_its_push() -> None:
    arrivals, given = Arrivals(), []
    arrivals.arrived(self := object(), 1, b"one")
    assert arrivals.claim(1, given.append) == b"one"
    assert arrivals.claim(2, given.append) is None
    arrivals.arrived(self, 3, b"three")
    assert given == []
    arrivals.arrived(self, 2, b"two")
    assert given == [b"two"] and arrivals.unclaimed_bytes == 5
    assert arrivals.claim(3, given.append) == b"three" and arrivals.unclaimed_bytes == 0


def test_what_nobody_claimed_goes_with_its_stream() -> None:
    arrivals, one, other = Arrivals(), object(), object()
    arrivals.arrived(one, 1, b"one")
    arrivals.arrived(other, 2, b"two")
    arrivals.forget(one)
    assert arrivals.unclaimed_bytes == 3
    with pytest.raises(WireError):
        arrivals.arrived(one, 2, b"two")
    arrivals.forget()
    assert arrivals.unclaimed_bytes == 0
    arrivals.arrived(one, 2, b"two")


async def test_no_more_is_read_than_can_be_held_unless_a_command_waits() -> None:
    arrivals, source = Arrivals(), object()
    half = bytes(ENOUGH_BYTES // 2)
    arrivals.arrived(source, 1, half)
    await asyncio.wait_for(arrivals.room(), 1)
    arrivals.arrived(source, 2, half)
    waiting = asyncio.create_task(arrivals.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert arrivals.claim(9, lambda _: None) is None
    await asyncio.wait_for(waiting, 1)
    largest = bytes(MOST_PUSH_BYTES)
    arrivals.arrived(source, 3, largest)
    arrivals.arrived(source, 4, largest)
    assert arrivals.unclaimed_bytes == MOST_WAITING_BYTES
    with pytest.raises(WireError):
        arrivals.arrived(source, 5, b"x")


# --- receiving ----------------------------------------------------------------------------------------------------


async def test_pushes_of_a_stream_are_taken_in() -> None:
    async with linked() as (_, other, link, _far):
        arrivals, given = Arrivals(), []
        arrivals.claim(2, given.append)
        stream = link.open_stream()
        stream.write(push_head(1, PushFlag(0), 3) + b"one" + push_head(2, PushFlag.HALF, 2) + b"ab")
        task = asyncio.create_task(receive(await other.stream(), arrivals, double))
        await until(lambda: given == [b"abab"])
        assert arrivals.unclaimed_bytes == 3
        stream.write_eof()
        await task
        assert arrivals.unclaimed_bytes == 0


@pytest.mark.parametrize(
    "sent",
    [
        push_head(1, PushFlag.HALF, 2) + b"ab",
        push_head(1, PushFlag.HALF, 3) + b"abc",
        push_head(5, PushFlag(0), 2) + b"ab" + push_head(4, PushFlag(0), 2),
        push_head(1, PushFlag(0), 9) + b"ab",
        push_head(1, PushFlag(0), 9),
        b"\0\0",
    ],
    ids=["halves", "odd halves", "falling ids", "cut short", "no data", "half a head"],
)
async def test_streams_that_break_the_rules_are_refused(sent: bytes) -> None:
    async with linked() as (_, other, link, _far):
        stream = link.open_stream()
        stream.write(sent)
        stream.write_eof()
        with pytest.raises(WireError):
            await receive(await other.stream(), Arrivals(), double if len(sent) == 16 else None)
