"""Streams between two real endpoints, on both foundations."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from meshnode.net.credit import STREAM_FIRST_BYTES
from meshnode.net.link import Link
from meshnode.net.stream import HIGH_WATER_BYTES, LinkLost, MeshStream, StreamReset
from meshnode.wire.registry import Close, Reset
from tests.net.nodes import LIMIT_S, Node, echo, linked, read_all, until

pytestmark = pytest.mark.anyio

Line = tuple[Node, Link, Link]


@pytest.fixture(params=[False, True], ids=["stock", "fast"])
async def line(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Line]:
    """The node that is dialled, and the two ends of the link."""
    async with linked(fast=request.param) as (_, other, here, there), asyncio.timeout(LIMIT_S):
        yield other, here, there


async def opened(line: Line, first: bytes = b"?") -> tuple[MeshStream, MeshStream]:
    """Both ends of a new stream, after its first bytes."""
    stream = line[1].open_stream()
    stream.write(first)
    far = await line[0].stream()
    assert await far.read_exactly(len(first)) == first
    return stream, far


def state_of_both_is_gone(line: Line) -> bool:
    return not (line[1].streams or line[2].streams or line[1].quic._streams or line[2].quic._streams)


async def test_bytes_both_ways_and_half_close(line: Line) -> None:
    near, far = await opened(line)
    content = bytes(range(256)) * 4000
    answering = asyncio.create_task(echo(far))

    async def send() -> None:
        for start in range(0, len(content), 50_000):
            near.write(content[start : start + 50_000])
            await near.drain()
        near.write_eof()
        near.write_eof()

    sending = asyncio.create_task(send())
    assert await read_all(near) == content
    await asyncio.gather(answering, sending)
    assert await near.read(1) == b"", "the end stays"
    assert near.is_closing() and far.is_closing()
    await until(lambda: state_of_both_is_gone(line))


async def test_one_direction_ends_and_the_other_goes_on(line: Line) -> None:
    near, far = await opened(line)
    near.write_eof()
    assert await far.read(10) == b""
    assert not far.is_closing()
    for number in range(5):
        far.write(b"%d" % number)
        assert await near.read(10) == b"%d" % number
    far.write_eof()
    assert await near.read(10) == b""
    with pytest.raises(AssertionError):
        near.write(b"more")


async def test_reading_exactly(line: Line) -> None:
    near, far = await opened(line)
    near.write(b"abcdef")
    assert await far.read_exactly(0) == b""
    assert await far.read_exactly(4) == b"abcd"
    assert await far.read(1) == b"e"
    near.write_eof()
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await far.read_exactly(10)
    assert caught.value.partial == b"f"


async def test_pieces_are_joined_up_to_the_limit_and_divided_where_they_are_larger(line: Line) -> None:
    _, far = await opened(line)
    content = bytes(range(250)) * 56
    for start in range(0, 14_000, 1400):
        far.arrived(content[start : start + 1400], False)
    got = b""
    for limit, wanted in ((5000, 4200), (1000, 1000), (1, 1), (400, 399), (1399, 1399), (1 << 20, 7001)):
        piece = await far.read(limit)
        assert len(piece) == wanted
        got += piece
    assert got == content


async def test_crumbs_are_put_together(line: Line) -> None:
    _, far = await opened(line)
    for number in range(5000):
        far.arrived(bytes([number % 256]), False)
    assert len(far._chunks) <= 5
    far._waiting_bytes = 5000
    assert await far.read_exactly(5000) == bytes(number % 256 for number in range(5000))


async def test_cancelled_reading_loses_nothing(line: Line) -> None:
    near, far = await opened(line)
    reading = asyncio.create_task(far.read(10))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    near.write(b"kept")
    assert await far.read(10) == b"kept"


async def test_two_readers_are_a_mistake(line: Line) -> None:
    _, far = await opened(line)
    reading = asyncio.create_task(far.read(10))
    await asyncio.sleep(0)
    with pytest.raises(AssertionError):
        await far.read(10)
    reading.cancel()


async def test_a_reset_ends_both_directions_at_both_ends(line: Line) -> None:
    near, far = await opened(line)
    reading = asyncio.create_task(far.read(10))
    near.write(b"x" * 100)
    near.reset(Reset.TOO_SLOW)
    near.reset(Reset.CANCELLED)
    with pytest.raises(StreamReset) as caught:
        await reading
        await far.read(1000)
    assert caught.value.code == Reset.TOO_SLOW
    for action in (lambda: far.write(b"?"), lambda: near.write(b"?")):
        with pytest.raises(StreamReset):
            action()
    with pytest.raises(StreamReset):
        await near.read(1)
    with pytest.raises(StreamReset):
        await far.drain()
    assert far.is_closing() and near.is_closing()
    await until(lambda: state_of_both_is_gone(line))


async def test_a_request_that_was_sent_whole_can_still_be_cancelled(line: Line) -> None:
    near, far = await opened(line)
    near.write_eof()
    assert await far.read(1) == b""
    broken = asyncio.create_task(far.broken())
    await until(lambda: line[1].quic._streams[near.id].sender.is_finished)
    started = monotonic()
    near.abort()
    error = await broken
    assert isinstance(error, StreamReset) and error.code == Reset.CANCELLED
    assert monotonic() - started < 0.5
    with pytest.raises(StreamReset):
        await far.read(1)
    await until(lambda: state_of_both_is_gone(line))


async def test_an_answer_that_breaks_off_is_no_end(line: Line) -> None:
    near, far = await opened(line)
    near.write_eof()
    far.write(b"half an ans")
    assert await near.read(100) == b"half an ans"
    far.reset(Reset.UPSTREAM_BROKEN)
    with pytest.raises(StreamReset) as caught:
        await near.read(100)
    assert caught.value.code == Reset.UPSTREAM_BROKEN


async def test_a_reset_before_anything_was_sent_reaches_no_handler(line: Line) -> None:
    stream = line[1].open_stream()
    stream.abort()
    await until(lambda: state_of_both_is_gone(line))
    assert line[0].recorder.streams.empty()


async def test_the_loss_of_the_link_breaks_all_streams(line: Line) -> None:
    near, far = await opened(line)
    reading, waiting = asyncio.create_task(near.read(1)), asyncio.create_task(far.broken())
    await asyncio.sleep(0)
    line[1].close(Close.BANNED)
    for wanted in (reading, waiting):
        result = (await asyncio.gather(wanted, return_exceptions=True))[0]
        assert isinstance(result, LinkLost) and isinstance(result, OSError)
    with pytest.raises(LinkLost):
        near.write(b"x")
    near.abort()
    near.write_eof()
    with pytest.raises(LinkLost):
        line[1].open_stream()


async def test_a_reader_that_stops_stops_the_sender_and_nobody_else(line: Line) -> None:
    stuck, far = await opened(line)
    gc.collect()
    tracemalloc.start()
    try:
        written = 0

        async def flood() -> None:
            nonlocal written
            while True:
                stuck.write(bytes(65536))
                written += 65536
                await stuck.drain()

        flooding = asyncio.create_task(flood())
        await until(lambda: far.waiting_bytes >= STREAM_FIRST_BYTES - 1)
        near, other = await opened(line)
        answering = asyncio.create_task(echo(other))
        for _ in range(100):
            near.write(bytes(10_000))
            await near.read_exactly(10_000)
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert not flooding.done()
    assert written <= STREAM_FIRST_BYTES + HIGH_WATER_BYTES + 2 * 65536
    assert far.waiting_bytes <= STREAM_FIRST_BYTES
    assert grown < 4 << 20
    reading = 0
    while reading < 8 << 20:
        reading += len(await far.read(1 << 16))
    flooding.cancel()
    answering.cancel()


async def test_bulk_widens_the_window(line: Line) -> None:
    near, far = await opened(line)
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sent < 8 << 20:
            near.write(bytes(65536))
            sent += 65536
            await near.drain()
        near.write_eof()

    sending = asyncio.create_task(send())
    received = len(await read_all(far))
    await sending
    assert received == sent
    assert far.credit.limit_bytes >= sent


async def test_sixteen_streams_at_once(line: Line) -> None:
    pairs = [await opened(line, b"%02d" % number) for number in range(16)]
    answering = [asyncio.create_task(echo(far)) for _, far in pairs]

    async def ask(number: int, near: MeshStream) -> bytes:
        for _ in range(20):
            near.write(bytes([number]) * 3000)
            await near.drain()
        near.write_eof()
        return await read_all(near)

    answers = await asyncio.gather(*(ask(number, near) for number, (near, _) in enumerate(pairs)))
    assert answers == [bytes([number]) * 60_000 for number in range(16)]
    await asyncio.gather(*answering)
    await until(lambda: state_of_both_is_gone(line))
