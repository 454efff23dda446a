"""Flow control that follows consumption (RFC 9000, 4): a peer may send what the application is about to take.

aioquic doubles its limits whenever half of one has arrived, whether or not anybody reads. Here a stream is allowed
one window beyond what was *taken* from it. The window starts small and doubles for a reader so quick that it, and not
the network, sets the pace; the same rule as in Chromium and quic-go, and what Linux does for TCP.
"""

from __future__ import annotations

STREAM_FIRST_BYTES = 256 << 10
STREAM_MOST_BYTES = 16 << 20
CONNECTION_FIRST_BYTES = 1 << 20
CONNECTION_MOST_BYTES = 64 << 20
CONNECTION_GROWTH = 4


class StreamCredit:
    """The receive window of one stream. Pure: told what was taken and when."""

    __slots__ = ("_raised_at", "limit_bytes", "taken_bytes", "window_bytes")

    def __init__(self, now: float) -> None:
        self.window_bytes = STREAM_FIRST_BYTES
        self.limit_bytes = STREAM_FIRST_BYTES
        self.taken_bytes = 0
        self._raised_at = now

    def take(self, count: int, now: float, rtt_s: float) -> bool:
        """The application took `count` bytes. True when `limit_bytes` rose and the peer should hear of it.

        That is the case once half a window was taken. If that took less than two round trips, the window was what
        held the peer back, and it doubles.
        """
        self.taken_bytes += count
        if self.limit_bytes - self.taken_bytes > self.window_bytes // 2:
            return False
        if now - self._raised_at < 2 * rtt_s:
            self.window_bytes = min(2 * self.window_bytes, STREAM_MOST_BYTES)
        self._raised_at = now
        self.limit_bytes = self.taken_bytes + self.window_bytes
        return True


def connection_window(consumed_bytes: int) -> int:
    """How much a peer may have outstanding on all its streams together, in bytes.

    It bounds the memory that one connection can bind. It grows with what the application has taken from this peer,
    so that a stranger, from whom hardly anything is ever taken, binds no more than the first figure, and a reader
    that stops cannot hold up the other streams of a connection that is in use.
    """
    return min(CONNECTION_MOST_BYTES, CONNECTION_FIRST_BYTES + CONNECTION_GROWTH * consumed_bytes)
