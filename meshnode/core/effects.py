"""What the membership machine wants done, and what it shows: effects are carried out in their order."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from meshnode.wire.address import Address
from meshnode.wire.registry import Role
from meshnode.wire.statements import Demand, Dynamic, Identity

State = Literal["alive", "unreachable", "dead", "left"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message: on the control stream when `reliable`, else as a datagram."""

    peer: bytes
    message: Any
    reliable: bool


@dataclass(frozen=True, slots=True)
class Dial:
    """Try to link a peer; PeerUp or DialFailed follows."""

    peer: bytes
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Close the link to a peer with an application close code: it broke the rules."""

    peer: bytes
    code: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Give TimerFired(key) at the monotonic time `at`; an earlier setting of the key is forgotten."""

    key: Hashable
    at: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget a timer."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """The view of a member is another one; `state` is the present one."""

    peer: bytes
    state: State


@dataclass(frozen=True, slots=True)
class SaveIncarnation:
    """Write this incarnation to the disk before any effect that follows."""

    value: int


@dataclass(frozen=True, slots=True)
class Counted:
    """Something for the metrics has happened once; `what` is its name there."""

    what: str


Effect = Send | Dial | Close | SetTimer | CancelTimer | MemberChanged | SaveIncarnation | Counted


@dataclass(frozen=True, slots=True)
class Member:
    """A node as it is seen from here.

    `reachable` is False at once when this very node misses it; `state` is the verdict of its monitors. `rtt_s` was
    measured, `estimated_rtt_s` follows from coordinates; both are seconds. `since` is when the state began, `heard_at`
    when a sign of life last arrived, `demand_at` when the demand did; all are monotonic seconds of this node.
    """

    node: bytes
    state: State
    incarnation: int
    role: Role
    identity: Identity | None
    dynamic: Dynamic | None
    demand: Demand | None
    linked: bool
    reachable: bool
    rtt_s: float | None
    estimated_rtt_s: float | None
    since: float
    heard_at: float
    demand_at: float = 0.0


@dataclass(frozen=True, slots=True)
class MembershipSnapshot:
    """All members, this node among them. `neighbours` are those it gossips with and watches."""

    node: bytes
    members: Mapping[bytes, Member]
    neighbours: frozenset[bytes] = frozenset()


class Outbox:
    """Collects the effects of one call of the machine."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []

    def add(self, effect: Effect) -> None:
        """Anything."""
        self._effects.append(effect)

    def send(self, peer: bytes, message: Any, *, reliable: bool = True) -> None:
        """A message to a linked peer."""
        self._effects.append(Send(peer, message, reliable))

    def count(self, what: str) -> None:
        """Something for the metrics."""
        self._effects.append(Counted(what))

    def take(self) -> list[Effect]:
        """All effects since the last call."""
        taken, self._effects = self._effects, []
        return taken
