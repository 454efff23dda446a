"""How a line of a network treats what passes: delay, jitter, loss, rate and a bounded queue before the rate. Pure.

Kernels without netem cannot make such a line; the programs that carry the bytes instead (UDP: bench/lossy_line.py, TCP:
bench/delay_line.py, whole networks: tests/lab/slow_switch.py) all ask a `Line` when each piece is due. Clock values are
seconds of one monotonic clock, handed in; chance is a seeded `random.Random`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

QUEUE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LineShape:
    """One direction of a line. Times in seconds, one way; `loss` a share of all pieces; a rate of 0 is unlimited.

    `jitter_s` spreads the delay evenly from `delay_s - jitter_s` to `delay_s + jitter_s`, never below zero. Pieces stay
    in order: one that would overtake waits. `queue_bytes` may wait for a limited rate; what comes beyond is lost.
    Raises ValueError for numbers that no line has.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    rate_bytes_per_s: float = 0.0
    queue_bytes: int = QUEUE_BYTES

    def __post_init__(self) -> None:
        if min(self.delay_s, self.jitter_s, self.rate_bytes_per_s, self.queue_bytes) < 0 or not 0 <= self.loss <= 1:
            raise ValueError(f"no line is like this: {self}")


class Line:
    """One direction of one line."""

    def __init__(self, shape: LineShape, random: Random) -> None:
        self.shape = shape
        self._random = random
        self._free_at = 0.0
        self._last_due = 0.0

    def due(self, now: float, size_bytes: int) -> float | None:
        """When a piece that enters at `now` comes out; None when it is lost."""
        shape = self.shape
        if shape.loss and self._random.random() < shape.loss:
            return None
        begin = now
        if shape.rate_bytes_per_s:
            begin = max(now, self._free_at)
            if (begin - now) * shape.rate_bytes_per_s > shape.queue_bytes:
                return None
            begin = self._free_at = begin + size_bytes / shape.rate_bytes_per_s
        delay_s = shape.delay_s
        if shape.jitter_s:
            delay_s = max(0.0, delay_s + self._random.uniform(-shape.jitter_s, shape.jitter_s))
        self._last_due = max(self._last_due, begin + delay_s)
        return self._last_due
