"""Peers that flood, stall, lie and forge, against a real node: refused in one clear way, counted, at nobody's cost.

What every attack must leave as it was is asked in tests/e2e/victims.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from bench.counting import Streams, by_socket
from meshnode.errors import NetworkError
from meshnode.mesh.vault import Vault
from meshnode.models.catalog import DEMO_TARGET
from meshnode.net.stream import MeshStream
from meshnode.wire import schema, statements
from meshnode.wire.frames import LENGTH_BYTES, encode_stream_header
from meshnode.wire.messages import Digest, Probe, Statements, Want
from meshnode.wire.registry import (
    ALPN,
    LIMIT_STATEMENT_BYTES,
    LIMIT_STREAMS_A_LINK,
    LIMIT_WANT_IDS,
    Close,
    MessageId,
    Reset,
    Role,
    StatementKind,
    StreamType,
)
from meshnode.wire.signed import seal
from meshnode.wire.statements import Capability, Demand, Device, Dynamic, Leave, ModelState, Offer, Wish
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, hosts_of, mesh_of
from tests.e2e.victims import CHAT, OTHERS_WAIT_AT_MOST_S, Victim, a_victim, chat, request, unharmed, until
from tests.e2e.waiting import eventually
from tests.lab.rogue_peer import RoguePeer, new_identity, reset_code, rogue, type_of, what_it_says

pytestmark = [pytest.mark.engine, pytest.mark.anyio]

INCARNATION = 1_700_000_000
AMPLIFICATION = 3
"""RFC 9000, 8.1."""


@pytest.fixture(scope="module")
def node(start_shared_node: StartNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with a_victim(start_shared_node, tmp_path_factory.mktemp("nice")) as node:
        yield node


@pytest.fixture
def victim(node: Victim) -> Iterator[Victim]:
    """The node, of which this must be true again after every test: see victims.unharmed."""
    with unharmed(node):
        yield node


# --- floods, crumbs, and silence ------------------------------------------------------------------------------------


async def test_ten_thousand_streams(victim: Victim, tmp_path: Path) -> None:
    """All asked for at once, none ever ended: as many as the transport allows are held, the others never begin."""
    before = victim.counter("streams_opened")
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        for _ in range(10_000):
            peer.open(StreamType.HTTP, b"GET / HTTP/1.1\r\n")
        await until(lambda: victim.counter("streams_opened") + victim.counter("streams_overload") >= before + 200)
        await asyncio.to_thread(victim.answers)
        assert victim.counter("streams_opened") <= before + 2 * LIMIT_STREAMS_A_LINK


async def test_ten_thousand_streams_one_after_the_other(victim: Victim, tmp_path: Path) -> None:
    """Each ends at once and makes room for the next: a flood, after which the peer is shut out."""
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        for _ in range(10_000):
            peer.open(63)
        await asyncio.to_thread(victim.answers)
        assert await peer.was_closed() == Close.FLOOD
        assert victim.counter("streams_overload") >= 1000 and victim.counter("bans") >= 1
        with pytest.raises(NetworkError):
            await peer.join(victim.token)


async def test_more_streams_than_the_transport_allows(victim: Victim, tmp_path: Path) -> None:
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        peer.link.quic._remote_max_streams_bidi = 1 << 20
        for _ in range(2 * LIMIT_STREAMS_A_LINK + 2):
            peer.open(StreamType.HTTP)
        assert await peer.was_closed() == 0x4  # STREAM_LIMIT_ERROR, RFC 9000, 20.1


async def test_streams_opened_and_reset_at_once(victim: Victim, tmp_path: Path) -> None:
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        for _ in range(20):
            for stream in [peer.open(StreamType.HTTP, b"POST ") for _ in range(100)]:
                await asyncio.sleep(0)
                stream.reset(Reset.CANCELLED)
            await asyncio.sleep(0.02)
        await asyncio.to_thread(victim.answers)
        assert b" 200 " in await peer.ask(request(CHAT, chat(3)))


async def test_half_of_everything(victim: Victim, tmp_path: Path) -> None:
    """Half a greeting, half a stream header, half a head, half a body: each ends in its time, with its code."""
    async with AsyncExitStack() as stack:
        stranger, peer, idler = [await stack.enter_async_context(rogue(tmp_path)) for _ in range(3)]
        await stranger.dial(victim.token)
        await idler.dial(victim.token)
        stranger.open(StreamType.CONTROL, (500).to_bytes(LENGTH_BYTES, "big") + bytes(100))
        await peer.join(victim.token)
        peer.say_bytes((60_000).to_bytes(LENGTH_BYTES, "big") + bytes(30_000))
        halves = [peer.link.open_stream() for _ in range(3)]
        halves[0].write(encode_stream_header(StreamType.HTTP, b"")[:3])
        halves[1].write(encode_stream_header(StreamType.HTTP, b"") + b"POST /v1/chat/completions HTTP/1.1\r\nhost: ")
        halves[2].write(encode_stream_header(StreamType.HTTP, b"") + request(CHAT, chat(3))[:-9])
        await asyncio.to_thread(victim.answers)
        assert [await reset_code(each) for each in halves] == [Reset.TOO_SLOW] * 3
        assert await stranger.was_closed() == Close.ADMISSION_TIMEOUT
        assert await idler.was_closed() == Close.ADMISSION_TIMEOUT
        assert peer.is_in, "half a frame has a minute"
        assert victim.counter("admissions_timed_out") + victim.counter("admissions_refused") >= 2
        assert victim.counter("streams_too_slow") >= 1 and victim.counter("http_too_slow") >= 2


async def test_control_stream_that_is_never_read(victim: Victim, tmp_path: Path) -> None:
    """It asks for everything, again and again, and takes nothing: what waits for it is bounded, and so are the asks."""
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        news = [peer.statement(Demand((Wish("demo", n),)), incarnation=INCARNATION).id for n in range(LIMIT_WANT_IDS)]
        for _ in range(400):
            peer.say(Digest(bytes(2048)))
            peer.say(Want(tuple(news)))
            await asyncio.sleep(0)
        await asyncio.to_thread(victim.answers)
        await until(lambda: not peer.is_in or victim.counter("digests_over_budget") >= 1)


async def test_answers_that_are_never_read(victim: Victim, tmp_path: Path) -> None:
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token, Role.MEMBER)
        for _ in range(32):
            peer.open(StreamType.HTTP, request(CHAT, chat(200, stream=True)))
        await asyncio.sleep(0.2)
        # They wait in fair turns: the node's own caller does not stand behind all of them.
        await asyncio.to_thread(victim.answers)
        peer.link.close(Close.DONE)
    await until(lambda: victim.counter("http_running") == 0, within_s=10)


# --- statements -----------------------------------------------------------------------------------------------------


async def enter_table(peer: RoguePeer, victim: Victim, **changes: Any) -> None:
    """Become a member that the node knows: with a first statement of who it is."""
    await peer.join(victim.token)
    certificate = peer.vault.credentials.certificate if peer.vault.credentials else b""
    body = statements.Identity(certificate, (peer.endpoint.address,), "rogue")
    peer.say(Statements((peer.statement(body, incarnation=INCARNATION).signed,)))
    node = peer.identity.node_id.hex()
    await until(lambda: any(member["id"] == node for member in mesh_of(victim.node)["peers"]))


def seen_of(peer: RoguePeer, victim: Victim) -> dict[str, Any]:
    """How the node shows this peer."""
    (found,) = [each for each in mesh_of(victim.node)["peers"] if each["id"] == peer.identity.node_id.hex()]
    return dict(found)


async def until_heard(peer: RoguePeer) -> None:
    """Until the node has taken in what was said so far, or has closed the link."""
    before = len(peer.datagrams)
    deadline = time.monotonic() + 5
    while peer.is_in and len(peer.datagrams) == before and time.monotonic() < deadline:
        peer.throw(Probe(1))
        await asyncio.sleep(0.02)


def forged(peer: RoguePeer, victim: Victim) -> bytes:
    """As if the node had said that it leaves."""
    return peer.statement(Leave(), incarnation=INCARNATION * 2, origin=victim.identity.node_id).signed


def by_another_key(peer: RoguePeer, victim: Victim) -> bytes:
    return peer.statement(Demand(), incarnation=INCARNATION, by=new_identity()).signed


def of_even_kind(peer: RoguePeer, victim: Victim) -> bytes:
    body = statements.Payload(62, peer.identity.node_id, INCARNATION, 99, b"\x80")
    return seal(statements.PURPOSE, body, peer.identity.sign)


def claims_an_exabyte(peer: RoguePeer, victim: Victim) -> bytes:
    """More memory than a statement can say; signed in due form."""
    device = {0: "GPU", 2: 1 << 60, 4: 1 << 60}
    body = statements.Payload(StatementKind.DYNAMIC, peer.identity.node_id, INCARNATION, 99, _packed({0: [device]}))
    return seal(statements.PURPOSE, body, peer.identity.sign)


def claims_sixteen_long_names(peer: RoguePeer, victim: Victim) -> bytes:
    """All within the limits of each member, and together more than a statement may have."""
    offers = tuple(boast(f"{number:x}" * 64) for number in range(16))
    body = schema.write(Dynamic(models=offers))
    payload = {0: int(StatementKind.DYNAMIC), 2: peer.identity.node_id, 4: INCARNATION, 6: 99, 8: body}
    return peer.identity.sign(b"x") + _packed(payload)


def _packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


def boast(name: str, content_hash: bytes = b"\x01" * 16) -> Offer:
    """The fastest model in the world."""
    return Offer(
        name,
        content_hash,
        ModelState.READY,
        context=(1 << 32) - 1,
        slots=(1 << 16) - 1,
        capabilities=int(Capability.COMPLETION | Capability.CHAT),
        decode_speed=(1 << 32) - 1,
        prompt_speed=(1 << 32) - 1,
        size_bytes=1 << 50,
    )


@pytest.mark.parametrize(
    ("made", "counter"),
    [
        (forged, "statements_forged"),
        (by_another_key, "statements_forged"),
        (of_even_kind, "statements_malformed"),
        (claims_an_exabyte, "statements_malformed"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_statements_that_nobody_sends_by_accident(
    victim: Victim, tmp_path: Path, made: Any, counter: str
) -> None:
    before = victim.counter(counter)
    async with rogue(tmp_path) as peer:
        await enter_table(peer, victim)
        peer.say(Statements((made(peer, victim),)))
        assert await peer.was_closed() == Close.PROTOCOL_ERROR
        assert victim.counter(counter) == before + 1 and victim.counter("bans") + victim.counter("peers_banned") >= 1
        # It is kept out for a while, also with another invite.
        with pytest.raises(NetworkError):
            await peer.join(victim.invite())


async def test_statement_that_is_too_large(victim: Victim, tmp_path: Path) -> None:
    """Sixteen models with names of 64 characters: more than a message may carry for one statement."""
    async with rogue(tmp_path) as peer:
        await enter_table(peer, victim)
        large = claims_sixteen_long_names(peer, victim)
        assert len(large) > LIMIT_STATEMENT_BYTES
        peer.say_frame(MessageId.STATEMENTS, _packed({0: [large]}))
        assert await peer.was_closed() == Close.PROTOCOL_ERROR
        await victim.until_counted("messages_malformed", 1)


async def test_statements_from_elsewhere_and_elsewhen_change_nothing(victim: Victim, tmp_path: Path) -> None:
    """Replays, a member of another mesh, a number from the far future, a kind of tomorrow: passed over, and counted."""
    async with rogue(tmp_path) as peer:
        await enter_table(peer, victim)
        news = peer.statement(Dynamic((Device("GPU", 8 << 30, 4 << 30),)), incarnation=INCARNATION).signed
        older = peer.statement(Dynamic((Device("GPU", 1 << 30, 0),)), incarnation=INCARNATION - 1).signed
        peer.say(Statements((news,)))
        await until(lambda: seen_of(peer, victim)["memory"]["total_bytes"] == 8 << 30)
        for _ in range(20):
            peer.say(Statements((older, news)))

        other = new_identity()
        elsewhere = Vault(tmp_path / "elsewhere", other).found("elsewhere")
        stranger = peer.statement(
            statements.Identity(elsewhere.certificate), incarnation=1, by=other, origin=other.node_id
        )
        future = peer.statement(Dynamic((Device("GPU", 9 << 30, 0),)), incarnation=INCARNATION + 1_000_000)
        tomorrow = statements.Payload(63, peer.identity.node_id, INCARNATION, 99, b"\x80")
        before = {name: victim.counter(name) for name in ("identities_not_admitted", "incarnations_from_the_future")}
        signed = seal(statements.PURPOSE, tomorrow, peer.identity.sign)
        peer.say(Statements((stranger.signed, future.signed, signed)))
        await until_heard(peer)
        for name, count in before.items():
            await victim.until_counted(name, count + 1)
        assert peer.is_in
        assert seen_of(peer, victim)["memory"]["total_bytes"] == 8 << 30
        assert all(each["id"] != other.node_id.hex() for each in mesh_of(victim.node)["peers"])


async def test_lies_about_what_it_has(victim: Victim, tmp_path: Path) -> None:
    """The largest memory and the fastest demo in the world, of other weights: nobody's answer comes from there."""
    (served,) = [model for model in victim.node.status()["models"] if model["id"] == "demo"]
    async with rogue(tmp_path) as peer:
        await enter_table(peer, victim)
        devices = tuple(Device("GPU", 1 << 50, 1 << 50) for _ in range(4))
        lie = Dynamic(devices, (boast("demo"), boast("x" * 64), boast("<img src=x onerror=alert(1)>")))
        peer.say(Statements((peer.statement(lie, incarnation=INCARNATION).signed,)))
        await until(lambda: len(seen_of(peer, victim)["models"]) == 3)
        shown = seen_of(peer, victim)
        assert shown["memory"]["total_bytes"] == 4 << 50
        for _ in range(10):
            await asyncio.to_thread(victim.answers)
        # About the hash table it may be asked, as any member.
        assert StreamType.HTTP not in [await type_of(stream) for stream in peer.opened], "the node asked a liar"
        assert served["id"] == "demo"


def resets(stream: MeshStream) -> None:
    stream.reset(Reset.UPSTREAM_BROKEN)


def says_nothing(stream: MeshStream) -> None: ...


@pytest.mark.parametrize(
    ("behave", "content_hash"),
    [
        pytest.param(resets, hashlib.sha256(DEMO_TARGET.read_bytes()).digest()[:16], id="as a replica"),
        pytest.param(resets, b"\x01" * 16, id="of other weights"),
        pytest.param(says_nothing, hashlib.sha256(DEMO_TARGET.read_bytes()).digest()[:16], id="silent"),
    ],
)
async def test_callers_of_a_gateway_do_not_notice_a_liar(
    victim: Victim, tmp_path: Path, start_node: StartNode, behave: Callable[[MeshStream], None], content_hash: bytes
) -> None:
    """It claims to be the fastest host of the demo, and answers nothing that it is asked: the honest host answers."""
    # It is there before the liar: who answers no probe is told of for some seconds only.
    gateway = await asyncio.to_thread(start_node, "--client", "--join", victim.token, environment=SMALL)
    async with rogue(tmp_path) as peer:
        peer.on_stream = behave
        await enter_table(peer, victim)
        lie = Dynamic((), (boast("demo", content_hash),))
        peer.say(Statements((peer.statement(lie, incarnation=INCARNATION).signed,)))
        await until(lambda: hosts_of(gateway).get("demo") == 2, within_s=10)
        for _ in range(6):
            await asyncio.to_thread(answers_whole, gateway)
        assert peer.opened, "the gateway never turned to the liar: this test shows nothing"
        await asyncio.to_thread(gateway.end)


def answers_whole(node: NodeProcess) -> None:
    begun = time.monotonic()
    with Streams(by_socket(node.base_url), [("demo", 20)]) as streams:
        pass
    assert streams.faults() == [] and time.monotonic() - begun < OTHERS_WAIT_AT_MOST_S


# --- messages -------------------------------------------------------------------------------------------------------


async def test_unknown_odd_ids_are_passed_over(victim: Victim, tmp_path: Path) -> None:
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        for number in (1, 63, 0xFFFF):
            peer.say_frame(number, b"\x80")
        peer.link.send_datagram((63).to_bytes(2, "big") + b"\x80")
        await until_heard(peer)
        assert peer.is_in and peer.datagrams
        stream = peer.open(63)
        assert await reset_code(stream) == Reset.UNKNOWN_TYPE


@pytest.mark.parametrize("datagram", [False, True], ids=["frame", "datagram"])
@pytest.mark.parametrize(
    ("number", "body"),
    [
        (62, b"\x80"),
        (0xFFFE, b"\x80"),
        (MessageId.PROBE, b"\xc1"),
        (MessageId.PROBE, b""),
        (MessageId.PROBE, b"\x81\x00\xff"),
        (MessageId.HELLO, b"\x80"),
        (MessageId.STATEMENTS, _packed({0: [b""]})),
    ],
    ids=["even", "last even", "no msgpack", "empty", "negative", "a second greeting", "no statement"],
)
async def test_messages_that_break_the_rules(
    victim: Victim, tmp_path: Path, number: int, body: bytes, datagram: bool
) -> None:
    before = victim.counter("messages_malformed")
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        if datagram:
            peer.link.send_datagram(number.to_bytes(2, "big") + body)
        else:
            peer.say_frame(number, body)
        assert await peer.was_closed() == Close.PROTOCOL_ERROR
        await victim.until_counted("messages_malformed", before + 1)


@pytest.mark.parametrize("size", [0, 1, 65_537, 0xFFFFFFFF])
async def test_impossible_frames(victim: Victim, tmp_path: Path, size: int) -> None:
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        peer.say_bytes(size.to_bytes(LENGTH_BYTES, "big"))
        assert await peer.was_closed() == Close.PROTOCOL_ERROR


async def test_messages_without_pause(victim: Victim, tmp_path: Path) -> None:
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        before = victim.counter("messages_in")
        for _ in range(5000):
            peer.say(Probe(7))
        await asyncio.to_thread(victim.answers)
        await until(lambda: not peer.is_in or victim.counter("messages_in") >= before + 5000)
        assert victim.counter("messages_over_budget") >= 1000


# --- strangers ------------------------------------------------------------------------------------------------------


def first_datagram(alpn: str) -> bytes:
    quic = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=[alpn]))
    quic.connect(("127.0.0.1", 1), now=0.0)
    return b"".join(data for data, _ in quic.datagrams_to_send(now=0.0)[:1])


def test_nobody_is_amplified(victim: Victim) -> None:
    """A first packet from an address that never answers: what comes back, again and again, stays below three times."""
    (address,) = what_it_says(victim.token).addresses
    with AsyncExitStackOfSockets(20) as sources:
        sent = []
        for number, source in enumerate(sources):
            datagram = first_datagram(ALPN if number % 2 else "other")
            sent.append(source.sendto(datagram, (address.host, address.port)))
        deadline = time.monotonic() + 3
        back = [0] * len(sources)
        while time.monotonic() < deadline:
            for number, source in enumerate(sources):
                back[number] += received(source)
            time.sleep(0.01)
    assert all(count <= AMPLIFICATION * size for count, size in zip(back, sent, strict=True)), (back, sent)
    assert sum(back) > 0, "nothing was answered at all: this test would show nothing"


def test_junk_is_not_answered(victim: Victim) -> None:
    """Short first packets, unknown versions, unknown connections, noise."""
    (address,) = what_it_says(victim.token).addresses
    first = first_datagram(ALPN)
    junk = [
        first[:600],
        first[:1] + b"\xff\x00\x00\x1d" + first[5:],
        first[:1] + bytes(4) + first[5:],
        b"\x40" + bytes(1199),
        b"\xc0" * 1200,
        b"x",
        bytes(1400),
    ]
    before = victim.counter("junk")
    with AsyncExitStackOfSockets(1) as sources:
        for _ in range(50):
            for datagram in junk:
                sources[0].sendto(datagram, (address.host, address.port))
        eventually(lambda: victim.counter("junk") >= before + 40 * len(junk), within_s=5)
        assert received(sources[0]) == 0


class AsyncExitStackOfSockets:
    """So many UDP sockets on loopback."""

    def __init__(self, count: int) -> None:
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]

    def __enter__(self) -> list[socket.socket]:
        for each in self._sockets:
            each.bind(("127.0.0.1", 0))
            each.setblocking(False)
        return self._sockets

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()


def received(source: socket.socket) -> int:
    """Bytes that wait at a socket."""
    total = 0
    while True:
        try:
            total += len(source.recv(65535))
        except BlockingIOError:
            return total


def test_refusals_can_be_seen(victim: Victim) -> None:
    """What the tests before have provoked stands in the status, and in the metrics."""
    counters, metrics = mesh_of(victim.node)["counters"], victim.metrics()
    provoked = [name for name in ("streams_overload", "messages_malformed", "statements_forged") if counters.get(name)]
    for name in (*provoked, "sessions_opened"):
        line = rf'^meshnode_mesh_events(_total)?{{[^}}]*"{name}"[^}}]*}} {counters[name]}(\.0)?$'
        assert re.search(line, metrics, re.MULTILINE), name
