"""Who may use a slot next: a bounded queue that is fair between callers.

llama-server queues without bound, in order of arrival, and keeps working for callers that have left. So it is
never handed more requests than it has slots; the rest wait here, one line per caller, served in turns
(round robin, as in RFC 970), so that one busy program cannot starve another.

Strangers do not stand here (core/guest_lines.py has their line): they get a slot only while nobody waits here, and
never the last one of a model that has several, so that whoever comes here waits for a stranger at most where there is
one slot in all, and then goes next.

Rules of this file: pure; a ticket is admitted at most once; `busy` counts tickets that were admitted and not yet
released, `guests` how many of the busy slots strangers hold; nothing waits while a slot is free.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket")


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """What can be seen from outside: slots in all, slots in use, tickets waiting."""

    slots: int
    busy: int
    waiting: int


class FairQueue(Generic[Ticket]):
    """Slots of one model, and the lines of those who wait for them.

    `slots` may change at any time with `resize`; `capacity` bounds the tickets that wait in all lines together.
    """

    def __init__(self, *, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self.busy = 0
        self.guests = 0
        self._lines: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._waiting = 0

    def offer(self, caller: str, ticket: Ticket) -> bool | None:
        """True: admitted now. False: waits in the line of `caller`. None: refused, the queue is full."""
        if self.busy < self.slots:
            self.busy += 1
            return True
        if self._waiting >= self.capacity:
            return None
        self._lines.setdefault(caller, deque()).append(ticket)
        self._waiting += 1
        return False

    def release(self) -> list[Ticket]:
        """One admitted ticket is done. Returns the tickets that are admitted in its place (at most one)."""
        if self.busy < 1:
            raise ValueError("release without an admitted ticket")
        self.busy -= 1
        return self._admit()

    @property
    def has_guest_room(self) -> bool:
        """Whether a stranger may have a slot now."""
        return not self._waiting and self.busy < self.slots and self.guests < max(1, self.slots - 1)

    def admit_guest(self) -> None:
        """A stranger takes a slot."""
        if not self.has_guest_room:
            raise ValueError("a stranger without room")
        self.busy += 1
        self.guests += 1

    def guest_left(self) -> None:
        """A slot is a stranger's no longer. It stays busy until `release`, as it may pass to someone else."""
        if self.guests < 1:
            raise ValueError("no stranger has a slot")
        self.guests -= 1

    def resize(self, slots: int) -> list[Ticket]:
        """Change the number of slots. Returns the tickets that are admitted by that."""
        self.slots = slots
        return self._admit()

    def withdraw(self, caller: str, ticket: Ticket) -> bool:
        """Take a waiting ticket out, as its caller has left. False when it waits no more."""
        line = self._lines.get(caller, deque())
        if ticket not in line:
            return False
        line.remove(ticket)
        self._waiting -= 1
        if not line:
            del self._lines[caller]
        return True

    def snapshot(self) -> QueueSnapshot:
        """The numbers for status and metrics."""
        return QueueSnapshot(self.slots, self.busy, self._waiting)

    def _admit(self) -> list[Ticket]:
        admitted = []
        while self._lines and self.busy < self.slots:
            caller, line = next(iter(self._lines.items()))
            admitted.append(line.popleft())
            self._waiting -= 1
            self.busy += 1
            # The caller goes behind all others; an empty line is dropped, so that callers leave no trace.
            if line:
                self._lines.move_to_end(caller)
            else:
                del self._lines[caller]
        return admitted
