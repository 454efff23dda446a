"""A line between two TCP ports, in a process of its own: what passes comes late, as over a long cable.

    python -m bench.delay_line PORT SEED '{"delay_s": 0.02, "jitter_s": 0.002, "loss": 0.01, "rate_bytes_per_s": 12e6}'

takes connections, opens one to PORT for each, prints the port that it listens on, and goes on until its stdin ends. It
carries a stream of bytes, so what a network does to TCP is done to the stream: the first bytes wait for a handshake (a
round trip), and a lost piece comes a round trip later, with all behind it, as after a fast retransmit. Slow start and
other congestion control are not there: it flatters TCP. Each direction is a `Line` of its own (bench/line.py).
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from types import TracebackType
from typing import Self

from bench.line import Line, LineShape

HOST = "127.0.0.1"
READ_BYTES = 1 << 18
HELD_BYTES = 64 << 20
"""Under way in one direction; beyond that the sender has to wait, as with a full window."""
LONGEST_WAIT_S = 0.2


@dataclass(eq=False, slots=True)
class _Way:
    """One direction of one connection. An empty piece is the end of the stream."""

    source: socket.socket
    target: socket.socket
    line: Line
    opened_at: float
    waiting: deque[tuple[float, memoryview]] = field(default_factory=deque)
    held_bytes: int = 0
    ended: bool = False
    over: bool = False
    blocked: bool = False

    def read(self) -> None:
        """Take in what is there."""
        try:
            data = self.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        shape, now = self.line.shape, time.monotonic()
        due = self.line.due(now, len(data))
        if due is None:
            due = now + 3 * shape.delay_s
        behind = self.waiting[-1][0] if self.waiting else 0.0
        self.waiting.append((max(due, behind, self.opened_at), memoryview(data)))
        self.held_bytes += len(data)
        self.ended = not data

    def write(self, now: float) -> None:
        """Hand on what is due."""
        while self.waiting and self.waiting[0][0] <= now and not self.over:
            due, data = self.waiting[0]
            try:
                if not data:
                    self.over = True
                    self.target.shutdown(socket.SHUT_WR)
                    return
                sent = self.target.send(data)
            except BlockingIOError:
                self.blocked = True
                return
            except OSError:  # the other end is gone; so is what was on its way there
                self.over = True
                return
            self.held_bytes -= sent
            if sent < len(data):
                self.waiting[0] = (due, data[sent:])
            else:
                self.waiting.popleft()

    def reading(self) -> bool:
        """Whether more may come in."""
        return not (self.ended or self.over) and self.held_bytes < HELD_BYTES


def forward(port: int, shape: LineShape, seed: int) -> None:
    """Be the line. Ends when stdin does."""
    listener = socket.create_server((HOST, 0), backlog=64)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    ways: list[_Way] = []
    random = Random(seed)
    while True:
        due_at = min((way.waiting[0][0] for way in ways if way.waiting and not way.blocked), default=float("inf"))
        wait_s = min(max(due_at - time.monotonic(), 0.0), LONGEST_WAIT_S)
        reading = {way.source: way for way in ways if way.reading()}
        blocked = {way.target: way for way in ways if way.blocked}
        ready, free, _ = select.select([listener, sys.stdin, *reading], blocked, [], wait_s)
        if sys.stdin in ready:
            return
        if listener in ready:
            ways += _accept(listener, port, shape, random)
        for source in ready:
            if source in reading:
                reading[source].read()
        for target in free:
            blocked[target].blocked = False
        now = time.monotonic()
        for way in ways:
            if not way.blocked:
                way.write(now)
        ways = _without_ended(ways)


def _accept(listener: socket.socket, port: int, shape: LineShape, random: Random) -> list[_Way]:
    near, _ = listener.accept()
    try:
        far = socket.create_connection((HOST, port), timeout=5)
    except OSError:
        near.close()
        return []
    for each in (near, far):
        each.setblocking(False)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    there_at = time.monotonic() + 3 * shape.delay_s  # a handshake, and then the first bytes
    pairs = ((near, far), (far, near))
    return [_Way(source, target, Line(shape, Random(random.random())), there_at) for source, target in pairs]


def _without_ended(ways: list[_Way]) -> list[_Way]:
    """Close the connections of which both directions are over."""
    left = []
    for one, other in zip(ways[::2], ways[1::2], strict=True):
        if one.over and other.over:
            one.source.close()
            one.target.close()
        else:
            left += [one, other]
    return left


@dataclass
class DelayLine:
    """Lines of one shape for a `with` block; `route` starts one to a port and tells the port to use instead."""

    shape: LineShape
    seed: int = 1
    _ends: list[Callable[[], None]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def route(self, port: int) -> int:
        """Lead to `port`."""
        command = [sys.executable, "-m", "bench.delay_line", str(port), str(self.seed), json.dumps(asdict(self.shape))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None

        def end() -> None:
            process.communicate(timeout=5)

        self._ends.append(end)
        place: dict[str, int] = json.loads(process.stdout.readline())
        return place["port"]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._ends:
            self._ends.pop()()


if __name__ == "__main__":
    forward(int(sys.argv[1]), LineShape(**json.loads(sys.argv[3])), int(sys.argv[2]))
