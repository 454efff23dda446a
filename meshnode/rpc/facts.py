"""What the two ends of a tunnel are told: what a worker has, what the host wants, and where weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from meshnode.wire.ggml_rpc import MOST_TENSOR_BYTES


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device of an rpc-server, as it answers about it. All in bytes."""

    alignment: int
    max_size: int
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What an rpc-server says of itself: the payload of its HELLO reply, and its devices in order."""

    hello: bytes
    devices: tuple[DeviceFacts, ...]


class References(Protocol):
    """The weights of one model that lie on this disk."""

    @property
    def sha256(self) -> bytes:
        """Digest of the model, 32 bytes."""
        ...

    def find(self, tensor: str, offset: int, size: int) -> tuple[Path, int] | None:
        """File and position of these bytes of a tensor; None when they are not here. Raises nothing, whatever is
        asked.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelOptions:
    """How the host uses one tunnel.

    `stage` counts from 0 of `stages` remote ones. `push`: "patched" for an engine that says what goes where,
    "placeholder" for one that does not, "off" for boundaries by way of the host. `compress` pays off above about a
    millisecond of round trip. After `stall_s` without a sign of life from a worker that owes one, it counts as lost.
    `limit_bytes` bounds a tensor.
    """

    stage: int
    stages: int
    push: Literal["patched", "placeholder", "off"] = "patched"
    worker_has_weights: bool = True
    compress: bool = False
    half: bool = False
    stall_s: float = 2.0
    limit_bytes: int = MOST_TENSOR_BYTES


@dataclass(slots=True)
class TunnelCounters:
    """What has passed through the host's end: RPC frames of the client, bytes on the link, replies that came from the
    far end, answers given from memory, weights by reference, weights sent, boundaries pushed, allocations that the
    worker refused.
    """

    frames: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    round_trips: int = 0
    answered_here: int = 0
    references: int = 0
    expanded: int = 0
    pushed: int = 0
    connections: int = 0
    restarts: int = 0
    refused: int = 0
