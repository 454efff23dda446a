"""When to send: a pacer that counts bursts. Arithmetic only, `now` is handed in.

aioquic's pacer asks for timers of a few microseconds, which an event loop cannot keep. `BurstPacer` lets each flush
send one burst and asks to be called again at once, so that reading and writing alternate and both ends of a fast link
work at the same time. Where the round trip is long enough for timers, bursts are also spread over it, as a line-rate
burst of a whole window overflows queues that the same bytes in a second would not (RFC 9002, section 7.7).
"""

from __future__ import annotations

import math

from aioquic.quic.recovery import QuicPacketPacer

FULL_BURST_DATAGRAMS = 44
"""What one sendmsg with UDP_SEGMENT carries at Ethernet's size (65,000 bytes)."""
FIRST_BURST_DATAGRAMS = 16
"""The first burst after a pause is short, so that the receiver begins early."""
BURST_BYTES = 256 * 1024
PACED_FROM_S = 0.003
PACING_GAIN = 1.25
TIMER_S = 0.001
"""What event loops round timers to."""


class BurstPacer(QuicPacketPacer):
    """Lets one burst go per flush; a flush is recognised by its `now`. Where round trips are long, also a rate."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.restriction: int | None = None
        """While set, at most so many datagrams more, whatever the burst and the rate allow."""
        self._flush_at = -math.inf
        self._left = FIRST_BURST_DATAGRAMS
        self._rate: float | None = None
        self._bucket = 0.0

    @property
    def burst_datagrams(self) -> int:
        """Datagrams in a full burst."""
        return max(4, min(FULL_BURST_DATAGRAMS, BURST_BYTES // self._max_datagram_size))

    def allowance(self, now: float) -> int:
        """How many datagrams the flush at `now` may still send."""
        if now != self._flush_at:
            self._begin(now)
        allowed = self._left if self.restriction is None else min(self._left, self.restriction)
        if self._rate is not None:
            allowed = min(allowed, math.ceil(self._bucket / self._max_datagram_size))
        return max(allowed, 0)

    def take(self, datagrams: int) -> None:
        """So many were sent in this flush."""
        self._left -= datagrams
        if self._rate is not None:
            self._bucket -= datagrams * self._max_datagram_size
        if self.restriction is not None:
            self.restriction -= datagrams

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]
        """None: send. Otherwise when to flush again: at once after a burst, later when the rate says so."""
        if now == self._flush_at and self._left > 0 and self._rate is None and self.restriction is None:
            return None  # what nearly every packet asks, answered quickly
        if self.allowance(now):
            return None
        if self._rate is None or self._bucket > 0:
            return now
        # Half a bucket is worth a wakeup; less is not, as the timer is late by up to its resolution anyway.
        return now + max((self._capacity() / 2 - self._bucket) / self._rate, TIMER_S / 2)

    def update_after_send(self, now: float) -> None:
        """One datagram was sent."""
        self.take(1)

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """The window or the round-trip time changed."""
        if smoothed_rtt < PACED_FROM_S:
            self._rate = None
            return
        begins = self._rate is None
        self._rate = PACING_GAIN * congestion_window / smoothed_rtt
        if begins:
            self._bucket = self._capacity()

    def _capacity(self) -> float:
        assert self._rate is not None
        return max(float(FIRST_BURST_DATAGRAMS * self._max_datagram_size), 2 * TIMER_S * self._rate)

    def _begin(self, now: float) -> None:
        exhausted = self._left <= 0
        self._left = self.burst_datagrams if exhausted else min(FIRST_BURST_DATAGRAMS, self.burst_datagrams)
        if self._rate is not None:
            elapsed_s = min(max(now - self._flush_at, 0.0), 1.0)
            self._bucket = min(self._bucket + elapsed_s * self._rate, self._capacity())
        self._flush_at = now
