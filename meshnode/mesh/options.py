"""What may differ between nodes of a mesh, and the bounds of every part."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.core.tuning import MembershipOptions
from meshnode.mesh.sessions import SessionLimits
from meshnode.mesh.streams import StreamLimits
from meshnode.mesh.tunnel import TunnelLimits
from meshnode.net.endpoint import EndpointOptions
from meshnode.wire.address import Address


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """`name` and `software` are what others see. With `advertise` these addresses are named and no others."""

    host: str = "::"
    port: int = 0
    name: str = ""
    software: str = ""
    advertise: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class MeshLimits:
    """Bounds and tuning; the defaults are for nodes."""

    tunnel: TunnelLimits = TunnelLimits()
    sessions: SessionLimits = SessionLimits()
    streams: StreamLimits = StreamLimits()
    endpoint: EndpointOptions = EndpointOptions()
    membership: MembershipOptions = MembershipOptions()
