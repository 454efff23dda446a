import asyncio
import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from meshnode.errors import PortInUse, StateError
from meshnode.net import udp
from meshnode.net.address import Address, SocketAddress, for_socket, from_socket
from meshnode.net.udp import UdpSocket, route_to
from tests.net.nodes import HOST, until

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux")


class Port:
    """A socket under test, with what it received."""

    def __init__(self, host: str, port: int) -> None:
        self.datagrams: list[bytes] = []
        self.sources: list[SocketAddress] = []
        self.gone: list[SocketAddress] = []
        self.turns = 0
        self.udp = UdpSocket.open(
            host, port, received=self._received, unreachable=self.gone.append, drained=self._drained
        )

    def _received(self, datagrams: list[bytes], source: SocketAddress) -> None:
        self.datagrams += datagrams
        self.sources.append(source)

    def _drained(self) -> None:
        self.turns += 1

    @property
    def name(self) -> SocketAddress:
        return (self.udp.address.host, self.udp.address.port)


@contextmanager
def port(host: str = HOST, number: int = 0) -> Iterator[Port]:
    made = Port(host, number)
    try:
        yield made
    finally:
        made.udp.close()


async def test_many_datagrams_of_several_sizes_arrive_whole_and_in_order() -> None:
    sizes = [1452] * 100 + [100] + [1452] * 3 + [16384] * 5 + [1, 2, 3]
    sent = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    with port() as one, port() as other:
        one.udp.send(sent, other.name)
        await until(lambda: len(other.datagrams) == len(sent))
        assert other.datagrams == sent
        assert other.turns < len(sent), "several datagrams a turn"
        assert {source[1] for source in other.sources} == {one.udp.address.port}
        assert one.udp.traffic.datagrams_out == other.udp.traffic.datagrams_in == len(sent)
        assert one.udp.traffic.bytes_out == other.udp.traffic.bytes_in == sum(sizes)


async def test_one_datagram_at_a_time_where_the_kernel_cuts_none() -> None:
    with port() as one, port() as other:
        one.udp.segments = False
        one.udp.send([b"a" * 1000] * 20, other.name)
        await until(lambda: len(other.datagrams) == 20)


@linux
async def test_a_driver_that_refuses_to_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    with port() as one, port() as other:
        real = one.udp._socket

        class Refusing:
            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

            def sendmsg(self, buffers: list[bytes], ancillary: list[object], *rest: object) -> int:
                if ancillary:
                    raise OSError(errno.EIO, "no")
                return real.sendmsg(buffers, [], *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(one.udp, "_socket", Refusing())
        assert one.udp.segments
        one.udp.send([b"a" * 1000] * 20, other.name)
        await until(lambda: len(other.datagrams) == 20)
        assert not one.udp.segments


async def test_what_the_kernel_does_not_take_waits_in_order_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with port() as one, port() as other:
        real, full = one.udp._socket, True

        class Full:
            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

            def sendmsg(self, *arguments: object) -> int:
                if full:
                    raise BlockingIOError
                return real.sendmsg(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(one.udp, "_socket", Full())
        monkeypatch.setattr(udp, "MOST_QUEUED_BYTES", 3000)
        for number in range(5):
            one.udp.send([bytes([number]) * 1000], other.name)
        assert one.udp.has_unsent
        assert one.udp.traffic.send_dropped == 2
        full = False
        await until(lambda: len(other.datagrams) == 3)
        assert [datagram[0] for datagram in other.datagrams] == [0, 1, 2]
        assert not one.udp.has_unsent


@linux
@pytest.mark.parametrize(("host", "peer"), [(HOST, HOST), ("::", HOST), ("::", "::1")])
async def test_a_closed_port_is_reported_with_its_address(host: str, peer: str) -> None:
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as free, port(host) as one, port(peer) as other:
        free.bind((peer, 0))
        closed = for_socket(from_socket(free.getsockname()), one.udp.family)
        free.close()
        assert closed is not None
        one.udp.send([b"x"], closed)
        await until(lambda: bool(one.gone))
        assert one.gone[0][:2] == closed[:2]
        destination = for_socket(other.udp.address, one.udp.family)
        assert destination is not None
        one.udp.send([b"x"], closed)
        one.udp.send([b"y"], destination)
        await until(lambda: other.datagrams == [b"y"])


async def test_a_place_without_a_route_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with port() as one:
        real = one.udp._socket

        class Routeless:
            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

            def sendmsg(self, *_: object) -> int:
                raise OSError(errno.ENETUNREACH, "no route")

        monkeypatch.setattr(one.udp, "_socket", Routeless())
        one.udp.send([b"x"], ("192.0.2.1", 9))
        assert one.gone == [("192.0.2.1", 9)]
        assert one.udp.traffic.send_dropped == 1


async def test_both_families_on_one_socket() -> None:
    with port("::") as one, port(HOST) as four:
        if one.udp.family != socket.AF_INET6:
            pytest.skip("no IPv6 here")
        destination = for_socket(Address(HOST, one.udp.address.port), four.udp.family)
        assert destination is not None
        four.udp.send([b"four"], destination)
        await until(lambda: one.datagrams == [b"four"])
        assert from_socket(one.sources[0]) == four.udp.address
        one.udp.send([b"back"], one.sources[0])
        await until(lambda: four.datagrams == [b"back"])


async def test_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    real = udp._bound

    def without(host: str, number: int) -> socket.socket:
        if ":" in host:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return real(host, number)

    monkeypatch.setattr(udp, "_bound", without)
    with port("::") as one:
        assert one.udp.address.host == "0.0.0.0"


async def test_a_port_that_is_taken() -> None:
    with port() as one, pytest.raises(PortInUse, match=str(one.udp.address.port)), port(HOST, one.udp.address.port):
        pass
    with pytest.raises(StateError), port("192.0.2.1"):
        pass


async def test_sending_never_raises() -> None:
    with port() as one:
        one.udp.send([b"x" * 70_000, b""], (HOST, 9))
        one.udp.send([b"x"], ("255.255.255.255", 9))
        assert one.udp.traffic.send_dropped >= 2


async def test_the_granted_buffers_are_read_back() -> None:
    with port() as one:
        assert 1 << 14 <= one.udp.receive_buffer_bytes <= udp.BUFFER_BYTES * 2
        assert one.udp.send_buffer_bytes > 0


async def test_routes() -> None:
    near = route_to(Address(HOST, 9))
    assert near.same_host
    if sys.platform == "linux":
        assert near.mtu_bytes is not None and near.mtu_bytes > 16384
    assert not route_to(Address("192.0.2.1", 9)).same_host
    await asyncio.sleep(0)
