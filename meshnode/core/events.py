"""What can happen to the membership machine. A peer is always a full node id of 32 bytes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from meshnode.wire.messages import PeerEntry
from meshnode.wire.statements import Demand, Dynamic, Identity


@dataclass(frozen=True, slots=True)
class Publish:
    """This node has something new to say of itself.

    Of a Dynamic, monitors, coordinate and neighbours are the machine's own and what is given does not count.
    """

    body: Identity | Dynamic | Demand


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A member is linked: its key is proven and it has been admitted. `rtt_s` is the round trip, where it is known."""

    peer: bytes
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The link to a peer is gone, for whatever reason. No proof that the peer is."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class DialFailed:
    """An asked-for link did not come about."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """The transport hears nothing of a linked peer though it asked (True), or hears it again (False)."""

    peer: bytes
    silent: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A decoded message of `meshnode.wire.messages` from a linked peer."""

    peer: bytes
    message: Any


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of a SetTimer has come."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class LoopLag:
    """The process stood still for `lag_s` seconds: whatever it did not hear in that time is no evidence."""

    lag_s: float


@dataclass(frozen=True, slots=True)
class RttMeasured:
    """A round trip over the live link to a peer, in seconds."""

    peer: bytes
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Learned:
    """Nodes that could be dialled, from an address book or an invite."""

    entries: tuple[PeerEntry, ...]


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """This node is about to leave on purpose."""


Event = (
    Publish
    | PeerUp
    | PeerDown
    | DialFailed
    | PeerSilent
    | Received
    | TimerFired
    | LoopLag
    | RttMeasured
    | Learned
    | LeaveAsked
)
