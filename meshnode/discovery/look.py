"""One look at all relays: a task for each, one sieve for all, and an end that does not wait for the slowest.

What comes is judged in a thread, some events at a time and those of one relay after those of another, so that a flood
delays neither this process nor the other relays by more than one batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from meshnode.discovery.relays import Exchange, Outcome, RelayReport
from meshnode.telemetry import LOG
from meshnode.wire.listings import Listing, identifier
from meshnode.wire.registry import NOSTR_KIND, NOSTR_VERSION_TOPIC

ASKED = 500
"""Listings that a relay is asked for; public relays give no more at a time."""
ENOUGH = 2
PATIENCE_S = 1.2
"""After the first answer the others have so long, where the caller is in a hurry."""


class Sieve(Protocol):
    """What judges events (core.listings.Sieve). `judge` gives a Listing, or a text that says why not."""

    @property
    def kept(self) -> tuple[Listing, ...]: ...
    @property
    def dropped(self) -> Counter[str]: ...
    def judge(self, raw: Any, now: float) -> object: ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """What relays have listed so far. `dropped` counts the reasons for which events were left out.

    `relays` has those that are done, and once the look is over all of them, in the order in which they were given.
    """

    listings: tuple[Listing, ...]
    dropped: Counter[str]
    relays: tuple[RelayReport, ...]

    @property
    def answered(self) -> bool:
        """Whether any relay could be asked: else nothing can be said of what is listed."""
        return any(report.answered for report in self.relays)


class Look:
    """See the module. It begins when it is made; whoever made it calls `end` in any case.

    `exchanges` has one for each URL. `lies` are verdicts of the sieve that speak against the relay, not against the
    publisher. `clock` gives wall time in seconds. An `eager` look ends when ENOUGH relays have answered and there is a
    listing, or PATIENCE_S after the first answer: that nothing is listed takes more than two relays to say.
    """

    def __init__(
        self,
        exchanges: Mapping[str, Exchange],
        sieve: Sieve,
        *,
        lies: frozenset[str],
        clock: Callable[[], float],
        timeout_s: float,
        mesh: bytes | None,
        eager: bool,
    ) -> None:
        self._exchanges = exchanges
        self._sieve = sieve
        self._lies = lies
        self._clock = clock
        self._timeout_s = timeout_s
        self._mesh = mesh
        self._eager = eager
        self._judging = asyncio.Lock()
        self._changed = asyncio.Event()
        self._begun = time.monotonic()
        self._first_answer_at: float | None = None
        self._reports: dict[str, RelayReport] = {}
        self._counts: Counter[str] = Counter()
        self._lied: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._listings: tuple[Listing, ...] = ()
        self._tasks = [asyncio.create_task(self._ask(url)) for url in exchanges]

    async def run(self) -> AsyncIterator[Fetched]:
        """Parts, the last of which has a report of every relay."""
        shown = 0
        while not self._is_over():
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._left_s()):
                    await self._changed.wait()
            except TimeoutError:
                break
            self._changed.clear()
            if len(self._listings) != shown and not self._is_over():
                shown = len(self._listings)
                yield self._part()
        await self.end()
        for url, exchange in self._exchanges.items():
            if url not in self._reports:
                self._report(url, exchange.late(time.monotonic() - self._begun))
        yield self._part()

    async def end(self) -> None:
        """Ask no further."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _part(self) -> Fetched:
        done = tuple(self._reports[url] for url in self._exchanges if url in self._reports)
        return Fetched(self._listings, Counter(self._dropped), done)

    def _is_over(self) -> bool:
        if len(self._reports) == len(self._tasks):
            return True
        told = sum(report.state in ("ok", "empty") for report in self._reports.values())
        return self._eager and told >= ENOUGH and bool(self._listings)

    def _left_s(self) -> float:
        ends = self._begun + self._timeout_s
        if self._eager and self._first_answer_at is not None:
            ends = min(ends, self._first_answer_at + PATIENCE_S)
        return max(0.0, ends - time.monotonic())

    async def _ask(self, url: str) -> None:
        condition: dict[str, Any] = {"kinds": [NOSTR_KIND], "#t": [NOSTR_VERSION_TOPIC], "limit": ASKED}
        if self._mesh is not None:
            condition["#d"] = [identifier(self._mesh)]
        try:
            outcome = await self._exchanges[url].ask(condition, lambda events: self._take(url, events))
        except Exception:  # our own fault: it must not keep the answers of other relays from anybody
            LOG.exception("an answer of %s could not be judged", url)
            outcome = "down", "its answer could not be judged"
        self._report(url, outcome)
        self._changed.set()

    async def _take(self, url: str, events: list[Any]) -> None:
        """Judge some events in a thread, those of one relay after those of another."""
        async with self._judging:
            verdicts = await asyncio.to_thread(self._judge, events)
            self._listings, self._dropped = self._sieve.kept, Counter(self._sieve.dropped)
        self._counts[url] += sum(not isinstance(verdict, str) or verdict == "duplicate" for verdict in verdicts)
        self._lied[url] += sum(isinstance(verdict, str) and verdict in self._lies for verdict in verdicts)
        self._changed.set()

    def _judge(self, events: list[Any]) -> list[object]:
        now = self._clock()
        return [self._sieve.judge(event, now) for event in events]

    def _report(self, url: str, outcome: Outcome) -> None:
        state, text = outcome
        if lied := self._lied[url]:
            state, text = "lying", text or f"{lied} of its events are forged, or not what was asked for"
        elif state == "ok" and not self._counts[url]:
            state = "empty"
        elapsed_s = time.monotonic() - self._begun
        self._reports[url] = RelayReport(url, state, text, self._counts[url], elapsed_s)
        if state in ("ok", "empty") and self._first_answer_at is None:
            self._first_answer_at = time.monotonic()
