"""Where the machines of a benchmark stand: all on loopback, or each in a network namespace, far from the others.

With a shape, the machines are those of tests/lab/far_network.py: what passes between two of them, UDP or TCP, takes
the same emulated line. Without one everything is on the loopback device of this machine.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

from bench.line import LineShape
from tests.lab.far_network import FarNetwork, why_not

LOOPBACK = "127.0.0.1"
PINGS = 20


class Place:
    """Machines by name. Use it as a context manager. Raises RuntimeError where namespaces cannot be had."""

    def __init__(self, names: Sequence[str], shape: LineShape | None = None) -> None:
        if shape is not None and (reason := why_not()):
            raise RuntimeError(f"lines with a delay cannot be emulated here: {reason}")
        self.names = tuple(names)
        self._far = None if shape is None else FarNetwork(*names, shape=shape)

    def __enter__(self) -> Self:
        if self._far is not None:
            self._far.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._far is not None:
            self._far.__exit__(kind, error, trace)

    @property
    def is_far(self) -> bool:
        """Whether there are lines between the machines."""
        return self._far is not None

    def inside(self, name: str) -> AbstractContextManager[None]:
        """Processes and sockets of this thread belong to that machine for the time of the block."""
        return nullcontext() if self._far is None else self._far.inside(name)

    def address(self, name: str) -> str:
        """Where the others reach it."""
        return LOOPBACK if self._far is None else self._far.address(name)

    def shape(self, shape: LineShape) -> None:
        """From now on all lines are like this."""
        assert self._far is not None, "machines on loopback have no lines"
        self._far.shape_all(shape)

    def carried_bytes(self) -> int:
        """All that has crossed any line so far, with headers."""
        assert self._far is not None, "machines on loopback have no lines"
        return sum(self._far.carried_bytes().values())

    def one_way_s(self) -> float:
        """What a line takes one way, measured: half the median round trip of single datagrams between two machines."""
        one, other, *_ = self.names
        with self.inside(one):
            asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with self.inside(other):
            echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found = []
        with asker, echo:
            echo.bind((self.address(other), 0))
            asker.connect(echo.getsockname())
            for end in (asker, echo):
                end.settimeout(5)
            for _ in range(PINGS):
                begun = time.perf_counter()
                asker.send(b"x")
                data, back = echo.recvfrom(10)
                echo.sendto(data, back)
                asker.recv(10)
                found.append(time.perf_counter() - begun)
        return statistics.median(found) / 2
