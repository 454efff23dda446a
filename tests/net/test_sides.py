import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from meshnode.net.address import Address, SocketAddress, is_virtual_name
from meshnode.net.detours import Detours, is_relayed
from meshnode.net.sides import MOST_SIDES, SPARE_FILES, UNUSED_S, SideSockets, files_to_spare
from meshnode.net.udp import Traffic
from tests.net.nodes import HOST, until

pytestmark = pytest.mark.anyio


class Side:
    """Side sockets, and what comes in on them."""

    def __init__(self, host: str = HOST) -> None:
        self.detours = Detours()
        self.traffic = Traffic()
        self.received: list[tuple[list[bytes], SocketAddress]] = []
        self.drained = 0
        self.hints: list[SocketAddress] = []
        self.sides = SideSockets(
            self.detours,
            host=host,
            received=lambda datagrams, name: self.received.append((datagrams, name)),
            unreachable=self.hints.append,
            drained=self._drain,
            traffic=self.traffic,
        )

    def _drain(self) -> None:
        self.drained += 1

    def keep(self, peer: SocketAddress) -> tuple[SocketAddress, SocketAddress]:
        """A new one for `peer`: its virtual address, and its real one."""
        opened = self.sides.open()
        assert opened is not None
        real = opened.getsockname()
        name = self.sides.keep(opened, peer)
        assert name is not None
        return name, real


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((HOST, 0))
        made.settimeout(5)
        yield made


async def test_a_side_socket_is_a_way_to_one_peer(peer: socket.socket) -> None:
    side = Side()
    name, real = side.keep(peer.getsockname())
    assert is_virtual_name(name) and not is_relayed(name)
    detour = side.detours.get(name)
    assert detour is not None and detour.overhead_bytes == 0 and detour.real == Address(*peer.getsockname())
    side.detours.send([b"\x40out"], name)
    assert peer.recvfrom(100) == (b"\x40out", real)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as third:
        third.sendto(b"\x40third", real)
        peer.sendto(b"\x40in", real)
        await until(lambda: bool(side.received))
    assert side.received == [([b"\x40in"], name)] and side.drained > 0
    assert side.traffic.datagrams_out == 1 and side.traffic.datagrams_in >= 1
    side.sides.give_up(name)
    side.sides.give_up(name)
    assert len(side.detours) == 0
    side.detours.send([b"\x40"], name)
    assert side.detours.counters.lost_ways == 1


async def test_what_no_link_uses_is_closed(peer: socket.socket) -> None:
    side = Side()
    used, _ = side.keep(peer.getsockname())
    unused, _ = side.keep(peer.getsockname())
    now = monotonic()
    side.sides.sweep(now + 1, {used})
    side.sides.sweep(now + UNUSED_S + 0.5, {used})
    assert [detour.name for detour in side.detours] == [used] and side.detours.get(unused) is None
    side.sides.sweep(now + 2 * UNUSED_S, ())
    assert len(side.sides) == 1, "not at once"
    side.sides.sweep(now + 3 * UNUSED_S, ())
    assert len(side.sides) == len(side.detours) == 0


async def test_their_number_is_bounded(peer: socket.socket) -> None:
    side = Side()
    names = [side.keep(peer.getsockname())[0] for _ in range(MOST_SIDES)]
    opened = side.sides.open()
    assert opened is not None and side.sides.keep(opened, peer.getsockname()) is None
    assert opened.fileno() == -1
    for name in names:
        side.sides.give_up(name)


async def test_where_they_are_bound() -> None:
    for host, expected in ((HOST, HOST), ("::", "0.0.0.0"), ("0.0.0.0", "0.0.0.0"), ("::1", "0.0.0.0")):
        opened = Side(host).sides.open()
        assert opened is not None and opened.getsockname()[0] == expected
        opened.close()
    assert Side("192.0.2.1").sides.open() is None, "no address of this machine"


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="counts open files")
def test_files_to_spare_are_half_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = sum(1 for _ in Path("/dev/fd").iterdir())
    for left, expected in ((SPARE_FILES + 200, 100), (SPARE_FILES - 1, 0)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, left=left: (in_use + left, 10**6))
        assert abs(files_to_spare() - expected) <= 1
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert files_to_spare() > 10_000
