"""One fetch from several sources: faults of each kind, and an end in which nothing is left running."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from meshnode.core import fetching
from meshnode.errors import DiskFull, ModelFileInvalid, PeerUnreachable, WeightsUnavailable
from meshnode.mesh.bulk import BadAnswer
from meshnode.mesh.gathering import Gathering, GatheringView, Heard, Take

pytestmark = pytest.mark.anyio

COUNT = 30
CHUNK = 1000


def content(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(2, "big")).digest() * (CHUNK // 32) + bytes(CHUNK % 32)


class Memory:
    """A store."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}
        self.fails_at = COUNT
        self.threads: set[int] = set()

    def write(self, number: int, data: bytes) -> bool:
        self.threads.add(threading.get_ident())
        if len(self.chunks) >= self.fails_at:
            raise DiskFull("test")
        if data != content(number):
            return False
        self.chunks[number] = data
        return True


@dataclass
class Fake:
    """A source with a fault."""

    name: str
    second: bool = False
    corrupt: Callable[[int], bool] = lambda _: False
    lacks: Callable[[int], bool] = lambda _: False
    error: Exception | None = None
    hangs: bool = False
    asked: list[int] = field(default_factory=list)
    running: int = 0

    async def bring(self, chunks: Sequence[tuple[int, int]], heard: Heard, take: Take) -> None:
        self.running += 1
        try:
            for number, size in chunks:
                assert size == CHUNK
                self.asked.append(number)
                await asyncio.sleep(0)
                if self.hangs:
                    await asyncio.Event().wait()
                if self.error is not None:
                    raise self.error
                if self.lacks(number):
                    await take(number, None)
                    continue
                heard(size)
                await take(number, bytes(size) if self.corrupt(number) else content(number))
        finally:
            self.running -= 1


class Case:
    """A gathering of COUNT chunks from these sources."""

    def __init__(self, *sources: Fake, urgent: int = 0, headers_came: Callable[[], None] = lambda: None) -> None:
        self.store = Memory()
        self.sources = sources
        self.suspects: list[tuple[str, str]] = []
        self.views: list[GatheringView] = []
        self.gathering = Gathering(
            self.store,
            [(number, CHUNK) for number in range(COUNT)],
            urgent=urgent,
            headers_came=headers_came,
            suspect=lambda name, what: self.suspects.append((name, what)),
            progress=self.views.append,
        )
        for source in sources:
            self.gathering.join(source)

    async def run(self) -> None:
        try:
            async with asyncio.timeout(10):
                await self.gathering.run()
        finally:
            assert all(source.running == 0 for source in self.sources)

    async def succeeds(self) -> None:
        await self.run()
        assert self.store.chunks == {number: content(number) for number in range(COUNT)}
        assert self.views[-1].have_bytes == self.views[-1].want_bytes == COUNT * CHUNK

    def left(self, name: str) -> str:
        return next(view.left for view in self.gathering.view.sources if view.source == name)


async def test_all_chunks_are_written_in_threads() -> None:
    case = Case(Fake("a"), Fake("b"))
    await case.succeeds()
    assert threading.get_ident() not in case.store.threads
    assert case.suspects == []


async def test_who_corrupts_is_named_once_and_the_chunk_comes_from_another() -> None:
    case = Case(Fake("bad", corrupt=lambda number: number % 2 == 0), Fake("good"))
    await case.succeeds()
    assert [name for name, _ in case.suspects] == ["bad"]
    assert "was damaged" in case.suspects[0][1]
    assert case.left("bad") == "it sent a damaged chunk"


async def test_who_answers_nonsense_is_named() -> None:
    case = Case(Fake("bad", error=BadAnswer("a chunk of 5 bytes")), Fake("good"))
    await case.succeeds()
    assert case.suspects == [("bad", "a chunk of 5 bytes")]


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), PeerUnreachable("bad"), TimeoutError()])
async def test_who_cannot_be_reached_is_left_and_not_suspected(error: Exception) -> None:
    case = Case(Fake("bad", error=error), Fake("good"))
    await case.succeeds()
    assert case.suspects == []
    alone = Case(Fake("bad", error=error))
    with pytest.raises(WeightsUnavailable, match="MB are missing; bad: "):
        await alone.run()
    assert len(alone.sources[0].asked) >= fetching.MOST_FAILURES


async def test_who_lacks_what_others_have() -> None:
    await Case(Fake("part", lacks=lambda number: number > 3), Fake("all")).succeeds()
    case = Case(Fake("part", lacks=lambda number: number == 3))
    with pytest.raises(WeightsUnavailable):
        await case.run()
    assert set(case.store.chunks) == set(range(COUNT)) - {3}


async def test_who_stalls_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_BYTE_S", 0.1)
    monkeypatch.setattr("meshnode.mesh.gathering.TICK_S", 0.02)
    case = Case(Fake("silent", hangs=True), Fake("good"))
    await case.succeeds()
    alone = Case(Fake("silent", hangs=True))
    with pytest.raises(WeightsUnavailable, match="it sends nothing any more"):
        await alone.run()


async def test_a_full_disk_ends_it_and_keeps_what_came() -> None:
    case = Case(Fake("a"), Fake("b", hangs=True))
    case.store.fails_at = 5
    with pytest.raises(DiskFull):
        await case.run()
    assert len(case.store.chunks) == 5


async def test_headers_are_judged_as_soon_as_they_are_here() -> None:
    came: list[int] = []
    case = Case(Fake("a"), urgent=3, headers_came=lambda: came.append(len(case.store.chunks)))
    await case.succeeds()
    assert len(came) == 1 and came[0] >= 3

    def refuse() -> None:
        raise ModelFileInvalid("a lie")

    lied = Case(Fake("a"), urgent=3, headers_came=refuse)
    with pytest.raises(ModelFileInvalid):
        await lied.run()


async def test_nobody_at_all() -> None:
    with pytest.raises(WeightsUnavailable, match="no node that can be reached has them"):
        await Case().run()


async def test_sources_that_may_still_come_are_waited_for() -> None:
    case = Case()
    late = Fake("late")
    told = asyncio.Event()

    async def come() -> None:
        await told.wait()
        case.gathering.join(late)

    task = case.gathering.expect(come())
    running = asyncio.create_task(case.run())
    await asyncio.sleep(0)
    told.set()
    await running
    await task
    assert len(case.store.chunks) == COUNT


async def test_a_source_that_goes() -> None:
    case = Case(Fake("a", hangs=True), Fake("b"))
    running = asyncio.create_task(case.run())
    await asyncio.sleep(0)
    case.gathering.leave("a", "it left the mesh")
    await running
    assert case.left("a") == "it left the mesh"


async def test_cancelling_ends_requests_and_writes() -> None:
    case = Case(Fake("a", hangs=True), Fake("b", hangs=True))
    running = asyncio.create_task(case.run())
    for _ in range(5):
        await asyncio.sleep(0)
    assert any(source.running for source in case.sources)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_fault_of_ours_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    case = Case(Fake("a", error=ZeroDivisionError("bug")))
    with pytest.raises(WeightsUnavailable, match="a fault of meshnode"):
        await case.run()
    assert "ZeroDivisionError" in caplog.text


async def test_the_second_rank_is_asked_for_what_others_lack() -> None:
    hub = Fake("hub", second=True)
    case = Case(Fake("peer"), hub)
    await case.succeeds()
    assert hub.asked == []
