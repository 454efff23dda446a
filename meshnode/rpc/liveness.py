"""When a worker that owes something counts as lost, and when an rpc-server does. Pure: told the time.

While a worker has work it says so twice a second, so that a long computation is no stall. It goes on for ALIVE_FOR_S
after the last command; the host expects it for a shorter time, OWED_FOR_S, and as long as a reply is outstanding.
"""

from __future__ import annotations

TICK_S = 0.25
ALIVE_EVERY_S = 0.5
ALIVE_FOR_S = 6.0
OWED_FOR_S = 3.0
IDLE_S = 1.0
"""An rpc-server that owes a reply and has not worked for so long has stalled."""
LATE_S = 0.25
HEARSAY_S = 1.0
"""What a worker says of the loss of another one it keeps back for so long: the host learns of that from the lost one
itself, or by its silence, and must not take the messenger for it."""


class Watch:
    """The host's view of one worker. `sent` and `heard` for what passes, `stalled` about every TICK_S."""

    __slots__ = ("_asked_at", "_heard_at", "_looked_at", "_sent_at", "_stall_s")

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._asked_at: float | None = None
        self._heard_at = 0.0
        self._sent_at = 0.0
        self._looked_at = 0.0

    @property
    def is_on(self) -> bool:
        """Whether anything is owed."""
        return self._asked_at is not None

    def sent(self, now: float) -> None:
        """A command went out."""
        self._sent_at = now
        if self._asked_at is None:
            self._asked_at = self._looked_at = now

    def heard(self, now: float) -> None:
        """Anything came from the worker."""
        self._heard_at = now

    def stalled(self, now: float, *, owed: bool) -> bool:
        """Whether nothing has come for too long. `owed` says that a reply is outstanding."""
        if self._asked_at is None:
            return False
        # What the own loop was late by is not held against the worker.
        late_s = now - self._looked_at - TICK_S
        self._looked_at = now
        if late_s > LATE_S:
            self._heard_at = max(self._heard_at, self._asked_at) + late_s
        if not owed and now - self._sent_at > OWED_FOR_S:
            self._asked_at = None
            return False
        return now - max(self._heard_at, self._asked_at) > self._stall_s


class Idleness:
    """Whether an rpc-server that owes a reply works on it."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: float | None = None

    def stalled(self, now: float, *, working: bool) -> bool:
        """True once it was found idle twice, IDLE_S apart. `working`: what was just found, or that it owes nothing."""
        if working:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= IDLE_S
