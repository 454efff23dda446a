"""Reaching a peer that has several addresses: happy eyeballs (RFC 8305).

An attempt is a whole handshake. The next address is tried when those before have not answered for 250 ms, have failed,
or were called unreachable; the first that comes up wins, and the others are given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from meshnode.errors import NetworkError, PeerRefused, PeerUnreachable
from meshnode.net.address import Address
from meshnode.net.link import Link
from meshnode.wire.registry import Close

STAGGER_S = 0.25
HINTED_S = 0.5
"""How long an address that was called unreachable may still answer: such messages can be forged."""


async def race(begin: Callable[[Address], Link | None], addresses: Sequence[Address], timeout_s: float) -> Link:
    """The first link that comes up. `begin` starts a handshake, and returns None for an address out of reach.

    Raises the most telling of the failures: a refusal (PeerRefused, WrongPeer) before PeerUnreachable.
    """
    left = deque(dict.fromkeys(addresses))
    outcomes: asyncio.Queue[tuple[Link, Link | NetworkError | None]] = asyncio.Queue()
    until: dict[Link, float] = {}
    failures: list[NetworkError] = []
    now = next_at = monotonic()
    deadline = now + timeout_s
    try:
        while (left or until) and now < deadline:
            if left and (now >= next_at or not until):
                link = begin(left.popleft())
                if link is not None:
                    until[link] = deadline
                    next_at = now + STAGGER_S
                    _report(link, outcomes)
                continue
            wake_at = min([*until.values(), *([next_at] if left else [])])
            outcome: Link | NetworkError | None
            try:
                link, outcome = await asyncio.wait_for(outcomes.get(), max(wake_at - now, 0.0))
            except TimeoutError:
                now = monotonic()
                for late in [link for link, at in until.items() if at <= now < deadline]:
                    del until[late]
                    late.vanish("unreachable")
                continue
            now = monotonic()
            if link not in until:
                continue
            if outcome is None:
                until[link] = min(deadline, now + HINTED_S)
                next_at = now
                continue
            del until[link]
            if isinstance(outcome, Link):
                return outcome
            failures.append(outcome)
            next_at = now
    finally:
        for link in until:
            link.end(Close.DONE, "given up")
    refusals = [failure for failure in failures if isinstance(failure, PeerRefused)]
    if refusals:
        raise refusals[0]
    raise PeerUnreachable(", ".join(map(str, addresses)) or "no address is known")


def _report(link: Link, outcomes: asyncio.Queue[tuple[Link, Link | NetworkError | None]]) -> None:
    """Have the end of a handshake, and the hint that it may have none, put into the queue."""
    link.ready.add_done_callback(lambda ready: outcomes.put_nowait((link, ready.result())))
    link.hinted.add_done_callback(lambda _: outcomes.put_nowait((link, None)))
