"""The part that a node plays in its mesh: what members and client-only nodes have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from meshnode.core.effects import MembershipSnapshot
from meshnode.mesh.sessions import Peer
from meshnode.mesh.views import Shown
from meshnode.wire.address import Address
from meshnode.wire.statements import Dynamic, Identity, Wish


class Part(Protocol):
    """See member.py and clients.py. Everything is called from the event loop; only `received` may raise, WireError."""

    def peer_up(self, peer: Peer) -> None:
        """A peer was admitted."""

    def peer_down(self, peer: Peer) -> None:
        """Its session is over."""

    def received(self, peer: Peer, message: Any) -> None:
        """A message of an admitted peer."""

    def silent(self, node: bytes, silent: bool) -> None:
        """Nothing is heard of a peer any more, or something again."""

    def measured(self, node: bytes, rtt_s: float) -> None:
        """A round trip to a linked peer."""

    def identify(self, identity: Identity) -> None:
        """Who this node is, or what of that is new."""

    def publish(self, has: Dynamic) -> None:
        """What this node has."""

    def publish_demand(self, wishes: Sequence[Wish]) -> None:
        """What is asked for at this node."""

    def members(self) -> MembershipSnapshot:
        """The mesh as it is known here."""

    def shown(self) -> list[Shown]:
        """Members that answer, this node among them, as they may be shown to others."""

    def addresses(self, node: bytes) -> tuple[Address, ...]:
        """Where a node says that it can be reached."""

    def wants_links(self) -> bool:
        """Whether there are fewer links than this part needs."""

    def candidates(self) -> Iterable[bytes]:
        """Whom to dial then, best first."""

    def needs(self, node: bytes) -> bool:
        """Whether the link to a peer is to stay even when nobody uses it."""

    async def leave(self) -> None:
        """Tell the mesh that this node goes; returns when that is on its way."""

    async def close(self) -> None:
        """Stop."""
