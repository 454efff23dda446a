"""Hole punching: finding an address at which two nodes behind address translators hear each other.

Both ends send punches (`punches.py`) to all addresses of the other at the same time, so that their translators let
answers in (RFC 5128, 3.3). If it is agreed on, ports are guessed as well (`guessing.py`). The first address that is
confirmed in both directions is the result; it is kept for 3 ms, in case an IPv6 one follows.

What carries a nonce that is not registered here is ignored, answers are as long as what they answer, and their number
is bounded: strangers can neither find anything out nor have anything amplified. Nothing here proves who the other end
is; QUIC does, once a link is sent there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from meshnode.net.address import Address, SocketAddress, from_socket, is_virtual
from meshnode.net.detours import Transmit
from meshnode.net.guessing import GUESS_S, Guess, Opener, probe
from meshnode.net.punches import ANSWER, PUNCH, Attempt, is_ipv6_name, nonce_of
from meshnode.net.sides import SideSockets

__all__ = ["ANSWER", "PUNCH", "Guess", "Puncher", "PunchCounters"]

PUNCHES = 12
FIRST_GAP_S = 0.025
GAP_GROWTH = 1.3
LATER_GAP_S = 0.25
IPV6_BONUS_S = 0.003
GUESS_AFTER_S = 0.3
"""Where punching alone works, it does so within this."""
MOST_GUESSES = 2
MOST_ATTEMPTS = 64
LINGER_S = 3.0
"""How long the other end is answered after this end is through."""


@dataclass(slots=True)
class PunchCounters:
    """Plain sums since the start."""

    punches_in: int = 0
    answers_out: int = 0
    ignored: int = 0
    """Punches and answers that belong to no attempt, or came from this end itself."""
    found: int = 0
    guesses: int = 0
    guesses_waited: int = 0
    attempts_refused: int = 0


class _Search:
    """An attempt, and who waits for it."""

    def __init__(self, attempt: Attempt, found: asyncio.Future[SocketAddress | None]) -> None:
        self.attempt = attempt
        self.found = found
        self.expires_at: float | None = None
        """When the other end is answered no more; None while this end still looks."""


class Puncher:
    """See the module. One for each endpoint, which hands in what came with the first bytes PUNCH and ANSWER."""

    def __init__(
        self, *, transmit: Transmit, name_of: Callable[[Address], SocketAddress | None], sides: SideSockets
    ) -> None:
        self.counters = PunchCounters()
        self._transmit = transmit
        self._name_of = name_of
        self._sides = sides
        self._searches: dict[bytes, _Search] = {}
        self._guessing = asyncio.Semaphore(MOST_GUESSES)
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def punch(
        self,
        nonce: bytes,
        candidates: Sequence[Address],
        *,
        opens: bool,
        timeout_s: float,
        guess: Guess | None = None,
    ) -> Address | None:
        """The first address of the other end that works in both directions; None when there was none in time.

        `opens` is true at exactly one of the two ends. The result may be virtual. When MOST_ATTEMPTS are under way,
        None at once; while ports are guessed for MOST_GUESSES, a further one waits for its turn. Raises ValueError for
        a nonce of another length than 16 bytes or one that is being punched with.
        """
        search = self._begin(nonce, candidates, opens)
        if search is None:
            self.counters.attempts_refused += 1
            return None
        deadline = monotonic() + timeout_s
        guessing = None if guess is None else asyncio.create_task(self._guess(search.attempt, guess))
        try:
            name = await self._send(search, deadline)
        finally:
            if not search.found.done():
                search.found.set_result(None)
            search.expires_at = monotonic() + LINGER_S
            if guessing is not None:
                guessing.cancel()
                await asyncio.wait([guessing])
        if name is None:
            return None
        self.counters.found += 1
        return from_socket(name)

    def receive(self, datagrams: list[bytes], source: SocketAddress, now: float) -> None:
        """Punches and answers that came from one address."""
        for datagram in datagrams:
            search = self._searches.get(nonce_of(datagram))
            if search is None or not search.attempt.concerns(datagram):
                self.counters.ignored += 1
                continue
            self.counters.punches_in += 1
            reply = search.attempt.receive(datagram, source, now)
            if reply.answers:
                self.counters.answers_out += len(reply.answers)
                self._transmit(reply.answers, source)
            if reply.confirmed:
                self._confirm(search, source)

    def tick(self, now: float, used: Collection[SocketAddress]) -> None:
        """Called about once a second: forget what is over. `used` are the addresses that links have."""
        for nonce, search in list(self._searches.items()):
            if search.expires_at is not None and now > search.expires_at:
                del self._searches[nonce]
        self._sides.sweep(now, used)

    def close(self) -> None:
        """The endpoint closes: all attempts end."""
        self._closed = True
        for search in self._searches.values():
            if not search.found.done():
                search.found.set_result(None)
        self._searches.clear()

    # --- one attempt ---------------------------------------------------------------------------------------------

    def _begin(self, nonce: bytes, candidates: Sequence[Address], opens: bool) -> _Search | None:
        present = self._searches.get(nonce)
        if present is not None and present.expires_at is None:
            raise ValueError("this nonce is being punched with")
        names = [self._name_of(address) for address in candidates if not is_virtual(address)]
        targets = [name for name in names if name is not None]
        now = monotonic()
        attempt = Attempt(nonce, os.urandom(16), targets, opens=opens, now=now)
        if self._closed or (present is None and len(self._searches) >= MOST_ATTEMPTS):
            return None
        search = self._searches[nonce] = _Search(attempt, self._loop.create_future())
        return search

    async def _send(self, search: _Search, deadline: float) -> SocketAddress | None:
        rounds, gap_s = 0, FIRST_GAP_S
        while not search.found.done() and (left_s := deadline - monotonic()) > 0:
            for target in search.attempt.targets:
                self._transmit([search.attempt.punch(target)], target)
            rounds += 1
            await asyncio.wait([search.found], timeout=min(gap_s, left_s))
            gap_s = gap_s * GAP_GROWTH if rounds < PUNCHES else LATER_GAP_S
        return search.found.result() if search.found.done() else None

    def _confirm(self, search: _Search, source: SocketAddress) -> None:
        def settle() -> None:
            if not search.found.done():
                search.found.set_result(source)

        if is_ipv6_name(source):
            settle()
        else:
            self._loop.call_later(IPV6_BONUS_S, settle)

    async def _guess(self, attempt: Attempt, guess: Guess) -> None:
        await asyncio.sleep(GUESS_AFTER_S)
        if not guess.is_possible:
            return
        self.counters.guesses_waited += self._guessing.locked()
        # Whoever waits here is cancelled with its attempt.
        async with self._guessing:
            self.counters.guesses += 1
            with suppress(TimeoutError):  # plain punching goes on
                async with asyncio.timeout(GUESS_S):
                    if guess.role == "prober":
                        await probe(attempt, guess.host, transmit=self._transmit, name_of=self._name_of)
                    else:
                        await Opener(attempt, guess.host, sides=self._sides, received=self._received_aside).run()

    def _received_aside(self, datagrams: list[bytes], name: SocketAddress) -> None:
        self.receive(datagrams, name, monotonic())
