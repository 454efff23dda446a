"""Which chunk of a model is asked of which source next, when several sources have it.

    Fetching(chunks)                         what is wanted, in the order in which it is wanted
    join, leave, stalled                     a source comes, or is given up
    ask(now) -> list[Ask]                    what to ask of whom now; call it again after every event
    heard, arrived, lacks, corrupt, ended    what became of an Ask

What ends requests before their time returns their numbers: they are to be cancelled.

- *Window.* Each source has so many bytes under way as it delivers in WINDOW_S, by its own measured rate, and at least
  two chunks, so that the next request is there before the last answer ends. A slow source thus holds few chunks.
- *Order.* The urgent chunks (headers) come first, then those that fewer sources have, then the order in which they are
  wanted. When all sources have all, that is file order.
- *First and second rank.* Sources of the second rank (the hub) are asked for what no source of the first has, and for
  the rest too once those of the first have shown that they would take longer than PATIENCE_S for it.
- *End game.* When nothing is left to hand out, a source with room is given second copies of what is under way
  elsewhere, if it would probably be quicker; the first copy that arrives wins.
- *Trouble.* A source that sends a wrong chunk is left out at once. One that delivers nothing for STALL_S while it is
  asked for something is left, and so is one that fails MOST_FAILURES times in a row. What they held is asked of others.

Rules of this file: pure; times are seconds of one monotonic clock; a chunk is done once, whoever brings it; no source
has a chunk under way twice, and no chunk is under way more than COPIES times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from meshnode.wire.registry import LIMIT_BULK_CHUNKS

WINDOW_S = 1.0
LEAST_WINDOW_BYTES = 8 << 20
MOST_WINDOW_BYTES = 64 << 20
MOST_IN_ONE_ASK_BYTES = 16 << 20
MOST_ASKS = 6
"""Requests to one source at once; it may serve other nodes as well."""
PATIENCE_S = 600.0
STALL_S = 8.0
FIRST_BYTE_S = 15.0
"""The first answer of a source may need a connection, or a disk that was asleep."""
MOST_FAILURES = 3
MOST_LACKING = 16
"""A source that lacks so many chunks it said it had is not worth asking."""
COPIES = 2
RATE_SHARE = 0.3
"""How much the last second counts in the rate of a source."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `source` for these chunks, in this order, in one request. `number` names the request."""

    number: int
    source: str
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source as status shows it: bytes it brought, bytes a second, why it was left ("" while it is used)."""

    source: str
    bytes: int
    rate: float
    left: str


@dataclass(slots=True, eq=False)
class _Source:
    name: str
    second: bool
    said: Callable[[int], bool]
    lacking: set[int] = field(default_factory=set)
    queue: list[int] = field(default_factory=list)
    """What it could be asked for, the next one last."""
    asks: dict[int, set[int]] = field(default_factory=dict)
    under_way_bytes: int = 0
    got_bytes: int = 0
    rate: float = 0.0
    measured_at: float = 0.0
    measured_bytes: int = 0
    heard_at: float = 0.0
    answered: bool = False
    failures: int = 0
    left: str = ""

    def has(self, chunk: int) -> bool:
        return self.said(chunk) and chunk not in self.lacking

    @property
    def window_bytes(self) -> int:
        return int(min(MOST_WINDOW_BYTES, max(LEAST_WINDOW_BYTES, self.rate * WINDOW_S)))

    def takes_s(self, more_bytes: int = 0) -> float:
        """How long it will probably take for what is under way and `more_bytes`."""
        return (self.under_way_bytes + more_bytes) / self.rate if self.rate else math.inf


class Fetching:
    """See the module. `chunks` are (number, bytes) in the order in which they are wanted; the first `urgent` of them
    are the headers'.
    """

    def __init__(self, chunks: Iterable[tuple[int, int]], *, urgent: int = 0) -> None:
        self._size = dict(chunks)
        self._place = {number: place for place, number in enumerate(self._size)}
        self._left = set(self._size)
        self._under_way: dict[int, set[int]] = {}
        """Chunk -> the requests that ask for it."""
        self._sources: dict[str, _Source] = {}
        self._asks: dict[int, _Source] = {}
        self._numbers = 0
        self._urgent = urgent
        self._first_is_slow = False
        self.want_bytes = sum(self._size.values())
        self.left_bytes = self.want_bytes

    # --- sources ------------------------------------------------------------------------------------------------------

    def join(
        self, source: str, now: float, *, has: Callable[[int], bool] = lambda _: True, second: bool = False
    ) -> None:
        """A source is there, and says which chunks it has. One that was left once stays so."""
        if source not in self._sources:
            self._sources[source] = _Source(source, second, has, heard_at=now, measured_at=now)
            self._sort()

    def leave(self, source: str, why: str) -> tuple[int, ...]:
        """Give a source up for good, and say why. Returns its requests, which have no meaning any more."""
        found = self._sources.get(source)
        if found is None or found.left:
            return ()
        found.left = why or "gone"
        numbers = tuple(found.asks)
        for number in numbers:
            self._end(number)
        self._sort()
        return numbers

    # --- what becomes of a request ------------------------------------------------------------------------------------

    def ask(self, now: float) -> list[Ask]:
        """The requests to make now. A source whose rate is not known yet is tried beside the others."""
        found: list[Ask] = []
        if not self._first_is_slow and self._is_too_slow():
            self._first_is_slow = True
            self._sort()
        for source in sorted(self._usable(), key=lambda one: (one.second, -one.rate, one.name)):
            while source.under_way_bytes < source.window_bytes and len(source.asks) < MOST_ASKS:
                chunks = self._next_of(source)
                if not chunks:
                    break
                if not source.asks:
                    source.heard_at = source.measured_at = now
                    source.measured_bytes = 0
                found.append(self._made(source, chunks))
        return found

    def heard(self, number: int, count: int, now: float) -> None:
        """`count` bytes of the answer to a request have come."""
        source = self._asks.get(number)
        if source is None:
            return
        source.heard_at, source.answered = now, True
        source.measured_bytes += count
        passed_s = now - source.measured_at
        if passed_s >= WINDOW_S / 4:
            rate = source.measured_bytes / passed_s
            share = 1 - (1 - RATE_SHARE) ** (4 * passed_s / WINDOW_S) if source.rate else 1.0
            source.rate += share * (rate - source.rate)
            source.measured_at, source.measured_bytes = now, 0

    def arrived(self, number: int, chunk: int) -> tuple[int, ...]:
        """A chunk has come with a request, and is right. Returns the requests that have become needless."""
        source = self._asks.get(number)
        if source is not None:
            source.failures = 0
            self._returned(source, number, chunk)
        if chunk not in self._left:
            return ()
        if source is not None:
            source.got_bytes += self._size[chunk]
        self._left.discard(chunk)
        self.left_bytes -= self._size[chunk]
        needless = []
        for other in tuple(self._under_way.pop(chunk, ())):
            owner = self._asks[other]
            self._returned(owner, other, chunk)
            if not owner.asks.get(other):
                self._end(other)
                needless.append(other)
        return tuple(needless)

    def lacks(self, number: int, chunk: int) -> tuple[int, ...]:
        """The source of a request does not have this chunk, whatever it said. After MOST_LACKING it is left; returns
        its requests then.
        """
        source = self._asks.get(number)
        if source is None:
            return ()
        source.lacking.add(chunk)
        self._returned(source, number, chunk)
        self._hand_back(chunk)
        enough = len(source.lacking) >= MOST_LACKING
        return self.leave(source.name, "it does not have what it says") if enough else ()

    def corrupt(self, number: int) -> tuple[int, ...]:
        """A request brought bytes that are not those of the chunk: its source is left out. Returns its requests."""
        source = self._asks.get(number)
        return () if source is None else self.leave(source.name, "it sent a damaged chunk")

    def ended(self, number: int, why: str = "") -> tuple[int, ...]:
        """A request is over; with `why` it failed. After MOST_FAILURES in a row its source is left; returns its other
        requests then.
        """
        source = self._asks.get(number)
        if source is None:
            return ()
        unanswered = bool(source.asks.get(number))
        self._end(number)
        if why or unanswered:
            source.failures += 1
            if source.failures >= MOST_FAILURES:
                return self.leave(source.name, why or "it does not send what it has")
        return ()

    def stalled(self, now: float) -> tuple[int, ...]:
        """Leave the sources that have brought nothing for too long. Returns their requests."""
        found: list[int] = []
        for source in self._usable():
            patience_s = STALL_S if source.answered else FIRST_BYTE_S
            if source.asks and now - source.heard_at > patience_s:
                found += self.leave(source.name, "it sends nothing any more")
        return tuple(found)

    # --- what can be seen ---------------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Whether everything has come."""
        return not self._left

    @property
    def is_stuck(self) -> bool:
        """Whether something is left that nobody who is still asked has."""
        usable = list(self._usable())
        if not usable:
            return bool(self._left)
        return not any(source.asks for source in usable) and not any(
            source.has(chunk) for source in usable for chunk in self._left
        )

    @property
    def sources(self) -> tuple[SourceView, ...]:
        """All sources, also those that were left."""
        return tuple(SourceView(one.name, one.got_bytes, one.rate, one.left) for one in self._sources.values())

    # --- inside -------------------------------------------------------------------------------------------------------

    def _usable(self) -> list[_Source]:
        return [source for source in self._sources.values() if not source.left]

    def _sort(self) -> None:
        """What each source could be asked for, anew: a source came or went, or the second rank is needed."""
        usable = self._usable()
        holders = {chunk: sum(source.has(chunk) for source in usable) for chunk in self._left}
        order = sorted(self._left, key=lambda chunk: self._wanted(chunk, holders[chunk]), reverse=True)
        for source in usable:
            source.queue = [chunk for chunk in order if self._may_bring(source, chunk)]

    def _wanted(self, chunk: int, holders: int) -> tuple[bool, int, int]:
        place = self._place[chunk]
        return place >= self._urgent, holders, place

    def _may_bring(self, source: _Source, chunk: int) -> bool:
        """Whether a source has a chunk, and is not spared because sources of the first rank have it."""
        if not source.has(chunk):
            return False
        if not source.second or self._first_is_slow:
            return True
        return not any(other.has(chunk) for other in self._usable() if not other.second)

    def _is_too_slow(self) -> bool:
        """Whether the first rank would take too long for what is left. Nobody is judged before it was measured."""
        rates = [source.rate for source in self._usable() if not source.second]
        return bool(rates) and min(rates) > 0 and self.left_bytes > sum(rates) * PATIENCE_S

    def _next_of(self, source: _Source) -> list[int]:
        chunks: list[int] = []
        size = 0
        most_bytes = min(MOST_IN_ONE_ASK_BYTES, source.window_bytes // 2)
        while source.queue and size < most_bytes and len(chunks) < LIMIT_BULK_CHUNKS:
            chunk = source.queue.pop()
            if chunk in self._left and chunk not in self._under_way and chunk not in chunks:
                chunks.append(chunk)
                size += self._size[chunk]
        return chunks or self._copies_for(source)

    def _copies_for(self, source: _Source) -> list[int]:
        """A second copy of a chunk that is under way elsewhere, where this source would be quicker."""
        best, gain_s = -1, 0.0
        if source.second or not source.rate:
            return []
        for chunk, numbers in self._under_way.items():
            owners = [self._asks[number] for number in numbers]
            if len(numbers) >= COPIES or source in owners or not source.has(chunk):
                continue
            gain = min(owner.takes_s() for owner in owners) - source.takes_s(self._size[chunk])
            if gain > gain_s:
                best, gain_s = chunk, gain
        return [best] if best >= 0 else []

    def _made(self, source: _Source, chunks: Sequence[int]) -> Ask:
        self._numbers += 1
        source.asks[self._numbers] = set(chunks)
        source.under_way_bytes += sum(self._size[chunk] for chunk in chunks)
        self._asks[self._numbers] = source
        for chunk in chunks:
            self._under_way.setdefault(chunk, set()).add(self._numbers)
        return Ask(self._numbers, source.name, tuple(chunks))

    def _returned(self, source: _Source, number: int, chunk: int) -> None:
        """A chunk of a request is not under way any more."""
        if chunk in source.asks.get(number, ()):
            source.asks[number].discard(chunk)
            source.under_way_bytes -= self._size[chunk]
            numbers = self._under_way.get(chunk, set())
            numbers.discard(number)
            if not numbers:
                self._under_way.pop(chunk, None)

    def _end(self, number: int) -> None:
        """A request is over; what it did not bring is handed out anew."""
        source = self._asks.pop(number, None)
        if source is None:
            return
        for chunk in sorted(source.asks[number], key=self._place.__getitem__, reverse=True):
            self._returned(source, number, chunk)
            self._hand_back(chunk)
        del source.asks[number]

    def _hand_back(self, chunk: int) -> None:
        """A chunk that is not under way any more is the next that others are asked for."""
        if chunk in self._left and chunk not in self._under_way:
            for source in self._usable():
                if self._may_bring(source, chunk):
                    source.queue.append(chunk)
