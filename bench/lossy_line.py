"""A line between two UDP ports, in a process of its own: every datagram comes late, and some do not come at all.

    python -m bench.lossy_line PORT LOSS DELAY_MS SEED

forwards what it gets to PORT and what comes back to whoever sent last, prints the port that it listens on, and goes on
until its stdin ends. Loss is drawn for each datagram and direction on its own. Nothing is reordered.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
BUFFER_BYTES = 4 << 20
LONGEST_WAIT_S = 0.2
BATCH = 64


def forward(port: int, loss: float, delay_s: float, random: Random) -> None:
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
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()  # ordered by time, as all wait equally long
    while True:
        wait_s = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else LONGEST_WAIT_S
        ready, _, _ = select.select([near, far, sys.stdin], [], [], min(wait_s, LONGEST_WAIT_S))
        if sys.stdin in ready:
            return
        due_at = time.monotonic() + delay_s
        for source in (near, far):
            for _ in range(BATCH if source in ready else 0):
                try:
                    data, sender = source.recvfrom(65535)
                except OSError:  # nothing more, or an ICMP message about a port that was closed
                    break
                if source is near:
                    client = sender
                if random.random() >= loss:
                    waiting.append((due_at, far if source is near else near, data))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, target, data = waiting.popleft()
            try:
                if target is far:
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

    def __enter__(self) -> Self:
        self._process: subprocess.Popen[str] | None = None
        return self

    def route(self, port: int) -> int:
        """Lead to `port`."""
        numbers = [str(number) for number in (port, self.loss, self.delay_s * 1000, self.seed)]
        command = [sys.executable, "-m", "bench.lossy_line", *numbers]
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
    forward(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]) / 1000, Random(int(sys.argv[4])))
