"""The round trip of a path: the shortest of the recent echoes.

Anything on the way, a queue, a sleeping radio, a busy process, only ever adds to a sample, so that the minimum is the
estimate of the path itself. It is taken over a window of time, as paths change.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0


class ShortestRoundTrip:
    """The minimum over the last WINDOW_S seconds; the last sample stays for as long as no newer one comes."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, rtt_s: float, now: float) -> None:
        """A sample. Constant time on average: only those that may still become the minimum are kept."""
        while self._samples and self._samples[-1][1] >= rtt_s:
            self._samples.pop()
        self._samples.append((now, rtt_s))

    def at(self, now: float) -> float | None:
        """The estimate in seconds; None before the first sample."""
        while len(self._samples) > 1 and self._samples[0][0] < now - WINDOW_S:
            self._samples.popleft()
        return self._samples[0][1] if self._samples else None

    def forget(self) -> None:
        """The path is another one."""
        self._samples.clear()
