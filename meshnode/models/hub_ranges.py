"""Pieces of a model from the hub, for when no peer has them: byte ranges of the files of one repository at one commit.

Unlike `transfer.py`, which brings whole files in order, this brings any range and verifies nothing: whoever asks for
chunks has their hashes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from meshnode.errors import DownloadStopped, HubUnreachable
from meshnode.models.hub import Hub
from meshnode.models.manifest import Chunk, Manifest

NAME = "hub"
MOST_BYTES = 16 << 20
"""Of one request."""


@dataclass(frozen=True, slots=True)
class HubFiles:
    """Where the hub has the files of a model: all parts in order, named by their paths inside the repository."""

    repo: str
    commit: str
    names: tuple[str, ...]


def read_range(
    hub: Hub,
    files: HubFiles,
    part: int,
    start: int,
    end: int,
    *,
    heard: Callable[[int], None] = lambda count: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> bytes:
    """Bytes `start` to `end` (exclusive) of a file; `heard` counts them as they come. Blocks.

    Raises HubUnreachable for a hub that sends another range or ends early, DownloadStopped when `cancelled` says so,
    and what `Hub.open_range` raises.
    """
    pieces: list[bytes] = []
    left = end - start
    with hub.open_range(files.repo, files.commit, files.names[part], start, end) as (begins_at, chunks):
        if begins_at != start:
            raise HubUnreachable("the hub sends another part of the file than asked")
        for chunk in chunks:
            if cancelled():
                raise DownloadStopped(files.names[part])
            pieces.append(chunk[:left])
            left -= len(pieces[-1])
            heard(len(pieces[-1]))
            if not left:
                return b"".join(pieces)
    raise HubUnreachable("the hub sends less than was asked for")


@dataclass(frozen=True, slots=True)
class HubSource:
    """The hub as a source of chunks beside peers (a Source of mesh/gathering.py), asked for what no peer has."""

    hub: Hub
    files: HubFiles
    manifest: Manifest
    name: str = NAME
    second: bool = True

    async def bring(
        self,
        chunks: Sequence[tuple[int, int]],
        heard: Callable[[int], None],
        take: Callable[[int, bytes | None], Awaitable[None]],
    ) -> None:
        """Bring chunks (number, size), those that lie behind each other by one request. Raises as `read_range`."""
        loop, stopped = asyncio.get_running_loop(), threading.Event()

        def count(size: int) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(heard, size)

        try:
            for run in self._runs([self.manifest.chunk(number) for number, _ in chunks]):
                start, end = run[0].position, run[-1].position + run[-1].size_bytes
                read = partial(read_range, heard=count, cancelled=stopped.is_set)
                data = await asyncio.to_thread(read, self.hub, self.files, run[0].file, start, end)
                for chunk in run:
                    await take(chunk.number, data[chunk.position - start :][: chunk.size_bytes])
        finally:
            stopped.set()

    def _runs(self, chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
        """Chunks that lie behind each other in one file, together at most MOST_BYTES."""
        run: list[Chunk] = []
        for chunk in chunks:
            if run and (
                chunk.number != run[-1].number + 1
                or chunk.file != run[0].file
                or chunk.position + chunk.size_bytes - run[0].position > MOST_BYTES
            ):
                yield run
                run = []
            run.append(chunk)
        if run:
            yield run
