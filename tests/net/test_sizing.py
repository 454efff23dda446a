"""The size of datagrams over the life of a connection that changes its path."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from meshnode.net.path import BLACK_HOLE_TIMEOUTS
from meshnode.net.sizing import Sizing

pytestmark = pytest.mark.anyio


class Quic:
    """Takes sizes, and answers probes when told."""

    datagram_bytes = 1200
    lost_probes = 0

    def __init__(self) -> None:
        self.asked: list[tuple[int, Callable[[bool], None]]] = []

    def set_datagram_bytes(self, size: int) -> None:
        self.datagram_bytes = size

    def size_probe(self, size: int, now: float, arrived: Callable[[bool], None]) -> list[bytes]:
        self.asked.append((size, arrived))
        return [bytes(size)]


def made(sizes: list[int]) -> tuple[Sizing, Any, list[bytes]]:
    quic: Any = Quic()
    sent: list[bytes] = []
    return Sizing(asyncio.get_running_loop(), quic, sizes=lambda: sizes, send=sent.extend), quic, sent


async def test_the_largest_that_arrives_is_used() -> None:
    sizing, quic, sent = made([1452, 16384])
    sizing.begin()
    for _ in range(2):
        quic.asked.pop()[1](False)
        await asyncio.sleep(0)
    size, arrived = quic.asked.pop()
    assert (size, quic.datagram_bytes) == (1452, 1200)
    arrived(True)
    await asyncio.sleep(0)
    assert quic.datagram_bytes == 1452 and quic.asked == []
    assert [len(data) for data in sent] == [16384, 16384, 1452]


async def test_another_path_begins_small_and_the_old_one_is_remembered() -> None:
    sizing, quic, _ = made([1452])
    sizing.begin()
    quic.asked.pop()[1](True)
    sizing.leave()
    assert quic.datagram_bytes == 1200
    sizing.leave()
    sizing.come_back()
    assert quic.datagram_bytes == 1452
    sizing.come_back()
    assert quic.datagram_bytes == 1452, "it has not left"
    sizing.leave()
    sizing.begin()
    assert quic.datagram_bytes == 1200 and [size for size, _ in quic.asked] == [1452]
    sizing.come_back()
    assert quic.datagram_bytes == 1200, "the old path is forgotten"


async def test_a_late_answer_about_a_path_that_was_left_counts_only_there() -> None:
    sizing, quic, _ = made([1452])
    sizing.begin()
    arrived = quic.asked.pop()[1]
    sizing.leave()
    arrived(True)
    assert quic.datagram_bytes == 1200
    sizing.come_back()
    assert quic.datagram_bytes == 1452


async def test_a_black_hole() -> None:
    sizing, quic, _ = made([1452])
    sizing.begin()
    quic.asked.pop()[1](True)
    quic.lost_probes = BLACK_HOLE_TIMEOUTS
    sizing.timed_out(monotonic())
    assert quic.datagram_bytes == 1200


async def test_nothing_is_sent_after_the_end() -> None:
    sizing, quic, sent = made([1452])
    sizing.stop()
    sizing.begin()
    assert sent == [] and quic.asked == []
