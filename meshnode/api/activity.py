"""The requests that are under way, and how fast their answers go out: what a node does at this moment.

A request costs an entry, a piece of an answer a search for the begin of its events and two additions. An event of an
answer is about a token; which it is exactly only the end of an answer tells, and Record has that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from meshnode.api.record import Record

MOST_SHOWN = 50
WINDOW_S = 3.0
STEPS_PER_S = 4
"""Pieces are counted in steps of a quarter of a second."""
STEPS = round(WINDOW_S * STEPS_PER_S)
EVENT_MARK = b'data: {"'
"""How an event of an answer begins. It cannot stand inside one, as JSON escapes quotes; comments and the end of a
stream do not begin so."""
NODE_DIGITS = 10


class Running:
    """A request under way. `pieces` counts the events of its answer so far."""

    __slots__ = ("_activity", "pieces", "record", "since")

    def __init__(self, activity: Activity, record: Record, since: float) -> None:
        self._activity = activity
        self.record = record
        self.since = since
        self.pieces = 0

    def take(self, events: bytes) -> None:
        """Count the events of a piece that goes out."""
        if count := events.count(EVENT_MARK):
            self.pieces += count
            self._activity.add(count)

    def facts(self) -> dict[str, Any]:
        """For /api/status: `node` is empty until one answers, `peer` unless another node asked."""
        record = self.record
        return {
            "id": record.id,
            "model": record.model,
            "node": record.node,
            "where": "here" if record.here else record.node[:NODE_DIGITS],
            "radius": record.radius,
            "peer": record.peer,
            "stream": record.stream,
            "since": self.since,
            "pieces": self.pieces,
        }


class Activity:
    """Knows the requests between `begin` and `end`. `changed` is called at both; times are monotonic seconds."""

    def __init__(
        self, changed: Callable[[], None] = lambda: None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._changed = changed
        self._clock = clock
        self._wall_minus_clock = time.time() - clock()
        self._running: dict[int, Running] = {}
        self._steps: deque[list[int]] = deque(maxlen=STEPS + 1)

    def begin(self, record: Record) -> Running:
        """A request that has just come."""
        running = Running(self, record, round(record.started_at + self._wall_minus_clock, 3))
        self._running[id(running)] = running
        self._changed()
        return running

    def end(self, running: Running) -> None:
        """It is over, however it ended."""
        del self._running[id(running)]
        self._changed()

    def add(self, count: int) -> None:
        """So many pieces go out now."""
        step = int(self._clock() * STEPS_PER_S)
        if self._steps and self._steps[-1][0] == step:
            self._steps[-1][1] += count
        else:
            self._steps.append([step, count])

    def tokens_per_s(self) -> float:
        """Pieces that went out in the last WINDOW_S, per second, over all answers."""
        now = self._clock() * STEPS_PER_S
        oldest = int(now) - STEPS + 1
        covered_s = (now - oldest) / STEPS_PER_S
        return round(sum(count for step, count in self._steps if step >= oldest) / covered_s, 1)

    def running(self) -> list[dict[str, Any]]:
        """The last MOST_SHOWN requests whose model is known, the oldest first."""
        known = [running for running in self._running.values() if running.record.model]
        return [running.facts() for running in known[-MOST_SHOWN:]]

    def facts(self) -> dict[str, Any]:
        """What /api/status says of it under `requests`."""
        return {"running": self.running(), "tokens_per_s": self.tokens_per_s()}
