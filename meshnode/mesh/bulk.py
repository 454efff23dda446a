"""Weights over streams of the mesh: the serving side, and what asks it (protocol/11-weights.md).

One stream is one request: a manifest, the bits that say which chunks are there, or up to 64 chunks. Answers go behind
everything else on the link, so that the activations of a split and the words of an answer pass them. A chunk is read in
a thread while the one before it is being sent; no more than two of a stream are ever in memory.

What is served comes from a `Library`, which knows files; nothing in here does. Whether chunks are right is for the
asking side to find out by their hashes: here only sizes are bounded.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from meshnode.net.stream import MeshStream
from meshnode.wire import weights
from meshnode.wire.registry import LIMIT_BULK_STREAMS, BulkKind, Reset, Role
from meshnode.wire.values import WireError

BEHIND_OTHERS = 1
"""The priority of bulk streams, on both sides."""
WRITE_BYTES = 256 << 10
READ_BYTES = 1 << 20
ASK_S = 10.0
STALL_S = 15.0
"""How long the asking side waits for the next byte of a manifest. (Who is slow with chunks, core/fetching tells.)"""
MOST_MANIFEST_BYTES = 64 << 20

OpenStream = Callable[[bytes], Awaitable[MeshStream]]
"""Opens a `bulk` stream with this header. Raises OSError, PeerUnreachable, PeerRefused."""


class BadAnswer(Exception):
    """The serving side answers with sizes that cannot be: it is not to be asked again."""


class Library(Protocol):
    """What there is to serve. The methods block as disks do, are called in threads, and raise nothing."""

    def manifest(self, model: bytes, digest: bytes) -> tuple[bytes, bytes] | None:
        """A manifest by the hash of its model, by its digest or both (b"": not given), and one bit a chunk."""

    def have(self, digest: bytes) -> bytes | None:
        """One bit for each chunk of a manifest."""

    def read(self, digest: bytes, chunk: int) -> bytes | None:
        """The bytes of a chunk; None when they are not here."""


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """Bounds of the serving side: requests under way for one peer and for all, and how long one may take nothing."""

    streams: int = LIMIT_BULK_STREAMS
    streams_of_all: int = 32
    ask_s: float = ASK_S
    stall_s: float = 60.0


def behind_others(stream: MeshStream) -> None:
    """Have what is sent on a stream that the peer opened wait for other streams."""
    stream.link.quic.rank_stream(stream.id, BEHIND_OTHERS)


class BulkServer:
    """Answers the `bulk` streams of all peers. Without a library nothing is served.

    `counters` gets: bulk_manifests, bulk_chunks, bulk_bytes, bulk_refused, bulk_overload, bulk_malformed,
    bulk_too_slow, bulk_cancelled.
    """

    def __init__(
        self,
        library: Library | None,
        *,
        counters: Counter[str],
        limits: BulkLimits = BulkLimits(),
        rank: Callable[[MeshStream], None] = behind_others,
    ) -> None:
        self._library = library
        self._counters = counters
        self._limits = limits
        self._rank = rank
        self._streams: Counter[bytes] = Counter()

    async def serve(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """Answer one request: a handler of StreamDispatch. Returns when the answer is written or has failed."""
        peer = stream.link.peer
        if self._library is None or role is not Role.MEMBER:
            return self._end(stream, "bulk_refused", Reset.REFUSED)
        if self._streams[peer] >= self._limits.streams or self._streams.total() >= self._limits.streams_of_all:
            return self._end(stream, "bulk_overload", Reset.OVERLOAD)
        self._streams[peer] += 1
        try:
            ask = weights.read_header(header)
            async with asyncio.timeout(self._limits.ask_s):
                if await stream.read(1):
                    raise WireError("bytes behind the header")
            self._rank(stream)
            await self._answer(stream, self._library, ask)
            stream.write_eof()
        except WireError:
            self._end(stream, "bulk_malformed", Reset.MALFORMED)
        except TimeoutError:
            self._end(stream, "bulk_too_slow", Reset.TOO_SLOW)
        except OSError:
            self._end(stream, "bulk_cancelled", Reset.CANCELLED)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _answer(self, stream: MeshStream, library: Library, ask: weights.BulkOpen) -> None:
        if ask.kind == BulkKind.CHUNKS:
            await self._send_chunks(stream, library, ask)
        elif ask.kind == BulkKind.MANIFEST:
            found = await asyncio.to_thread(library.manifest, ask.model, ask.manifest)
            manifest, bits = found or (b"", b"")
            self._counters["bulk_manifests"] += 1
            await self._send(stream, weights.sizes(len(manifest), len(bits)) + manifest + bits)
        else:
            have = await asyncio.to_thread(library.have, ask.manifest) or b""
            await self._send(stream, weights.sizes(0, len(have)) + have)

    async def _send_chunks(self, stream: MeshStream, library: Library, ask: weights.BulkOpen) -> None:
        """The chunks in the order asked; while one is being sent, the next is read."""
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(None, library.read, ask.manifest, ask.chunks[0])
        try:
            for number in (*ask.chunks[1:], None):
                data = await reading or b""
                if number is not None:
                    reading = loop.run_in_executor(None, library.read, ask.manifest, number)
                stream.write(len(data).to_bytes(weights.SIZE_BYTES, "big"))
                await self._send(stream, data)
                self._counters["bulk_chunks"] += bool(data)
                self._counters["bulk_bytes"] += len(data)
        finally:
            reading.cancel()

    async def _send(self, stream: MeshStream, data: bytes) -> None:
        for at in range(0, len(data), WRITE_BYTES):
            stream.write(data[at : at + WRITE_BYTES])
            async with asyncio.timeout(self._limits.stall_s):
                await stream.drain()

    def _end(self, stream: MeshStream, counter: str, code: Reset) -> None:
        self._counters[counter] += 1
        stream.reset(code)


# --- the asking side ------------------------------------------------------------------------------------------------


async def ask_manifest(
    open_stream: OpenStream, *, model: bytes = b"", digest: bytes = b""
) -> tuple[bytes, bytes] | None:
    """A manifest and one bit a chunk, as a peer has them and unchecked; None when it has not.

    Raises BadAnswer, TimeoutError, what `open_stream` raises, and OSError (StreamReset: it does not share).
    """
    return await _ask_sizes(open_stream, weights.open_header(BulkKind.MANIFEST, model=model, manifest=digest))


async def ask_have(open_stream: OpenStream, digest: bytes) -> bytes | None:
    """One bit for each chunk of a manifest that a peer has; None when it has none of it. Raises as `ask_manifest`."""
    found = await _ask_sizes(open_stream, weights.open_header(BulkKind.HAVE, manifest=digest))
    return None if found is None else found[1]


async def _ask_sizes(open_stream: OpenStream, header: bytes) -> tuple[bytes, bytes] | None:
    stream = await open_stream(header)
    try:
        stream.write_eof()
        sizes = weights.read_sizes(await _read(stream, weights.SIZES_BYTES))
        if max(sizes) > MOST_MANIFEST_BYTES:
            raise BadAnswer("a manifest of an impossible size")
        manifest, bits = [await _read(stream, size) for size in sizes]
        await _expect_end(stream)
        return (manifest, bits) if bits else None
    except asyncio.IncompleteReadError:
        raise BadAnswer("an answer that ends early") from None
    finally:
        _leave(stream)


async def ask_chunks(
    open_stream: OpenStream, digest: bytes, chunks: Sequence[tuple[int, int]], heard: Callable[[int], None]
) -> AsyncGenerator[tuple[int, bytes | None], None]:
    """The chunks (number, size) in the order asked, their bytes not yet verified; None for what is not there.

    `heard` is told of bytes as they come. Raises BadAnswer for another size than that of the chunk, what `open_stream`
    raises, and OSError. Close the iterator (contextlib.aclosing) to end the request early.
    """
    numbers = tuple(number for number, _ in chunks)
    stream = await open_stream(weights.open_header(BulkKind.CHUNKS, manifest=digest, chunks=numbers))
    try:
        stream.write_eof()
        for number, expected in chunks:
            size = int.from_bytes(await stream.read_exactly(weights.SIZE_BYTES), "big")
            if size not in (0, expected):
                raise BadAnswer(f"a chunk of {size} bytes in place of {expected}")
            yield number, await _read_chunk(stream, size, heard) if size else None
        await _expect_end(stream)
    except asyncio.IncompleteReadError:
        raise BadAnswer("an answer that ends early") from None
    finally:
        _leave(stream)


async def _expect_end(stream: MeshStream) -> None:
    async with asyncio.timeout(STALL_S):
        if await stream.read(1):
            raise BadAnswer("more than was asked for")


def _leave(stream: MeshStream) -> None:
    """Reset a stream that has not come to its end: what is still under way is for nobody."""
    if not stream.is_finished:
        stream.abort()


async def _read_chunk(stream: MeshStream, size: int, heard: Callable[[int], None]) -> bytes:
    pieces: list[bytes] = []
    left = size
    while left:
        piece = await stream.read(min(left, READ_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        pieces.append(piece)
        left -= len(piece)
        heard(len(piece))
    return b"".join(pieces)


async def _read(stream: MeshStream, size: int) -> bytes:
    """Exactly `size` bytes, none of them later than STALL_S after the one before."""
    pieces: list[bytes] = []
    left = size
    while left:
        async with asyncio.timeout(STALL_S):
            piece = await stream.read(min(left, READ_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class PeerSource:
    """A member that has chunks of one manifest, as `mesh/gathering.py` asks it. `name` is its NodeId in hex digits."""

    name: str
    digest: bytes
    open_stream: OpenStream
    second: bool = False

    async def bring(
        self,
        chunks: Sequence[tuple[int, int]],
        heard: Callable[[int], None],
        take: Callable[[int, bytes | None], Awaitable[None]],
    ) -> None:
        """Bring chunks (number, size), in order. Raises as `ask_chunks`."""
        async with aclosing(ask_chunks(self.open_stream, self.digest, chunks, heard)) as found:
            async for number, data in found:
                await take(number, data)
