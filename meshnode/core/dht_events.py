"""What can happen to the hash table machine, and what it wants done. A peer is always a full node id of 32 bytes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from meshnode.core.effects import Counted, SetTimer
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFind, DhtFound, DhtPeer, DhtStore, DhtStored, Provider

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """Members of the mesh that could be asked, for a table that is empty."""

    peers: tuple[DhtPeer, ...]


@dataclass(frozen=True, slots=True)
class Here:
    """Where this node can be dialled, and whether it can be at all."""

    addresses: tuple[Address, ...]
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class Offer:
    """All content that this node offers: (content hash, first layer, layers). It replaces what was offered before."""

    contents: tuple[tuple[bytes, int, int], ...]


@dataclass(frozen=True, slots=True)
class Search:
    """Find who provides the content behind a key; Found with the same number follows."""

    number: Hashable
    key: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A peer asks. `at` is where it was seen, `addresses` where it says that it can be dialled; `member`: no client."""

    number: Hashable
    peer: bytes
    at: Address
    addresses: tuple[Address, ...]
    member: bool
    message: DhtFind | DhtStore


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to an Ask; `at` is where the peer was seen, `addresses` where it says itself that it is."""

    number: int
    at: Address
    message: DhtFound | DhtStored
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """An Ask came to nothing: no link, no answer, or one that breaks the rules."""

    number: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of the SetTimer has come."""


Event = Seen | Here | Offer | Search | Asked | Answered | Failed | TimerFired

# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer, dialling it at one of the addresses where there is no link; Answered or Failed follows."""

    number: int
    peer: bytes
    addresses: tuple[Address, ...]
    message: DhtFind | DhtStore


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to an Asked; None: refused, the peer asks too much."""

    number: Hashable
    message: DhtFound | DhtStored | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a Search has come to, best first, and how many nodes were asked for it."""

    number: Hashable
    providers: tuple[Provider, ...]
    asked: int = 0


Effect = Ask | Answer | Found | SetTimer | Counted
