"""The worker's book of leases, over real links: who gets one, what ends with it, and in which order."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from meshnode.errors import EngineCrashed, HubUnreachable, LeaseDenied, PeerUnreachable
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.rpc.held_lease import HeldLease
from meshnode.rpc.leases import LeaseBook
from meshnode.rpc.work import LeaseLimits, LeaseRefusal
from meshnode.wire.frames import encode_frame, encode_stream_header
from meshnode.wire.messages import Probe, encode_message, message_id
from meshnode.wire.registry import LeaseCode, MessageId, Reset, Role, RpcKind, StreamType
from meshnode.wire.splits import LeaseEnd, LeaseReady
from tests.net.nodes import LIMIT_S, node, until
from tests.rpc.lease_room import ASK, FAST, HELLO, HOST, PLAN, THIRD, WORKER, FakeWork, reset_code, room

pytestmark = pytest.mark.anyio
OTHER_PLAN = b"o" * 16


def frame(message: object) -> bytes:
    return encode_frame(message_id(message), encode_message(message))


async def echoes(stream: MeshStream, data: bytes = b"hello") -> bool:
    stream.write(data)
    async with asyncio.timeout(LIMIT_S):
        return await stream.read_exactly(len(data)) == data


async def test_a_lease_from_its_ask_to_its_end() -> None:
    async with room() as made:
        lease = await made.lease()
        assert lease.granted.facts.hello == HELLO and lease.granted.has_weights
        assert lease.granted.facts.devices[0].max_size == (1 << 63) - 1, "no bound, as it travels"
        assert await lease.ready() == LeaseReady(True)
        assert made.asked == [(HOST, ASK, PLAN)]
        tunnel = await made.open(RpcKind.TUNNEL)
        assert await echoes(tunnel)
        (view,) = made.book.leases()
        assert (view.host, view.state, view.ask.model, view.tunnels) == (HOST, "ready", "big", 1)
        await lease.release()
        assert made.book.leases() == () and made.lost == []
        assert made.works[0].events == ["tunnel", "end of tunnel", "closed"]
        assert await reset_code(tunnel) == Reset.CANCELLED
        assert made.changes >= 3


async def test_fetching_is_told_and_then_it_is_ready() -> None:
    async with room() as made:
        made.make = lambda: FakeWork(has_weights=False)
        lease = await made.lease()
        assert not lease.granted.has_weights
        work, told = made.works[0], []
        for news in ((1, 10), (5, 10), None):
            work.fetched.put_nowait(news)
        assert await lease.ready(lambda have, want: told.append((have, want))) == LeaseReady(True)
        assert told == [(1, 10), (5, 10)]
        assert made.book.leases()[0].have_bytes == 5
        await lease.release()


async def test_streams_come_after_ready_only() -> None:
    async with room() as made:
        made.make = lambda: FakeWork(has_weights=False)
        lease = await made.lease()
        assert await reset_code(await made.open(RpcKind.TUNNEL)) == Reset.REFUSED
        made.works[0].fetched.put_nowait(None)
        await lease.ready()
        assert await echoes(await made.open(RpcKind.TUNNEL))
        assert await reset_code(await made.open(RpcKind.TUNNEL, OTHER_PLAN)) == Reset.REFUSED
        await lease.release()
        assert await reset_code(await made.open(RpcKind.TUNNEL)) == Reset.REFUSED


@pytest.mark.parametrize(
    ("workers", "stage", "allowed"), [((THIRD, WORKER), 1, True), ((WORKER, THIRD), 0, False), ((WORKER,), 0, False)]
)
async def test_pushes_come_from_earlier_workers_only(workers: tuple[bytes, ...], stage: int, allowed: bool) -> None:
    async with room() as made, node(2) as third:
        link = await third.dial(made.worker)
        lease = await made.lease(workers=workers, stage=stage)
        await lease.ready()
        push = await made.open(RpcKind.PUSH, link=link)
        if allowed:
            assert await echoes(push)
            assert made.works[0].events == ["push of 2"]
        else:
            assert await reset_code(push) == Reset.REFUSED
        assert await reset_code(await made.open(RpcKind.PUSH)) == Reset.REFUSED, "the host pushes nothing"
        assert await reset_code(await made.open(RpcKind.TUNNEL, link=link)) == Reset.REFUSED, "its tunnels are its own"


@pytest.mark.parametrize("role", [None, Role.CLIENT])
@pytest.mark.parametrize("kind", list(RpcKind))
async def test_members_only(role: Role | None, kind: RpcKind) -> None:
    async with room() as made:
        made.role = role
        assert await reset_code(await made.open(kind)) == Reset.REFUSED
        assert made.asked == []


@pytest.mark.parametrize(
    ("header", "code"), [(b"", Reset.MALFORMED), (b"\x82\x00\x08\x02\xc4\x10" + PLAN, Reset.UNKNOWN_TYPE)]
)
async def test_headers_that_mean_nothing(header: bytes, code: Reset) -> None:
    async with room() as made:
        stream = made.link.open_stream()
        stream.write(encode_stream_header(StreamType.RPC, header))
        assert await reset_code(stream) == code


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x10\x01\x00\x50",
        b"\x00\x00\x00\x01",
        frame(Probe(1)),
        frame(LeaseEnd()),
        encode_frame(MessageId.LEASE_ASK, b"\xc1"),
        frame(ASK) + frame(ASK),
        frame(ASK) + frame(LeaseReady(True)),
        encode_frame(0xFFFE, b"\x80"),
    ],
    ids=["too long", "too short", "a probe", "an end first", "no value", "asked twice", "not its to say", "unknown"],
)
async def test_what_breaks_the_rules_ends_the_stream(data: bytes) -> None:
    async with room() as made:
        stream = await made.open(RpcKind.LEASE)
        stream.write(data)
        assert await reset_code(stream) == Reset.MALFORMED
        await until(lambda: made.book.leases() == ())
        assert all(work.events == ["closed"] for work in made.works)


async def test_an_unknown_odd_message_is_passed_over() -> None:
    async with room() as made:
        stream = await made.open(RpcKind.LEASE)
        stream.write(encode_frame(0xFFFF, b"\x80") + frame(ASK))
        await until(lambda: len(made.book.leases()) == 1)


async def test_an_ask_that_does_not_come() -> None:
    async with room(replace(FAST, ask_s=0.1)) as made:
        assert await reset_code(await made.open(RpcKind.LEASE)) == Reset.TOO_SLOW


@pytest.mark.parametrize(
    "changed",
    [{"stage": 1}, {"workers": (THIRD,)}, {"workers": (WORKER, WORKER)}, {"layers": 0}, {"workers": (WORKER, HOST)}],
    ids=str,
)
async def test_asks_that_make_no_sense(changed: dict[str, Any]) -> None:
    async with room() as made:
        with pytest.raises(LeaseDenied) as caught:
            await made.lease(**changed)
        assert caught.value.lease_code == LeaseCode.BAD_ASK
        assert made.asked == []


async def test_a_refusal_has_words_and_figures() -> None:
    async def refuse() -> FakeWork:
        raise LeaseRefusal(LeaseCode.NO_MEMORY, "12 GB are needed and 3 GB free", free_bytes=3 << 30)

    async with room() as made:
        made.make = refuse
        with pytest.raises(LeaseDenied, match="12 GB are needed and 3 GB free") as caught:
            await made.lease()
        assert (caught.value.lease_code, caught.value.free_bytes) == (LeaseCode.NO_MEMORY, 3 << 30)
        await until(lambda: made.book.leases() == ())
        assert made.lost == [], "it was never held"


@pytest.mark.parametrize(
    ("error", "words"),
    [(EngineCrashed("rpc-server ended with 1"), "rpc-server ended with 1"), (KeyError("x"), "a fault of the node")],
)
async def test_a_work_that_cannot_begin(error: Exception, words: str) -> None:
    async def fail() -> FakeWork:
        raise error

    async with room() as made:
        made.make = fail
        with pytest.raises(LeaseDenied, match=words) as caught:
            await made.lease()
        assert caught.value.lease_code == LeaseCode.NO_ENGINE


async def test_a_work_that_begins_too_slowly() -> None:
    async with room(replace(FAST, grant_s=0.05)) as made:
        made.make = asyncio.Event().wait
        with pytest.raises(LeaseDenied) as caught:
            await made.lease()
        assert caught.value.lease_code == LeaseCode.TOO_SLOW


async def test_too_many_leases() -> None:
    async with room(replace(FAST, leases=3)) as made, node(2) as third:
        link = await third.dial(made.worker)
        held = [await made.lease(plan=bytes([number]) * 16) for number in range(2)]
        with pytest.raises(LeaseDenied, match="2 leases for this host") as caught:
            await made.lease(plan=OTHER_PLAN)
        assert caught.value.lease_code == LeaseCode.TOO_MANY
        await made.lease(plan=OTHER_PLAN, link=link)
        with pytest.raises(LeaseDenied) as caught:
            await made.lease(plan=b"x" * 16, link=link)
        assert caught.value.lease_code == LeaseCode.TOO_MANY
        await held[0].release()
        await made.lease(plan=b"x" * 16, link=link)


async def test_a_host_that_asks_in_a_loop_is_slowed() -> None:
    async with room(replace(FAST, asks_burst=2, asks_per_s=0.2)) as made:
        for _ in range(2):
            await (await made.lease()).release()
        with pytest.raises(LeaseDenied, match="one in 5 s") as caught:
            await made.lease()
        assert (caught.value.lease_code, caught.value.retry_after_s) == (LeaseCode.TOO_OFTEN, 5)
        assert len(made.asked) == 2


async def test_a_host_that_comes_back_replaces_its_own_lease() -> None:
    async with room() as made, node(2) as third:
        first = await made.lease()
        await first.ready()
        second = await made.lease()
        await second.ready()
        assert len(made.book.leases()) == 1 and made.works[0].events == ["closed"]
        await until(lambda: len(made.lost) == 1)
        assert "asked anew" in made.lost[0]
        link = await third.dial(made.worker)
        with pytest.raises(LeaseDenied) as caught:
            await made.lease(link=link)
        assert caught.value.lease_code == LeaseCode.TAKEN
        assert await echoes(await made.open(RpcKind.TUNNEL))


async def test_a_lost_link_ends_everything_within_a_second() -> None:
    async with room() as made:
        lease = await made.lease()
        await lease.ready()
        assert await echoes(await made.open(RpcKind.TUNNEL))
        began = time.monotonic()
        made.link.close(0x100)
        await until(lambda: made.works[0].events[-1:] == ["closed"])
        assert time.monotonic() - began < 1
        assert made.works[0].events == ["tunnel", "end of tunnel", "closed"]
        await until(lambda: made.lost == ["The peer does not answer: the connection was lost"])


async def test_a_reset_in_the_midst_of_fetching_ends_it() -> None:
    async with room() as made:
        made.make = lambda: FakeWork(has_weights=False)
        stream = await made.open(RpcKind.LEASE)
        stream.write(frame(ASK))
        await until(lambda: bool(made.book.leases()) and made.book.leases()[0].state == "fetching")
        stream.abort()
        await until(lambda: made.book.leases() == ())
        assert made.works[0].events == ["closed"]


async def test_a_host_that_goes_while_the_work_begins() -> None:
    async with room() as made:
        begun, cleaned = asyncio.Event(), asyncio.Event()

        async def slow() -> FakeWork:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.set()
            raise AssertionError("never")

        made.make = slow
        stream = await made.open(RpcKind.LEASE)
        stream.write(frame(ASK))
        await begun.wait()
        stream.abort()
        async with asyncio.timeout(LIMIT_S):
            await cleaned.wait()
        await until(lambda: made.book.leases() == ())


async def test_a_crash_is_told_in_words() -> None:
    async with room() as made:
        lease = await made.lease()
        await lease.ready()
        tunnel = await made.open(RpcKind.TUNNEL)
        assert await echoes(tunnel)
        made.works[0].broken.set_result("rpc-server ended with signal 9")
        await until(lambda: bool(made.lost))
        assert "rpc-server ended with signal 9" in made.lost[0]
        await until(lambda: made.works[0].events[-1] == "closed")
        with pytest.raises(StreamReset):
            await tunnel.read(1)


async def test_weights_that_cannot_be_had() -> None:
    async with room() as made:
        made.make = lambda: FakeWork(has_weights=False)
        lease = await made.lease()
        made.works[0].fetched.put_nowait(HubUnreachable("no network"))
        with pytest.raises(LeaseDenied, match="no network") as caught:
            await lease.ready()
        assert caught.value.lease_code == LeaseCode.NO_WEIGHTS and len(made.lost) == 1


async def test_fetching_that_stands_still() -> None:
    async with room(replace(FAST, prepare_pause_s=0.1)) as made:
        made.make = lambda: FakeWork(has_weights=False)
        lease = await made.lease()
        with pytest.raises(LeaseDenied) as caught:
            await lease.ready()
        assert caught.value.lease_code == LeaseCode.TOO_SLOW


async def test_a_lease_without_a_tunnel_ends() -> None:
    async with room(replace(FAST, idle_s=0.2)) as made:
        lease = await made.lease()
        await lease.ready()
        tunnel = await made.open(RpcKind.TUNNEL)
        assert await echoes(tunnel)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await until(lambda: bool(made.lost))
        tunnel.write_eof()
        await until(lambda: made.lost == ["A member does not hold layers for this split: no tunnel came"])


async def test_tunnels_and_pushes_are_bounded() -> None:
    async with room(replace(FAST, tunnels=1, pushes=1)) as made, node(2) as third:
        link = await third.dial(made.worker)
        await (await made.lease(workers=(THIRD, WORKER), stage=1)).ready()
        for kind, over in ((RpcKind.TUNNEL, made.link), (RpcKind.PUSH, link)):
            first = await made.open(kind, link=over)
            assert await echoes(first)
            assert await reset_code(await made.open(kind, link=over)) == Reset.OVERLOAD
            first.write_eof()
            assert await first.read(1) == b""
            await until(lambda: made.works[0].events[-1].startswith("end of"))
            assert await echoes(await made.open(kind, link=over))


async def test_leaving_is_announced_and_waits_for_the_host() -> None:
    async with room() as made:
        lease = await made.lease()
        await lease.ready()
        made.book.announce_leaving()
        await until(lambda: made.left == 1)
        assert await echoes(await made.open(RpcKind.TUNNEL)), "it works on until it has been replaced"
        with pytest.raises(LeaseDenied) as caught:
            await made.lease(plan=OTHER_PLAN)
        assert caught.value.lease_code == LeaseCode.LEAVING
        assert not await made.book.drained(0.05)
        await lease.release()
        assert await made.book.drained(0.05)


async def test_closing_the_book_ends_all_and_says_so() -> None:
    async with room() as made:
        made.make = lambda: FakeWork(close_s=0.1)
        leases = [await made.lease(plan=bytes([number]) * 16) for number in range(2)]
        for lease in leases:
            await lease.ready()
        await made.book.close()
        assert [work.events for work in made.works] == [["closed"], ["closed"]]
        await until(lambda: len(made.lost) == 2)
        assert all("the node is leaving" in words for words in made.lost)


async def test_a_dispatch_that_stops_frees_the_work_as_well() -> None:
    async with room() as made:
        await (await made.lease()).ready()
        await made.dispatch.close()
        await until(lambda: made.works[0].events == ["closed"])
        await until(lambda: bool(made.lost))


async def test_a_worker_that_does_not_answer() -> None:
    async with room() as made:
        made.make = asyncio.Event().wait
        with pytest.raises(PeerUnreachable, match="no answer"):
            await HeldLease.ask(
                lambda: made.open(RpcKind.LEASE),
                PLAN,
                ASK,
                lost=made.lost.append,
                leaving=lambda: None,
                timeout_s=0.1,
            )
        await until(lambda: made.book.leases() == ())


async def test_only_so_many_hosts_are_remembered() -> None:
    async def grant(*_: object) -> FakeWork:
        raise LeaseRefusal(LeaseCode.NOT_LENT)

    book = LeaseBook(WORKER, grant, limits=LeaseLimits(hosts=10))
    for number in range(50):
        book._bucket(bytes([number]), 0.0)
    assert len(book._asks) == 10
