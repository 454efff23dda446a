"""The line: what goes in comes out late, or not at all."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from bench.lossy_line import HOST, LossyLine


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((HOST, 0))
        bound.settimeout(5)
        yield bound


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound:
        unbound.settimeout(5)
        yield unbound


def test_both_directions_are_late_and_in_order(server: socket.socket, client: socket.socket) -> None:
    with LossyLine(0.0, 0.02) as line:
        client.connect((HOST, line.route(server.getsockname()[1])))
        began_at = time.monotonic()
        for number in range(50):
            client.send(bytes((number,)))
        got = [server.recvfrom(100) for _ in range(50)]
        assert [data[0] for data, _ in got] == list(range(50))
        assert time.monotonic() - began_at >= 0.02
        server.sendto(b"back", got[0][1])
        assert client.recv(100) == b"back"
        assert time.monotonic() - began_at >= 0.04


def test_so_many_are_lost(server: socket.socket, client: socket.socket) -> None:
    with LossyLine(0.25, 0.0, seed=4) as line:
        client.connect((HOST, line.route(server.getsockname()[1])))
        arrived = 0
        server.settimeout(0.3)
        for _ in range(20):
            for _ in range(40):
                client.send(b"x")
            try:
                while True:
                    server.recv(10)
                    arrived += 1
                    if arrived % 40 == 0:
                        break
            except TimeoutError:
                continue
        assert 500 < arrived < 700


def test_it_ends_with_its_block(server: socket.socket, client: socket.socket) -> None:
    with LossyLine(0.0, 0.0) as line:
        line.route(server.getsockname()[1])
        process = line._process
        assert process is not None and process.poll() is None
    assert process.returncode == 0
