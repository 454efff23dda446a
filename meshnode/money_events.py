"""Has the audit log told of money: what the journal says was paid, earned and proven (settlement/store_events.py).

An event is written with the money, in one transaction, and stays in the journal until the log has it on the disk. So
the log lacks none, whatever crashes; one that it got in the moment of a crash it has twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from meshnode.errors import MeshnodeError
from meshnode.settlement.store import Store
from meshnode.settlement.store_events import told_events, waiting_events
from meshnode.telemetry import LOG

LOOK_S = 5.0


class MoneyEvents:
    """From `store` to `record` (Audit.record); `flushed` waits until the log is on the disk, and says whether it is."""

    def __init__(self, store: Store, record: Callable[..., None], flushed: Callable[[], Awaitable[bool]]) -> None:
        self._store = store
        self._record = record
        self._flushed = flushed
        self._last = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tell, now and every LOOK_S, in a task."""
        self._task = asyncio.create_task(self._go_on(), name="money events")

    async def close(self) -> None:
        """Tell what is left; to be called before the store and the log are closed."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
            await self._try_telling()

    async def tell(self) -> int:
        """Tell what waits; how many events the log has for good now. Raises what the journal raises.

        While the log cannot be written, what it was told is not told again: it keeps that itself.
        """
        told = 0
        while events := await self._store.run(waiting_events):
            for event in events:
                if event.number > self._last:
                    self._last = event.number
                    self._record(event.kind, **event.facts)
            if not await self._flushed():
                break
            last = events[-1].number
            await self._store.run(lambda db, last=last: told_events(db, last))  # type: ignore[misc]
            told += len(events)
        return told

    async def _go_on(self) -> None:
        while True:
            await self._try_telling()
            await asyncio.sleep(LOOK_S)

    async def _try_telling(self) -> None:
        try:
            await self.tell()
        except MeshnodeError:
            pass  # the journal says itself what is wrong with it
        except Exception:
            LOG.exception("an event of money that the audit log does not take")
