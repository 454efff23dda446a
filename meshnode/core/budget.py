"""How much a peer may send: token buckets, and when too much is more than an accident.

A bucket holds at most `burst` tokens and gains `rate` a second (RFC 2697 has the idea). What finds no token is dropped
by the caller, who counts it; a peer that keeps sending into empty buckets is a flood.
"""

from __future__ import annotations

MESSAGES_A_SECOND = 200.0
STATEMENTS_A_SECOND = 64.0
STATEMENTS_BURST = 256.0
ACCUSATIONS_A_SECOND = 10.0
BYTES_A_SECOND = 32_768.0
BYTES_BURST = 256 * 1024.0
STATEMENT_BYTES = 320.0
REFUSALS_OF_A_FLOOD = 1024.0
REFUSALS_FORGIVEN_A_SECOND = 32.0


class Bucket:
    """Tokens that come back with time. A credit may lift it above its burst for once."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def take(self, amount: float, now: float) -> bool:
        """Whether there were `amount` tokens; they are gone now. Otherwise nothing changes."""
        if self._tokens < self.burst:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def resize(self, burst: float) -> None:
        """Hold more, or less. A bucket that was full is full again."""
        self._tokens = burst if self._tokens >= self.burst else min(self._tokens, burst)
        self.burst = burst

    def credit(self, amount: float) -> None:
        """What was asked for may come on top of the burst, once: credits do not add up."""
        self._tokens = max(self._tokens, self.burst + amount)


class PeerBudget:
    """The buckets of one link. All methods answer whether the peer may.

    In a mesh of many members a single event (half of them gone, a partition healed) brings news of all of them at
    once, so bursts grow with `members`; the rates do so only for accusations.
    """

    __slots__ = ("_accusations", "_bytes", "_members", "_messages", "_refusals", "_statements")

    def __init__(self, now: float) -> None:
        self._members = 0
        self._messages = Bucket(MESSAGES_A_SECOND, 4 * MESSAGES_A_SECOND, now)
        self._statements = Bucket(STATEMENTS_A_SECOND, STATEMENTS_BURST, now)
        self._accusations = Bucket(ACCUSATIONS_A_SECOND, STATEMENTS_BURST, now)
        self._bytes = Bucket(BYTES_A_SECOND, BYTES_BURST, now)
        self._refusals = Bucket(REFUSALS_FORGIVEN_A_SECOND, REFUSALS_OF_A_FLOOD, now)

    def resize(self, members: int) -> None:
        """The mesh has that many members."""
        if members == self._members:
            return
        self._members = members
        self._accusations.rate = max(ACCUSATIONS_A_SECOND, members / 8)
        self._accusations.resize(STATEMENTS_BURST + 4 * members)
        self._statements.resize(STATEMENTS_BURST + 4 * members)
        self._bytes.resize(BYTES_BURST + 4 * STATEMENT_BYTES * members)

    def message(self, now: float) -> bool:
        """One more message of any kind."""
        return self._messages.take(1, now)

    def statement(self, size_bytes: int, now: float) -> bool:
        """One more statement that says something of its origin."""
        return self._statements.take(1, now) and self._bytes.take(size_bytes, now)

    def accusation(self, now: float) -> bool:
        """One more accusation."""
        return self._accusations.take(1, now)

    def asked_for(self, statements: int, size_bytes: float) -> None:
        """So much is about to come because we wanted it."""
        self._statements.credit(statements)
        self._bytes.credit(size_bytes)

    def is_flood(self, now: float) -> bool:
        """Count a refusal. True when there were so many that it cannot be an accident."""
        return not self._refusals.take(1, now)
