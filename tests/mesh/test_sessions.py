import asyncio
import resource
from contextlib import AsyncExitStack, suppress

import pytest

from meshnode.errors import PeerRefused
from meshnode.mesh.control import ControlLimits, datagram_of, frame_of
from meshnode.mesh.options import MeshLimits
from meshnode.mesh.sessions import SessionLimits
from meshnode.net.stream import LinkLost, MeshStream
from meshnode.wire import messages, statements
from meshnode.wire.frames import encode_frame, encode_stream_header
from meshnode.wire.messages import Hello, Probe, Statements, Subscribe
from meshnode.wire.registry import LIMIT_FRAME_BYTES, VERSION, Close, Reset, Role, StreamType
from meshnode.wire.values import encode
from tests.mesh.memory_link import code_of
from tests.mesh.neighbourhood import Neighbourhood, Resident
from tests.mesh.rogue import Rogue

pytestmark = pytest.mark.anyio
QUICK = MeshLimits(sessions=SessionLimits(control=ControlLimits(waiting_bytes=1 << 20, frame_s=0.1), admission_s=0.1))


async def healthy(one: Resident, two: Resident) -> None:
    """Whatever the rogue does, the others go on."""
    assert await one.ask(two, b"still") == (200, f"{two.name}:still".encode())


async def test_a_stranger_that_says_nothing_is_closed(town: Neighbourhood) -> None:
    victim = await town.founder(QUICK)
    async with Rogue(town.resident()) as rogue:
        await rogue.dial(victim)
        assert await rogue.was_closed() == Close.ADMISSION_TIMEOUT
    assert victim.mesh.counters["admissions_timed_out"] == 1


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (frame_of(Probe(1)), Close.PROTOCOL_ERROR),
        (encode_frame(0, b"\xc1"), Close.PROTOCOL_ERROR),
        ((LIMIT_FRAME_BYTES + 1).to_bytes(4, "big"), Close.PROTOCOL_ERROR),
        (frame_of(Hello(VERSION + 1, b"m" * 32, Role.MEMBER)), Close.BAD_VERSION),
        (frame_of(Hello(VERSION, b"m" * 32, Role.MEMBER)), Close.WRONG_MESH),
    ],
    ids=["a probe", "no value", "too long", "version", "mesh"],
)
async def test_a_stranger_with_the_wrong_words_is_closed(town: Neighbourhood, first: bytes, code: Close) -> None:
    victim = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await rogue.dial(victim)
        rogue.open(StreamType.CONTROL, first)
        assert await rogue.was_closed() == code
    assert victim.mesh.counters["admissions_refused"] == 1
    assert victim.mesh.counters.get("sessions_opened", 0) == 0


async def test_a_stranger_gets_nothing_but_the_way_in(town: Neighbourhood) -> None:
    victim = await town.founder(QUICK)
    async with Rogue(town.resident()) as rogue:
        await rogue.dial(victim)
        streams = [rogue.open(kind) for kind in (StreamType.HTTP, StreamType.RPC, StreamType.BULK)]
        rogue.link.send_datagram(datagram_of(Probe(1)))
        assert await rogue.was_closed() == Close.ADMISSION_TIMEOUT
        for stream in streams:
            with pytest.raises(LinkLost):
                await stream.read(1)
    assert victim.requests == []
    assert victim.mesh.counters["datagrams_dropped"] == 1


async def test_a_second_control_stream_is_refused(town: Neighbourhood) -> None:
    victim = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        assert await code_of(rogue.open(StreamType.CONTROL, b"")) == Reset.REFUSED
        assert rogue.link.alive


async def test_the_one_who_was_dialled_opens_no_control_stream(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    link = next(iter(one.mesh._endpoint.links))
    here, there = (one, two) if not link.dialled else (two, one)
    peer = here.mesh._sessions.get(there.id)
    assert peer is not None
    stream = peer.link.open_stream()
    stream.write(encode_stream_header(StreamType.CONTROL, b""))
    assert await code_of(stream) == Reset.REFUSED


@pytest.mark.parametrize(
    "bad",
    [
        encode_frame(9998, encode({})),
        encode_frame(4, b"\xff\xff"),
        b"\0\0\0\1a",
        b"\xff\xff\xff\xff",
        frame_of(Hello(VERSION, b"m" * 32, Role.MEMBER)),
        frame_of(Subscribe(1)),
    ],
    ids=["unknown", "no value", "too short", "4 GB", "a second hello", "of a client"],
)
async def test_a_member_that_breaks_the_rules_is_kept_out_for_a_while(town: Neighbourhood, bad: bytes) -> None:
    one, two = await town.members(2)
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(one)
        rogue.session.stream.write(bad)
        assert await rogue.was_closed() == Close.PROTOCOL_ERROR
        with pytest.raises(PeerRefused) as caught:
            await rogue.enter(one)
        assert caught.value.close_code == Close.BANNED
        assert one.mesh.counters["bans"] == 1
        with pytest.raises(PeerRefused, match="lately"):
            await one.mesh.ping(rogue.resident.id, 1)
    await healthy(one, two)


async def test_a_ban_ends(town: Neighbourhood) -> None:
    victim = await town.founder(MeshLimits(sessions=SessionLimits(ban_s=0.05)))
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        rogue.session.stream.write(b"\0\0\0\0")
        await rogue.was_closed()
        await asyncio.sleep(0.06)
        await rogue.enter(victim)
        assert victim.mesh._sessions.get(rogue.resident.id) is not None


async def test_unknown_odd_messages_are_passed_over(town: Neighbourhood) -> None:
    victim = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        rogue.session.stream.write(encode_frame(9999, encode({0: 1})))
        rogue.link.send_datagram((9999).to_bytes(2, "big") + encode({0: 1}))
        assert await rogue.link.echo() > 0
        assert victim.mesh._sessions.get(rogue.resident.id) is not None


async def test_a_datagram_that_breaks_the_rules_counts_as_a_frame(town: Neighbourhood) -> None:
    victim = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        rogue.link.send_datagram(b"\x27\x0e" + encode({}))
        assert await rogue.was_closed() == Close.PROTOCOL_ERROR


async def test_forged_statements_end_the_link(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(one)
        sign = rogue.resident.identity.sign
        forged = statements.make(statements.Demand(), origin=two.id, incarnation=99, number=1, sign=sign)
        rogue.session.stream.write(frame_of(Statements((forged.signed,))))
        assert await rogue.was_closed() == Close.PROTOCOL_ERROR
    seen = one.sees(two)
    assert seen is not None and seen.incarnation != 99
    await healthy(one, two)


async def test_half_a_frame_ends_the_link_in_time_but_is_no_offence(town: Neighbourhood) -> None:
    victim = await town.founder(QUICK)
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        rogue.session.stream.write(frame_of(Probe(1))[:-1])
        assert await rogue.was_closed() == Close.PROTOCOL_ERROR
    assert victim.mesh.counters.get("bans", 0) == 0


async def test_a_peer_that_never_reads_its_control_stream_holds_little_memory(town: Neighbourhood) -> None:
    victim = await town.founder(QUICK)
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        peer = victim.mesh._sessions.get(rogue.resident.id)
        assert peer is not None
        message = Statements((b"x" * 1000,) * 40)
        for _ in range(500):
            peer.send(message)
            await asyncio.sleep(0)
            if not peer.link.alive:
                break
        assert await rogue.was_closed() == Close.FLOOD
        assert peer.control.waiting_bytes == 0
    assert victim.mesh.counters["control_overflows"] == 1
    assert victim.mesh.counters.get("bans", 0) == 0


async def test_a_client_may_not_gossip(town: Neighbourhood) -> None:
    victim = await town.founder()
    async with Rogue(town.resident(Role.CLIENT)) as rogue:
        await rogue.enter(victim, Role.CLIENT)
        rogue.session.stream.write(frame_of(messages.Prune()))
        assert await rogue.was_closed() == Close.ROLE_REFUSED


async def test_a_client_may_not_open_the_streams_of_members(town: Neighbourhood) -> None:
    victim = await town.founder()
    async with Rogue(town.resident(Role.CLIENT)) as rogue:
        await rogue.enter(victim, Role.CLIENT)
        for kind in (StreamType.RPC, StreamType.BULK):
            assert await code_of(rogue.open(kind)) == Reset.REFUSED
        assert victim.mesh.counters["streams_not_allowed"] >= 2
        assert victim.mesh._sessions.get(rogue.resident.id) is not None


async def test_there_is_room_for_so_many_clients(town: Neighbourhood) -> None:
    host = await town.founder(MeshLimits(sessions=SessionLimits(clients=1)))
    client = await town.joined(host, Role.CLIENT)
    async with Rogue(town.resident(Role.CLIENT)) as rogue:
        with suppress(PeerRefused):  # or the welcome comes first
            await rogue.enter(host, Role.CLIENT)
        assert await rogue.was_closed() == Close.FLOOD
    assert host.mesh.counters["clients_refused"] == 1
    await healthy(client, host)
    await healthy(await town.joined(host), host)


async def test_10000_streams(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(one)
        try:
            for number in range(10_000):
                stream = rogue.open(StreamType.HTTP)
                stream.reset(Reset.CANCELLED)
                if number % 100 == 0:
                    await healthy(one, two)
                    await asyncio.sleep(0)
        except OSError:
            pass
        opened = one.mesh.counters["streams_opened"] + one.mesh.counters.get("streams_overload", 0)
        assert opened > 0
    await healthy(one, two)
    assert one.requests == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /slots",
        b"POST /slots",
        b"POST /../",
        b"POST /v1/../slots",
        b"GET http://169.254.169.254/",
        b"CONNECT 127.0.0.1:22",
        b"POST //v1/chat/completions",
    ],
)
async def test_a_tunnel_leads_nowhere_else(town: Neighbourhood, request_line: bytes) -> None:
    victim = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        stream = rogue.open(
            StreamType.HTTP, request_line + b" HTTP/1.1\r\nHost: llama-server\r\nContent-Length: 0\r\n\r\n"
        )
        assert (await stream.read(1000)).startswith(b"HTTP/1.1 404 ")
        stream.abort()
    assert victim.requests == []
    assert victim.mesh.counters["http_refused"] == 1


async def test_strangers_make_room_for_each_other(town: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.mesh.sessions.MOST_UNADMITTED", 3)
    victim = await town.founder()
    async with AsyncExitStack() as held:
        rogues = [await held.enter_async_context(Rogue(town.resident())) for _ in range(4)]
        for rogue in rogues:
            await rogue.dial(victim)
        assert await rogues[0].was_closed() == Close.ADMISSION_TIMEOUT
        await rogues[3].link.echo()
        assert len(victim.mesh._sessions._entries) == 3


async def test_both_may_dial_at_once(town: Neighbourhood) -> None:
    one = await town.founder()
    two = await town.joined(one)
    for resident in (one, two):
        peer = resident.mesh._sessions.get(two.id if resident is one else one.id)
        assert peer is not None
        peer.link.close(Close.DONE)
    await asyncio.gather(
        *(here.mesh.ping(there.id, 1) for here, there in ((one, two), (two, one))), return_exceptions=True
    )
    await town.acquainted([one, two])
    await asyncio.sleep(1.2)
    assert len(list(one.mesh._endpoint.links)) == len(list(two.mesh._endpoint.links)) == 1
    await healthy(one, two)
    await healthy(two, one)


async def test_a_restarted_peer_has_a_new_session(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    before = one.mesh._sessions.get(two.id)
    await two.crash()
    await two.restart()
    await town.acquainted([one, two])
    await one.until(lambda: one.mesh._sessions.get(two.id) is not before)
    await healthy(one, two)


async def test_streams_that_come_before_the_welcome_was_read_wait(town: Neighbourhood) -> None:
    """The acceptor may open a stream as soon as it has sent its welcome."""
    one = await town.founder()
    up = one.mesh._sessions._listener.peer_up
    opened: list[MeshStream] = []

    def at_once(peer: object) -> None:
        stream = peer.link.open_stream()  # type: ignore[attr-defined]
        stream.write(encode_stream_header(StreamType.HTTP, b"") + b"nonsense\r\n\r\n")
        opened.append(stream)
        up(peer)  # type: ignore[arg-type]

    one.mesh._sessions._listener.peer_up = at_once  # type: ignore[method-assign]
    await town.joined(one)
    assert (await opened[0].read(1000)).startswith(b"HTTP/1.1 400 ")
