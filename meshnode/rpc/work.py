"""What a lease works with, and the words with which it is granted, refused and ended.

`leases.py` decides when; whoever hands in a `Grant` decides what, and whether this node can.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from meshnode.net.stream import MeshStream
from meshnode.rpc.facts import WorkerFacts
from meshnode.wire.registry import LEASE_TEXTS, LIMIT_LEASE_TEXT_CHARS, LIMIT_MEMORY_BYTES_MAX, LeaseCode
from meshnode.wire.schema import MAX_U32, showable
from meshnode.wire.splits import NO_LIMIT_BYTES, LeaseAsk, LeaseEnd, LeaseGranted, LeaseRefused, LentDevice

Progress = Callable[[int, int], None]
"""So many bytes of so many are there."""


class Work(Protocol):
    """What a granted lease works with."""

    @property
    def facts(self) -> WorkerFacts:
        """What the rpc-server says of itself."""
        ...

    @property
    def has_weights(self) -> bool:
        """Whether the tensors of the layers are on this disk; may change by `prepare`."""
        ...

    async def prepare(self, progress: Progress) -> None:
        """Get what is missing. Raises MeshnodeError when the work is impossible without it."""

    async def serve_tunnel(self, stream: MeshStream) -> None:
        """Serve a tunnel of the host until it ends."""

    async def serve_push(self, stream: MeshStream, peer: bytes) -> None:
        """Take what an earlier worker sends until it ends."""

    async def failure(self) -> str:
        """Wait until the work cannot go on, and say why."""
        ...

    async def close(self) -> None:
        """Free everything, within a second. Raises nothing."""


class LeaseRefusal(Exception):
    """Raised by `grant`: no lease, with the code, the words and the figures that the host gets."""

    def __init__(self, code: LeaseCode, words: str = "", *, free_bytes: int = 0, retry_after_s: int = 0) -> None:
        super().__init__(words or LEASE_TEXTS[code])
        self.code = code
        self.words = words or LEASE_TEXTS[code]
        self.free_bytes = free_bytes
        self.retry_after_s = retry_after_s


Grant = Callable[[bytes, LeaseAsk, bytes], Awaitable[Work]]
"""(host, ask, plan) -> the work, begun. Raises LeaseRefusal, MeshnodeError; cleans up after itself when cancelled."""


@dataclass(frozen=True, slots=True)
class LeaseLimits:
    """The caps of protocol/09-splits.md. `news_s` is the least time between two messages about weights."""

    leases: int = 4
    leases_a_host: int = 2
    asks_burst: int = 10
    asks_per_s: float = 0.5
    hosts: int = 1024
    ask_s: float = 10.0
    grant_s: float = 60.0
    prepare_pause_s: float = 600.0
    idle_s: float = 1800.0
    tunnels: int = 8
    pushes: int = 4
    news_s: float = 0.5


def granted(work: Work) -> LeaseGranted:
    """What the host is told of a work that has begun."""
    facts = work.facts
    devices = tuple(
        LentDevice(
            device.alignment,
            min(device.max_size, NO_LIMIT_BYTES),
            min(device.free_bytes, LIMIT_MEMORY_BYTES_MAX),
            min(device.total_bytes, LIMIT_MEMORY_BYTES_MAX),
        )
        for device in facts.devices
    )
    return LeaseGranted(facts.hello, devices, work.has_weights)


def refused(refusal: LeaseRefusal) -> LeaseRefused:
    """A refusal as it travels."""
    free_bytes = max(0, min(refusal.free_bytes, LIMIT_MEMORY_BYTES_MAX))
    return LeaseRefused(refusal.code, _shown(refusal.words), free_bytes, min(refusal.retry_after_s, MAX_U32))


def ended(code: LeaseCode, words: str = "") -> LeaseEnd:
    """An end as it travels; without words those of the code."""
    return LeaseEnd(code, _shown(words or LEASE_TEXTS[code]))


def _shown(words: str) -> str:
    return showable(words, LIMIT_LEASE_TEXT_CHARS)
