"""Ways to a peer that are not "this socket to that address": flows through a relay, and sockets of their own.

Each has a virtual address in the discard-only prefix 100::/64 (RFC 6666), so that a link goes on seeing plain addresses
and moves between ways as it moves between addresses. The lower half of the address is random: nobody outside this node
can name a detour, not even a peer that sends us addresses to dial. The port tells the kind.

On a relayed way each datagram is `0x03 | flow 8 | QUIC datagram`, between this node and the relay; on the other side of
the relay the same bytes travel on. First bytes below 0x40 are never QUIC's (RFC 9000, 17.2; RFC 9443).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from time import monotonic
from typing import Protocol

from meshnode.net.address import Address, SocketAddress, from_socket, is_virtual, is_virtual_name
from meshnode.wire.traversal import FLOW_BYTES

__all__ = ["Detour", "Detours", "FlowEnd", "is_relayed", "is_virtual"]

NOT_QUIC_BELOW = 0x40
RELAYED = 0x03
HEAD_BYTES = 1 + FLOW_BYTES
"""What relaying adds to each datagram."""
SIDE_PORT = 1
RELAYED_PORT = 3
MOST_FLOWS = 256
"""Flows that this node is an end of."""
QUIET_S = 0.5
"""A flow over which nothing has come for so long has its relay asked whether it still sees this node."""

_PREFIX = 0x100 << 112


def is_relayed(name: SocketAddress) -> bool:
    """Whether what is sent to this name goes through a relay."""
    return name[1] == RELAYED_PORT and is_virtual_name(name)


def new_name(port: int) -> SocketAddress:
    """A virtual address that nobody can guess."""
    return (str(IPv6Address(_PREFIX | int.from_bytes(os.urandom(8), "big"))), port, 0, 0)


class Leg(Protocol):
    """What is needed of the link to a relay, or of a relay's link to one of both ends."""

    @property
    def destination(self) -> SocketAddress:
        """Where datagrams to the peer go."""

    @property
    def proven_destination(self) -> SocketAddress:
        """Where the peer has last answered from."""

    @property
    def has_ended(self) -> bool:
        """Whether the link is over."""

    def ask_soon(self) -> None:
        """Send something that shows the peer where this node is."""


class Detour(Protocol):
    """One way, with its virtual address."""

    name: SocketAddress

    @property
    def real(self) -> Address:
        """The address that datagrams on this way go to first."""

    @property
    def overhead_bytes(self) -> int:
        """What each datagram is longer by."""

    def send(self, datagrams: Sequence[bytes]) -> None:
        """Send datagrams of the connection over this way."""

    def close(self) -> None:
        """Give up what the way needs. What is still sent on it is lost."""


@dataclass(slots=True)
class DetourCounters:
    """Plain sums since the start."""

    relayed_in: int = 0
    relayed_out: int = 0
    hijacks: int = 0
    """Datagrams of a flow that did not come from its relay."""
    lost_ways: int = 0
    """Datagrams for a virtual address that is not in use any more."""


Transmit = Callable[[Sequence[bytes], SocketAddress], None]
Received = Callable[[list[bytes], SocketAddress], None]


class Detours:
    """All detours of an endpoint, by virtual address; and the flows that end here, by their id."""

    def __init__(self) -> None:
        self.counters = DetourCounters()
        self._by_name: dict[SocketAddress, Detour] = {}
        self._flows: dict[bytes, FlowEnd] = {}

    def __iter__(self) -> Iterator[Detour]:
        return iter(tuple(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: SocketAddress) -> Detour | None:
        """The detour of this virtual address."""
        return self._by_name.get(name)

    def add(self, detour: Detour) -> None:
        """From now on the detour's address leads somewhere."""
        self._by_name[detour.name] = detour

    def remove(self, name: SocketAddress) -> None:
        """The way is given up. Nothing happens if it was already."""
        detour = self._by_name.pop(name, None)
        if detour is not None:
            detour.close()

    def send(self, datagrams: Sequence[bytes], name: SocketAddress) -> None:
        """Send to a virtual address; what has none any more is lost."""
        detour = self._by_name.get(name)
        if detour is None:
            self.counters.lost_ways += len(datagrams)
        else:
            detour.send(datagrams)

    # --- flows that end here -------------------------------------------------------------------------------------

    def flow(self, flow: bytes) -> FlowEnd | None:
        """The flow with this id that ends here."""
        return self._flows.get(flow)

    def open_flow(self, flow: bytes, relay: Leg, *, transmit: Transmit, received: Received) -> FlowEnd:
        """See `Endpoint.open_flow`. Raises ValueError."""
        if len(flow) != FLOW_BYTES or flow in self._flows:
            raise ValueError("no id for a new flow")
        if len(self._flows) >= MOST_FLOWS:
            raise ValueError("too many flows end here")
        if relay.has_ended or is_relayed(relay.destination):
            raise ValueError("a relay must be reached directly")
        end = self._flows[flow] = FlowEnd(flow, relay, transmit, received, self.counters)
        self.add(end)
        return end

    def close_flow(self, flow: bytes) -> None:
        """Forget a flow. Nothing happens if it is not known."""
        end = self._flows.pop(flow, None)
        if end is not None:
            self.remove(end.name)

    def flows_over(self, relay: Leg) -> list[FlowEnd]:
        """The flows that a relay carries for us."""
        return [end for end in self._flows.values() if end.relay is relay]


class FlowEnd:
    """This node's end of a flow through a relay."""

    overhead_bytes = HEAD_BYTES

    def __init__(
        self, flow: bytes, relay: Leg, transmit: Transmit, received: Received, counters: DetourCounters
    ) -> None:
        self.name = new_name(RELAYED_PORT)
        self.flow = flow
        self.relay = relay
        self._head = bytes([RELAYED]) + flow
        self._transmit = transmit
        self._received = received
        self._counters = counters
        self._asked_at = self._heard_at = monotonic()

    @property
    def real(self) -> Address:
        """The relay."""
        return from_socket(self.relay.destination)

    def send(self, datagrams: Sequence[bytes]) -> None:
        """Over the relay, wherever that is now. One that is itself behind a relay carries nothing: flows in flows
        could go round in circles."""
        relay = self.relay
        if relay.has_ended or is_relayed(relay.destination):
            self._counters.lost_ways += len(datagrams)
            return
        self._counters.relayed_out += len(datagrams)
        head = self._head
        self._transmit([head + datagram for datagram in datagrams], relay.destination)
        now = monotonic()
        # The relay carries only what comes from where it knows us to be. If that has changed, the link to it must move
        # before the flow works again, and an idle link would not notice for seconds.
        if now - self._heard_at > QUIET_S and now - self._asked_at > QUIET_S:
            self._asked_at = now
            relay.ask_soon()

    def receive(self, datagrams: list[bytes], source: SocketAddress, now: float) -> None:
        """Datagrams with the id of this flow, of whoever sent them."""
        relay = self.relay
        if source not in (relay.destination, relay.proven_destination):
            self._counters.hijacks += len(datagrams)
            return
        self._heard_at = now
        self._counters.relayed_in += len(datagrams)
        inner = [
            data[HEAD_BYTES:] for data in datagrams if len(data) > HEAD_BYTES and data[HEAD_BYTES] >= NOT_QUIC_BELOW
        ]
        if inner:
            self._received(inner, self.name)

    def close(self) -> None:
        """Nothing is held."""
