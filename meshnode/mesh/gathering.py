"""Chunks from several sources into one store: core/fetching decides, this drives it over streams and threads.

    Fetching.ask ──> one task a request: source.bring ──> store.write in a thread (verifies) ──> Fetching.arrived
                     ticks: sources that stall are left, needless requests are cancelled

Sources and store are handed in; the loop ends when everything is here, or nobody has what is missing. A source that
sends a damaged chunk, or sizes that cannot be, is named to `suspect` and left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from meshnode.core.fetching import Ask, Fetching, SourceView
from meshnode.errors import MeshnodeError, NetworkError, WeightsUnavailable
from meshnode.mesh.bulk import BadAnswer
from meshnode.telemetry import LOG

TICK_S = 0.25
WRITES = 2
"""Chunks of one request that may be in the hands of threads: while one is written, the next one arrives."""

Heard = Callable[[int], None]
Take = Callable[[int, bytes | None], Awaitable[None]]
Suspect = Callable[[str, str], None]
"""Told the name of a source that cheats or is broken, and what it did."""


class Source(Protocol):
    """Who has chunks. `second` marks one that is asked for what others lack (the hub)."""

    @property
    def name(self) -> str:
        """Names it in status and errors."""

    @property
    def second(self) -> bool:
        """Whether the others go first."""

    async def bring(self, chunks: Sequence[tuple[int, int]], heard: Heard, take: Take) -> None:
        """Fetch chunks (number, size) in order: `heard` counts bytes as they come, `take` gets each chunk, or None for
        one that is not there. Raises OSError, NetworkError, TimeoutError, BadAnswer."""


class Store(Protocol):
    """Where chunks go. Blocks, and is called in threads."""

    def write(self, number: int, data: bytes) -> bool:
        """Keep a chunk; False when these are not its bytes. Raises MeshnodeError when the disk does not take it."""


@dataclass(frozen=True, slots=True)
class GatheringView:
    """How far a fetch is: bytes that are here of those that are wanted, and the sources."""

    have_bytes: int
    want_bytes: int
    sources: tuple[SourceView, ...]


class Gathering:
    """One fetch. `chunks` are (number, bytes) in the order wanted, of which the first `urgent` are verified by
    `headers_came` (in a thread) as soon as they are here: a manifest that lies about the rest costs no more than that.
    """

    def __init__(
        self,
        store: Store,
        chunks: Sequence[tuple[int, int]],
        *,
        urgent: int = 0,
        headers_came: Callable[[], None] = lambda: None,
        suspect: Suspect = lambda name, what: None,
        progress: Callable[[GatheringView], None] = lambda view: None,
    ) -> None:
        self._store = store
        self._size = dict(chunks)
        self._fetching = Fetching(chunks, urgent=urgent)
        self._urgent = {number for number, _ in chunks[:urgent]}
        self._headers_came = headers_came
        self._suspect = suspect
        self._progress = progress
        self._sources: dict[str, Source] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._expected = 0
        self._failure: MeshnodeError | None = None

    def join(self, source: Source, has: Callable[[int], bool] = lambda _: True) -> None:
        """A source is there; it may come while `run` runs."""
        self._sources.setdefault(source.name, source)
        self._fetching.join(source.name, _now(), has=has, second=source.second)
        self._woken.set()

    def expect(self, coming: Awaitable[None]) -> asyncio.Task[None]:
        """Sources may still come of `coming`, which calls `join` and raises nothing: until it has ended nobody says
        that something is nowhere to be had."""

        async def wait() -> None:
            try:
                await coming
            finally:
                self._expected -= 1
                self._woken.set()

        self._expected += 1
        return asyncio.ensure_future(wait())

    def leave(self, name: str, why: str) -> None:
        """A source is gone."""
        self._cancel(self._fetching.leave(name, why))
        self._woken.set()

    @property
    def view(self) -> GatheringView:
        """How far it is."""
        fetching = self._fetching
        return GatheringView(fetching.want_bytes - fetching.left_bytes, fetching.want_bytes, fetching.sources)

    async def run(self) -> None:
        """Fetch everything. Raises WeightsUnavailable when nobody is left who has what is missing, and what the store
        or `headers_came` raise. Whatever happens, no request and no write is under way afterwards.
        """
        try:
            while not self._fetching.is_done:
                self._raise_failure()
                self._cancel(self._fetching.stalled(_now()))
                for ask in self._fetching.ask(_now()):
                    self._start(ask)
                if self._fetching.is_stuck and not self._tasks and not self._expected:
                    raise WeightsUnavailable(self._why_stuck())
                self._woken.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._woken.wait()
                self._progress(self.view)
            self._raise_failure()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await all_of(tasks)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _why_stuck(self) -> str:
        left = [f"{source.source[:10]}: {source.left}" for source in self._fetching.sources if source.left]
        missing = f"{self._fetching.left_bytes / 1e6:,.0f} of {self._fetching.want_bytes / 1e6:,.0f} MB are missing"
        return "; ".join([missing, *left]) if left else f"{missing}, and no node that can be reached has them"

    # --- one request ------------------------------------------------------------------------------------------------

    def _start(self, ask: Ask) -> None:
        task = asyncio.create_task(self._bring(ask), name=f"chunks of {ask.source[:10]}")
        self._tasks[ask.number] = task
        task.add_done_callback(partial(self._ended, ask.number))

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(number, None)
        self._woken.set()
        if not task.cancelled() and task.exception() is not None:
            LOG.error("fetching chunks failed", exc_info=task.exception())
            self._failure = self._failure or WeightsUnavailable("a fault of meshnode; see meshnode logs")

    async def _bring(self, ask: Ask) -> None:
        """Make a request, and tell `Fetching` what became of it."""
        writes: list[asyncio.Task[None]] = []

        async def take(number: int, data: bytes | None) -> None:
            while len(writes) >= WRITES:
                await asyncio.wait({writes[0]})
                writes.pop(0)
            writes.append(asyncio.create_task(self._take(ask, number, data)))

        def heard(count: int) -> None:
            self._fetching.heard(ask.number, count, _now())

        why = ""
        try:
            source = self._sources[ask.source]
            await source.bring([(number, self._size[number]) for number in ask.chunks], heard, take)
        except BadAnswer as reason:
            self._blame(ask, str(reason), self._fetching.leave(ask.source, str(reason)))
        except (OSError, NetworkError) as reason:
            why = reason.message if isinstance(reason, NetworkError) else str(reason) or "it is too slow"
        finally:
            await all_of(writes)
            self._cancel(self._fetching.ended(ask.number, why))

    async def _take(self, ask: Ask, number: int, data: bytes | None) -> None:
        """Keep one chunk. Its task is never cancelled, so that no thread is left behind."""
        if data is None:
            self._cancel(self._fetching.lacks(ask.number, number))
            return
        try:
            good = await asyncio.to_thread(self._store.write, number, data)
            if good and number in self._urgent:
                self._urgent.discard(number)
                if not self._urgent:
                    await asyncio.to_thread(self._headers_came)
        except MeshnodeError as failure:
            self._failure = self._failure or failure
        else:
            if good:
                self._cancel(self._fetching.arrived(ask.number, number))
            else:
                self._blame(ask, f"chunk {number} was damaged", self._fetching.corrupt(ask.number))
        self._woken.set()

    def _blame(self, ask: Ask, what: str, requests: Sequence[int]) -> None:
        """A source cheats or is broken. It is named once, and what is under way with it ends."""
        if requests:
            LOG.warning("no more chunks from %s: %s", ask.source[:10], what)
            self._suspect(ask.source, what)
            self._cancel(requests)

    def _cancel(self, numbers: Sequence[int]) -> None:
        """End requests that have no meaning any more."""
        for number in numbers:
            task = self._tasks.get(number)
            if task is not None and task is not asyncio.current_task():
                task.cancel()


async def all_of(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait until all have ended, however, also when this is cancelled meanwhile; that is passed on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while pending := {task for task in tasks if not task.done()}:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as reason:
            cancelled = reason
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if cancelled is not None:
        raise cancelled


def _now() -> float:
    return asyncio.get_running_loop().time()
