"""Many deadlines behind one timer, and what to do with them when the process stood still.

A deadline that moves leaves a husk in the heap, which is passed over when its time comes.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from itertools import count
from typing import Any

HUSKS = 64


class Deadlines:
    """Named points in time. Of one key there is one deadline; the newest setting counts."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._current: dict[Hashable, tuple[float, int]] = {}
        self._count = count()

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._current

    def set(self, key: Hashable, at: float) -> None:
        """`key` is due at `at`."""
        entry = (at, next(self._count))
        self._current[key] = entry
        heapq.heappush(self._heap, (*entry, key))
        if len(self._heap) > HUSKS + 2 * len(self._current):
            self._rebuild(0.0)

    def set_earlier(self, key: Hashable, at: float) -> None:
        """`key` is due at `at`, or before if it was."""
        current = self._current.get(key)
        if current is None or at < current[0]:
            self.set(key, at)

    def cancel(self, key: Hashable) -> None:
        """Forget a deadline, if there is one."""
        self._current.pop(key, None)

    def next_at(self) -> float | None:
        """When the next one is due; None when there is none."""
        while self._heap:
            at, number, key = self._heap[0]
            if self._current.get(key) == (at, number):
                return at
            heapq.heappop(self._heap)
        return None

    def take(self, now: float) -> Any:
        """The key of the earliest deadline that is due, which it then no longer is."""
        at = self.next_at()
        if at is None or at > now:
            return None
        key: Any = heapq.heappop(self._heap)[2]
        del self._current[key]
        return key

    def shift(self, lag_s: float) -> None:
        """Move all of them: a process that stood still gives everybody that much longer."""
        self._rebuild(lag_s)

    def _rebuild(self, later_s: float) -> None:
        self._current = {key: (at + later_s, number) for key, (at, number) in self._current.items()}
        self._heap = [(at, number, key) for key, (at, number) in self._current.items()]
        heapq.heapify(self._heap)
