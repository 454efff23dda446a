"""Records of who provides what: judged before they are believed, and kept for others within bounds.

A record is believed for what it says of its own signer and no longer than the greatest time to live, whatever it says.
How much a node keeps is bounded in every direction in which somebody could push: per key, per provider, per network
prefix, and in all. When all room is taken, what is nearer to this node's own key drives out what is farthest, as that
is what others will look for here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from meshnode.core.dht_space import most, number, prefix
from meshnode.wire.address import Address
from meshnode.wire.dht import Provider, is_genuine, read_provider
from meshnode.wire.registry import LIMIT_CLOCK_SKEW_S, LIMIT_DHT_RECORDS, LIMIT_MODELS
from meshnode.wire.signed import Verify
from meshnode.wire.values import WireError

T = TypeVar("T")

RECORD_TTL_S = 1800
MOST_RECORDS = 20_000
A_PROVIDER = LIMIT_MODELS
"""A node offers that many models at most; in a mesh of ten nodes every node keeps all of them."""
A_PREFIX_UNDER_A_KEY = 4
A_PREFIX_IN_ALL = 256
FORGOTTEN_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a record is not believed: a word for the counters. `hostile`: no honest node sends such a thing."""

    reason: str
    hostile: bool = True


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges records of one mesh. `ttl_s` is how long a record may live at most."""

    mesh: bytes
    verify: Verify
    ttl_s: float = RECORD_TTL_S

    def read(self, record: bytes, *, key: bytes, now_s: float) -> Provider | Dropped:
        """The record as it may be believed under `key` at the wall time `now_s`, or why it may not."""
        try:
            provider = read_provider(record)
        except WireError:
            return Dropped("malformed")
        return Dropped("wrong_key") if provider.key != key else self.believe(provider, record, now_s)

    def believe(self, provider: Provider, record: bytes, now_s: float) -> Provider | Dropped:
        """The same for a record that has been read: what costs little is looked at first, the signature last."""
        if provider.mesh != self.mesh:
            return Dropped("wrong_mesh")
        if provider.expires_at <= now_s:
            return Dropped("expired", hostile=False)
        if provider.expires_at > now_s + self.ttl_s + LIMIT_CLOCK_SKEW_S:
            return Dropped("future")
        return provider if is_genuine(provider, record, self.verify) else Dropped("forged")


@dataclass(frozen=True, slots=True)
class Kept:
    """A record that is kept for a provider, and the network from which it came."""

    provider: Provider
    record: bytes
    network: str


class RecordStore:
    """What a node keeps for others. All records in it have been judged; `now_s` is wall time."""

    def __init__(self, own_key: int, *, most_records: int = MOST_RECORDS) -> None:
        self._own_key = own_key
        self._most = most_records
        self._keys: dict[bytes, dict[bytes, Kept]] = {}
        self._providers: Counter[bytes] = Counter()
        self._networks: Counter[str] = Counter()
        self._by_distance: list[tuple[int, bytes]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> int:
        """Under so many keys something is kept."""
        return len(self._keys)

    def get(self, key: bytes, now_s: float) -> tuple[bytes, ...]:
        """The records under a key, those that last longest first."""
        kept = [each for each in self._keys.get(key, {}).values() if each.provider.expires_at > now_s]
        kept.sort(key=lambda each: -each.provider.expires_at)
        return tuple(each.record for each in kept[:LIMIT_DHT_RECORDS])

    def put(self, provider: Provider, record: bytes, at: Address, now_s: float) -> str:
        """Keep a record that its provider brought from the address `at`. "" when it is kept, else why not."""
        kept = self._keys.get(provider.key, {})
        known = kept.get(provider.node)
        if known is not None:
            if known.provider.expires_at > provider.expires_at:
                return "older"
            self._remove(known)
        refusal = self._refusal(provider, at, now_s)
        if refusal:
            if known is not None:
                self._insert(known)
            return refusal
        self._insert(Kept(provider, record, prefix(at)))
        return ""

    def expire(self, now_s: float) -> None:
        """Forget what has ended, so much of it that nobody has to wait for it; the rest is told to nobody meanwhile."""
        ended = (each for under in self._keys.values() for each in under.values() if each.provider.expires_at <= now_s)
        for kept in list(islice(ended, FORGOTTEN_AT_ONCE)):
            self._remove(kept)

    def _refusal(self, provider: Provider, at: Address, now_s: float) -> str:
        network, under = prefix(at), self._keys.get(provider.key, {})
        if self._providers[provider.node] >= A_PROVIDER:
            return "provider_full"
        if sum(each.network == network for each in under.values()) >= most(at, A_PREFIX_UNDER_A_KEY):
            return "prefix_full"
        if self._networks[network] >= most(at, A_PREFIX_IN_ALL):
            return "prefix_full"
        if len(under) >= LIMIT_DHT_RECORDS:
            ended = next((each for each in under.values() if each.provider.expires_at <= now_s), None)
            if ended is None:
                return "key_full"
            self._remove(ended)
        if self._count >= self._most:
            distance, farthest = self._by_distance[-1]
            if distance <= self._distance(provider.key):
                return "store_full"
            self._remove(next(iter(self._keys[farthest].values())))
        return ""

    def _distance(self, key: bytes) -> int:
        return number(key) ^ self._own_key

    def _insert(self, kept: Kept) -> None:
        key = kept.provider.key
        if key not in self._keys:
            self._keys[key] = {}
            insort(self._by_distance, (self._distance(key), key))
        self._keys[key][kept.provider.node] = kept
        self._providers[kept.provider.node] += 1
        self._networks[kept.network] += 1
        self._count += 1

    def _remove(self, kept: Kept) -> None:
        key, node = kept.provider.key, kept.provider.node
        under = self._keys[key]
        del under[node]
        if not under:
            del self._keys[key]
            del self._by_distance[bisect_left(self._by_distance, (self._distance(key), key))]
        _less(self._providers, node)
        _less(self._networks, kept.network)
        self._count -= 1


def _less(counter: Counter[T], name: T) -> None:
    """One less of something; what is at nothing is forgotten."""
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
