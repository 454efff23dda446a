"""The table of streams, over a connection that only writes down what is asked of it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.net.credit import STREAM_FIRST_BYTES
from meshnode.net.multiplexer import Multiplexer
from meshnode.net.stream import HIGH_WATER_BYTES, LinkLost, StreamReset
from meshnode.wire.registry import LIMIT_STREAMS_A_LINK, Reset

pytestmark = pytest.mark.anyio


class Connection:
    """Stands for the MeshQuic of a client."""

    def __init__(self) -> None:
        self.configuration = SimpleNamespace(is_client=True)
        self.smoothed_rtt_s = 0.01
        self.next_id = 0
        self.sent: list[tuple[int, bytes, bool]] = []
        self.abandoned: list[tuple[int, int]] = []
        self.limits: dict[int, int] = {}
        self.near = False
        self.waiting: list[int] = []
        self.unsent = 0

    def open_stream(self) -> int:
        self.next_id += 4
        return self.next_id - 4

    def rank_stream(self, stream_id: int, priority: int) -> None:
        pass

    def send_stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        if (stream_id, Reset.REFUSED) in self.abandoned:
            raise ValueError
        self.sent.append((stream_id, data, end))

    def abandon_stream(self, stream_id: int, code: int) -> None:
        self.abandoned.append((stream_id, code))

    def has_stream(self, stream_id: int) -> bool:
        return stream_id % 8 == 1

    def unsent_bytes(self, stream_id: int) -> int:
        return self.unsent

    def raise_stream_limit(self, stream_id: int, limit: int) -> bool:
        self.limits[stream_id] = limit
        return True

    def is_connection_limit_near(self, consumed: int) -> bool:
        return self.near

    def raise_connection_limit(self, waiting: int, consumed: int) -> bool:
        self.waiting.append(waiting)
        return True


class Bench:
    def __init__(self) -> None:
        self.quic = Connection()
        self.flushes = self.refusals = 0
        link: Any = SimpleNamespace(loop=asyncio.get_running_loop(), has_ended=False, watch_changed=lambda: None)
        quic: Any = self.quic
        self.streams = Multiplexer(link, quic, self._flush, self._refuse)

    def _flush(self) -> None:
        self.flushes += 1

    def _refuse(self) -> None:
        self.refusals += 1


@pytest.fixture
async def bench(anyio_backend: str) -> Bench:
    return Bench()


async def test_both_ends_over_and_everything_read(bench: Bench) -> None:
    stream = bench.streams.open(0)
    stream.write(b"question")
    stream.write_eof()
    assert bench.quic.sent == [(0, b"question", False), (0, b"", True)]
    bench.streams.arrived(stream, b"answer", True)
    assert len(bench.streams) == 1, "not read yet"
    assert await stream.read(100) == b"answer"
    assert len(bench.streams) == 0
    assert await stream.read(100) == b""


async def test_streams_of_the_peer_are_counted_and_late_data_opens_nothing(bench: Bench) -> None:
    streams = [bench.streams.accept(number * 4 + 1) for number in range(LIMIT_STREAMS_A_LINK)]
    assert None not in streams and bench.refusals == 0
    assert bench.streams.accept(9001) is None
    assert bench.refusals == 1 and bench.quic.abandoned == [(9001, Reset.OVERLOAD)]
    assert not bench.streams.is_new(9001) and not bench.streams.is_new(8), "refused, and one of ours"
    bench.streams.ended_by_peer(1, Reset.CANCELLED)
    assert not bench.streams.is_new(1) and bench.streams.is_new(9005)
    assert bench.streams.accept(9005) is not None


async def test_the_memory_of_ended_streams_is_bounded(bench: Bench) -> None:
    for number in range(2000):
        bench.streams.accept(number * 4 + 1)
        bench.streams.ended_by_peer(number * 4 + 1, Reset.CANCELLED)
    assert len(bench.streams._ended_by_us) <= 2000 // 2 + 2 * LIMIT_STREAMS_A_LINK
    assert len(bench.streams) == 0


async def test_credit_follows_what_is_read(bench: Bench) -> None:
    stream = bench.streams.accept(1)
    assert stream is not None
    bench.streams.arrived(stream, bytes(STREAM_FIRST_BYTES), False)
    assert bench.quic.limits == {}
    await stream.read_exactly(STREAM_FIRST_BYTES // 2)
    assert bench.quic.limits[1] >= STREAM_FIRST_BYTES + STREAM_FIRST_BYTES // 2
    bench.quic.near = True
    await stream.read_exactly(100)
    assert bench.quic.waiting == [STREAM_FIRST_BYTES // 2 - 100]


async def test_drain_waits_for_the_low_mark(bench: Bench) -> None:
    stream = bench.streams.open(0)
    await stream.drain()
    bench.quic.unsent = HIGH_WATER_BYTES + 1
    waiting = asyncio.create_task(stream.drain())
    await asyncio.sleep(0)
    bench.streams.sent()
    await asyncio.sleep(0)
    assert not waiting.done()
    bench.quic.unsent = HIGH_WATER_BYTES // 2
    bench.streams.sent()
    await waiting


async def test_a_stream_that_the_connection_has_given_up(bench: Bench) -> None:
    stream = bench.streams.open(0)
    bench.quic.abandoned.append((0, Reset.REFUSED))
    for _ in range(2):
        with pytest.raises(StreamReset):
            stream.write(b"x")


async def test_the_end_of_the_link_carries_its_code(bench: Bench) -> None:
    stream = bench.streams.open(0)
    bench.streams.break_all("gone", 0x112)
    with pytest.raises(LinkLost) as caught:
        await stream.read(1)
    assert caught.value.code == 0x112
    assert len(bench.streams) == 0
