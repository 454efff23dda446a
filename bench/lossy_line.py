"""A line between two UDP ports, in a process of its own: every datagram comes late, and some do not come at all.

    python -m bench.lossy_line PORT SEED '{"delay_s": 0.02, "jitter_s": 0.002, "loss": 0.01, "rate_bytes_per_s": 12e6}'

forwards what it gets to PORT and what comes back to whoever sent last, prints the port that it listens on, and goes on
until its stdin ends. Each direction is a `Line` of its own (bench/line.py), so nothing is reordered.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from random import Random
from types import TracebackType
from typing import Any, Self

from bench.line import QUEUE_BYTES, Line, LineShape

HOST = "127.0.0.1"
BUFFER_BYTES = 4 << 20
LONGEST_WAIT_S = 0.2
BATCH = 64


def forward(port: int, shape: LineShape, seed: int) -> None:
    """Be the line. Ends when stdin does."""
    near, far = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for each in (near, far):
        each.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            each.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        each.bind((HOST, 0))
    far.connect((HOST, port))
    print(json.dumps({"port": near.getsockname()[1]}), flush=True)
    client: Any = None
    lines = {near: Line(shape, Random(2 * seed)), far: Line(shape, Random(2 * seed + 1))}
    waiting: dict[socket.socket, deque[tuple[float, bytes]]] = {near: deque(), far: deque()}
    while True:
        due_at = min((queue[0][0] for queue in waiting.values() if queue), default=float("inf"))
        wait_s = min(max(due_at - time.monotonic(), 0.0), LONGEST_WAIT_S)
        ready, _, _ = select.select([near, far, sys.stdin], [], [], wait_s)
        if sys.stdin in ready:
            return
        now = time.monotonic()
        for source in (near, far):
            for _ in range(BATCH if source in ready else 0):
                try:
                    data, sender = source.recvfrom(65535)
                except OSError:  # nothing more, or an ICMP message about a port that was closed
                    break
                if source is near:
                    client = sender
                leaves_at = lines[source].due(now, len(data))
                if leaves_at is not None:
                    waiting[source].append((leaves_at, data))
        now = time.monotonic()
        for source, queue in waiting.items():
            while queue and queue[0][0] <= now:
                _, data = queue.popleft()
                try:
                    if source is near:
                        far.send(data)
                    else:
                        near.sendto(data, client)
                except OSError:  # a full buffer: one more loss
                    continue


@dataclass
class LossyLine:
    """The line to `port` for a `with` block; `route` starts it and tells the port to use instead."""

    loss: float
    delay_s: float
    seed: int = 1
    jitter_s: float = 0.0
    rate_bytes_per_s: float = 0.0
    queue_bytes: int = QUEUE_BYTES

    def __enter__(self) -> Self:
        self._process: subprocess.Popen[str] | None = None
        return self

    def route(self, port: int) -> int:
        """Lead to `port`."""
        shape = LineShape(self.delay_s, self.jitter_s, self.loss, self.rate_bytes_per_s, self.queue_bytes)
        command = [sys.executable, "-m", "bench.lossy_line", str(port), str(self.seed), json.dumps(asdict(shape))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        place: dict[str, int] = json.loads(self._process.stdout.readline())
        return place["port"]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(5)
            self._process.stdout.close()


if __name__ == "__main__":
    forward(int(sys.argv[1]), LineShape(**json.loads(sys.argv[3])), int(sys.argv[2]))
