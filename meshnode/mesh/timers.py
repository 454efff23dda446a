"""The timers of the machine on one timer of the event loop, and a meter of how late that loop runs.

Setting a timer that is later than the next one costs a heap push and no call into the loop; a cancelled or moved timer
stays in the heap as a husk until its time comes.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable
from time import monotonic

HUSKS = 512


class Timers:
    """Named timers: `fire(key)` is called at or after the monotonic time that was set."""

    def __init__(self, fire: Callable[[Hashable], None]) -> None:
        self._fire = fire
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Hashable]] = []
        self._current: dict[Hashable, tuple[float, int]] = {}
        self._count = 0
        self._handle: asyncio.TimerHandle | None = None
        self._handle_at = 0.0

    def __len__(self) -> int:
        return len(self._current)

    def set(self, key: Hashable, at: float) -> None:
        """Fire `key` at this monotonic time; an earlier setting of the same key is forgotten."""
        self._count += 1
        self._current[key] = (at, self._count)
        heapq.heappush(self._heap, (at, self._count, key))
        if len(self._heap) > HUSKS + 2 * len(self._current):
            self._heap = [(at, count, key) for key, (at, count) in self._current.items()]
            heapq.heapify(self._heap)
        self._arm()

    def cancel(self, key: Hashable) -> None:
        """Do not fire `key`. Nothing happens when it was not set."""
        self._current.pop(key, None)

    def close(self) -> None:
        """Fire nothing any more."""
        self._current.clear()
        self._heap.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        if not self._heap:
            return
        at = self._heap[0][0]
        if self._handle is not None:
            if self._handle_at <= at:
                return
            self._handle.cancel()
        self._handle_at = at
        self._handle = self._loop.call_later(max(0.0, at - monotonic()), self._run)

    def _run(self) -> None:
        self._handle = None
        now = monotonic()
        due: list[Hashable] = []
        while self._heap and self._heap[0][0] <= now:
            at, count, key = heapq.heappop(self._heap)
            if self._current.get(key) == (at, count):
                del self._current[key]
                due.append(key)
        for key in due:
            self._fire(key)
        self._arm()


class LagMeter:
    """Measures ten times a second how late the event loop runs; tells of lags above `least_s`."""

    def __init__(self, lagged: Callable[[float], None], *, tick_s: float = 0.1, least_s: float = 0.25) -> None:
        self._lagged = lagged
        self._tick_s = tick_s
        self._least_s = least_s
        self._due_at = monotonic() + tick_s
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(tick_s, self._tick)

    def close(self) -> None:
        """Measure no more."""
        self._handle.cancel()

    def _tick(self) -> None:
        now = monotonic()
        lag_s = now - self._due_at
        self._due_at = now + self._tick_s
        self._handle = self._loop.call_later(self._tick_s, self._tick)
        if lag_s > self._least_s:
            self._lagged(lag_s)
