"""A connection to whoever is at an address, apart from the mesh: from a socket of its own, gone with the block.

A link of the mesh would greet, and so tell a stranger whose it is. Here nothing is said but what the caller says; and
with a key made for the visit, the stranger does not even learn which node has called.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from meshnode.identity import Identity, NodeId
from meshnode.net.endpoint import Endpoint
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import Reset, StreamType

VISIT_S = 3.0


class _Visitor:
    """Accepts nothing (net.Handler)."""

    def link_up(self, link: Link) -> None:
        """A link has proven keys: `visit` returns it."""

    def link_down(self, link: Link, code: int, reason: str) -> None:
        """Whoever reads its streams finds out."""

    def stream_opened(self, stream: MeshStream) -> None:
        """A stranger has nothing to ask here."""
        stream.reset(Reset.REFUSED)

    def datagram(self, link: Link, data: bytes) -> None:
        """Nothing is expected."""

    def link_silent(self, link: Link, silent: bool) -> None:
        """The caller has a time limit of its own."""


@asynccontextmanager
async def visit(
    identity: Identity,
    addresses: Sequence[Address],
    *,
    host: str = "::",
    expected: NodeId | None = None,
    timeout_s: float = VISIT_S,
) -> AsyncIterator[Link]:
    """A link to whoever answers first at `addresses`, or to `expected` there, until the end of the block. `host` is
    where its socket is bound.

    Raises PeerUnreachable, PeerRefused, WrongPeer.
    """
    endpoint = await Endpoint.open(identity, _Visitor(), host=host)
    try:
        yield await endpoint.dial(addresses, expected=expected, timeout_s=timeout_s)
    finally:
        # Who asks many at once gives up the others, perhaps twice: the socket is given back all the same.
        await asyncio.shield(endpoint.close())


def open_pairing(link: Link) -> MeshStream:
    """A stream for pairing; its header is written. Raises OSError."""
    stream = link.open_stream()
    stream.write(encode_stream_header(StreamType.PAIR, b""))
    return stream
