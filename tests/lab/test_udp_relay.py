"""The relay itself: a test that finds nothing wrong on a line without faults would prove nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.lab.udp_relay import Faults, UdpRelay

MANY = 200
"""Few enough for the buffer of a socket."""


class Line:
    """A client, the relay, and a server that the test plays by hand."""

    def __init__(self, relay: UdpRelay, client: socket.socket, server: socket.socket) -> None:
        self.relay = relay
        self.client = client
        self.server = server

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.client.sendto(datagram, self.relay.address)

    def until_taken_in(self, count: int) -> None:
        """Until the relay has seen so many datagrams."""
        deadline = time.monotonic() + 5
        while len(self.relay.recorded) < count:
            assert time.monotonic() < deadline, f"{len(self.relay.recorded)} of {count}"
            time.sleep(0.001)

    def arrived(self, pause_s: float = 0.2) -> list[bytes]:
        """What comes to the server until it is silent."""
        self.server.settimeout(pause_s)
        found = []
        while True:
            try:
                found.append(self.server.recv(2048))
            except TimeoutError:
                return found


@pytest.fixture
def line() -> Iterator[Line]:
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client,
        closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as server,
    ):
        client.bind(("127.0.0.1", 0))
        server.bind(("::1", 0))
        client.settimeout(5)
        server.settimeout(5)
        with UdpRelay(server=server.getsockname()[:2], front=("127.0.0.1", 0), record=True) as relay:
            yield Line(relay, client, server)


def numbered(count: int = MANY) -> list[bytes]:
    return [number.to_bytes(4, "big") * 8 for number in range(count)]


def test_passes_both_ways_between_families(line: Line) -> None:
    line.send(b"there")
    data, source = line.server.recvfrom(2048)
    line.server.sendto(b"and back", source)
    assert data == b"there" and line.client.recv(2048) == b"and back"
    assert line.relay.recorded == [b"there", b"and back"] and line.relay.clients == 1


def test_without_faults_everything_arrives_in_order(line: Line) -> None:
    line.send(*numbered())
    assert line.arrived() == numbered()


@pytest.mark.parametrize(
    ("faults", "name"),
    [
        (Faults(loss=0.1), "lost"),
        (Faults(corrupt=0.1), "corrupted"),
        (Faults(duplicate=0.1), "duplicated"),
        (Faults(reorder=0.1), "reordered"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_does_a_tenth_of_the_time_what_it_is_told(line: Line, faults: Faults, name: str) -> None:
    line.relay.faults = faults
    line.send(*numbered())
    found, sent, done = line.arrived(), numbered(), line.relay.counts[name]
    assert 0.04 * MANY < done < 0.2 * MANY
    if name == "lost":
        assert found == [each for each in sent if each in set(found)] and len(found) == MANY - done
    elif name == "corrupted":
        flipped = [(a, b) for a, b in zip(found, sent, strict=True) if a != b]
        assert len(flipped) == done
        assert all((int.from_bytes(a) ^ int.from_bytes(b)).bit_count() == 1 for a, b in flipped)
    elif name == "duplicated":
        assert len(found) == MANY + done and set(found) == set(sent)
    else:
        assert found != sent and sorted(found) == sent


def test_delay_is_one_way(line: Line) -> None:
    line.relay.faults = Faults(delay_s=0.1)
    begun = time.monotonic()
    line.send(b"there")
    data, source = line.server.recvfrom(2048)
    assert 0.1 <= time.monotonic() - begun < 1
    line.server.sendto(data, source)
    assert line.client.recv(2048) == b"there" and time.monotonic() - begun >= 0.2


def test_blackout_swallows_everything_and_ends_by_itself(line: Line) -> None:
    line.relay.faults = Faults(delay_s=0.05)
    line.send(b"under way")
    line.until_taken_in(1)
    line.relay.black_out(0.3)
    line.send(b"in the dark")
    assert line.arrived(pause_s=0.35) == []
    line.send(b"light")
    assert line.arrived() == [b"light"] and line.relay.counts["blacked_out"] == 2


def test_rebinding_gives_a_new_port_and_forgets_the_old_one(line: Line) -> None:
    line.send(b"before")
    _, old = line.server.recvfrom(2048)
    line.relay.rebind()
    line.server.sendto(b"to the old one", old)
    line.send(b"after")
    _, new = line.server.recvfrom(2048)
    line.server.sendto(b"to the new one", new)
    assert new[1] != old[1] and line.client.recv(2048) == b"to the new one"
