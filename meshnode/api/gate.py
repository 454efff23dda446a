"""The door to the slots of each model: waits in fair turns, refuses at once when the queue is full.

A shell around `core.fair_queue`: tickets become futures. A caller that leaves while it waits gives its place up. The
rest of an answer that another host began goes ahead of everyone: its caller is in the middle of a sentence. Strangers
come last: they have one line over all models (`core.guest_lines`), which moves only where nobody nearer waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from meshnode.core.fair_queue import FairQueue, QueueSnapshot
from meshnode.core.guest_lines import GuestLines
from meshnode.core.guests import Stranger
from meshnode.errors import MeshnodeError, StrangerLimit, TooManyRequests

Ticket = asyncio.Future[MeshnodeError | None]
"""Its result is None with a slot, or why there is none."""
GUEST_WAIT_S = 30.0
"""A stranger has other nodes to ask: it is told no before it gives up by itself."""


class Gates:
    """One queue per model id. `capacity` tickets may wait for each, none longer than `timeout_s`."""

    def __init__(self, *, capacity: int, timeout_s: float) -> None:
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._queues: dict[str, FairQueue[Ticket]] = {}
        self._ahead: dict[str, deque[Ticket]] = {}
        self._guests: GuestLines[Ticket] = GuestLines()

    @asynccontextmanager
    async def slot(
        self, model: str, *, slots: int, caller: str, ahead: bool = False, guest: Stranger | None = None
    ) -> AsyncIterator[None]:
        """Hold one of the model's `slots` for the length of the block; `ahead` of the queue if that is asked for. A
        `guest` is never ahead of anyone.

        Raises TooManyRequests at once when the queue is full, and after the time-out when no slot came free; for a
        guest StrangerLimit, or what the strangers that wait were sent away with.
        """
        queue = self._queue(model, slots)
        ticket: Ticket = asyncio.get_running_loop().create_future()
        if guest is not None:
            await self._wait_as_guest(model, queue, guest, ticket)
            try:
                yield
            finally:
                self._release_guest(model, queue)
            return
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
                self._admit_guests()
                return
        _admit(queue.release())
        self._admit_guests()

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

    # --- strangers ------------------------------------------------------------------------------------------

    def serve_guests(self, *, slots: int, capacity: int) -> None:
        """Let strangers have so many slots over all models, and `capacity` of them wait."""
        self._guests.slots = slots
        self._guests.capacity = capacity
        self._admit_guests()

    def dismiss_guests(self, reason: MeshnodeError) -> None:
        """Send away the strangers that wait; those that have a slot keep it."""
        for ticket in self._guests.dismiss():
            if not ticket.done():
                ticket.set_result(reason)

    def guests(self) -> QueueSnapshot:
        """Slots for strangers, those in use, and strangers that wait."""
        return QueueSnapshot(self._guests.slots, self._guests.busy, self._guests.waiting)

    async def _wait_as_guest(self, model: str, queue: FairQueue[Ticket], guest: Stranger, ticket: Ticket) -> None:
        if not self._guests.stand(guest, model, ticket):
            raise StrangerLimit(f"as many strangers wait here as may ({self._guests.waiting})", retry_after_s=5)
        self._admit_guests()
        try:
            async with asyncio.timeout(min(GUEST_WAIT_S, self._timeout_s)):
                refused = await asyncio.shield(ticket)
        except BaseException as reason:
            # As in `_wait`: what was admitted in the very moment of leaving holds a slot.
            if not self._guests.withdraw(guest, ticket) and ticket.done() and ticket.result() is None:
                self._release_guest(model, queue)
            if isinstance(reason, TimeoutError):
                raise StrangerLimit("no slot came free in time", retry_after_s=10) from None
            raise
        if refused is not None:
            raise refused

    def _release_guest(self, model: str, queue: FairQueue[Ticket]) -> None:
        self._guests.release()
        queue.guest_left()
        self._release(model, queue)

    def _admit_guests(self) -> None:
        while found := self._guests.next(self._has_guest_room):
            model, ticket = found
            self._queues[model].admit_guest()
            if not ticket.done():
                ticket.set_result(None)

    def _has_guest_room(self, model: str) -> bool:
        return not self._ahead[model] and self._queues[model].has_guest_room

    # --- all ------------------------------------------------------------------------------------------------

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
        if queue and not queue.busy and not self.snapshot(model).waiting and not self._guests.waits_for(model):
            del self._queues[model], self._ahead[model]

    def _queue(self, model: str, slots: int) -> FairQueue[Ticket]:
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = FairQueue(slots=slots, capacity=self._capacity)
            self._ahead[model] = deque()
        elif queue.slots != slots:
            _admit(queue.resize(slots))
            self._admit_guests()
        return queue


def _admit(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        if not ticket.done():
            ticket.set_result(None)
