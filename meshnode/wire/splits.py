"""What travels on `rpc` streams beside llama.cpp's own bytes: the header of each, and the messages of a lease.

A worker holds layers for a host under a lease, which lasts as long as its stream (protocol/09-splits.md). Tunnels and
pushes of the plan are streams of their own, which name the plan in their headers.

    host                                worker
    LeaseAsk                ---->
                            <----       LeaseGranted, or LeaseRefused and the end
                            <----       LeaseWeights ...        while it fetches what it lacks
                            <----       LeaseReady
                            <----       LeaseLeaving            it would like to go
    LeaseEnd                <--->       LeaseEnd                whoever ends it says why
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshnode.wire import schema
from meshnode.wire.registry import (
    LIMIT_DEVICES,
    LIMIT_LEASE_TEXT_CHARS,
    LIMIT_MEMORY_BYTES_MAX,
    LIMIT_MODEL_NAME_CHARS,
    LIMIT_PLAN_WORKERS,
    LIMIT_STREAM_HEADER_BYTES,
    MessageId,
    RpcKind,
)
from meshnode.wire.schema import MAX_U8, MAX_U16, MAX_U32, MAX_U63, Bytes, Flag, ListOf, Nested, Text, UInt, member
from meshnode.wire.signed import KEY_BYTES

PLAN_BYTES = 16
SHA256_BYTES = 32
HELLO_LEAST_BYTES = 3
HELLO_MOST_BYTES = 64
NO_LIMIT_BYTES = MAX_U63
"""The largest buffer of a device that knows no bound."""

_Key = Bytes(KEY_BYTES, KEY_BYTES)
_Plan = Bytes(PLAN_BYTES, PLAN_BYTES)
_Memory = UInt(LIMIT_MEMORY_BYTES_MAX)
_Words = Text(LIMIT_LEASE_TEXT_CHARS)


@dataclass(frozen=True, slots=True)
class RpcOpen:
    """The header of an `rpc` stream: which of the three kinds it is, and of which plan."""

    kind: int = member(0, UInt(MAX_U8))
    plan: bytes = member(2, _Plan)


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """What a plan needs of one device of the worker: `device` counts the devices of the worker's statement."""

    device: int = member(0, UInt(LIMIT_DEVICES - 1))
    needed_bytes: int = member(2, _Memory)


@dataclass(frozen=True, slots=True)
class LeaseAsk:
    """Hold these layers for me.

    `sha256` names the weights, `manifest` the list of their chunks (empty where there is none). `workers` are the
    NodeIds of the plan in the order of its pipeline, the asked node at place `stage`. `needed_bytes` is for all of its
    devices together; without `devices` it takes those that it lends. `rpc_version` is `version_number` of the host's.
    """

    term: int = member(0, UInt(MAX_U32))
    model: str = member(2, Text(LIMIT_MODEL_NAME_CHARS, 1))
    sha256: bytes = member(4, Bytes(SHA256_BYTES, SHA256_BYTES))
    size_bytes: int = member(6, _Memory)
    stage: int = member(8, UInt(LIMIT_PLAN_WORKERS - 1))
    first_layer: int = member(10, UInt(MAX_U16))
    layers: int = member(12, UInt(MAX_U16))
    needed_bytes: int = member(14, _Memory)
    workers: tuple[bytes, ...] = member(16, ListOf(_Key, LIMIT_PLAN_WORKERS, 1))
    rpc_version: int = member(18, UInt(MAX_U32))
    devices: tuple[DeviceNeed, ...] = member(20, ListOf(Nested(DeviceNeed), LIMIT_DEVICES), ())
    manifest: bytes = member(21, Bytes(0, SHA256_BYTES, SHA256_BYTES), b"")


@dataclass(frozen=True, slots=True)
class LentDevice:
    """One device of the worker's rpc-server, as it answers itself. A `max_bytes` of 2^63 - 1 stands for no bound."""

    alignment: int = member(0, UInt(MAX_U32))
    max_bytes: int = member(2, UInt(MAX_U63))
    free_bytes: int = member(4, _Memory)
    total_bytes: int = member(6, _Memory)


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """The layers will be held: what the rpc-server says of itself, and whether the weights are on the worker's disk."""

    hello: bytes = member(0, Bytes(HELLO_LEAST_BYTES, HELLO_MOST_BYTES))
    devices: tuple[LentDevice, ...] = member(2, ListOf(Nested(LentDevice), LIMIT_DEVICES, 1))
    has_weights: bool = member(4, Flag())


@dataclass(frozen=True, slots=True)
class LeaseRefused:
    """No: a LeaseCode, words, what memory there is, and when to ask again."""

    code: int = member(0, UInt(MAX_U16))
    text: str = member(2, _Words)
    free_bytes: int = member(3, _Memory, 0)
    retry_after_s: int = member(5, UInt(MAX_U32), 0)


@dataclass(frozen=True, slots=True)
class LeaseWeights:
    """The worker fetches weights: so much of so much is here."""

    have_bytes: int = member(0, _Memory)
    want_bytes: int = member(2, _Memory)


@dataclass(frozen=True, slots=True)
class LeaseReady:
    """Tunnels may come. Without the weights the host has to send them."""

    has_weights: bool = member(0, Flag())


@dataclass(frozen=True, slots=True)
class LeaseLeaving:
    """The worker would like to go: it works on until the host has replaced it, or for a while."""


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """The lease is over: a LeaseCode, and words."""

    code: int = member(0, UInt(MAX_U16), 0)
    text: str = member(2, _Words, "")


LeaseMessage = LeaseAsk | LeaseGranted | LeaseRefused | LeaseWeights | LeaseReady | LeaseLeaving | LeaseEnd

LEASE_MESSAGES: dict[int, type[Any]] = {
    MessageId.LEASE_ASK: LeaseAsk,
    MessageId.LEASE_GRANTED: LeaseGranted,
    MessageId.LEASE_REFUSED: LeaseRefused,
    MessageId.LEASE_WEIGHTS: LeaseWeights,
    MessageId.LEASE_READY: LeaseReady,
    MessageId.LEASE_LEAVING: LeaseLeaving,
    MessageId.LEASE_END: LeaseEnd,
}


def open_header(kind: RpcKind, plan: bytes) -> bytes:
    """The header of an `rpc` stream. Raises WireError for a plan that is not 16 bytes."""
    return schema.write(RpcOpen(kind, plan))


def read_header(header: bytes) -> tuple[int, bytes]:
    """(kind, plan) from the header of an `rpc` stream; the kind may be one that is not known. Raises WireError."""
    found = schema.read(RpcOpen, header, limit_bytes=LIMIT_STREAM_HEADER_BYTES)
    return found.kind, found.plan


def version_number(hello: bytes) -> int:
    """What the first three bytes of rpc-server's answer to HELLO say: major, minor and patch, as one number."""
    return int.from_bytes(hello[:3], "big")


def understands(one: int, other: int) -> bool:
    """Whether two `version_number`s mean the same bytes. The patch counts: it changes with the numbers of operations
    that a graph names (ggml-rpc.h).
    """
    return one == other != 0
