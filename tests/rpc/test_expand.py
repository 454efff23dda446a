import asyncio
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode.rpc.expand import PIECE_BYTES, Feed, read_pieces

pytestmark = pytest.mark.anyio


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(random.Random(1).randbytes(3 << 20))
    return path


@pytest.fixture
def pipe() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The first end does not block, as one that an event loop owns."""
    one, other = socket.socketpair()
    one.setblocking(False)
    with one, other:
        yield one, other


async def test_pieces(weights: Path) -> None:
    pieces = [piece async for piece in read_pieces(weights, 1000, 2 << 20)]
    assert b"".join(pieces) == weights.read_bytes()[1000 : 1000 + (2 << 20)]
    assert max(map(len, pieces)) == PIECE_BYTES
    assert [piece async for piece in read_pieces(weights, 5, 0)] == []


async def test_a_file_that_has_become_shorter_is_noticed(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="shorter"):
        _ = [piece async for piece in read_pieces(weights, 2 << 20, 2 << 20)]
    with pytest.raises(OSError):
        _ = [piece async for piece in read_pieces(tmp_path / "none", 0, 1)]


async def test_a_feed_sends_parts_of_files_in_order(weights: Path, pipe: tuple[socket.socket, socket.socket]) -> None:
    """More than a socket holds, so that the thread has to wait for the reader."""
    data = weights.read_bytes()
    parts = [(b"head", weights, 7, 2 << 20), (b"", weights, 0, 10), (b"more", weights, 100, 0)]
    feed = asyncio.create_task(asyncio.to_thread(Feed(pipe[0], parts).run))
    expected = b"head" + data[7 : 7 + (2 << 20)] + data[:10] + b"more"
    assert await asyncio.to_thread(pipe[1].recv, len(expected), socket.MSG_WAITALL) == expected
    await feed


async def test_a_feed_ends_when_it_is_told_to(weights: Path, pipe: tuple[socket.socket, socket.socket]) -> None:
    feed = Feed(pipe[0], [(b"", weights, 0, 3 << 20)])
    running = asyncio.create_task(asyncio.to_thread(feed.run))
    assert await asyncio.to_thread(pipe[1].recv, 1000)
    feed.stop()
    with pytest.raises(ConnectionAbortedError):
        await running


async def test_a_feed_ends_with_its_reader_and_with_its_file(
    weights: Path, pipe: tuple[socket.socket, socket.socket]
) -> None:
    with pytest.raises(OSError, match="shorter"):
        await asyncio.to_thread(Feed(pipe[0], [(b"", weights, (3 << 20) - 10, 20)]).run)
    pipe[1].close()
    with pytest.raises(OSError):
        await asyncio.to_thread(Feed(pipe[0], [(b"", weights, 0, 3 << 20)]).run)
