"""Watches one link while somebody waits for its peer: runs `liveness.py` on the timers of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from meshnode.net.liveness import QUIET_S, Liveness


class Watch:
    """Probes and judges for as long as it is wanted.

    `quiet` gives the seconds without a packet after which the peer is to be asked, and None while nobody wants to know.
    `probe` sends something that must be answered, `read` takes in what has already arrived, `rtt` gives the round trip
    in seconds, `verdict` is told when the peer falls silent and when it is heard again.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        quiet: Callable[[], float | None],
        probe: Callable[[], None],
        read: Callable[[], None],
        rtt: Callable[[], float],
        verdict: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._quiet = quiet
        self._probe = probe
        self._read = read
        self._rtt = rtt
        self._verdict = verdict
        self._liveness = Liveness(monotonic())
        self._timer: asyncio.TimerHandle | None = None
        self._pace_s = QUIET_S
        """The `quiet` by which the timer was set."""
        self._stopped = False

    @property
    def silent(self) -> bool:
        """Whether the peer has fallen silent."""
        return self._liveness.silent

    @property
    def is_running(self) -> bool:
        """Whether the peer is being watched."""
        return self._timer is not None

    def heard(self, now: float) -> None:
        """An authenticated packet of the peer came."""
        if self._liveness.heard(now):
            self._verdict(False)

    def hint(self) -> None:
        """The address of the peer was called unreachable."""
        if not self._stopped and self._liveness.hint(monotonic()):
            self._schedule(0.0)

    def consider(self) -> None:
        """Whether to watch, or how closely, may have changed."""
        if self._stopped or (self._timer is not None and self._pace_s <= QUIET_S):
            return
        quiet_s = self._quiet()
        if quiet_s is None or (self._timer is not None and quiet_s >= self._pace_s):
            return
        at = now = monotonic()
        if self._timer is None:
            self._liveness.watch(now)
            at = self._liveness.poll(now, self._rtt(), quiet_s=quiet_s).at
        self._pace_s = quiet_s
        self._schedule(at)

    def stop(self) -> None:
        """The link is over."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = monotonic()
        at = max(at, now)
        self._timer = self._loop.call_later(at - now, self._check, at)

    def _check(self, due_at: float) -> None:
        self._timer = None
        late_s = monotonic() - due_at
        # What has arrived meanwhile must be in before anything is concluded from its absence.
        self._read()
        quiet_s = self._quiet()
        if self._stopped or (quiet_s is None and not self._liveness.suspicious):
            return
        self._pace_s = QUIET_S if quiet_s is None else quiet_s
        step = self._liveness.poll(monotonic(), self._rtt(), late_s, quiet_s=self._pace_s)
        if step.probe:
            self._probe()
        if self._stopped:
            return
        self._schedule(step.at)
        if step.silent:
            self._verdict(True)
