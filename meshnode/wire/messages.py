"""The messages of the streams that carry frames, and of datagrams. What each is for stands in protocol/03-messages.md.

`encode_message` gives the body of a frame; `decode_message` reads one. An unknown odd id is None: pass over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshnode.wire import schema
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFind, DhtFound, DhtStore, DhtStored
from meshnode.wire.inquiry import Inquiry, Prospect
from meshnode.wire.payments import PAY_MESSAGES
from meshnode.wire.registry import (
    LIMIT_ADDRESSES,
    LIMIT_CERTIFICATE_BYTES,
    LIMIT_FRAME_BYTES,
    LIMIT_IHAVE_IDS,
    LIMIT_INVITE_CHARS,
    LIMIT_NAME_CHARS,
    LIMIT_SHUFFLE_PEERS,
    LIMIT_STATEMENT_BYTES,
    LIMIT_STATEMENTS_A_FRAME,
    LIMIT_VIEW_STATEMENTS,
    LIMIT_WANT_IDS,
    MessageId,
    Role,
    StreamType,
)
from meshnode.wire.schema import MAX_U8, MAX_U16, MAX_U32, Bytes, Flag, ListOf, Nested, Text, UInt, Where, member
from meshnode.wire.signed import KEY_BYTES
from meshnode.wire.splits import LEASE_MESSAGES, RpcOpen
from meshnode.wire.statements import STATEMENT_ID_BYTES, Coordinate
from meshnode.wire.traversal import TRAVERSAL_MESSAGES
from meshnode.wire.values import WireError, decode
from meshnode.wire.weights import BulkOpen

BUCKETS = 256
DIGEST_BYTES = BUCKETS * 8

_Key = Bytes(KEY_BYTES, KEY_BYTES)
_Id = Bytes(STATEMENT_ID_BYTES, STATEMENT_ID_BYTES)
_Signed = Bytes(1, LIMIT_STATEMENT_BYTES)


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialler's first message: who it is, and its proof, a certificate or an invite."""

    version: int = member(0, UInt(MAX_U16))
    mesh: bytes = member(2, _Key)
    role: int = member(4, UInt(max(Role)))
    certificate: bytes = member(6, Bytes(0, LIMIT_CERTIFICATE_BYTES), b"")
    invite: bytes = member(8, Bytes(0, LIMIT_INVITE_CHARS), b"")
    addresses: tuple[Address, ...] = member(9, ListOf(Where(), LIMIT_ADDRESSES), ())
    name: str = member(11, Text(LIMIT_NAME_CHARS), "")
    software: str = member(13, Text(LIMIT_NAME_CHARS), "")


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer: the responder's own proof, and, for one who came with an invite, its new certificate."""

    version: int = member(0, UInt(MAX_U16))
    certificate: bytes = member(2, Bytes(1, LIMIT_CERTIFICATE_BYTES))
    issued: bytes = member(4, Bytes(0, LIMIT_CERTIFICATE_BYTES), b"")
    observed: Address | None = member(5, Where(), None)
    name: str = member(7, Text(LIMIT_NAME_CHARS), "")
    software: str = member(9, Text(LIMIT_NAME_CHARS), "")


@dataclass(frozen=True, slots=True)
class Statements:
    """Signed statements, each as its origin made it."""

    statements: tuple[bytes, ...] = member(0, ListOf(_Signed, LIMIT_STATEMENTS_A_FRAME))


@dataclass(frozen=True, slots=True)
class Probe:
    """Are you there? Travels as a datagram."""

    number: int = member(0, UInt(MAX_U32))


@dataclass(frozen=True, slots=True)
class ProbeAck:
    """I am. The coordinate lets the other one correct its own."""

    number: int = member(0, UInt(MAX_U32))
    coordinate: Coordinate | None = member(1, Nested(Coordinate), None)


@dataclass(frozen=True, slots=True)
class IHave:
    """Ids of statements that can be had here."""

    ids: tuple[bytes, ...] = member(0, ListOf(_Id, LIMIT_IHAVE_IDS))


@dataclass(frozen=True, slots=True)
class Graft:
    """Send me these, and from now on everything at once."""

    ids: tuple[bytes, ...] = member(0, ListOf(_Id, LIMIT_WANT_IDS), ())


@dataclass(frozen=True, slots=True)
class Prune:
    """Send me only ids from now on: another one is faster."""


@dataclass(frozen=True, slots=True)
class Digest:
    """256 buckets, each the exclusive or of the ids (their first 8 bytes) that fall into it."""

    buckets: bytes = member(0, Bytes(DIGEST_BYTES, DIGEST_BYTES))


@dataclass(frozen=True, slots=True)
class Bucket:
    """The ids that I hold in the buckets that differ: `ids` of all of them, one after the other."""

    indexes: bytes = member(0, Bytes(1, BUCKETS))
    ids: bytes = member(2, Bytes(0, LIMIT_IHAVE_IDS * STATEMENT_ID_BYTES, STATEMENT_ID_BYTES))


@dataclass(frozen=True, slots=True)
class Want:
    """Send me these statements."""

    ids: tuple[bytes, ...] = member(0, ListOf(_Id, LIMIT_WANT_IDS, 1))


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """A node that could be dialled."""

    node: bytes = member(0, _Key)
    addresses: tuple[Address, ...] = member(2, ListOf(Where(), LIMIT_ADDRESSES), ())
    coordinate: Coordinate | None = member(3, Nested(Coordinate), None)


@dataclass(frozen=True, slots=True)
class JoinOverlay:
    """I am new here: take me in and tell others."""

    me: PeerEntry = member(0, Nested(PeerEntry))


@dataclass(frozen=True, slots=True)
class ForwardJoin:
    """Someone new, on a random walk of `ttl` more steps."""

    peer: PeerEntry = member(0, Nested(PeerEntry))
    ttl: int = member(2, UInt(MAX_U8))


@dataclass(frozen=True, slots=True)
class NeighbourRequest:
    """Be my neighbour; `urgent` when I have no other, `near` when I ask for our short distance."""

    urgent: bool = member(0, Flag())
    near: bool = member(2, Flag(), False)


@dataclass(frozen=True, slots=True)
class NeighbourReply:
    """Yes or no."""

    accepted: bool = member(0, Flag())


@dataclass(frozen=True, slots=True)
class Shuffle:
    """A sample of peers on a random walk; the last one answers the origin with a sample of its own."""

    origin: PeerEntry = member(0, Nested(PeerEntry))
    ttl: int = member(2, UInt(MAX_U8))
    peers: tuple[PeerEntry, ...] = member(4, ListOf(Nested(PeerEntry), LIMIT_SHUFFLE_PEERS))


@dataclass(frozen=True, slots=True)
class ShuffleReply:
    """The sample in return."""

    peers: tuple[PeerEntry, ...] = member(0, ListOf(Nested(PeerEntry), LIMIT_SHUFFLE_PEERS))


@dataclass(frozen=True, slots=True)
class Part:
    """We are neighbours no more; the connection may stay."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """From a client-only node: keep me informed of what can be asked for, at most every `interval_s`."""

    interval_s: int = member(0, UInt(MAX_U16))


@dataclass(frozen=True, slots=True)
class View:
    """Statements of the nodes worth asking, chosen by the sender; replaces the View before."""

    statements: tuple[bytes, ...] = member(0, ListOf(_Signed, LIMIT_VIEW_STATEMENTS))


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure the round trip to this node and tell me."""

    node: bytes = member(0, _Key)


@dataclass(frozen=True, slots=True)
class Measured:
    """The round trip that was asked for; 0 when the node does not answer."""

    node: bytes = member(0, _Key)
    rtt_us: int = member(2, UInt(MAX_U32))


@dataclass(frozen=True, slots=True)
class Renew:
    """My certificate ends soon (or a chain has grown): please issue a new one."""

    certificate: bytes = member(0, Bytes(1, LIMIT_CERTIFICATE_BYTES))


@dataclass(frozen=True, slots=True)
class Renewed:
    """The new certificate."""

    certificate: bytes = member(0, Bytes(1, LIMIT_CERTIFICATE_BYTES))


@dataclass(frozen=True, slots=True)
class PairOffer:
    """A SPAKE2 message; the first one names the code's nameplate."""

    message: bytes = member(0, Bytes(1, 64))
    nameplate: int = member(2, UInt(MAX_U16))


@dataclass(frozen=True, slots=True)
class PairConfirm:
    """Proof that both used the same code."""

    proof: bytes = member(0, Bytes(32, 32))


@dataclass(frozen=True, slots=True)
class PairAccept:
    """An invite for the other one, made for this pairing alone."""

    invite: bytes = member(0, Bytes(1, LIMIT_INVITE_CHARS))


MESSAGES: dict[int, type[Any]] = {
    MessageId.HELLO: Hello,
    MessageId.WELCOME: Welcome,
    MessageId.STATEMENTS: Statements,
    MessageId.PROBE: Probe,
    MessageId.PROBE_ACK: ProbeAck,
    MessageId.IHAVE: IHave,
    MessageId.GRAFT: Graft,
    MessageId.PRUNE: Prune,
    MessageId.DIGEST: Digest,
    MessageId.BUCKET: Bucket,
    MessageId.WANT: Want,
    MessageId.JOIN_OVERLAY: JoinOverlay,
    MessageId.FORWARD_JOIN: ForwardJoin,
    MessageId.NEIGHBOUR: NeighbourRequest,
    MessageId.NEIGHBOUR_REPLY: NeighbourReply,
    MessageId.SHUFFLE: Shuffle,
    MessageId.SHUFFLE_REPLY: ShuffleReply,
    MessageId.PART: Part,
    MessageId.SUBSCRIBE: Subscribe,
    MessageId.VIEW: View,
    MessageId.MEASURE: Measure,
    MessageId.MEASURED: Measured,
    MessageId.RENEW: Renew,
    MessageId.RENEWED: Renewed,
    MessageId.PAIR_OFFER: PairOffer,
    MessageId.PAIR_CONFIRM: PairConfirm,
    MessageId.PAIR_ACCEPT: PairAccept,
    **LEASE_MESSAGES,
    MessageId.INQUIRY: Inquiry,
    MessageId.PROSPECT: Prospect,
    MessageId.DHT_FIND: DhtFind,
    MessageId.DHT_FOUND: DhtFound,
    MessageId.DHT_STORE: DhtStore,
    MessageId.DHT_STORED: DhtStored,
    **TRAVERSAL_MESSAGES,
    **PAY_MESSAGES,
}
_IDS = {shape: int(number) for number, shape in MESSAGES.items()}


OPENINGS: dict[int, type[Any]] = {StreamType.RPC: RpcOpen, StreamType.BULK: BulkOpen}
"""What the header of a stream says; that of every other type is empty."""


def message_id(message: Any) -> int:
    """The id of a message value."""
    return _IDS[type(message)]


def encode_message(message: Any) -> bytes:
    """The body of its frame. Raises WireError for a member out of its bounds."""
    return schema.write(message)


def decode_message(number: int, body: bytes) -> Any:
    """The message, or None for an unknown odd id. Raises WireError."""
    shape = MESSAGES.get(number)
    if shape is None:
        if number % 2 == 0:
            raise WireError(f"unknown message {number}")
        decode(body, limit_bytes=LIMIT_FRAME_BYTES)
        return None
    return schema.read(shape, body, limit_bytes=LIMIT_FRAME_BYTES)
