"""The door to the slots of each model: waits in fair turns, refuses at once when the queue is full.

A shell around `core.fair_queue`: tickets become futures. A caller that leaves while it waits gives its place up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshnode.core.fair_queue import FairQueue, QueueSnapshot
from meshnode.errors import TooManyRequests


class Gates:
    """One queue per model id. `capacity` tickets may wait for each, none longer than `timeout_s`."""

    def __init__(self, *, capacity: int, timeout_s: float) -> None:
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._queues: dict[str, FairQueue[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def slot(self, model: str, *, slots: int, caller: str) -> AsyncIterator[None]:
        """Hold one of the model's `slots` for the length of the block.

        Raises TooManyRequests at once when the queue is full, and after the time-out when no slot came free.
        """
        queue = self._queue(model, slots)
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        admitted = queue.offer(caller, ticket)
        if admitted is None:
            raise TooManyRequests(f"{queue.busy} requests run and {self._capacity} wait", retry_after_s=5)
        if not admitted:
            await self._wait(queue, caller, ticket)
        try:
            yield
        finally:
            _admit(queue.release())

    async def _wait(self, queue: FairQueue[asyncio.Future[None]], caller: str, ticket: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(ticket)
        except BaseException as reason:
            # A ticket that was admitted in the very moment of leaving holds a slot, which must be given back.
            if not queue.withdraw(caller, ticket):
                _admit(queue.release())
            if isinstance(reason, TimeoutError):
                raise TooManyRequests(f"no slot came free within {self._timeout_s:.0f} s", retry_after_s=10) from None
            raise

    def snapshot(self, model: str) -> QueueSnapshot:
        """Slots, busy and waiting of one model; zeros for one that was never asked."""
        queue = self._queues.get(model)
        return queue.snapshot() if queue else QueueSnapshot(0, 0, 0)

    def forget(self, model: str) -> None:
        """Drop the queue of a model that is served no more, if nobody stands in it."""
        queue = self._queues.get(model)
        if queue and not queue.busy and not queue.snapshot().waiting:
            del self._queues[model]

    def _queue(self, model: str, slots: int) -> FairQueue[asyncio.Future[None]]:
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = FairQueue(slots=slots, capacity=self._capacity)
        elif queue.slots != slots:
            _admit(queue.resize(slots))
        return queue


def _admit(tickets: list[asyncio.Future[None]]) -> None:
    for ticket in tickets:
        if not ticket.done():
            ticket.set_result(None)
