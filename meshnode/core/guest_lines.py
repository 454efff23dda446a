"""Strangers that wait for a slot: one line over all models, served in turns by address prefix, then by node.

Strangers share a number of slots over all models of a node. Whose turn it is is decided in two rounds (round robin
within round robin), so that neither a busy stranger nor a crowd of ids behind one prefix starves another. Who waits for
a model that has no room is passed over and keeps its place.

Rules of this file: pure; a ticket is admitted at most once; `busy` counts those that were admitted and have not been
released; at most `capacity` wait.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from meshnode.core.guests import Stranger

Ticket = TypeVar("Ticket")


class GuestLines(Generic[Ticket]):
    """`slots` is how many strangers are served at a time; none until it is said."""

    def __init__(self, *, slots: int = 0, capacity: int = 0) -> None:
        self.slots = slots
        self.capacity = capacity
        self.busy = 0
        self._lines: OrderedDict[str, OrderedDict[bytes, deque[tuple[Stranger, str, Ticket]]]] = OrderedDict()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Tickets in all lines."""
        return self._waiting

    def stand(self, stranger: Stranger, model: str, ticket: Ticket) -> bool:
        """Wait for a slot of a model. False when too many do."""
        if self._waiting >= self.capacity:
            return False
        nodes = self._lines.setdefault(stranger.prefix, OrderedDict())
        nodes.setdefault(stranger.node, deque()).append((stranger, model, ticket))
        self._waiting += 1
        return True

    def next(self, has_room: Callable[[str], bool]) -> tuple[str, Ticket] | None:
        """Admit the next whose model has room: its model and its ticket. None when there is nobody, or no slot."""
        if self.busy >= self.slots:
            return None
        room: dict[str, bool] = {}
        for stranger, place, model, ticket in self._in_turn():
            if model not in room:
                room[model] = has_room(model)
            if room[model]:
                self._take(stranger, place)
                self._to_the_end(stranger)
                self.busy += 1
                return model, ticket
        return None

    def release(self) -> None:
        """One of the admitted is done."""
        if self.busy < 1:
            raise ValueError("release without an admitted ticket")
        self.busy -= 1

    def withdraw(self, stranger: Stranger, ticket: Ticket) -> bool:
        """Take a waiting ticket out. False when it waits no more."""
        line = self._lines.get(stranger.prefix, OrderedDict()).get(stranger.node, deque())
        for place, (_, _, found) in enumerate(line):
            if found is ticket:
                self._take(stranger, place)
                return True
        return False

    def dismiss(self) -> list[Ticket]:
        """Everyone who waits is sent away."""
        tickets = [ticket for _, _, _, ticket in self._in_turn()]
        self._lines.clear()
        self._waiting = 0
        return tickets

    def waits_for(self, model: str) -> bool:
        """Whether anyone stands there for this model."""
        return any(wanted == model for _, _, wanted, _ in self._in_turn())

    def _in_turn(self) -> Iterator[tuple[Stranger, int, str, Ticket]]:
        """All that wait: stranger, place in its line, model, ticket."""
        for nodes in self._lines.values():
            for line in nodes.values():
                for place, (stranger, model, ticket) in enumerate(line):
                    yield stranger, place, model, ticket

    def _take(self, stranger: Stranger, place: int) -> None:
        nodes = self._lines[stranger.prefix]
        line = nodes[stranger.node]
        del line[place]
        self._waiting -= 1
        # An empty line is dropped, so that strangers leave no trace.
        if not line:
            del nodes[stranger.node]
        if not nodes:
            del self._lines[stranger.prefix]

    def _to_the_end(self, stranger: Stranger) -> None:
        """It stands behind all other prefixes now, and in its own behind all other nodes."""
        nodes = self._lines.get(stranger.prefix)
        if nodes is None:
            return
        self._lines.move_to_end(stranger.prefix)
        if stranger.node in nodes:
            nodes.move_to_end(stranger.node)
