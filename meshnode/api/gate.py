"""The door to the slots of each model: waits in fair turns, refuses at once when the queue is full.

A shell around `core.fair_queue`: tickets become futures. A caller that leaves while it waits gives its place up. The
rest of an answer that another host began goes ahead of everyone: its caller is in the middle of a sentence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from meshnode.core.fair_queue import FairQueue, QueueSnapshot
from meshnode.errors import TooManyRequests

Ticket = asyncio.Future[None]


class Gates:
    """One queue per model id. `capacity` tickets may wait for each, none longer than `timeout_s`."""

    def __init__(self, *, capacity: int, timeout_s: float) -> None:
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._queues: dict[str, FairQueue[Ticket]] = {}
        self._ahead: dict[str, deque[Ticket]] = {}

    @asynccontextmanager
    async def slot(self, model: str, *, slots: int, caller: str, ahead: bool = False) -> AsyncIterator[None]:
        """Hold one of the model's `slots` for the length of the block; `ahead` of the queue if that is asked for.

        Raises TooManyRequests at once when the queue is full, and after the time-out when no slot came free.
        """
        queue = self._queue(model, slots)
        ticket: Ticket = asyncio.get_running_loop().create_future()
        admitted = self._offer_ahead(model, queue, ticket) if ahead else queue.offer(caller, ticket)
        if admitted is None:
            raise TooManyRequests(f"{queue.busy} requests run and {self._capacity} wait", retry_after_s=5)
        if not admitted:
            await self._wait(model, queue, caller, ticket)
        try:
            yield
        finally:
            self._release(model, queue)

    def _offer_ahead(self, model: str, queue: FairQueue[Ticket], ticket: Ticket) -> bool | None:
        """As FairQueue.offer, for a ticket that stands before the queue."""
        if queue.busy < queue.slots:
            return queue.offer("", ticket)
        line = self._ahead[model]
        if len(line) >= max(self._capacity, queue.slots):
            return None
        line.append(ticket)
        return False

    def _release(self, model: str, queue: FairQueue[Ticket]) -> None:
        """A slot is free: it passes to the first who stands ahead of the queue, else to the queue."""
        line = self._ahead[model]
        while line:
            ticket = line.popleft()
            if not ticket.done():
                ticket.set_result(None)
                return
        _admit(queue.release())

    async def _wait(self, model: str, queue: FairQueue[Ticket], caller: str, ticket: Ticket) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(ticket)
        except BaseException as reason:
            # A ticket that was admitted in the very moment of leaving holds a slot, which must be given back.
            if ticket in self._ahead[model]:
                self._ahead[model].remove(ticket)
            elif not queue.withdraw(caller, ticket):
                self._release(model, queue)
            if isinstance(reason, TimeoutError):
                raise TooManyRequests(f"no slot came free within {self._timeout_s:.0f} s", retry_after_s=10) from None
            raise

    def snapshot(self, model: str) -> QueueSnapshot:
        """Slots, busy and waiting of one model; zeros for one that was never asked."""
        queue = self._queues.get(model)
        if queue is None:
            return QueueSnapshot(0, 0, 0)
        found = queue.snapshot()
        return replace(found, waiting=found.waiting + len(self._ahead[model]))

    def forget(self, model: str) -> None:
        """Drop the queue of a model that is served no more, if nobody stands in it."""
        queue = self._queues.get(model)
        if queue and not queue.busy and not self.snapshot(model).waiting:
            del self._queues[model], self._ahead[model]

    def _queue(self, model: str, slots: int) -> FairQueue[Ticket]:
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = FairQueue(slots=slots, capacity=self._capacity)
            self._ahead[model] = deque()
        elif queue.slots != slots:
            _admit(queue.resize(slots))
        return queue


def _admit(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        if not ticket.done():
            ticket.set_result(None)
