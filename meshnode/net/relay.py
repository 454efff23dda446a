"""Carrying datagrams between two peers that cannot reach each other: the relay's side of a flow.

What arrives with the id of a flow from one end leaves unchanged for the other: the relay decrypts nothing, adds nothing
and keeps nothing, as the QUIC connection inside is between the ends. So it costs about what two system calls cost.

A flow is bound to the addresses at which its two links were last proven, and follows them. Since a datagram leaves only
for a proven address, and for each that comes at most one of the same length leaves, nobody can be flooded through here.
What a flow may carry is bounded by a token bucket (RFC 2697's, with one rate): what exceeds it is dropped, which the
congestion control of the ends understands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from meshnode.net.address import SocketAddress
from meshnode.net.detours import HEAD_BYTES, Leg, Transmit, is_relayed
from meshnode.wire.traversal import FLOW_BYTES

IDLE_S = 60.0
MOST_FORWARDED = 256
"""Flows that are carried at a time, whatever the policy above allows."""


@dataclass(slots=True)
class ForwarderCounters:
    """Plain sums since the start."""

    datagrams: int = 0
    bytes: int = 0
    hijacks: int = 0
    """Datagrams that came from neither end of their flow."""
    over_quota: int = 0
    unknown: int = 0
    """Datagrams of flows that are not carried here."""


class TokenBucket:
    """So many bytes a second, and so many at once."""

    __slots__ = ("_at", "_bytes_per_s", "_left", "most_bytes")

    def __init__(self, bytes_per_s: float, burst_bytes: int, now: float) -> None:
        self.most_bytes = burst_bytes
        self._bytes_per_s = bytes_per_s
        self._left = float(burst_bytes)
        self._at = now

    def take(self, sizes: Sequence[int], now: float) -> int:
        """How many of the datagrams of these sizes, from the first on, there are tokens for; those are taken."""
        self._left = min(self._left + (now - self._at) * self._bytes_per_s, self.most_bytes)
        self._at = now
        total = sum(sizes)
        if total <= self._left:
            self._left -= total
            return len(sizes)
        for count, size in enumerate(sizes):
            if size > self._left:
                return count
            self._left -= size
        return len(sizes)


class Flow:
    """One flow that is carried."""

    __slots__ = ("_bucket", "_counters", "_transmit", "ends", "last_at")

    def __init__(
        self, ends: tuple[Leg, Leg], bucket: TokenBucket, transmit: Transmit, counters: ForwarderCounters, now: float
    ) -> None:
        self.ends = ends
        self.last_at = now
        self._bucket = bucket
        self._transmit = transmit
        self._counters = counters

    def receive(self, datagrams: list[bytes], source: SocketAddress, now: float) -> None:
        """Datagrams with the id of this flow, of whoever sent them."""
        one, other = self.ends
        counters = self._counters
        if source == one.proven_destination:
            destination = other.proven_destination
        elif source == other.proven_destination:
            destination = one.proven_destination
        else:
            counters.hijacks += len(datagrams)
            return
        if is_relayed(destination):
            return  # an end that has itself moved behind a relay: flows do not run in flows
        sizes = [len(datagram) for datagram in datagrams]
        count = self._bucket.take(sizes, now)
        self.last_at = now
        if count < len(sizes):
            counters.over_quota += len(sizes) - count
            datagrams, sizes = datagrams[:count], sizes[:count]
        if count:
            counters.datagrams += count
            counters.bytes += sum(sizes)
            self._transmit(datagrams, destination)


class Forwarder:
    """The flows that a relay carries. `on_ended` is told of each that ends other than by `close`."""

    def __init__(self, transmit: Transmit) -> None:
        self.counters = ForwarderCounters()
        self.on_ended: Callable[[bytes], None] = lambda flow: None
        self._transmit = transmit
        self._flows: dict[bytes, Flow] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def get(self, flow: bytes) -> Flow | None:
        """The flow with this id."""
        return self._flows.get(flow)

    def open(self, flow: bytes, one: Leg, other: Leg, *, bytes_per_s: float, burst_bytes: int) -> None:
        """Carry datagrams between the peers of two links from now on; both directions share the quota.

        Raises ValueError for an id that is in use or has not 8 bytes, for links that have ended, are the same or are
        themselves relayed, and when MOST_FORWARDED flows are carried.
        """
        if len(flow) != FLOW_BYTES or flow in self._flows:
            raise ValueError("no id for a new flow")
        if one is other or any(link.has_ended or is_relayed(link.proven_destination) for link in (one, other)):
            raise ValueError("a flow needs two direct links")
        if len(self._flows) >= MOST_FORWARDED:
            raise ValueError("too many flows are carried")
        now = monotonic()
        bucket = TokenBucket(bytes_per_s, max(burst_bytes, HEAD_BYTES), now)
        self._flows[flow] = Flow((one, other), bucket, self._transmit, self.counters, now)

    def close(self, flow: bytes) -> None:
        """Carry nothing more of this flow. Nothing happens if it is not known."""
        self._flows.pop(flow, None)

    def idle(self, now: float) -> list[bytes]:
        """The flows over which nothing has come for a minute."""
        return [flow for flow, carried in self._flows.items() if now - carried.last_at >= IDLE_S]

    def tick(self, now: float) -> None:
        """Called about once a second: end what is idle."""
        for flow in self.idle(now):
            self._end(flow)

    def lost(self, link: Leg) -> None:
        """A link has ended, and its flows with it."""
        for flow in [flow for flow, carried in self._flows.items() if link in carried.ends]:
            self._end(flow)

    def _end(self, flow: bytes) -> None:
        # Whoever is told may have closed another one of the list.
        if self._flows.pop(flow, None) is not None:
            self.on_ended(flow)
