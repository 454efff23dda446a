"""Hostile clients of the patched ggml-rpc-server: the kept inputs, generated ones, and a long run by hand:

    python -m tests.fuzz.rpc_server ENGINE_FOLDER SECONDS [SEED [checked]]

With `checked` only operations are computed whose shapes and types the server checks. What ends it then are values in
tensors, as an index of a row that is not there, and strides that a kernel asserts; once in some ten thousand inputs.

An input is what a client sends after HELLO and after one buffer was allocated; addresses in it are placeholders that
are replaced by those of the buffer. After each input the server has to answer a new client.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from struct import Struct, pack, unpack

from meshnode.engine.process import child_environment

KEPT = Path(__file__).parent / "rpc_server.hex"
BUFFER_BYTES = 1 << 20
# Placeholders: the handle of the buffer, and the high half of addresses in it.
BUFFER = 0xB0FFE4B0FFE4B0FF
DATA = 0xDA7ADA7A00000000
TENSOR = Struct("<QIQ8II64si10QQQQ64si")
ALLOC, FREE, CLEAR, SET, SET_HASH, GET, COPY, COMPUTE = 0, 4, 5, 6, 7, 8, 9, 10
INIT, ALLOC_SIZE, HELLO, DEVICE_COUNT, RECOMPUTE, MEMSET = 12, 13, 14, 15, 16, 17
F32, F16, Q4_0, Q8_0, I32, I64 = 0, 1, 2, 8, 26, 27
# Elements and bytes of a block.
BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34), I32: (1, 4), I64: (1, 8)}
OPS = 101
# GGML_TENSOR_FLAG_COMPUTE: kernels pass over nodes without it.
COMPUTED = 16
ADD, MUL_MAT, VIEW, MAP_CUSTOM1, CUSTOM = 2, 29, 37, 92, 95
# The operations of which the server checks shapes and types; of the others only that their sources are there.
CHECKED = (
    *range(1, 14), *range(15, 19), 20, 22, 24, 25, *range(27, 31), *range(32, 36), 40, 42, *range(44, 47),
    *range(48, 52), 56, 57, 59, *range(69, 75), 76, 91, 100,
)  # fmt: skip


def tensor(
    number: int,
    kind: int = F32,
    shape: Sequence[int] = (4, 1, 1, 1),
    *,
    at: int | None = 0,
    op: int = 0,
    sources: Sequence[int] = (),
    strides: Sequence[int] | None = None,
    parameters: bytes = b"",
    view: int = 0,
) -> bytes:
    """An rpc_tensor. `at` is its place in the buffer, None for a tensor without data."""
    elements, size = BLOCKS.get(kind, (1, 4))
    packed = [size, size * (shape[0] // elements)]
    packed += [packed[1] * shape[1], packed[1] * shape[1] * shape[2]]
    nb = [stride & 0xFFFFFFFF for stride in (strides or packed)]
    ids = [*sources, *[0] * (10 - len(sources))]
    buffer, data = (BUFFER, DATA + at) if at is not None else (0, 0)
    return TENSOR.pack(number, kind, buffer, *shape, *nb, op, parameters, COMPUTED, *ids, view, 0, data, b"t", 1)


def request(command: int, payload: bytes = b"", size: int | None = None) -> bytes:
    """A request; `size` is what its head says, if it lies."""
    return pack("<BQ", command, len(payload) if size is None else size) + payload


def graph(nodes: Sequence[int], tensors: Sequence[bytes], counts: tuple[int, int] | None = None) -> bytes:
    """GRAPH_COMPUTE; `counts` are the numbers of nodes and tensors that it says, if it lies."""
    said_nodes, said_tensors = counts or (len(nodes), len(tensors))
    ids = pack(f"<{len(nodes)}Q", *nodes)
    return request(COMPUTE, pack("<II", 0, said_nodes) + ids + pack("<I", said_tensors) + b"".join(tensors))


def kept() -> list[bytes]:
    """The kept inputs."""
    return [bytes.fromhex(line) for line in KEPT.read_text("ascii").splitlines()]


class Client:
    """A connection that has said HELLO and has one buffer. Raises OSError or EOFError when the server closes it."""

    def __init__(self, port: int, timeout_s: float = 10) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._closed_if_it_fails():
            self.ask(HELLO, bytes(24))
            self.buffer, _ = unpack("<QQ", self.ask(ALLOC, pack("<IQ", 0, BUFFER_BYTES)))
            (self.base,) = unpack("<Q", self.ask(3, pack("<Q", self.buffer)))

    def ask(self, command: int, payload: bytes = b"") -> bytes:
        """The response to one request."""
        self.socket.sendall(request(command, payload))
        return self.take(int.from_bytes(self.take(8), "little"))

    def send(self, data: bytes) -> None:
        """Send an input, with the addresses of this client's buffer in it."""
        self.socket.sendall(placed(data, self.buffer, self.base))

    def answers(self) -> bool:
        """Whether the server still serves this client after what was sent; reads away all responses."""
        self.socket.sendall(request(DEVICE_COUNT))
        try:
            while self.take(int.from_bytes(self.take(8), "little")) != pack("<I", 1):
                pass
        except (EOFError, ConnectionError):
            return False
        return True

    def close(self) -> None:
        self.socket.close()

    def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises EOFError at the end of the connection."""
        data = b""
        while len(data) < size:
            if not (more := self.socket.recv(min(1 << 20, size - len(data)))):
                raise EOFError
            data += more
        return data

    @contextlib.contextmanager
    def _closed_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def placed(data: bytes, buffer: int, base: int) -> bytes:
    """`data` with the placeholders replaced."""
    data = data.replace(pack("<Q", BUFFER), pack("<Q", buffer))
    address = re.compile(b"(?s)(.{4})" + re.escape(pack("<I", DATA >> 32)))
    return address.sub(lambda found: pack("<Q", base + int.from_bytes(found[1], "little")), data)


def generated(chance: random.Random, ops: Sequence[int] = range(OPS)) -> bytes:
    """A few requests, each nearly right; those that compute do it with one of `ops`."""
    return b"".join(_request(chance, ops) for _ in range(chance.randint(1, 4)))


def _request(chance: random.Random, ops: Sequence[int]) -> bytes:
    def one(number: int) -> bytes:
        return _spoiled(_tensor(chance, number), chance)

    region = pack("<QQ", *(_size(chance) for _ in range(2)))
    match chance.randrange(16):
        case 0:
            return request(SET, one(1) + pack("<BQ", 0, _size(chance)) + chance.randbytes(chance.choice([0, 4, 64])))
        case 1:
            return request(GET, one(1) + region)
        case 2:
            return request(MEMSET, one(1) + region + b"\x01")
        case 3:
            return request(COPY, one(1) + one(2))
        case 4:
            return request(INIT, one(1))
        case 5:
            sources = [one(number) if chance.random() < 0.8 else bytes(296) for number in range(2, 12)]
            return request(ALLOC_SIZE, pack("<I", 0) + one(1) + b"".join(sources))
        case 6:
            return request(RECOMPUTE, pack("<I", chance.choice([0, 0, 1, 99])))
        case 7:
            command = chance.choice([ALLOC, 1, 2, 3, FREE, CLEAR, SET_HASH, 11, *range(256)])
            return request(
                command, chance.randbytes(chance.choice([0, 1, 4, 8, 9, 12])), chance.choice([None, 1 << 63])
            )
        case _:
            return _graph(chance, ops)


def _graph(chance: random.Random, ops: Sequence[int]) -> bytes:
    """One operation with sources that sometimes fit."""
    count = chance.randint(1, 8)
    shape = _shape(chance)
    tensors, sources = [], []
    for number in range(1, count + 1):
        own = shape if chance.random() < 0.7 else _shape(chance)
        tensors.append(_tensor(chance, number, own))
        sources.append(number if chance.random() < 0.95 else 0)
    op = chance.choice(ops) if chance.random() < 0.98 else chance.randrange(OPS, 1 << 32)
    parameters = pack("<16i", *(chance.choice([0, 0, 1, 1, 2, 3, 4, 64, -1, 1 << 30]) for _ in range(16)))
    if op == MUL_MAT:
        shape = [shape[1], shape[1], shape[2], shape[3]]
    tensors.append(_tensor(chance, count + 1, shape, op, sources, parameters))
    if chance.random() < 0.3:
        tensors[-1] = _spoiled(tensors[-1], chance)
    counts = (
        None if chance.random() < 0.97 else (chance.choice([0, 1, 2, 1_000_000, 0xFFFFFFFF]), chance.choice([0, 1, 9]))
    )
    return graph([count + 1], tensors, counts)


def _tensor(
    chance: random.Random,
    number: int,
    shape: Sequence[int] | None = None,
    op: int = 0,
    sources: Sequence[int] = (),
    parameters: bytes = b"",
) -> bytes:
    kind = chance.choice([F32] * 12 + [F16, F16, Q4_0, Q8_0, I32, I32, I64])
    kind = kind if chance.random() < 0.98 else chance.randrange(48)
    shape = shape or _shape(chance)
    at = chance.choice([0, 4096, 65536, BUFFER_BYTES // 2]) if chance.random() < 0.99 else None
    return tensor(number, kind, shape, at=at, op=op, sources=sources, parameters=parameters)


def _shape(chance: random.Random) -> list[int]:
    sizes = [[1, 2, 4, 32, 32, 64], [1, 1, 2, 4, 32, 64], [1, 1, 1, 2, 4], [1, 1, 1, 1, 2]]
    shape = [chance.choice(each) for each in sizes]
    if chance.random() < 0.02:
        shape[chance.randrange(4)] = chance.choice([0, 3, 1 << 20, 0xFFFFFFFF])
    return shape


def _spoiled(data: bytes, chance: random.Random) -> bytes:
    """Some of the time, one field that lies."""
    if chance.random() < 0.8:
        return data
    at = chance.choice([0, 8, 12, *range(20, 52, 4), 52, *range(56, 124, 4), 120, 124, 204, 212, 220, 292])
    lie = chance.choice([0, 1, 2, 3, 31, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, chance.getrandbits(32)])
    return data[:at] + pack("<I", lie) + data[at + 4 :]


def _size(chance: random.Random) -> int:
    return chance.choice([0, 0, 1, 4, 16, 64, 4096, BUFFER_BYTES, BUFFER_BYTES + 1, 1 << 32, 1 << 63, (1 << 64) - 4])


def _start(engine: Path, port: int) -> subprocess.Popen[bytes]:
    argv = [engine / "ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), "-d", "CPU", "-t", "1"]
    process = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=child_environment(os.environ)
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            Client(port).close()
            return process
        time.sleep(0.01)
    raise TimeoutError("the server does not listen")


def _is_served(port: int, data: bytes) -> bool:
    client = Client(port)
    try:
        client.send(data)
        return client.answers()
    except (ConnectionError, EOFError):
        return False
    finally:
        client.close()


def main() -> None:
    """Run for some time; say how many inputs were tried and each one that ended the server."""
    engine, seconds, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1
    ops = CHECKED if len(sys.argv) > 4 else range(OPS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process, tried, passed, ends = _start(engine, port), 0, 0, 0
    began = time.monotonic()
    errors = _drain(process)
    while time.monotonic() - began < seconds:
        data = generated(random.Random(f"{seed} {tried}"), ops)
        tried += 1
        how = ""
        try:
            if _is_served(port, data):
                passed += 1
            else:
                # The end of the connection comes before the end of the process: only the next client tells.
                Client(port).close()
        except TimeoutError:
            how = "stalled"
        except (OSError, EOFError):
            how = str(process.wait(10))
        if how:
            ends += 1
            process.kill()
            process.wait()
            print(f"{seed} {tried - 1} {how}: {errors()}\n  {data.hex()}", flush=True)
            process = _start(engine, port)
            errors = _drain(process)
    process.kill()
    process.wait()
    print(f"{tried} inputs in {time.monotonic() - began:.0f} s, {passed} passed whole, the server ended {ends} times")


def _drain(process: subprocess.Popen[bytes]) -> Callable[[], str]:
    """Read the server's errors in a thread; the result returns the last line."""
    lines = [b""]

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines[:] = [*lines[-2:], line.strip()]

    thread = threading.Thread(target=read, daemon=True)
    thread.start()

    def last() -> str:
        thread.join(2)
        return b" | ".join(lines).decode("utf-8", "replace")[-300:]

    return last


if __name__ == "__main__":
    main()
