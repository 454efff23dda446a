"""How large datagrams may be on a path: the largest size that was seen to arrive. Pure.

A path starts at 1200 bytes, which QUIC may rely on (RFC 9000, 14). The sizes that the route seems to allow are tried
from the largest down, each with a padded probe in band (RFC 8899); what is acknowledged is used. Between nodes of one
host that is 16 KiB, which is worth more than anything else that can be done for speed there. If later everything gets
lost, the path may have changed to a narrower one: back to 1200, and another try after a while.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshnode.net.address import Address
from meshnode.net.quic_path import FIRST_DATAGRAM_BYTES, MOST_DATAGRAM_BYTES
from meshnode.net.udp import Route

ETHERNET_BYTES = 1452
"""1500 less the headers of IPv6 and UDP: what nearly every local network carries."""
UDP_HEADERS_BYTES = {False: 28, True: 48}
"""IP and UDP headers, without and with IPv6."""
TRIES = 2
AGAIN_S = 30.0
BLACK_HOLE_TIMEOUTS = 3


def candidates(route: Route, destination: Address, most_bytes: int = MOST_DATAGRAM_BYTES) -> list[int]:
    """Sizes above the first one that are worth a try, the largest first."""
    allowed = (route.mtu_bytes or 1500) - UDP_HEADERS_BYTES[destination.is_ipv6]
    wanted = (MOST_DATAGRAM_BYTES if route.same_host else allowed, ETHERNET_BYTES)
    sizes = {min(size, allowed, most_bytes, MOST_DATAGRAM_BYTES) for size in wanted}
    return sorted((size for size in sizes if size > FIRST_DATAGRAM_BYTES), reverse=True)


def detour_candidates(route: Route, first: Address, overhead_bytes: int, most_bytes: int) -> list[int]:
    """The same for a way that adds `overhead_bytes`, and of which only the part to `first` is known.

    With an overhead another part follows, as behind a relay, so that nothing larger than Ethernet's size is tried.
    """
    if not overhead_bytes:
        return candidates(route, first, most_bytes)
    allowed = (route.mtu_bytes or 1500) - UDP_HEADERS_BYTES[first.is_ipv6]
    size = min(ETHERNET_BYTES, allowed, most_bytes) - overhead_bytes
    return [size] if size > FIRST_DATAGRAM_BYTES else []


class SizeSearch:
    """Which size to probe next, and which one is in use."""

    __slots__ = ("_again_at", "_candidates", "_left", "_pending", "_tries", "size")

    def __init__(self, sizes: Iterable[int]) -> None:
        self.size = FIRST_DATAGRAM_BYTES
        self._candidates = sorted(sizes)
        self._left = list(self._candidates)
        self._tries = 0
        self._pending = False
        self._again_at: float | None = None

    def next_probe(self, now: float) -> int | None:
        """The size to probe now, if any; `resolve` must follow."""
        if self._again_at is not None and now >= self._again_at:
            self._again_at, self._left = None, list(self._candidates)
        if self._pending or not self._left:
            return None
        self._pending = True
        return self._left[-1]

    def resolve(self, size: int, arrived: bool) -> bool:
        """A probe of `size` came to its end. True when `size` is the one to use from now on."""
        self._pending = False
        if not self._left or size != self._left[-1]:
            return False
        if arrived:
            self.size = size
            self._left.clear()
            return True
        self._tries += 1
        if self._tries >= TRIES:
            self._tries = 0
            self._left.pop()
        return False

    def timed_out(self, timeouts: int, now: float) -> bool:
        """So many timeouts came in a row. True when the size in use is given up, as it may be why."""
        if timeouts < BLACK_HOLE_TIMEOUTS or self.size == FIRST_DATAGRAM_BYTES:
            return False
        self.size = FIRST_DATAGRAM_BYTES
        self._left.clear()
        self._again_at = now + AGAIN_S
        return True
