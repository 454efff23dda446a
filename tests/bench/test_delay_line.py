"""The TCP line: late, whole and in order; and exact enough that what is measured over it is not the line itself."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.delay_line import HOST, DelayLine
from bench.line import LineShape


@contextmanager
def connected(shape: LineShape) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection over a new line; the handshake is over."""
    with socket.create_server((HOST, 0)) as server, DelayLine(shape) as line:
        client = socket.create_connection((HOST, line.route(server.getsockname()[1])), timeout=10)
        accepted, _ = server.accept()
        with client, accepted:
            for end in (client, accepted):
                end.settimeout(10)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(b"first")
            assert accepted.recv(5) == b"first"
            yield client, accepted


def trips_s(shape: LineShape, count: int) -> list[float]:
    """Round trips of single bytes, sorted."""
    found = []
    with connected(shape) as (client, server):
        for _ in range(count):
            begun = time.monotonic()
            client.sendall(b"x")
            server.sendall(server.recv(1))
            client.recv(1)
            found.append(time.monotonic() - begun)
    return sorted(found)


def test_both_directions_are_late_and_exactly_so() -> None:
    found = trips_s(LineShape(delay_s=0.02), 25)
    assert found[0] >= 0.04
    assert statistics.median(found) < 0.042


def test_without_delay_a_round_trip_costs_little() -> None:
    assert statistics.median(trips_s(LineShape(), 300)) < 0.002


@pytest.mark.alone
def test_the_handshake_counts() -> None:
    begun = time.monotonic()
    with connected(LineShape(delay_s=0.05)):
        assert 0.15 <= time.monotonic() - begun < 0.6


@pytest.mark.parametrize("shape", [LineShape(delay_s=0.02), LineShape(delay_s=0.005, jitter_s=0.005, loss=0.05)])
def test_a_stream_comes_whole_and_ends(shape: LineShape) -> None:
    sent = bytes(range(256)) * 80_000
    with connected(shape) as (client, server):

        def send() -> None:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        begun = time.monotonic()
        sender.start()
        got = bytearray()
        while data := server.recv(1 << 20):
            got += data
        sender.join()
        assert got == sent and time.monotonic() - begun >= shape.delay_s - shape.jitter_s
        server.sendall(b"still open")
        assert client.recv(100) == b"still open"


@pytest.mark.alone
def test_a_rate_is_kept() -> None:
    with connected(LineShape(rate_bytes_per_s=4e6, queue_bytes=1 << 30)) as (client, server):
        sender = threading.Thread(target=client.sendall, args=(bytes(2_000_000),))
        begun = time.monotonic()
        sender.start()
        left = 2_000_000
        while left:
            left -= len(server.recv(1 << 20))
        sender.join()
        assert 0.45 < time.monotonic() - begun < 0.8


def test_an_end_that_goes_is_noticed_at_the_other() -> None:
    with connected(LineShape(delay_s=0.01)) as (client, server):
        server.close()
        assert client.recv(1) == b""


def test_it_ends_with_its_block() -> None:
    with socket.create_server((HOST, 0)) as server:
        with DelayLine(LineShape()) as line:
            port = line.route(server.getsockname()[1])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port), timeout=1)
