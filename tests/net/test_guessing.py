"""Guessing ports: through a translator that gives each destination another port, made of sockets on loopback."""

import asyncio
import os
import random
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import monotonic

import pytest

from meshnode.net import guessing, punching
from meshnode.net.address import Address, SocketAddress, for_socket, is_virtual
from meshnode.net.detours import Detours
from meshnode.net.guessing import MOST_HITS, SOCKETS, Guess, Opener, probe
from meshnode.net.punches import Attempt
from meshnode.net.sides import SideSockets
from meshnode.net.udp import Traffic
from tests.net.nodes import HOST, Node, echo, node, two_nodes, until

pytestmark = pytest.mark.anyio

NONCE = bytes(16)


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def sides(detours: Detours | None = None) -> SideSockets:
    return SideSockets(
        Detours() if detours is None else detours,
        host=HOST,
        received=lambda *_: None,
        unreachable=lambda _: None,
        drained=lambda: None,
        traffic=Traffic(),
    )


def attempt(*targets: SocketAddress, opens: bool = True) -> Attempt:
    return Attempt(NONCE, b"key", targets, opens=opens, now=0.0)


def test_hosts_that_can_be_guessed_at() -> None:
    hosts = ("11.7.1.2", "2001:db8::1", "name", "224.0.0.1", "0.0.0.0", "255.255.255.255", "")
    assert [Guess("prober", host).is_possible for host in hosts] == [True] + [False] * 6


# --- the prober ---------------------------------------------------------------------------------------------


async def test_a_prober_tries_each_port_once_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guessing, "GUESS_S", 0.5)
    ports: list[int] = []

    def transmit(datagrams: Sequence[bytes], destination: SocketAddress) -> None:
        assert destination[0] == "11.7.1.2" and len(datagrams) == 1
        ports.append(destination[1])

    started = monotonic()
    await probe(attempt(), "11.7.1.2", transmit=transmit, name_of=lambda it: for_socket(it, socket.AF_INET))
    assert len(set(ports)) == len(ports) == 100 and min(ports) >= 1024
    assert 0.45 < monotonic() - started < 1.0
    await probe(attempt(), "11.7.1.2", transmit=transmit, name_of=lambda _: None)
    assert len(ports) == 100


# --- the opener ---------------------------------------------------------------------------------------------


async def test_an_opener_punches_from_many_ports_and_gives_them_back() -> None:
    before = open_files()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target, socket.socket() as _:
        target.bind((HOST, 0))
        target.setblocking(False)
        opener = Opener(attempt(target.getsockname()), HOST, sides=sides(), received=lambda *_: None)
        running = asyncio.create_task(opener.run())
        ports = set()
        slowest = 0.0
        while len(ports) < SOCKETS:
            turn = monotonic()
            await asyncio.sleep(0)
            slowest = max(slowest, monotonic() - turn)
            try:
                while True:
                    data, source = target.recvfrom(2048)
                    assert attempt(opens=False).concerns(data)
                    ports.add(source[1])
            except BlockingIOError:
                pass
        assert len(opener) == SOCKETS and slowest < 0.05, "the event loop goes on"
        running.cancel()
        await asyncio.wait([running])
    assert len(opener) == 0 and open_files() == before


async def test_fewer_sockets_where_files_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opener = Opener(attempt((HOST, 9)), HOST, sides=sides(), received=lambda *_: None)

    async def pause(_: float) -> None:
        counts.append(len(opener))
        await asyncio.sleep(0)
        if len(counts) > 20:
            raise TimeoutError

    for spare, expected in ((64 + 2 * 100, range(90, 101)), (64 + 2 * 20, range(1))):
        counts: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + spare, hard))
        try:
            with pytest.raises(TimeoutError) if max(expected) else nullcontext():
                await opener.run(pause)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert max(counts, default=0) in expected


async def test_an_opener_without_a_target_opens_nothing() -> None:
    opener = Opener(attempt(("2001:db8::1", 5, 0, 0)), HOST, sides=sides(), received=lambda *_: None)
    await opener.run()
    assert len(opener) == 0


async def test_only_what_concerns_the_attempt_makes_a_way_and_few_do() -> None:
    detours = Detours()
    hits: list[SocketAddress] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((HOST, 0))
        peer.settimeout(5)
        kept = sides(detours)
        opener = Opener(attempt(peer.getsockname()), HOST, sides=kept, received=lambda _, name: hits.append(name))
        running = asyncio.create_task(opener.run())
        sources: list[SocketAddress] = []
        while len(sources) < 20:
            await asyncio.sleep(0)
            sources.append((await asyncio.to_thread(peer.recvfrom, 2048))[1])
        for source in sources:
            peer.sendto(b"\x40" + os.urandom(40), source)
            peer.sendto(attempt(opens=True).punch(None), source)
        await asyncio.sleep(0.05)
        assert hits == []
        for source in sources:
            peer.sendto(attempt(opens=False).punch(None), source)
        await until(lambda: len(hits) == MOST_HITS)
        await asyncio.sleep(0.05)
        assert len(hits) == len(set(hits)) == len(kept) == len(detours) == MOST_HITS
        running.cancel()
        await asyncio.wait([running])
        for detour in detours:
            detour.close()


# --- both, with a link --------------------------------------------------------------------------------------


class Symmetric:
    """What stands between the two: each socket of the opener gets a port of its own, which lets in only the prober; and
    nothing gets through to the prober from a port that it has not tried, as before it stands a translator as well."""

    def __init__(self, prober: Address) -> None:
        self.prober = (prober.host, prober.port)
        self.backs: dict[SocketAddress, socket.socket] = {}
        self.hit: set[socket.socket] = set()
        self.loop = asyncio.get_running_loop()
        self.front = self._open(self._front)

    def _open(self, read: object) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((HOST, 0))
        made.setblocking(False)
        self.loop.add_reader(made.fileno(), read, made)  # type: ignore[arg-type]
        return made

    def _front(self, front: socket.socket) -> None:
        for _ in range(64):
            try:
                data, source = front.recvfrom(65536)
            except BlockingIOError:
                return
            back = self.backs.get(source)
            if back is None:
                back = self.backs[source] = self._open(lambda back, source=source: self._back(back, source))
            if back in self.hit:
                back.sendto(data, self.prober)

    def _back(self, back: socket.socket, source: SocketAddress) -> None:
        for _ in range(64):
            try:
                data, peer = back.recvfrom(65536)
            except BlockingIOError:
                return
            if peer == self.prober:
                self.hit.add(back)
                self.front.sendto(data, source)

    def close(self) -> None:
        for each in (self.front, *self.backs.values()):
            self.loop.remove_reader(each.fileno())
            each.close()


@pytest.fixture
def near_ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ports of this machine's own range only, so that a hit comes soon, and no waiting before."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    monkeypatch.setattr(guessing, "FIRST_PORT", low)
    monkeypatch.setattr(guessing, "END_PORT", high)
    monkeypatch.setattr(punching, "GUESS_AFTER_S", 0.0)
    monkeypatch.setattr(guessing.random, "SystemRandom", lambda: random.Random(1))
    yield


async def guessed(one: Node, other: Node, translator: Symmetric) -> tuple[Address | None, Address | None]:
    shared = os.urandom(16)
    front = Address(*translator.front.getsockname())
    found = await asyncio.gather(
        one.endpoint.puncher.punch(shared, [front], opens=True, timeout_s=10.0, guess=Guess("opener", front.host)),
        other.endpoint.puncher.punch(shared, [], opens=False, timeout_s=10.0, guess=Guess("prober", HOST)),
    )
    return found[0], found[1]


@pytest.mark.usefixtures("near_ports")
@pytest.mark.skipif(not Path("/proc/sys/net/ipv4").exists(), reason="wants to know the ports of Linux")
@pytest.mark.parametrize("dialler", ["opener", "prober"])
async def test_a_way_is_guessed_and_carries_a_link(dialler: str) -> None:
    before = open_files()
    async with two_nodes() as (one, other), asyncio.timeout(20):
        translator = Symmetric(other.address)
        try:
            way, way_back = await guessed(one, other, translator)
            assert way is not None and is_virtual(way) and way_back is not None and not is_virtual(way_back)
            near, far, address = (one, other, way) if dialler == "opener" else (other, one, way_back)
            link = await near.endpoint.dial([address], expected=far.node_id)
            await until(lambda: bool(far.recorder.up))
            there = far.recorder.up[0]
            assert (link.path, there.path) == ("direct", "direct")
            stream = link.open_stream()
            stream.write(bytes(100_000))
            answering = asyncio.create_task(echo(await far.stream()))
            assert len(await stream.read_exactly(100_000)) == 100_000
            answering.cancel()
            assert open_files() < before + 60 + len(translator.backs), "the other sockets are closed"
            side = link if dialler == "opener" else there
            assert is_virtual(side.address)
            traffic = one.endpoint.counters
            assert traffic.bytes_in > 100_000 and traffic.bytes_out > 100_000, "counted with the others"
        finally:
            translator.close()
    await asyncio.sleep(0)
    assert open_files() <= before + 1


async def test_a_guess_that_hits_nothing_ends_with_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punching, "GUESS_AFTER_S", 0.0)
    before = open_files()
    async with node(0) as one, asyncio.timeout(10):
        opened = one.endpoint.puncher.punch(
            os.urandom(16), [Address(HOST, 9)], opens=True, timeout_s=0.3, guess=Guess("opener", HOST)
        )
        assert await opened is None
        assert one.endpoint.puncher.counters.guesses == 1 and open_files() < before + 20
