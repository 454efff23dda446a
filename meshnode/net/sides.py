"""Sockets beside the one of the endpoint, which a node behind a symmetric translator opens to be found by guessing.

Such a translator gives each socket another outer port for each destination. When the other end has hit one of these
ports, the socket behind it is the way to that end: a detour with a virtual address, from then on read and written like
the socket of the endpoint. It is closed when no link has used it for a while.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from meshnode.net.address import Address, SocketAddress, from_socket
from meshnode.net.detours import SIDE_PORT, Detours, Received, new_name
from meshnode.net.udp import Traffic, UdpSocket

if sys.platform != "win32":
    import resource

MOST_SIDES = 64
"""Side sockets in use at a time."""
UNUSED_S = 30.0
SPARE_FILES = 64
"""File descriptors that are left to others in any case."""


class SideSocket:
    """A way to one peer over a socket of its own."""

    overhead_bytes = 0

    def __init__(
        self,
        bound: socket.socket,
        peer: SocketAddress,
        *,
        received: Received,
        unreachable: Callable[[SocketAddress], None],
        drained: Callable[[], None],
        traffic: Traffic,
    ) -> None:
        self.name = new_name(SIDE_PORT)
        self.used_at = monotonic()
        self._peer = peer
        self._received = received
        self._socket = UdpSocket(
            bound, received=self._take, unreachable=lambda _: unreachable(self.name), drained=drained, traffic=traffic
        )

    @property
    def real(self) -> Address:
        """The peer, as this socket sees it."""
        return from_socket(self._peer)

    def _take(self, datagrams: list[bytes], source: SocketAddress) -> None:
        # The translator lets in nobody else; where there is none, nobody else is meant.
        if source == self._peer:
            self._received(datagrams, self.name)

    def send(self, datagrams: Sequence[bytes]) -> None:
        """To the peer."""
        self._socket.send(datagrams, self._peer)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


class SideSockets:
    """Opens sockets for guessing, and keeps those that became ways. `host` is what the endpoint is bound to."""

    def __init__(
        self,
        detours: Detours,
        *,
        host: str,
        received: Received,
        unreachable: Callable[[SocketAddress], None],
        drained: Callable[[], None],
        traffic: Traffic,
    ) -> None:
        self._detours = detours
        self._host = host if _is_one_ipv4(host) else "0.0.0.0"
        self._received = received
        self._unreachable = unreachable
        self._drained = drained
        self._traffic = traffic
        self._kept: dict[SocketAddress, SideSocket] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def open(self) -> socket.socket | None:
        """An IPv4 socket on a port of its own; None where the system gives no more."""
        opened = None
        try:
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            opened.setblocking(False)
            opened.bind((self._host, 0))
        except OSError:
            if opened is not None:
                opened.close()
            return None
        return opened

    def keep(self, bound: socket.socket, peer: SocketAddress) -> SocketAddress | None:
        """Make a socket the way to `peer`. Returns its virtual address; None, and the socket is closed, when there are
        too many."""
        asyncio.get_running_loop().remove_reader(bound.fileno())
        if len(self._kept) >= MOST_SIDES:
            bound.close()
            return None
        side = SideSocket(
            bound,
            peer,
            received=self._received,
            unreachable=self._unreachable,
            drained=self._drained,
            traffic=self._traffic,
        )
        self._kept[side.name] = side
        self._detours.add(side)
        return side.name

    def sweep(self, now: float, used: Collection[SocketAddress]) -> None:
        """Close what no link has used for a while; `used` are the addresses that links have."""
        for name, side in list(self._kept.items()):
            if name in used:
                side.used_at = now
            elif now - side.used_at > UNUSED_S:
                self.give_up(name)

    def give_up(self, name: SocketAddress) -> None:
        """Close one of them."""
        if self._kept.pop(name, None) is not None:
            self._detours.remove(name)


def _is_one_ipv4(host: str) -> bool:
    return ":" not in host and host != "0.0.0.0"


def files_to_spare() -> int:
    """How many more files this process may open, less what it may need otherwise: half of what is left."""
    if sys.platform == "win32":
        return 1 << 16
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 1 << 16
    in_use = SPARE_FILES
    with suppress(OSError):
        in_use = sum(1 for _ in Path("/dev/fd").iterdir())
    return max(0, (limit - in_use - SPARE_FILES) // 2)
