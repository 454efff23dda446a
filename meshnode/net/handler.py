"""What an endpoint is given and what it tells: options, the handler of its events, its counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from meshnode.net.congestion import NAME
from meshnode.net.link import Link
from meshnode.net.quic_path import MOST_DATAGRAM_BYTES
from meshnode.net.stream import MeshStream


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What may differ between endpoints; the defaults are for nodes."""

    fast: bool = True
    """Use the hot path for bulk data where it can be used."""
    most_datagram_bytes: int = MOST_DATAGRAM_BYTES
    congestion: str = NAME
    idle_timeout_s: float = 20.0
    keepalive_s: float = 5.0
    handshake_timeout_s: float = 5.0
    always_retry: bool = False
    """Demand proof of the address from every stranger."""


@dataclass(slots=True)
class Counters:
    """Plain sums since the start, for /metrics."""

    datagrams_in: int = 0
    datagrams_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    send_dropped: int = 0
    junk: int = 0
    retries_sent: int = 0
    handshakes_begun: int = 0
    handshakes_refused: int = 0
    handshakes_failed: int = 0
    links_up: int = 0
    links_refused: int = 0
    streams_refused: int = 0
    moves: int = 0
    unreachable_hints: int = 0
    relayed_in: int = 0
    relayed_out: int = 0
    flow_hijacks: int = 0


class Handler(Protocol):
    """What is told of the network. Called from the event loop; must not raise."""

    def link_up(self, link: Link) -> None:
        """Handshake complete, the peer's key proven and the one that was expected."""

    def link_down(self, link: Link, code: int, reason: str) -> None:
        """Exactly once after link_up. `code` is an application or transport error code, 0 for an orderly end."""

    def stream_opened(self, stream: MeshStream) -> None:
        """The peer opened a stream; nothing has been read from it."""

    def datagram(self, link: Link, data: bytes) -> None:
        """An unreliable datagram."""

    def link_silent(self, link: Link, silent: bool) -> None:
        """True: nothing is heard although probes went out. False: heard again."""
