"""Nodes and a hostile one on the loopback interface, with real multicast; each test has a service of its own."""

import asyncio
import logging
import random
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from zeroconf import (
    DNSAddress,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSService,
    DNSText,
    RecordUpdate,
    RecordUpdateListener,
)
from zeroconf.asyncio import AsyncZeroconf

from meshnode.discovery import mdns
from meshnode.discovery.mdns import Lan, mesh_tag
from meshnode.discovery.services import MAX_NEIGHBOURS, Text
from meshnode.errors import StateError
from meshnode.wire.address import Address

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
MULTICAST = ("224.0.0.251", 5353)
RESPONSE = 0x8400
UNIQUE = 0x8001
MESH = b"m" * 32
OTHER = b"o" * 32
NOON_S = 20_000.5 * 86_400
LIMIT_S = 10.0


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch) -> str:
    """A type that no other node on this machine announces or asks for."""
    name = f"_mn{secrets.token_hex(5)}._udp.local."
    monkeypatch.setattr(mdns, "SERVICE", name)
    return name


@pytest.fixture(autouse=True)
async def nothing_is_raised_into_the_loop() -> AsyncIterator[None]:
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    yield
    assert raised == []


class Node:
    """A Lan, and a way to wait for what it sees."""

    def __init__(self) -> None:
        self.lan: Lan
        self.now_s = NOON_S
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await self._changed.wait()
                self._changed.clear()

    def sees(self, other: "Node") -> bool:
        return other.lan.instance in self.names

    @property
    def names(self) -> list[str]:
        return [each.instance for each in self.lan.neighbours]


@asynccontextmanager
async def node(*hosts: str, port: int = 9337, mesh: bytes | None = MESH) -> AsyncIterator[Node]:
    found = Node()
    changed, clock = found._changed.set, lambda: found.now_s
    found.lan = await Lan.open(hosts or [HOST], port=port, mesh=mesh, changed=changed, clock=clock)
    try:
        yield found
    finally:
        await found.lan.close()


@asynccontextmanager
async def nodes(*meshes: bytes | None) -> AsyncIterator[list[Node]]:
    """So many nodes, each of which sees all others."""
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(node(port=1000 + number, mesh=mesh)) for number, mesh in enumerate(meshes)
        ]
        for each in found:
            await each.until(lambda each=each: len(each.lan.neighbours) == len(found) - 1)  # type: ignore[misc]
        yield found


Send = Callable[[bytes], Awaitable[None]]


@pytest.fixture
def send() -> Iterator[Send]:
    """Send a datagram as a responder on this machine would, and let the loop take it out of the socket's buffer."""

    async def send(data: bytes) -> None:
        sender.sendto(data, MULTICAST)
        await asyncio.sleep(0)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HOST))
        yield send


def response(*records: Any) -> bytes:
    out = DNSOutgoing(RESPONSE)
    for record in records:
        out.add_answer_at_time(record, 0)
    (packet,) = out.packets()
    return packet


def pointer(instance: str, ttl: int = 1200) -> DNSPointer:
    return DNSPointer(mdns.SERVICE, 12, 1, ttl, f"{instance}.{mdns.SERVICE}")


def records(instance: str, *, text: bytes = b"\3v=1", port: int = 9, host: bytes = b"\x7f\0\0\1") -> list[Any]:
    """All that make a neighbour."""
    name, server = f"{instance}.{mdns.SERVICE}", f"{instance}.local."
    return [
        pointer(instance),
        DNSService(name, 33, UNIQUE, 120, 0, 0, port, server),
        DNSText(name, 16, UNIQUE, 1200, text),
        DNSAddress(server, 1, UNIQUE, 120, host),
    ]


def numbered(number: int) -> str:
    return f"mn-{number:08}".translate(str.maketrans("0189", "abcd"))


# --- who is there -------------------------------------------------------------------------------------------------


async def test_members_of_one_mesh_see_each_other_and_not_themselves() -> None:
    async with nodes(MESH, MESH) as (one, other):
        (seen,) = one.lan.neighbours
        assert seen.instance == other.lan.instance
        assert seen.addresses == (Address(HOST, 1001),)
        assert (seen.ours, seen.shows_code) == (True, False)
        assert other.lan.neighbours[0].addresses == (Address(HOST, 1000),)


async def test_one_who_comes_late_asks() -> None:
    async with nodes(MESH, OTHER) as (one, _), node() as late:
        await late.until(lambda: len(late.lan.neighbours) == 2)
        await one.until(lambda: one.sees(late))


async def test_a_foreign_mesh_is_not_ours_until_it_is_joined() -> None:
    async with nodes(MESH, OTHER, None) as (one, other, _):
        assert [each.ours for each in one.lan.neighbours] == [False, False]
        await one.lan.announce(mesh=OTHER, shows_code=False)
        await one.until(lambda: [each.ours for each in one.lan.neighbours] == [True, False])
        await other.until(lambda: any(each.ours for each in other.lan.neighbours))


async def test_a_code_is_seen_while_it_is_shown() -> None:
    """Also the second time: the text of before is then in every cache, and is no news to it."""
    async with nodes(None, MESH) as (guest, host):
        for shown in (True, False, True):
            await host.lan.announce(mesh=MESH, shows_code=shown)
            await guest.until(lambda shown=shown: guest.lan.neighbours[0].shows_code == shown)  # type: ignore[misc]


async def test_of_changes_in_haste_the_last_one_counts() -> None:
    async with nodes(None, MESH) as (guest, host):
        for shown in (True, False, True, False, True):
            await host.lan.announce(mesh=None, shows_code=shown)
        await guest.until(lambda: guest.lan.neighbours[0].shows_code)
        assert not guest.lan.neighbours[0].ours


async def test_what_is_announced_holds_no_name_of_anything(service: str) -> None:
    heard: list[Any] = []

    class Listener(RecordUpdateListener):
        def async_update_records(self, zc: Any, now: float, records: list[RecordUpdate]) -> None:
            heard.extend(update.new for update in records)

        def async_update_records_complete(self) -> None: ...

    raw = AsyncZeroconf(interfaces=[HOST])
    raw.zeroconf.async_add_listener(Listener(), None)
    async with nodes(MESH, MESH) as (one, _):
        instance = one.lan.instance
    await raw.async_close()
    mine = [record for record in heard if instance in (record.name + getattr(record, "alias", ""))]
    texts = {record.text for record in mine if record.type == 16}
    assert texts == {b"\3v=1\x12g=" + mesh_tag(MESH, 20_000).encode()}
    assert {record.name for record in mine} == {service, f"{instance}.{service}", f"{instance}.local."}
    assert {(record.server, record.port) for record in mine if record.type == 33} == {(f"{instance}.local.", 1000)}


# --- leaving ------------------------------------------------------------------------------------------------------


async def test_a_goodbye() -> None:
    async with nodes(MESH, MESH) as (one, other):
        await other.lan.close()
        await one.until(lambda: one.lan.neighbours == ())
        assert (other.lan.neighbours, other.lan.instance) == ((), "")
        await other.lan.close()
        await other.lan.announce(mesh=MESH, shows_code=True)
        await other.lan.refresh([HOST])
        assert other.lan.instance == "", "closed is closed"


async def test_an_answer_that_was_put_off_revives_nobody(send: Send) -> None:
    """A question just before the goodbye: its answer waits for 20 to 120 ms, and would come after it."""
    async with nodes(MESH, MESH) as (one, other):
        dns = other.lan._presence._dns.zeroconf  # type: ignore[union-attr]
        # What was announced within the last second is put off for longer than a goodbye takes.
        dns.cache.async_remove_records(dns.cache.entries_with_name(mdns.SERVICE))
        question = DNSOutgoing(0)
        question.add_question(DNSQuestion(mdns.SERVICE, 12, 1))
        await send(question.packets()[0])
        async with asyncio.timeout(LIMIT_S):
            while not dns.out_queue.queue:
                await asyncio.sleep(0)
        await other.lan.close()
        async with node() as third:
            await one.until(lambda: one.sees(third))
            assert one.names == [third.lan.instance]


async def test_a_question_asks_for_all_but_the_own_records(service: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("", MULTICAST[1]))
        group = socket.inet_aton(MULTICAST[0]) + socket.inet_aton(HOST)
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        label = service.partition(".")[0].encode()
        async with node() as one, asyncio.timeout(LIMIT_S):
            packet = b""
            while label not in packet or packet[2] & 0x80:
                packet = await asyncio.get_running_loop().sock_recv(listener, 9000)
            assert packet[4:12] == b"\0\1\0\1\0\0\0\0", "one question, one known answer"
            assert one.lan.instance.encode() in packet


async def test_closing_while_it_opens() -> None:
    lan = Lan(port=1, mesh=None, changed=lambda: None, clock=lambda: NOON_S, draw=random.Random(1).randrange)
    opening = asyncio.create_task(lan.refresh([HOST]))
    await asyncio.sleep(0)
    await lan.close()
    await opening
    assert lan.instance == ""


# --- days and networks --------------------------------------------------------------------------------------------


async def test_a_new_day_brings_a_new_name() -> None:
    async with nodes(MESH, MESH) as (one, other):
        before = other.lan.instance
        await other.lan.refresh([HOST])
        assert other.lan.instance == before
        other.now_s += 86_400
        await other.lan.refresh([HOST])
        assert other.lan.instance != before
        await one.until(lambda: one.names == [other.lan.instance])
        assert one.lan.neighbours[0].ours, "of a neighbouring day"
        await other.until(lambda: other.sees(one) and other.lan.neighbours[0].ours)


async def test_without_hosts_nothing_is_opened_until_there_are_some() -> None:
    lan = await Lan.open([], port=1, mesh=MESH, changed=lambda: None)
    await lan.announce(mesh=MESH, shows_code=True)
    assert (lan.instance, lan.neighbours) == ("", ())
    async with node() as other:
        await lan.refresh([HOST])
        await other.until(lambda: other.names == [lan.instance])
        assert other.lan.neighbours[0].shows_code
        name = lan.instance
        await lan.refresh([])
        assert lan.instance == ""
        await other.until(lambda: other.names == [])
        await lan.refresh([HOST])
        assert lan.instance not in ("", name)
        await lan.close()


async def test_hosts_that_cannot_be_used() -> None:
    with pytest.raises(StateError, match="no such address here") as caught:
        await Lan.open(["203.0.113.9"], port=1, mesh=None, changed=lambda: None)
    assert "invite" in caught.value.fix
    async with nodes(MESH, MESH) as (one, other):
        with pytest.raises(StateError):
            await other.lan.refresh(["203.0.113.9"])
        assert other.lan.neighbours == ()
        await one.until(lambda: one.lan.neighbours == ())
        await other.lan.refresh(["203.0.113.9", HOST])
        await one.until(lambda: one.sees(other))
        assert one.lan.neighbours[0].addresses == (Address(HOST, 1001),)


async def test_sockets_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("address in use")

    monkeypatch.setattr("zeroconf.asyncio.AsyncZeroconf.__init__", refuse)
    with pytest.raises(StateError, match="address in use"):
        await Lan.open([HOST], port=1, mesh=None, changed=lambda: None)


# --- hostile neighbours -------------------------------------------------------------------------------------------


async def test_odd_records_are_passed_over(send: Send, service: str) -> None:
    good, names = "mn-aaaaaaaa", [numbered(number) for number in range(20, 40)]
    text = Text(mesh_tag(MESH, 20_000), True).encode()
    async with node() as one:
        await send(response(*records(names[0], port=0)))
        await send(response(*records(names[1], text=b"\3v=1" + b"\xff" * 300)))
        await send(response(*records(names[2], text=b"")))
        await send(response(*records(names[3], text=b"\3v=9")))
        await send(response(*records(names[4], text=b"\xff")))
        await send(response(*records(names[5], host=b"\0\0\0\0")))
        await send(response(*records(names[6], host=b"\xe0\0\0\1")))
        await send(response(*records("printer of Jane")))
        await send(response(*records("mn-" + "a" * 50)))
        elsewhere = f"{names[7]}.{service}"
        foreign = DNSService(elsewhere, 33, UNIQUE, 120, 0, 0, 9, "victim.local.")
        await send(response(records(names[7])[0], foreign, *records(names[7])[2:]))
        await send(response(DNSPointer(service, 12, 1, 1200, "victim.local."), DNSPointer(service, 12, 1, 1200, ".")))
        await send(response(*records(one.lan.instance, port=1)))
        await send(response(*reversed(records(good, text=text, host=b"\x0a\0\0\7"))))
        await one.until(lambda: bool(one.names))
        (seen,) = one.lan.neighbours
        assert (seen.instance, seen.addresses, seen.ours, seen.shows_code) == (
            good,
            (Address("10.0.0.7", 9),),
            True,
            True,
        )


async def test_broken_packets_are_passed_over(send: Send) -> None:
    draw = random.Random(5)
    whole = response(*records("mn-bbbbbbbb"))
    async with node() as one:
        for size in range(0, len(whole), 3):
            await send(whole[:size])
        for _ in range(300):
            torn = bytearray(whole)
            for _ in range(draw.randrange(1, 6)):
                torn[draw.randrange(len(torn))] = draw.randrange(256)
            await send(bytes(torn))
        await send(whole + bytes(8000))
        await send(response(*records("mn-aaaaaaaa")))
        await one.until(lambda: "mn-aaaaaaaa" in one.names)
        async with node() as other:
            await one.until(lambda: one.sees(other))


async def test_what_the_package_logs_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("zeroconf"), "propagate", True)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    async with node():
        logging.getLogger("zeroconf").warning("of a packet")
        logging.getLogger("other").warning("of ours")
    assert [record.getMessage() for record in logged] == ["of ours"]


async def test_a_flood_is_bounded(send: Send) -> None:
    async with nodes(MESH, MESH) as (one, other):
        for number in range(400):
            await send(response(*records(numbered(number))))
        await send(response(*records("mn-bbbbbbbb", text=b"\3v=1\3s=1")))
        await one.until(lambda: "mn-bbbbbbbb" in one.names)
        assert len(one.lan.neighbours) == MAX_NEIGHBOURS
        assert one.sees(other), "ours makes room for nobody"


async def test_a_flood_of_changes_is_told_now_and_then(send: Send) -> None:
    told: list[int] = []
    lan = await Lan.open([HOST], port=1, mesh=None, changed=lambda: told.append(len(lan.neighbours)))
    for number in range(40):
        await send(response(*records(numbered(number))))
    async with asyncio.timeout(LIMIT_S):
        while len(lan.neighbours) < 40:
            await asyncio.sleep(0.001)
    await lan.close()
    assert len(told) < 10


async def test_the_package_is_loaded_late() -> None:
    code = "import sys, meshnode.discovery.mdns; sys.exit('zeroconf' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
