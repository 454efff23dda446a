"""What may differ between nodes of a mesh, and the bounds of every part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshnode.core.tuning import MembershipOptions
from meshnode.mesh.relaying import RelayLimits
from meshnode.mesh.sessions import SessionLimits
from meshnode.mesh.streams import StreamLimits
from meshnode.mesh.tunnel import TunnelLimits
from meshnode.mesh.tunnel_request import RequestLimits
from meshnode.net.endpoint import EndpointOptions
from meshnode.wire.address import Address


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """`name` and `software` are what others see. With `advertise` these addresses are named and no others.

    `relay`: carry datagrams between members that cannot reach each other. `guess_ports`: agree to find a peer behind a
    symmetric NAT by guessing. `mapped` gives what the router forwards to this node at the moment, `owner` the
    certificate of the node's owner (wire/owners.py), which is shown in a private mesh only.
    """

    host: str = "::"
    port: int = 0
    name: str = ""
    software: str = ""
    advertise: tuple[Address, ...] = ()
    relay: bool = False
    guess_ports: bool = True
    mapped: Callable[[], Sequence[Address]] = tuple
    owner: Callable[[], bytes] = bytes


@dataclass(frozen=True, slots=True)
class MeshLimits:
    """Bounds and tuning; the defaults are for nodes."""

    tunnel: TunnelLimits = TunnelLimits()
    sessions: SessionLimits = SessionLimits()
    streams: StreamLimits = StreamLimits()
    endpoint: EndpointOptions = EndpointOptions()
    membership: MembershipOptions = MembershipOptions()
    relay: RelayLimits = RelayLimits()


PUBLIC_LIMITS = MeshLimits(
    tunnel=TunnelLimits(
        request=RequestLimits(max_body_bytes=1 << 20, head_s=5.0, pause_s=5.0),
        streams=8,
        body_bytes=4 << 20,
        stall_s=30.0,
    ),
    streams=StreamLimits(rate_per_s=20.0, burst=100, half_open=16, header_s=5.0, most_refused=256, forgiven_per_s=4.0),
)
"""For a mesh of strangers. Of 1,000 streams that one opens at once 100 are looked at, 8 of them may be requests at a
time, and at the 257th that is refused its link is closed. A stranger may have two requests here (core/guests.py); the
others are there to be told so.
"""
