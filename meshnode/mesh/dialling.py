"""Whom to dial next, and where: pauses that grow, addresses that worked, and the search for a way back into the mesh.

A node that is linked to nobody tries its address book without end: each member after a pause of its own that doubles
from one second to a minute, with jitter, so that a mesh that comes back is not met by all its members at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic
from typing import TypeVar

from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_ADDRESSES

LEAST_PAUSE_S = 1.0
MOST_PAUSE_S = 60.0
KNOWN_PEERS = 1024
AT_ONCE = 8

V = TypeVar("V")


class Pauses:
    """How long to leave each peer alone after failures. Pure."""

    def __init__(self, random: random.Random, *, least_s: float = LEAST_PAUSE_S, most_s: float = MOST_PAUSE_S) -> None:
        self._random = random
        self._least_s = least_s
        self._most_s = most_s
        self._failures: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def failed(self, peer: bytes, now: float) -> None:
        """An attempt has failed: the pause doubles. Its second half is left to chance."""
        count = min(self._failures.get(peer, (0, 0.0))[0] + 1, 32)
        pause_s = min(self._most_s, self._least_s * 2.0 ** (count - 1))
        self._failures[peer] = (count, now + pause_s * self._random.uniform(0.5, 1.0))
        self._failures.move_to_end(peer)
        if len(self._failures) > KNOWN_PEERS:
            self._failures.popitem(last=False)

    def succeeded(self, peer: bytes) -> None:
        """It answers: no pause any more."""
        self._failures.pop(peer, None)

    def due_at(self, peer: bytes) -> float:
        """When it may be tried again."""
        return self._failures.get(peer, (0, 0.0))[1]


class Directions:
    """Where peers can be dialled: the address that worked last, then those that they name. Pure, and bounded."""

    def __init__(self) -> None:
        self._worked: OrderedDict[bytes, Address] = OrderedDict()
        self._named: OrderedDict[bytes, tuple[Address, ...]] = OrderedDict()

    def worked(self, peer: bytes, address: Address) -> None:
        """A peer was dialled at this address."""
        _remember(self._worked, peer, address)

    def named(self, peer: bytes, addresses: Sequence[Address]) -> None:
        """A peer, or somebody for it, says that it can be reached there."""
        if addresses:
            _remember(self._named, peer, tuple(addresses[:LIMIT_ADDRESSES]))

    def to(self, peer: bytes, named: Iterable[Address] = ()) -> tuple[Address, ...]:
        """What to try, best first: at most twice LIMIT_ADDRESSES."""
        worked = self._worked.get(peer)
        known = [*([worked] if worked else []), *named, *self._named.get(peer, ())]
        return tuple(dict.fromkeys(known))[: 2 * LIMIT_ADDRESSES]


def _remember(table: OrderedDict[bytes, V], peer: bytes, value: V) -> None:
    table[peer] = value
    table.move_to_end(peer)
    if len(table) > KNOWN_PEERS:
        table.popitem(last=False)


class Search:
    """Dials members until enough of them are linked, and again whenever they are not.

    `candidates` gives the peers that may be tried, best first; `dial` tries one and raises nothing: it says whether a
    session came about. `enough` says whether the search may rest.
    """

    def __init__(
        self,
        *,
        candidates: Callable[[], Iterable[bytes]],
        dial: Callable[[bytes], Awaitable[bool]],
        enough: Callable[[], bool],
        pauses: Pauses,
    ) -> None:
        self._candidates = candidates
        self._dial = dial
        self._enough = enough
        self._pauses = pauses
        self._wake = asyncio.Event()
        self._wake.set()

    def wake(self) -> None:
        """A link was lost, or there is somebody new to try."""
        self._wake.set()

    async def run(self) -> None:
        """Search until cancelled."""
        running: dict[asyncio.Task[bool], bytes] = {}
        try:
            while True:
                wait_s = self._start(running)
                waker = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait({waker, *running}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                waker.cancel()
                self._wake.clear()
                for task in [task for task in running if task.done()]:
                    self._judge(running.pop(task), task)
        finally:
            for task in running:
                task.cancel()

    def _start(self, running: dict[asyncio.Task[bool], bytes]) -> float | None:
        """Begin what is due; how long to wait for the next one, None for as long as nothing happens."""
        if self._enough():
            return None
        now = monotonic()
        next_at: list[float] = []
        for peer in self._candidates():
            if peer in running.values():
                continue
            due_at = self._pauses.due_at(peer)
            if due_at > now:
                next_at.append(due_at)
            elif len(running) < AT_ONCE:
                running[asyncio.ensure_future(self._dial(peer))] = peer
        return max(0.05, min(next_at) - now) if next_at else None

    def _judge(self, peer: bytes, task: asyncio.Task[bool]) -> None:
        if not task.cancelled() and task.exception() is None and task.result():
            self._pauses.succeeded(peer)
        else:
            self._pauses.failed(peer, monotonic())
