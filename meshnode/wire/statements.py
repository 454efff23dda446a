"""Statements: what a node says of itself, or of another, signed by itself and carried by everyone.

Each node writes only its own. Of one kind by one origin the greatest (incarnation, number) counts and replaces the
others. A statement is identified by a hash of its bytes, so that nodes can tell each other what they have.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from meshnode.wire import schema
from meshnode.wire.address import Address
from meshnode.wire.registry import (
    LIMIT_ADDRESSES,
    LIMIT_CERTIFICATE_BYTES,
    LIMIT_CLAIMS,
    LIMIT_DEMANDS,
    LIMIT_DEVICES,
    LIMIT_MEMORY_BYTES_MAX,
    LIMIT_MODEL_NAME_CHARS,
    LIMIT_MODELS,
    LIMIT_MONITORS,
    LIMIT_NAME_CHARS,
    LIMIT_NEIGHBOURS,
    LIMIT_OWNER_BYTES,
    LIMIT_PLAN_WORKERS,
    LIMIT_PRICE_MICROS,
    LIMIT_STATEMENT_BYTES,
    LIMIT_WEIGHTS,
    StatementKind,
)
from meshnode.wire.schema import (
    MAX_U8,
    MAX_U16,
    MAX_U32,
    MAX_U63,
    Bytes,
    Flag,
    Int,
    ListOf,
    Nested,
    Text,
    UInt,
    Where,
    member,
)
from meshnode.wire.signed import KEY_BYTES, SIGNATURE_BYTES, Sign, Verify, is_signed_by, open_payload, seal
from meshnode.wire.splits import PLAN_BYTES
from meshnode.wire.values import WireError, decode

PURPOSE = "statement"
STATEMENT_ID_BYTES = 10
SHORT_ID_BYTES = 8
CONTENT_HASH_BYTES = 16


class Capability(IntFlag):
    """What a model can do; the names are those of `GET /v1/models` in lower case."""

    COMPLETION = 1
    CHAT = 2
    TOOLS = 4
    VISION = 8
    AUDIO = 16
    EMBEDDING = 32
    RERANK = 64


class ModelState:
    """States of an offered model."""

    LOADING = 0
    READY = 1
    RESTARTING = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class Device:
    """One device that can hold layers. Memory in bytes; `free_bytes` is what a plan may take of it.

    Decoding a token costs `layer_us` a layer, and the bytes of its weights at `bandwidth` MB/s (10^6 bytes);
    both are 0 where nothing was measured.
    """

    name: str = member(0, Text(LIMIT_NAME_CHARS))
    total_bytes: int = member(2, UInt(LIMIT_MEMORY_BYTES_MAX))
    free_bytes: int = member(4, UInt(LIMIT_MEMORY_BYTES_MAX))
    bandwidth: int = member(5, UInt(MAX_U32), 0)
    layer_us: int = member(7, UInt(MAX_U32), 0)


@dataclass(frozen=True, slots=True)
class Offer:
    """One model that a node serves.

    `content_hash` is the beginning of the SHA-256 of its weights: equal hashes are replicas. Speeds are in tenths of
    a token per second, 0 where unknown. Prices are micro-USDC per 1,000,000 tokens, to be paid over `chain` (EIP-155);
    they are a hint, what counts is a quote.
    """

    name: str = member(0, Text(LIMIT_MODEL_NAME_CHARS, 1))
    content_hash: bytes = member(2, Bytes(CONTENT_HASH_BYTES, CONTENT_HASH_BYTES))
    state: int = member(4, UInt(3))
    context: int = member(6, UInt(MAX_U32))
    slots: int = member(8, UInt(MAX_U16))
    busy: int = member(10, UInt(MAX_U16), 0)
    waiting: int = member(12, UInt(MAX_U32), 0)
    capabilities: int = member(14, UInt(MAX_U16), 0)
    decode_speed: int = member(16, UInt(MAX_U32), 0)
    prompt_speed: int = member(18, UInt(MAX_U32), 0)
    size_bytes: int = member(20, UInt(LIMIT_MEMORY_BYTES_MAX), 0)
    names: tuple[str, ...] = member(21, ListOf(Text(LIMIT_MODEL_NAME_CHARS, 1), 4), ())
    price_in: int = member(23, UInt(LIMIT_PRICE_MICROS), 0)
    price_out: int = member(25, UInt(LIMIT_PRICE_MICROS), 0)
    chain: int = member(27, UInt(MAX_U63), 0)

    @property
    def is_free(self) -> bool:
        """Whether it costs nothing."""
        return not (self.price_in or self.price_out)


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A place in a space where distance is half a round trip: axes and height in µs, error in ‰ (Vivaldi)."""

    axes: tuple[int, ...] = member(0, ListOf(Int(-(1 << 31), (1 << 31) - 1), 8))
    height_us: int = member(2, UInt(MAX_U32))
    error_permille: int = member(4, UInt(MAX_U16))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A measured round trip to another node, named by the first 8 bytes of its id."""

    node: bytes = member(0, Bytes(SHORT_ID_BYTES, SHORT_ID_BYTES))
    rtt_us: int = member(2, UInt(MAX_U32))


class ClaimState:
    """How far the host of a split is."""

    CLAIMING = 0
    LOADING = 1
    SERVING = 2


@dataclass(frozen=True, slots=True)
class PlanClaim:
    """The origin hosts a split of the model with this content hash, or is about to.

    Of several claims on one model that with the greatest term counts, of equal ones that of the smallest NodeId
    (protocol/09-splits.md). `workers` are short ids, in the order of the pipeline.
    """

    plan: bytes = member(0, Bytes(PLAN_BYTES, PLAN_BYTES))
    content_hash: bytes = member(2, Bytes(CONTENT_HASH_BYTES, CONTENT_HASH_BYTES))
    term: int = member(4, UInt(MAX_U32))
    state: int = member(6, UInt(2))
    workers: tuple[bytes, ...] = member(8, ListOf(Bytes(SHORT_ID_BYTES, SHORT_ID_BYTES), LIMIT_PLAN_WORKERS), ())


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is: its membership certificate, its name, and where it can be reached.

    `owner` may hold the signed bytes with which the owner of the node vouches for it (wire/owners.py).
    """

    certificate: bytes = member(0, Bytes(SIGNATURE_BYTES + 1, LIMIT_CERTIFICATE_BYTES))
    addresses: tuple[Address, ...] = member(2, ListOf(Where(), LIMIT_ADDRESSES), ())
    name: str = member(3, Text(LIMIT_NAME_CHARS), "")
    software: str = member(5, Text(LIMIT_NAME_CHARS), "")
    owner: bytes = member(7, Bytes(0, LIMIT_OWNER_BYTES), b"")


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What a node has and does at the moment. `monitors` are the short ids of those who may accuse it.

    `weights` are the content hashes of models on its disk that others may have. `rpc` is the version of llama.cpp's
    RPC with which it lends its devices to splits (splits.version_number), 0 when it does not. `relay` says that it
    carries datagrams for others; `nat` is the address translation before it (registry, `nat`).
    """

    devices: tuple[Device, ...] = member(0, ListOf(Nested(Device), LIMIT_DEVICES), ())
    models: tuple[Offer, ...] = member(2, ListOf(Nested(Offer), LIMIT_MODELS), ())
    monitors: tuple[bytes, ...] = member(4, ListOf(Bytes(SHORT_ID_BYTES, SHORT_ID_BYTES), LIMIT_MONITORS), ())
    coordinate: Coordinate | None = member(7, Nested(Coordinate), None)
    neighbours: tuple[Neighbour, ...] = member(9, ListOf(Nested(Neighbour), LIMIT_NEIGHBOURS), ())
    claims: tuple[PlanClaim, ...] = member(11, ListOf(Nested(PlanClaim), LIMIT_CLAIMS), ())
    weights: tuple[bytes, ...] = member(13, ListOf(Bytes(CONTENT_HASH_BYTES, CONTENT_HASH_BYTES), LIMIT_WEIGHTS), ())
    rpc: int = member(15, UInt(MAX_U32), 0)
    relay: bool = member(17, Flag(), False)
    nat: int = member(19, UInt(MAX_U8), 0)


@dataclass(frozen=True, slots=True)
class Wish:
    """How often a model is asked for at this node, in thousandths of a request per minute."""

    model: str = member(0, Text(LIMIT_MODEL_NAME_CHARS, 1))
    rate: int = member(2, UInt(MAX_U32))


@dataclass(frozen=True, slots=True)
class Demand:
    """The request rates that callers of this node make."""

    wishes: tuple[Wish, ...] = member(0, ListOf(Nested(Wish), LIMIT_DEMANDS), ())


@dataclass(frozen=True, slots=True)
class Accuse:
    """The origin, a monitor of `subject`, hears nothing of that incarnation."""

    subject: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    incarnation: int = member(2, UInt(MAX_U63))


@dataclass(frozen=True, slots=True)
class Leave:
    """The origin is leaving on purpose."""

    reason: int = member(1, UInt(MAX_U8), 0)


BODIES: dict[int, type[Any]] = {
    StatementKind.IDENTITY: Identity,
    StatementKind.DYNAMIC: Dynamic,
    StatementKind.DEMAND: Demand,
    StatementKind.ACCUSE: Accuse,
    StatementKind.LEAVE: Leave,
}
_KINDS = {shape: kind for kind, shape in BODIES.items()}


@dataclass(frozen=True, slots=True)
class Payload:
    """What is signed: `body` holds the canonical bytes of the shape that `kind` names."""

    kind: int = member(0, UInt(MAX_U16))
    origin: bytes = member(2, Bytes(KEY_BYTES, KEY_BYTES))
    incarnation: int = member(4, UInt(MAX_U63))
    number: int = member(6, UInt(MAX_U63))
    body: bytes = member(8, Bytes(1, LIMIT_STATEMENT_BYTES))


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that was read or made. `signed` are its bytes as they travel, `id` names it.

    `body` is None for an odd kind that this version does not know: such a one is carried on, not understood.
    """

    kind: int
    origin: bytes
    incarnation: int
    number: int
    body: Any
    signed: bytes
    id: bytes

    @property
    def order(self) -> tuple[int, int]:
        """The greater one counts."""
        return self.incarnation, self.number


def statement_id(signed: bytes) -> bytes:
    """The name of a statement: the first 10 bytes of SHA-256 over all of it, signature included."""
    return hashlib.sha256(signed).digest()[:STATEMENT_ID_BYTES]


def make(body: Any, *, origin: bytes, incarnation: int, number: int, sign: Sign) -> Statement:
    """Sign a statement. Raises WireError when it would be too large."""
    kind = _KINDS[type(body)]
    signed = seal(PURPOSE, Payload(kind, origin, incarnation, number, schema.write(body)), sign)
    if len(signed) > LIMIT_STATEMENT_BYTES:
        raise WireError(f"a statement of {len(signed)} bytes, at most {LIMIT_STATEMENT_BYTES}")
    return Statement(kind, origin, incarnation, number, body, signed, statement_id(signed))


def read(signed: bytes) -> Statement:
    """The statement in these bytes; its signature has yet to be checked with `is_genuine`. Raises WireError."""
    if len(signed) > LIMIT_STATEMENT_BYTES:
        raise WireError(f"a statement of {len(signed)} bytes, at most {LIMIT_STATEMENT_BYTES}")
    payload = open_payload(Payload, signed, limit_bytes=LIMIT_STATEMENT_BYTES)
    shape = BODIES.get(payload.kind)
    if shape is None and payload.kind % 2 == 0:
        raise WireError(f"unknown kind of statement {payload.kind}")
    if shape is None:
        decode(payload.body, limit_bytes=LIMIT_STATEMENT_BYTES)
        body = None
    else:
        body = schema.read(shape, payload.body, limit_bytes=LIMIT_STATEMENT_BYTES)
    return Statement(
        payload.kind,
        payload.origin,
        payload.incarnation,
        payload.number,
        body,
        signed,
        statement_id(signed),
    )


def is_genuine(statement: Statement, verify: Verify) -> bool:
    """Whether the origin signed it."""
    return is_signed_by(statement.origin, PURPOSE, statement.signed, verify)
