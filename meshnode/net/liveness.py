"""Whether a peer is still there: when to ask, and when to call it silent. Pure: told what was heard and the time.

A link on which somebody waits should not need the idle timeout of QUIC (20 s) to notice that the peer is gone. After
QUIET_S without a packet it is probed, faster than QUIC's own retransmissions would; once nothing was heard for a
second since the first unanswered probe, it is called silent. That is a verdict for routing, not an end: any packet
revokes it. Where nobody waits, but somebody might ask the peer soon, IDLE_QUIET_S costs a packet a second.

An ICMP message that says "port unreachable" shortens this: probes follow each other closely, and some unanswered ones
are enough. It is never taken for proof, since a peer that is there will answer the probes.

The own event loop may have been busy or the machine asleep. The time by which a timer came late is not held against
the peer.
"""

from __future__ import annotations

from dataclasses import dataclass

QUIET_S = 0.3
IDLE_QUIET_S = 1.0
PROBE_LEAST_S = 0.06
PROBE_MOST_S = 0.25
SILENT_LEAST_S = 1.0
SILENT_ROUND_TRIPS = 8
HINTED_PROBE_S = 0.025
HINTED_SILENT_S = 0.12
HINTED_ROUND_TRIPS = 4
HINTED_PROBES = 3
LAG_S = 0.25


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now: send a probe, call the peer silent; and when to ask again."""

    at: float
    probe: bool = False
    silent: bool = False


class Liveness:
    """The state of one link. `poll` when the last Step's `at` has come, `heard` for every packet of the peer."""

    __slots__ = ("_gap_s", "_heard_at", "_hinted", "_next_at", "_probe_at", "_probes", "_since", "silent")

    def __init__(self, now: float) -> None:
        self.silent = False
        self._heard_at = now
        self._since: float | None = None
        self._forget()

    def _forget(self) -> None:
        self._since = None
        self._hinted = False
        self._probes = 0
        self._gap_s = 0.0
        self._probe_at = 0.0

    @property
    def suspicious(self) -> bool:
        """Whether probes are unanswered, or there was a hint."""
        return self._since is not None

    def watch(self, now: float) -> None:
        """Somebody begins to wait. What was not heard before, when nobody asked, does not count."""
        self._heard_at = max(self._heard_at, now)

    def heard(self, now: float) -> bool:
        """An authenticated packet came. True when that ends a silence."""
        self._heard_at = now
        if self._since is None:
            return False
        was, self.silent = self.silent, False
        self._forget()
        return was

    def hint(self, now: float) -> bool:
        """The address of the peer was called unreachable. True when that is news, and `poll` is due at once."""
        if self._hinted or self.silent:
            return False
        self._hinted = True
        self._since = now
        self._probes = 0
        self._probe_at = now
        return True

    def poll(self, now: float, rtt_s: float, late_s: float = 0.0, *, quiet_s: float = QUIET_S) -> Step:
        """What to do, `late_s` after the time that was asked for. `rtt_s` is the smoothed round trip; after `quiet_s`
        without a packet the peer is asked.
        """
        if late_s > LAG_S:
            self._heard_at = min(self._heard_at + late_s, now)
            if self._since is not None:
                self._since = min(self._since + late_s, now)
        if self._since is None:
            if now < self._heard_at + quiet_s:
                return Step(self._heard_at + quiet_s)
            self._since = self._probe_at = now
        limit_at = self._since + self._limit_s(rtt_s)
        if not self.silent and now >= limit_at and (not self._hinted or self._probes >= HINTED_PROBES):
            self.silent = True
            return Step(now + PROBE_MOST_S, probe=True, silent=True)
        probe = now >= self._probe_at
        if probe:
            self._probe_at = now + self._next_gap_s(rtt_s)
            self._probes += 1
        return Step(self._probe_at if self.silent else min(self._probe_at, max(limit_at, now + 0.001)), probe=probe)

    def _limit_s(self, rtt_s: float) -> float:
        if self._hinted:
            return max(HINTED_SILENT_S, HINTED_ROUND_TRIPS * rtt_s)
        return max(SILENT_LEAST_S, SILENT_ROUND_TRIPS * rtt_s)

    def _next_gap_s(self, rtt_s: float) -> float:
        if self.silent:
            return PROBE_MOST_S
        if self._hinted:
            return max(HINTED_PROBE_S, rtt_s)
        first = max(PROBE_LEAST_S, 2 * rtt_s)
        self._gap_s = min(2 * self._gap_s, max(PROBE_MOST_S, first)) if self._gap_s else first
        return self._gap_s
