"""The long work of this node as it stands now: what `telemetry.Progress` says, kept for those who look later.

A Report goes by whoever waits at that moment; a page that is opened in the middle of a build wants the last word of
each task. So the board passes every report on and keeps it until the task has finished.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from meshnode.telemetry import Progress, Report, silent

CHANGES_A_SECOND = 5
QUIET_S = 900.0
"""A task that says nothing for so long has failed without a word; the slowest step of a build takes less."""
MOST_TASKS = 16


class TaskBoard:
    """A Report that hands on to another one and remembers. Safe from any thread.

    `changed` is called from the thread that reports, at most five times a second but for the end of a task.
    """

    def __init__(
        self,
        report: Report = silent,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._tasks: dict[str, tuple[float, Progress]] = {}
        self._told_at = float("-inf")

    def __call__(self, progress: Progress) -> None:
        """Take in a report, and pass it on."""
        now = self._clock()
        with self._lock:
            known = self._tasks.pop(progress.task, None)
            if not progress.finished:
                # In its place again, so that what has been silent for longest is what gives way to others.
                self._tasks[progress.task] = (now, progress)
                if len(self._tasks) > MOST_TASKS:
                    del self._tasks[min(self._tasks, key=lambda task: self._tasks[task][0])]
            due = now - self._told_at >= 1 / CHANGES_A_SECOND or (progress.finished and known is not None)
            if due:
                self._told_at = now
        self._report(progress)
        if due:
            self._changed()

    def forget(self, task: str) -> None:
        """A task has ended in an error, so that it will not say so itself; nothing happens when it is not there."""
        with self._lock:
            known = self._tasks.pop(task, None)
        if known is not None:
            self._changed()

    def facts(self) -> list[dict[str, Any]]:
        """The `tasks` of /api/status, by their names."""
        now = self._clock()
        with self._lock:
            present = [progress for at, progress in self._tasks.values() if now - at < QUIET_S]
        return [
            {
                "task": progress.task,
                "text": progress.text,
                "done": progress.done,
                "total": progress.total,
                "unit": progress.unit,
            }
            for progress in sorted(present, key=lambda progress: progress.task)
        ]
