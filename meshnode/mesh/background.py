"""What runs beside: tasks that are ended together, and news that are told soon but not too often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

NEWS_S = 0.1
"""News are told no more often than that."""


class Background:
    """Tasks of one owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it run."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancel all of them, and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ended(self) -> None:
        """Wait until all of them have ended by themselves."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


class News:
    """Calls `tell` soon after `came`, once for all that came meanwhile."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._told_at = 0.0
        self._closed = False

    def came(self) -> None:
        """Something is different."""
        if self._timer is None and not self._closed:
            wait_s = max(0.0, self._told_at + NEWS_S - monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._say)

    def close(self) -> None:
        """Tell nothing any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _say(self) -> None:
        self._timer = None
        self._told_at = monotonic()
        self._tell()
