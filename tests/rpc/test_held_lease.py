"""The host's side against workers that are silent, rude or false: words in time, and nothing believed too far."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from meshnode.errors import LeaseDenied, MeshnodeError, PeerUnreachable
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.rpc import held_lease
from meshnode.rpc.held_lease import HeldLease
from meshnode.wire.frames import encode_frame
from meshnode.wire.messages import encode_message, message_id
from meshnode.wire.registry import LeaseCode, Reset
from meshnode.wire.splits import (
    LeaseEnd,
    LeaseGranted,
    LeaseLeaving,
    LeaseReady,
    LeaseRefused,
    LeaseWeights,
    LentDevice,
)
from tests.net.nodes import LIMIT_S, Node, linked, until
from tests.rpc.lease_room import ASK, HELLO, PLAN, reset_code

pytestmark = pytest.mark.anyio
GRANTED = LeaseGranted(HELLO, (LentDevice(64, 1 << 40, 3 << 30, 4 << 30),), False)


def frame(message: object) -> bytes:
    return encode_frame(message_id(message), encode_message(message))


class Scripted:
    """A worker that sends what the test tells it, whatever the host says."""

    def __init__(self, host: Node, worker: Node, link: Link) -> None:
        self.link, self.worker = link, worker
        self.lost: list[str] = []
        self.left = 0
        self.streams: list[MeshStream] = []

    async def ask(self, *answers: object, then: Callable[[MeshStream], None] = lambda _: None) -> HeldLease:
        asking = asyncio.create_task(self._ask())
        stream = await self.worker.stream()
        self.streams.append(stream)
        await stream.read(1000)
        for answer in answers:
            stream.write(answer if isinstance(answer, bytes) else frame(answer))
        then(stream)
        return await asking

    async def _ask(self) -> HeldLease:
        async def open_stream() -> MeshStream:
            return self.link.open_stream()

        return await HeldLease.ask(
            open_stream, PLAN, ASK, lost=self.lost.append, leaving=self._leaving, timeout_s=LIMIT_S
        )

    def _leaving(self) -> None:
        self.left += 1


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    async with linked() as (host, worker, link, _):
        yield Scripted(host, worker, link)


async def test_what_is_granted() -> None:
    async with scripted() as made:
        lease = await made.ask(GRANTED)
        (device,) = lease.granted.facts.devices
        assert (device.alignment, device.max_size, device.free_bytes) == (64, 1 << 40, 3 << 30)
        assert lease.plan == PLAN and not lease.granted.has_weights
        await lease.release()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (LeaseRefused(LeaseCode.NO_MEMORY, "2 GB free", 2 << 30), LeaseDenied, "2 GB free"),
        (LeaseRefused(LeaseCode.NOT_LENT, ""), LeaseDenied, "does not lend"),
        (LeaseRefused(999, ""), LeaseDenied, "code 999"),
        (LeaseEnd(LeaseCode.LEAVING), LeaseDenied, "is leaving"),
        (LeaseReady(True), LeaseDenied, "breaks the rules"),
        (LeaseGranted(HELLO, (LentDevice(0, 1, 1, 1),), True), LeaseDenied, "an alignment of 0"),
        (LeaseGranted(HELLO, (LentDevice(48, 1, 1, 1),), True), LeaseDenied, "an alignment of 48"),
        (b"\x00\x00\x00\x05\x00\x52\xc1\xc1\xc1", LeaseDenied, "breaks the rules"),
        (b"GET / HTTP/1.1\r\n", LeaseDenied, "breaks the rules"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_answers_that_are_no_lease(answer: object, error: type[MeshnodeError], words: str) -> None:
    async with scripted() as made:
        with pytest.raises(error, match=words):
            await made.ask(answer)
        assert made.lost == []
        assert await reset_code(made.streams[0]) == Reset.CANCELLED, "nothing stays open"


@pytest.mark.parametrize(
    ("then", "error", "words"),
    [
        (lambda stream: stream.write_eof(), LeaseDenied, "without a word"),
        (lambda stream: stream.reset(Reset.REFUSED), PeerUnreachable, "refused the stream \\(refused\\)"),
        (lambda stream: stream.link.close(0x100), PeerUnreachable, "connection was lost"),
    ],
    ids=["end", "reset", "link"],
)
async def test_no_answer(then: Callable[[MeshStream], None], error: type[MeshnodeError], words: str) -> None:
    async with scripted() as made:
        with pytest.raises(error, match=words):
            await made.ask(then=then)


async def test_readiness_progress_and_leaving() -> None:
    async with scripted() as made:
        lease = await made.ask(GRANTED)
        told: list[tuple[int, int]] = []
        waiting = asyncio.create_task(lease.ready(lambda have, want: told.append((have, want))))
        await asyncio.sleep(0)
        for message in (LeaseWeights(1, 9), LeaseLeaving(), LeaseLeaving(), LeaseReady(True), LeaseReady(False)):
            made.streams[0].write(frame(message))
        async with asyncio.timeout(LIMIT_S):
            assert await waiting == LeaseReady(True)
        assert told == [(1, 9)]
        await until(lambda: made.left == 1)
        assert await lease.ready() == LeaseReady(True), "whenever it is asked"
        await lease.release()


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda stream: stream.write(frame(LeaseEnd(LeaseCode.CRASHED, "signal 9"))), "signal 9"),
        (lambda stream: stream.write_eof(), "the worker ended the lease"),
        (lambda stream: stream.reset(Reset.UPSTREAM_BROKEN), "upstream_broken"),
        (lambda stream: stream.write(frame(GRANTED)), "breaks the rules"),
        (lambda stream: stream.write(frame(ASK)), "breaks the rules"),
        (lambda stream: stream.link.close(0x100), "connection was lost"),
    ],
    ids=["end", "eof", "reset", "granted twice", "asks itself", "link"],
)
async def test_a_loss_is_told_once(then: Callable[[MeshStream], None], words: str) -> None:
    async with scripted() as made:
        lease = await made.ask(GRANTED)
        waiting = asyncio.create_task(lease.ready())
        await asyncio.sleep(0)
        then(made.streams[0])
        await until(lambda: bool(made.lost))
        assert words in made.lost[0]
        with pytest.raises((LeaseDenied, PeerUnreachable)):
            await waiting
        made.streams[0].abort()
        await lease.release()
        assert len(made.lost) == 1


async def test_silence_is_a_loss_before_the_link_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_lease, "SILENT_S", 0.2)
    monkeypatch.setattr(held_lease, "LOOK_S", 0.02)
    monkeypatch.setattr(Link, "silent", property(lambda link: is_silent))
    is_silent = False
    async with scripted() as made:
        lease = await made.ask(GRANTED)
        is_silent, began = True, time.monotonic()
        await until(lambda: made.lost == ["The peer does not answer: nothing is heard of it any more"])
        assert 0.2 <= time.monotonic() - began < 1.5
        await reset_code(made.streams[0])
        await lease.release()


async def test_a_short_silence_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_lease, "SILENT_S", 0.3)
    monkeypatch.setattr(held_lease, "LOOK_S", 0.02)
    looks = 0

    def flicker(link: Link) -> bool:
        nonlocal looks
        looks += 1
        return looks % 4 != 0

    monkeypatch.setattr(Link, "silent", property(flicker))
    async with scripted() as made:
        lease = await made.ask(GRANTED)
        await until(lambda: looks > 40)
        assert made.lost == []
        await lease.release()


async def test_release_waits_for_the_worker_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_lease, "RELEASE_S", 0.2)
    async with scripted() as made:
        lease = await made.ask(GRANTED)
        began = time.monotonic()
        await lease.release()
        assert 0.2 <= time.monotonic() - began < 2
        await lease.release()
        assert made.lost == []
        with pytest.raises(LeaseDenied, match="given back"):
            await lease.ready()
        assert await reset_code(made.streams[0]) == Reset.CANCELLED


async def test_a_cancelled_ask_leaves_no_stream() -> None:
    async with scripted() as made:
        asking = asyncio.create_task(made._ask())
        stream = await made.worker.stream()
        asking.cancel()
        assert await reset_code(stream) == Reset.CANCELLED
        with pytest.raises(asyncio.CancelledError):
            await asking
