"""Runs the membership machine: events in, effects out, in order.

The machine is pure (core/membership); here are its clock, its timers, and the order of its effects. An incarnation is
on the disk before anything that was said under it leaves this node: effects that come after it wait.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from meshnode.core.effects import (
    CancelTimer,
    Close,
    Counted,
    Dial,
    Effect,
    MemberChanged,
    MembershipSnapshot,
    SaveIncarnation,
    Send,
    SetTimer,
)
from meshnode.core.events import Event, LoopLag, Received, TimerFired
from meshnode.core.membership import Membership
from meshnode.mesh.timers import LagMeter, Timers
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.messages import Statements


class Outside(Protocol):
    """What the effects of the machine do to the world. Called from the event loop; must not raise."""

    def send(self, peer: bytes, message: Any, reliable: bool) -> None:
        """Send a message to an admitted peer; dropped when it is gone."""

    def dial(self, peer: bytes, addresses: Sequence[Address]) -> None:
        """Try to reach a peer: PeerUp or DialFailed follows."""

    def close_peer(self, peer: bytes, code: int) -> None:
        """The peer broke the rules."""

    def save_incarnation(self, value: int) -> Awaitable[None]:
        """Write it to the disk."""


class Driver:
    """One running machine. `changed` is called whenever a member has changed."""

    def __init__(
        self, machine: Membership, outside: Outside, *, changed: Callable[[], None], counters: Counter[str]
    ) -> None:
        self._machine = machine
        self._outside = outside
        self._changed = changed
        self._counters = counters
        self._effects: deque[Effect] = deque()
        self._executing = False
        self._saving: asyncio.Task[None] | None = None
        self._snapshot: MembershipSnapshot | None = None
        self._timers = Timers(lambda key: self.handle(TimerFired(key)))
        self._lag = LagMeter(lambda lag_s: self.handle(LoopLag(lag_s)))
        self._closed = False

    def handle(self, event: Event) -> None:
        """Give the machine an event, and do what it wants done."""
        if self._closed:
            return
        if not isinstance(event, Received) or isinstance(event.message, Statements):
            self._snapshot = None
        self._effects.extend(self._machine.handle(event, monotonic()))
        self._execute()

    def snapshot(self) -> MembershipSnapshot:
        """The members; the same object until something may have changed."""
        if self._snapshot is None:
            self._snapshot = self._machine.snapshot()
        return self._snapshot

    async def settled(self) -> None:
        """Wait until every effect so far has been carried out."""
        while self._saving is not None:
            await asyncio.wait({self._saving})

    def close(self) -> None:
        """Handle nothing any more. Effects that wait for the disk are dropped."""
        self._closed = True
        self._effects.clear()
        self._timers.close()
        self._lag.close()

    # --- effects ----------------------------------------------------------------------------------------------

    def _execute(self) -> None:
        # An effect may bring about an event at once (a dial that cannot begin): its effects come after those here.
        if self._executing or self._saving is not None:
            return
        self._executing = True
        try:
            while self._effects and self._saving is None:
                self._do(self._effects.popleft())
        finally:
            self._executing = False

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send(peer, message, reliable):
                self._outside.send(peer, message, reliable)
            case SetTimer(key, at):
                self._timers.set(key, at)
            case CancelTimer(key):
                self._timers.cancel(key)
            case Counted(what):
                self._counters[what] += 1
            case MemberChanged():
                self._snapshot = None
                self._changed()
            case Dial(peer, addresses):
                self._outside.dial(peer, addresses)
            case Close(peer, code):
                self._outside.close_peer(peer, code)
            case SaveIncarnation(value):
                self._saving = asyncio.ensure_future(self._save(value))

    async def _save(self, value: int) -> None:
        try:
            await self._outside.save_incarnation(value)
        except Exception as reason:
            # The mesh can do without: a start later on finds its own old statements and goes beyond them.
            LOG.warning("the incarnation could not be saved: %s", reason)
        finally:
            self._saving = None
        self._execute()
