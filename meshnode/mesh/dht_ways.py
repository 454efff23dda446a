"""What the hash table needs of the mesh, and a Mesh that gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from meshnode.core.effects import MembershipSnapshot
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.upkeep import IDLE_S
from meshnode.net.stream import MeshStream
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import StreamType

LINGER_S = 30.0
"""So long a link stays that was made for a question, if nobody else uses it."""


class InMesh(Protocol):
    """What is needed of the mesh."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where this node can be dialled."""

    def members(self) -> MembershipSnapshot:
        """Who is in the mesh."""

    async def open_stream(
        self, peer: bytes, kind: StreamType, header: bytes, *, addresses: Sequence[Address] = ()
    ) -> MeshStream:
        """A stream to a peer, dialling it, also at these addresses, if there is no link.

        Raises MeshnodeError, OSError.
        """


class OverMesh:
    """A Mesh as InMesh. A node of the table need not be known to the gossip: it is dialled where the table says."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where this node can be dialled."""
        return self._mesh.addresses

    def members(self) -> MembershipSnapshot:
        """Who is in the mesh."""
        return self._mesh.members()

    async def open_stream(
        self, peer: bytes, kind: StreamType, header: bytes, *, addresses: Sequence[Address] = ()
    ) -> MeshStream:
        """A stream to a peer, its header written. Raises PeerUnreachable, PeerRefused, LinkLost.

        A link that was made for one question does not stay for as long as others do: a lookup needs many.
        """
        is_new = self._mesh.address_of(peer) is None
        found = await self._mesh.session(peer, addresses)
        if is_new:
            found.used_at -= IDLE_S - LINGER_S
        stream = found.link.open_stream()
        stream.write(encode_stream_header(kind, header))
        return stream
