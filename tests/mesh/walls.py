"""Walls between nodes of one process: datagrams between some of them are dropped, as NAT and firewalls do it."""

from __future__ import annotations

from collections.abc import Sequence

from meshnode.net.address import SocketAddress
from tests.mesh.neighbourhood import Resident


class Walls:
    """What one node's socket does not let in. `stateful` walls let in only whom the node has sent something to, as
    a home router does; `shut` holds ports from which nothing comes in at all.
    """

    def __init__(self, resident: Resident, *, stateful: bool = False) -> None:
        self.stateful = stateful
        self.shut: set[int] = set()
        self.dropped = 0
        self.sent: list[tuple[bytes, SocketAddress]] = []
        self.recording = False
        self._known: set[int] = set()
        socket = resident.mesh._endpoint._socket
        self.port = socket.address.port
        real_send, real_received = socket.send, socket._received

        def send(datagrams: Sequence[bytes], destination: SocketAddress) -> None:
            self._known.add(destination[1])
            if self.recording:
                self.sent += [(datagram, destination) for datagram in datagrams]
            real_send(datagrams, destination)

        def received(datagrams: list[bytes], source: SocketAddress) -> None:
            if source[1] in self.shut or (self.stateful and source[1] not in self._known):
                self.dropped += len(datagrams)
            else:
                real_received(datagrams, source)

        socket.send = send  # type: ignore[method-assign]
        socket._received = received


def part(one: Walls, other: Walls, apart: bool = True) -> None:
    """Nothing passes between the two any more, or everything again."""
    for here, there in ((one, other), (other, one)):
        if apart:
            here.shut.add(there.port)
        else:
            here.shut.discard(there.port)
