"""Which of the events that relays send are listings worth asking, and why the others are dropped.

    sieve = Sieve(verify, is_genuine, seen)
    sieve.judge(raw, now) -> Listing | Reason        raw: parsed JSON of an event
    sieve.kept, sieve.dropped

Relays are nobody's friend: what they send may be forged, old, from the future, or too much. Cheap questions come first
(size, tags, times, work), signatures last. At most MOST_JUDGED events are looked at and MOST_KEPT listings kept; one
Nostr key, one node and the addresses of one network have few of these places, and where all are taken those with more
work behind them stay.

Rules of this file: pure; `now` is wall time in seconds, as `created_at` is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from meshnode.core.open_policy import Prefix, prefix_of
from meshnode.wire import listings
from meshnode.wire.listings import ForgedListing, Listing, identifier
from meshnode.wire.nostr import Event, Genuine, read_event
from meshnode.wire.registry import (
    LIMIT_CLOCK_SKEW_S,
    LIMIT_LISTING_BYTES,
    LIMIT_LISTING_TTL_S,
    LIMIT_LISTING_WORK_BITS,
    NOSTR_KIND,
    NOSTR_VERSION_TOPIC,
)
from meshnode.wire.signed import Verify
from meshnode.wire.values import WireError

MOST_JUDGED = 10_000
MOST_KEPT = 512
MOST_A_PUBLISHER = 4
MOST_A_NODE = 2
MOST_A_PREFIX = 16
MOST_A_NEAR_PREFIX = 64
"""Of addresses that are not global: loopback and private ranges."""
MOST_REMEMBERED = 4096


class Reason(StrEnum):
    """Why an event is dropped; REASON_WORDS says it in a sentence."""

    FORGED = "forged"
    IMPOSTOR = "impostor"
    EXPIRED = "expired"
    FUTURE = "future"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    WRONG_TAG = "wrong_tag"
    NO_WORK = "no_work"
    REPLAYED = "replayed"
    DUPLICATE = "duplicate"
    CROWDED = "crowded"


REASON_WORDS = {
    Reason.FORGED: "forged events",
    Reason.IMPOSTOR: "not signed by the node that they name",
    Reason.EXPIRED: "expired",
    Reason.FUTURE: "dated in the future",
    Reason.TOO_LARGE: "too large",
    Reason.MALFORMED: "not listings of this protocol",
    Reason.WRONG_TAG: "not what was asked for",
    Reason.NO_WORK: "without the work that listings take",
    Reason.REPLAYED: "older than one seen before",
    Reason.DUPLICATE: "seen already",
    Reason.CROWDED: "more than are kept of one source",
}
LIES = frozenset((Reason.FORGED, Reason.WRONG_TAG))
"""What a relay that checks events, as it must, and answers what it was asked does not send; the rest is its users'."""


def words(dropped: Mapping[str, int]) -> list[str]:
    """Counts of reasons for people, the greatest first; what was merely seen twice is not told."""
    told = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return [f"{count} {REASON_WORDS[Reason(why)]}" for why, count in told if count and why != Reason.DUPLICATE]


class Seen:
    """The newest listing of each (publisher, mesh) that this node has ever seen, so that no older one counts again.

    Bounded: what has not been seen for longest is forgotten.
    """

    def __init__(self) -> None:
        self._newest: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()

    def is_older(self, listing: Listing) -> bool:
        """Whether a newer one of the same publisher and mesh was seen."""
        return listing.created_at < self._newest.get((listing.publisher, listing.mesh), 0)

    def note(self, listing: Listing) -> None:
        """It was seen now."""
        key = (listing.publisher, listing.mesh)
        self._newest[key] = max(listing.created_at, self._newest.get(key, 0))
        self._newest.move_to_end(key)
        if len(self._newest) > MOST_REMEMBERED:
            self._newest.popitem(last=False)


@dataclass(slots=True)
class _Kept:
    listing: Listing
    event: bytes
    work_bits: int
    number: int
    prefixes: frozenset[Prefix]


class Sieve:
    """See the module; one for each look at the relays. `seen` is shared by all of them."""

    def __init__(
        self,
        verify: Verify,
        is_genuine: Genuine,
        seen: Seen,
        *,
        mesh: bytes | None = None,
        work_bits: int = LIMIT_LISTING_WORK_BITS,
    ) -> None:
        """`is_genuine` checks an event's own id and signature. With `mesh`, no other mesh was asked for."""
        self._asked = None if mesh is None else identifier(mesh)
        self._verify = verify
        self._is_genuine = is_genuine
        self._seen = seen
        self._work_bits = work_bits
        self._judged = 0
        self._same: dict[bytes, int] = {}
        """Id of a kept event -> hash of all of it: another event under the same id is no duplicate but forged."""
        self._kept: dict[tuple[bytes, bytes], _Kept] = {}
        self._publishers: Counter[bytes] = Counter()
        self._nodes: Counter[bytes] = Counter()
        self._prefixes: Counter[Prefix] = Counter()
        self.dropped: Counter[str] = Counter()

    @property
    def kept(self) -> tuple[Listing, ...]:
        """The listings that hold, in the order in which they came."""
        return tuple(each.listing for each in sorted(self._kept.values(), key=lambda each: each.number))

    def judge(self, raw: Any, now: float) -> Listing | Reason:
        """The listing in an event, or why it is dropped; the reason is counted."""
        found = self._judge(raw, now)
        if isinstance(found, Reason):
            self.dropped[found.value] += 1
        return found

    def _judge(self, raw: Any, now: float) -> Listing | Reason:
        self._judged += 1
        if self._judged > MOST_JUDGED:
            return Reason.CROWDED
        try:
            event = read_event(raw)
        except WireError:
            return Reason.MALFORMED
        if self._same.get(event.id) == hash(event):
            return Reason.DUPLICATE
        if reason := self._cheap_reason(event, now):
            return reason
        try:
            if not self._is_genuine(event):
                return Reason.FORGED
            listing = listings.read(
                event.content, publisher=event.publisher, created_at=event.created_at, verify=self._verify
            )
        except ForgedListing:
            return Reason.IMPOSTOR
        except WireError:
            return Reason.MALFORMED
        if event.values("d") != (identifier(listing.mesh),):
            return Reason.MALFORMED
        return self._admit(event, listing)

    def _cheap_reason(self, event: Event, now: float) -> Reason | None:
        """What can be said without a signature."""
        if event.kind != NOSTR_KIND or NOSTR_VERSION_TOPIC not in event.values("t"):
            return Reason.WRONG_TAG
        if self._asked is not None and self._asked not in event.values("d"):
            return Reason.WRONG_TAG
        if len(event.content) > LIMIT_LISTING_BYTES:
            return Reason.TOO_LARGE
        expires_at = event.expires_at
        if expires_at is None or not event.created_at < expires_at <= event.created_at + LIMIT_LISTING_TTL_S:
            return Reason.MALFORMED
        if event.created_at > now + LIMIT_CLOCK_SKEW_S:
            return Reason.FUTURE
        if expires_at <= now:
            return Reason.EXPIRED
        return Reason.NO_WORK if event.work_bits < self._work_bits else None

    # --- places -------------------------------------------------------------------------------------------------------

    def _admit(self, event: Event, listing: Listing) -> Listing | Reason:
        """Keep a listing that is what it says, if it has a place."""
        key = (listing.publisher, listing.mesh)
        known = self._kept.get(key)
        if self._seen.is_older(listing) or (known is not None and listing.created_at <= known.listing.created_at):
            return Reason.REPLAYED
        if known is not None:
            self._remove(known)
        kept = _Kept(listing, event.id, event.work_bits, self._judged, _prefixes(listing))
        if self._is_crowded(kept) or (len(self._kept) >= MOST_KEPT and not self._make_room(kept)):
            return Reason.CROWDED
        self._kept[key] = kept
        self._same[event.id] = hash(event)
        self._publishers[listing.publisher] += 1
        self._nodes[listing.node] += 1
        self._prefixes.update(kept.prefixes)
        self._seen.note(listing)
        return listing

    def _is_crowded(self, new: _Kept) -> bool:
        return (
            self._publishers[new.listing.publisher] >= MOST_A_PUBLISHER
            or self._nodes[new.listing.node] >= MOST_A_NODE
            or any(
                self._prefixes[prefix] >= (MOST_A_NEAR_PREFIX if prefix.near else MOST_A_PREFIX)
                for prefix in new.prefixes
            )
        )

    def _make_room(self, new: _Kept) -> bool:
        """The one with the least work behind it, the last that came, gives way to one with more."""
        least = min(self._kept.values(), key=lambda each: (each.work_bits, -each.number))
        if least.work_bits >= new.work_bits:
            return False
        self._remove(least)
        self.dropped[Reason.CROWDED.value] += 1
        return True

    def _remove(self, kept: _Kept) -> None:
        listing = kept.listing
        del self._kept[listing.publisher, listing.mesh]
        self._publishers[listing.publisher] -= 1
        self._nodes[listing.node] -= 1
        self._prefixes.subtract(kept.prefixes)


def _prefixes(listing: Listing) -> frozenset[Prefix]:
    return frozenset(prefix_of(address) for entry in listing.entries for address in entry.addresses)
