"""What travels on `relay` and `punch` streams: reaching a node that no datagram of a stranger reaches
(protocol/14-traversal.md).

    node behind NAT             relay                       node that wants it
    RelayReserve    ---->                                                            to be reachable here
                    <----       RelayReserved
                                                   <----    RelayConnect             on a stream of its own
                    <----       RelayFlow, on a stream that the relay opens
    RelayFlow       ---->       the same again: agreed
                                RelayFlow          ---->
    RelayEnd        <--->       RelayEnd           <--->    RelayEnd                 whoever ends it says why

From then on datagrams `0x03 | flow 8 | QUIC` pass between the two through the relay, which reads none of them. Over the
link that comes up so, the two look for a direct path:

    PunchOffer      ---->  PunchAnswer   <----   then punches in both directions, then PunchDone from both
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_CANDIDATES, LIMIT_LEASE_TEXT_CHARS, MessageId
from meshnode.wire.schema import MAX_U8, MAX_U16, MAX_U32, Bytes, Flag, ListOf, Text, UInt, Where, member
from meshnode.wire.signed import KEY_BYTES

FLOW_BYTES = 8
NONCE_BYTES = 16

_Key = Bytes(KEY_BYTES, KEY_BYTES)
_Flow = Bytes(FLOW_BYTES, FLOW_BYTES)


@dataclass(frozen=True, slots=True)
class RelayReserve:
    """I would like to be reached through you, as long as this stream is open."""


@dataclass(frozen=True, slots=True)
class RelayReserved:
    """So be it. `observed` is where the relay sees the node; the rest are the bounds for each flow."""

    observed: Address | None = member(1, Where(), None)
    flows: int = member(2, UInt(MAX_U16), 0)
    bytes_per_s: int = member(4, UInt(MAX_U32), 0)


@dataclass(frozen=True, slots=True)
class RelayConnect:
    """Connect me with this node."""

    node: bytes = member(0, _Key)


@dataclass(frozen=True, slots=True)
class RelayFlow:
    """Datagrams with this flow id go to and come from `node`, which the relay sees at `observed`.

    The flow ends with the stream on which this was sent. The node that is wanted agrees by sending the same back.
    """

    node: bytes = member(0, _Key)
    flow: bytes = member(2, _Flow)
    observed: Address | None = member(3, Where(), None)


@dataclass(frozen=True, slots=True)
class RelayRefused:
    """No, for the reason with this code (registry, `relay`)."""

    code: int = member(0, UInt(MAX_U8))
    text: str = member(2, Text(LIMIT_LEASE_TEXT_CHARS), "")


@dataclass(frozen=True, slots=True)
class RelayEnd:
    """The flow or the reservation is over, for the reason with this code."""

    code: int = member(0, UInt(MAX_U8))


@dataclass(frozen=True, slots=True)
class PunchOffer:
    """Let us look for a direct path: where I may be reached, and what is before me. Punches carry `nonce`.

    `guess` says that guessing ports at random is agreeable, if that is what it takes.
    """

    nonce: bytes = member(0, Bytes(NONCE_BYTES, NONCE_BYTES))
    candidates: tuple[Address, ...] = member(2, ListOf(Where(), LIMIT_CANDIDATES), ())
    nat: int = member(4, UInt(MAX_U8), 0)
    guess: bool = member(6, Flag(), False)


@dataclass(frozen=True, slots=True)
class PunchAnswer:
    """The same of the other end; it begins to punch when it sends this."""

    candidates: tuple[Address, ...] = member(0, ListOf(Where(), LIMIT_CANDIDATES), ())
    nat: int = member(2, UInt(MAX_U8), 0)
    guess: bool = member(4, Flag(), False)
    busy: bool = member(6, Flag(), False)


@dataclass(frozen=True, slots=True)
class PunchDone:
    """This end is through with looking; `found` says whether the other one has answered it directly, `path` where."""

    found: bool = member(0, Flag(), False)
    path: Address | None = member(1, Where(), None)


RELAY_MESSAGES: dict[int, type[Any]] = {
    MessageId.RELAY_RESERVE: RelayReserve,
    MessageId.RELAY_RESERVED: RelayReserved,
    MessageId.RELAY_CONNECT: RelayConnect,
    MessageId.RELAY_FLOW: RelayFlow,
    MessageId.RELAY_REFUSED: RelayRefused,
    MessageId.RELAY_END: RelayEnd,
}
"""What may come on a `relay` stream."""
PUNCH_MESSAGES: dict[int, type[Any]] = {
    MessageId.PUNCH_OFFER: PunchOffer,
    MessageId.PUNCH_ANSWER: PunchAnswer,
    MessageId.PUNCH_DONE: PunchDone,
}
"""What may come on a `punch` stream."""
TRAVERSAL_MESSAGES = RELAY_MESSAGES | PUNCH_MESSAGES
