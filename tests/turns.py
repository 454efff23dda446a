"""Turns among the workers of a run: a test that looks closely at the clock has the machine to itself."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GATE = Path(__file__)
ROOM = Path(__file__).parent / "conftest.py"
"""Files that are locked and never written: so nothing is left behind, and runs in one checkout take turns as well."""


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Hold a turn: beside others who do, or alone, when all of these are done.

    Who wants to be alone waits inside the gate, so that nobody who came later goes first. Locks end with the process
    that holds them.
    """
    with ROOM.open() as room, GATE.open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
