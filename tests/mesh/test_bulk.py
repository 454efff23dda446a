"""Weights over streams: what is asked for comes, bounds hold on both sides, and who does not share says so."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from meshnode.mesh import bulk
from meshnode.mesh.bulk import BadAnswer, BulkLimits, BulkServer, PeerSource, ask_chunks, ask_have, ask_manifest
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire import schema, weights
from meshnode.wire.registry import BulkKind, Reset, Role
from tests.mesh.memory_link import code_of, memory_links

pytestmark = pytest.mark.anyio

MODEL, DIGEST = b"m" * 32, b"d" * 32
CHUNKS = {0: b"header", 1: random.Random(1).randbytes(3_000_000), 2: b"", 5: b"x" * 100}
SIZES = [(number, len(data) or 7) for number, data in CHUNKS.items()]


class Shelf:
    """A library of one model."""

    def manifest(self, model: bytes, digest: bytes) -> tuple[bytes, bytes] | None:
        return (b"manifest" * 50_000, b"\x27") if (model or MODEL) == MODEL and (digest or DIGEST) == DIGEST else None

    def have(self, digest: bytes) -> bytes | None:
        return b"\x27" if digest == DIGEST else None

    def read(self, digest: bytes, chunk: int) -> bytes | None:
        return CHUNKS.get(chunk) if digest == DIGEST else None


class Peer:
    """A serving node at the other end of a fake link. `serve` may be replaced by something that lies."""

    def __init__(self, library: Any = None, role: Role | None = Role.MEMBER, **limits: Any) -> None:
        self.counters: Counter[str] = Counter()
        self.ranked: list[MeshStream] = []
        self.server = BulkServer(library, counters=self.counters, limits=BulkLimits(**limits), rank=self.ranked.append)
        self.role = role
        self.headers: list[bytes] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.lie: Callable[[MeshStream], Any] | None = None
        self.caller, self.link = memory_links(self._opened)

    def _opened(self, stream: MeshStream) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self._serve(stream)))

    async def _serve(self, stream: MeshStream) -> None:
        if self.lie is not None:
            await self.lie(stream)
        else:
            await self.server.serve(stream, self.headers.pop(0), self.role)

    async def open(self, header: bytes) -> MeshStream:
        self.headers.append(header)
        stream: MeshStream = self.caller.open_stream()
        stream.write(b"")
        return stream


async def all_chunks(peer: Peer, chunks: list[tuple[int, int]], heard: Callable[[int], None] = lambda _: None) -> Any:
    async with aclosing(ask_chunks(peer.open, DIGEST, chunks, heard)) as found:
        return [each async for each in found]


async def test_manifest_and_bits() -> None:
    peer = Peer(Shelf())
    assert await ask_manifest(peer.open, model=MODEL) == (b"manifest" * 50_000, b"\x27")
    assert await ask_manifest(peer.open, digest=DIGEST) is not None
    assert await ask_manifest(peer.open, model=b"o" * 32) is None
    assert await ask_have(peer.open, DIGEST) == b"\x27"
    assert await ask_have(peer.open, MODEL) is None
    assert peer.counters == {"bulk_manifests": 3}
    assert len(peer.ranked) == 5, "answers go behind other streams"


async def test_chunks_come_in_the_order_asked() -> None:
    peer = Peer(Shelf())
    heard: list[int] = []
    asked = [SIZES[3], SIZES[1], SIZES[2], SIZES[0], (9, 50)]
    found = await all_chunks(peer, asked, heard.append)
    assert found == [(5, CHUNKS[5]), (1, CHUNKS[1]), (2, None), (0, CHUNKS[0]), (9, None)]
    assert sum(heard) == len(CHUNKS[5]) + len(CHUNKS[1]) + len(CHUNKS[0])
    assert peer.counters["bulk_chunks"] == 3
    assert peer.counters["bulk_bytes"] == sum(heard)


async def test_a_stream_is_over_when_its_answer_is() -> None:
    peer = Peer(Shelf())
    await all_chunks(peer, [SIZES[0]])
    await asyncio.gather(*peer.tasks)
    (stream,) = peer.caller.streams.values()
    assert stream.is_finished


async def test_a_peer_source_hands_over_chunk_by_chunk() -> None:
    peer = Peer(Shelf())
    taken: list[tuple[int, bytes | None]] = []

    async def take(number: int, data: bytes | None) -> None:
        taken.append((number, data))

    await PeerSource("peer", DIGEST, peer.open).bring([SIZES[0], (9, 1)], lambda _: None, take)
    assert taken == [(0, b"header"), (9, None)]


@pytest.mark.parametrize(("library", "role"), [(None, Role.MEMBER), (Shelf(), Role.CLIENT), (Shelf(), None)])
async def test_who_may_not_or_does_not_share(library: Any, role: Role | None) -> None:
    peer = Peer(library, role)
    with pytest.raises(StreamReset) as caught:
        await ask_have(peer.open, DIGEST)
    assert caught.value.code == Reset.REFUSED
    assert peer.counters == {"bulk_refused": 1}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        schema.write(weights.BulkOpen(BulkKind.CHUNKS, manifest=DIGEST)),
        schema.write(weights.BulkOpen(9, manifest=DIGEST)),
        weights.open_header(BulkKind.HAVE, manifest=DIGEST) + b"\0",
    ],
)
async def test_headers_that_make_no_sense(header: bytes) -> None:
    peer = Peer(Shelf())
    stream = await peer.open(header)
    stream.write_eof()
    assert await code_of(stream) == Reset.MALFORMED
    assert peer.counters == {"bulk_malformed": 1}


async def test_bytes_behind_the_header() -> None:
    peer = Peer(Shelf())
    stream = await peer.open(weights.open_header(BulkKind.HAVE, manifest=DIGEST))
    stream.write(b"more")
    assert await code_of(stream) == Reset.MALFORMED


async def test_a_request_that_is_never_complete() -> None:
    peer = Peer(Shelf(), ask_s=0.01)
    stream = await peer.open(weights.open_header(BulkKind.HAVE, manifest=DIGEST))
    stream.write(b"")
    peer._opened(peer.link._stream(0))
    await asyncio.gather(*peer.tasks)
    assert peer.counters == {"bulk_too_slow": 1}


async def test_a_peer_that_takes_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(Shelf(), stall_s=0.05)
    stream = await peer.open(weights.open_header(BulkKind.CHUNKS, manifest=DIGEST, chunks=(1, 1, 1)))
    stream.write_eof()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while not peer.counters["bulk_too_slow"]:
            await asyncio.sleep(0.01)
    assert peer.link.most_unsent_bytes < 2 << 20
    assert await code_of(stream) == Reset.TOO_SLOW


@pytest.mark.parametrize("bound", ["streams", "streams_of_all"])
async def test_too_many_at_once(bound: str) -> None:
    peer = Peer(Shelf(), **{bound: 2})
    header = weights.open_header(BulkKind.CHUNKS, manifest=DIGEST, chunks=(1, 1, 1))
    streams = [await peer.open(header) for _ in range(3)]
    for stream in streams:
        stream.write_eof()
    assert await code_of(streams[2]) == Reset.OVERLOAD
    assert peer.counters["bulk_overload"] == 1
    for stream in streams[:2]:
        while await stream.read(1 << 20):
            pass
    assert await ask_have(peer.open, DIGEST) == b"\x27", "ended requests do not count"


async def test_no_more_than_two_chunks_are_read_ahead_of_a_slow_reader() -> None:
    read: list[int] = []

    class Counting(Shelf):
        def read(self, digest: bytes, chunk: int) -> bytes | None:
            read.append(chunk)
            return bytes(2_000_000)

    peer = Peer(Counting())
    stream = await peer.open(weights.open_header(BulkKind.CHUNKS, manifest=DIGEST, chunks=tuple(range(20))))
    stream.write_eof()
    for _ in range(200):
        await asyncio.sleep(0.001)
    assert read == [0, 1]
    stream.abort()


async def test_the_end_of_the_asking_side_ends_the_answer() -> None:
    peer = Peer(Shelf())
    found = ask_chunks(peer.open, DIGEST, [SIZES[1]] * 10, lambda _: None)
    assert (await anext(found))[0] == 1
    await found.aclose()
    await asyncio.gather(*peer.tasks)
    assert peer.counters["bulk_cancelled"] == 1


# --- serving sides that lie -----------------------------------------------------------------------------------------


def telling(data: bytes, *, end: bool = True) -> Callable[[MeshStream], Any]:
    async def lie(stream: MeshStream) -> None:
        stream.write(data)
        if end:
            stream.write_eof()

    return lie


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((5).to_bytes(4, "big") + bytes(5), "a chunk of 5 bytes in place of 6"),
        ((0xFFFFFFFF).to_bytes(4, "big"), "a chunk of 4294967295 bytes"),
        ((6).to_bytes(4, "big") + b"head", "ends early"),
        (b"\0\0", "ends early"),
        (b"", "ends early"),
        ((6).to_bytes(4, "big") + b"header" + b"!", "more than"),
    ],
)
async def test_answers_with_wrong_sizes(answer: bytes, words: str) -> None:
    peer = Peer()
    peer.lie = telling(answer)
    with pytest.raises(BadAnswer, match=words):
        await all_chunks(peer, [(0, 6)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (weights.sizes((64 << 20) + 1, 1), "impossible size"),
        (weights.sizes(1, 0xFFFFFFFF), "impossible size"),
        (weights.sizes(10, 1) + b"short", "ends early"),
        (weights.sizes(1, 1) + b"abc", "more than"),
        (b"\0", "ends early"),
    ],
)
async def test_manifests_with_wrong_sizes(answer: bytes, words: str) -> None:
    peer = Peer()
    peer.lie = telling(answer)
    with pytest.raises(BadAnswer, match=words):
        await ask_manifest(peer.open, model=MODEL)


async def test_a_manifest_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "STALL_S", 0.02)
    peer = Peer()
    peer.lie = telling(weights.sizes(100, 1) + b"beginning", end=False)
    with pytest.raises(TimeoutError):
        await ask_manifest(peer.open, model=MODEL)
    (stream,) = peer.caller.streams.values()
    assert stream.is_closing()


def test_priority_is_given_to_the_connection() -> None:
    class Quic:
        def __init__(self) -> None:
            self.ranks: list[tuple[int, int]] = []

        def rank_stream(self, stream_id: int, priority: int) -> None:
            self.ranks.append((stream_id, priority))

    class Link:
        quic = Quic()

    class Stream:
        link, id = Link, 8

    bulk.behind_others(Stream)  # type: ignore[arg-type]
    assert Link.quic.ranks == [(8, bulk.BEHIND_OTHERS)]
    assert bulk.BEHIND_OTHERS > 0, "above 0 is after the others"
