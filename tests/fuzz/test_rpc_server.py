"""The patched ggml-rpc-server against clients that mean harm: it ends their connection and serves the next one."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack

import pytest

from meshnode.engine.process import child_environment
from meshnode.engine.sandbox import sandboxed
from tests.fuzz.rpc_server import (
    ADD,
    BUFFER_BYTES,
    CHECKED,
    CUSTOM,
    DATA,
    GET,
    MAP_CUSTOM1,
    MUL_MAT,
    SET,
    VIEW,
    Client,
    generated,
    graph,
    kept,
    request,
    tensor,
)

pytestmark = pytest.mark.engine
GENERATED = 2000
MANY = 100_000


class Server:
    """A sandboxed rpc-server that has to outlive all its clients."""

    def __init__(self, engine: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        binary = engine / "ggml-rpc-server"
        argv = [str(binary), "-H", "127.0.0.1", "-p", str(self.port), "-d", "CPU", "-t", "1"]
        self.process = subprocess.Popen(
            sandboxed(argv, port=self.port, memory_bytes=1 << 30, readable=(str(engine),)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_environment(os.environ),
        )

    def client(self) -> Client:
        """The next client, as soon as the one before is gone."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return Client(self.port)
            except ConnectionRefusedError:
                assert self.process.poll() is None and time.monotonic() < deadline
                time.sleep(0.005)

    def serves(self, data: bytes) -> bool:
        """Whether a client that sent `data` is still served; the server itself must be in any case."""
        client = self.client()
        try:
            client.send(data)
            return client.answers()
        except (ConnectionError, EOFError):
            return False
        finally:
            client.close()


@pytest.fixture(scope="module")
def server(engine_bin: Path) -> Iterator[Server]:
    server = Server(engine_bin)
    yield server
    survived = server.process.poll() is None
    server.process.kill()
    server.process.wait()
    assert survived


def is_well(server: Server) -> bool:
    """Whether it still computes for a client that does everything right."""
    client = server.client()
    numbers = [1.0, 2.0, 3.0, 4.0]
    first, second = tensor(1, at=0), tensor(2, at=64)
    client.send(request(SET, first + pack("<BQ4f", 0, 0, *numbers)))
    client.send(request(SET, second + pack("<BQ4f", 0, 0, 10, 20, 30, 40)))
    client.send(graph([3], [first, second, tensor(3, at=128, op=ADD, sources=(1, 2))]))
    client.send(request(GET, tensor(3, at=128) + pack("<QQ", 0, 16)))
    size, *sums = unpack("<Q4f", client.take(24))
    client.close()
    return size == 16 and sums == [11, 22, 33, 44] and server.process.poll() is None


def test_a_client_that_does_everything_right_is_served(server: Server) -> None:
    assert is_well(server)
    assert server.serves(graph([3], [tensor(1), tensor(2, at=64), tensor(3, at=128, op=ADD, sources=(1, 2))]))


ONE, TWO = tensor(1), tensor(2, at=64)
NOWHERE = tensor(1, at=None)
WIDE = tensor(1, shape=(4, 2**32 - 1, 4, 4), strides=(4, 2**32 - 1, 1, 1))
REFUSED = {
    "a size of 2^63": request(SET, b"", 1 << 63),
    "a size of 2^40": request(SET, b"", 1 << 40),
    "more than any buffer of this client": request(SET, b"", BUFFER_BYTES + 305 + 1),
    "a graph of 10^6 nodes": request(10, pack("<II", 0, 10**6), 12 + 10**6 * 304),
    "a graph that only says 10^6 nodes": graph([1], [ONE], (10**6, 1)),
    "a graph that only says 2^32 - 1 tensors": graph([1], [ONE], (1, 2**32 - 1)),
    "no nodes": graph([], [ONE]),
    "an unknown command": request(200),
    "a command of the tunnels": request(66, bytes(344)),
    "HELLO again": request(14, bytes(24)),
    "an unknown device": request(16, pack("<I", 7)),
    "data before its buffer": request(GET, ONE.replace(pack("<Q", DATA), pack("<Q", 4096)) + pack("<QQ", 0, 4)),
    "data after its buffer": request(GET, tensor(1, at=BUFFER_BYTES - 8) + pack("<QQ", 0, 4)),
    "more than the tensor": request(GET, ONE + pack("<QQ", 0, 17)),
    "a region that wraps around": request(GET, ONE + pack("<QQ", 2**64 - 4, 8)),
    "data of no buffer": graph([2], [NOWHERE, tensor(2, op=MUL_MAT, sources=(1, 1))]),
    "strides that overflow": request(GET, WIDE + bytes(16)),
    "a shape that overflows": request(GET, tensor(1, shape=(2**31, 2**31, 4, 1)) + bytes(16)),
    "a row denser than its elements": graph([2], [ONE, tensor(2, at=64, strides=(0, 0, 0, 0), op=ADD, sources=(1, 1))]),
    "a broken block": request(GET, tensor(1, kind=2, shape=(33, 1, 1, 1)) + bytes(16)),
    "an operation that is none": graph([2], [ONE, tensor(2, op=9999, sources=(1,))]),
    "an address to call": graph([2], [ONE, tensor(2, op=MAP_CUSTOM1, sources=(1,), parameters=pack("<Q", 0x41414141))]),
    "another address to call": graph([2], [ONE, tensor(2, op=CUSTOM, sources=(1,), parameters=pack("<Q", 0x41414141))]),
    "ADD without sources": graph([1], [tensor(1, op=ADD)]),
    "ADD of sources without data": graph([2], [NOWHERE, tensor(2, op=ADD, sources=(1, 1))]),
    "ADD of shapes that do not fit": graph([2], [tensor(1, shape=(3, 1, 1, 1)), tensor(2, op=ADD, sources=(2, 1))]),
    "a node that is there twice": graph([3, 3], [ONE, TWO, tensor(3, op=ADD, sources=(1, 2))]),
    "one id for two tensors": graph([1], [ONE, ONE]),
    "a source that is nowhere": graph([2], [ONE, tensor(2, op=ADD, sources=(1, 77))]),
    "a node that is nowhere": graph([77], [ONE]),
    "a circle": graph([2], [tensor(1, op=ADD, sources=(2, 2)), tensor(2, op=ADD, sources=(1, 1))]),
    "a graph before any": request(16, pack("<I", 0)),
    "a buffer that is none": request(4, pack("<Q", 0x41414141)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(server: Server, what: str) -> None:
    assert not server.serves(REFUSED[what])
    assert is_well(server)


def test_sources_in_a_deep_chain(server: Server) -> None:
    """As deep as a graph may have tensors: neither a recursion nor a refusal, since some models' graphs are deep."""
    chain = [tensor(1)] + [tensor(number, op=VIEW, sources=(number - 1,)) for number in range(2, MANY)]
    assert server.serves(graph([MANY - 1], chain))
    assert not server.serves(graph([1], [tensor(number, sources=(number + 1,)) for number in range(1, MANY)]))
    assert is_well(server)


def test_no_buffer_for_impossible_sizes(server: Server) -> None:
    for size in (2**64 - 1, 2**64 - 32, 2**63, 2**46):
        client = server.client()
        assert client.ask(0, pack("<IQ", 0, size)) == bytes(16)
        assert client.answers()
        client.close()
    assert is_well(server)


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_in_the_middle_of_a_response(server: Server, reset: bool) -> None:
    client = server.client()
    whole = tensor(1, shape=(BUFFER_BYTES // 4, 1, 1, 1))
    client.send(request(GET, whole + pack("<QQ", 0, BUFFER_BYTES)) * 64)
    assert client.take(8) == pack("<Q", BUFFER_BYTES)
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
    client.close()
    assert is_well(server)


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 100, 304, 305, 400])
def test_a_client_that_leaves_in_the_middle_of_a_request(server: Server, cut: int) -> None:
    client = server.client()
    client.send(request(SET, ONE + pack("<BQ", 0, 0) + bytes(16))[:cut])
    client.close()
    assert is_well(server)


def test_a_client_that_leaves_before_its_turn(server: Server) -> None:
    first = server.client()
    with socket.create_connection(("127.0.0.1", server.port)) as second:
        second.sendall(request(14, bytes(24)))
        second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
    first.close()
    assert is_well(server)


def test_kept_inputs(server: Server) -> None:
    inputs = kept()
    assert len(inputs) > 10
    assert {server.serves(data) for data in inputs} <= {True, False}
    assert is_well(server)


def test_generated_inputs(server: Server) -> None:
    answers = [server.serves(generated(random.Random(f"5 {number}"), CHECKED)) for number in range(GENERATED)]
    assert {True, False} == set(answers)
    assert is_well(server)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_holds_nothing_of_clients_that_are_gone(server: Server) -> None:
    def resident_kib() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def load() -> None:
        client = server.client()
        for _ in range(16):
            client.ask(0, pack("<IQ", 0, BUFFER_BYTES))
        client.send(request(SET, tensor(1, shape=(BUFFER_BYTES // 4, 1, 1, 1)) + bytes(9) + bytes(BUFFER_BYTES)))
        assert client.answers()
        client.close()

    load()
    assert is_well(server)
    before = resident_kib()
    for _ in range(20):
        load()
    assert is_well(server)
    assert resident_kib() - before < 16 << 10
