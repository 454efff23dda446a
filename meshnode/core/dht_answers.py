"""What a node of the hash table answers to others, and what it keeps for them.

It tells of nodes that it has heard itself, and keeps records for their own providers only: a peer stores what it has
signed, under a key for which it was given a token. Whoever asks is heard, and so gets into the table, unless it is a
client or says that it cannot be dialled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from meshnode.core.budget import Bucket
from meshnode.core.dht_events import Asked
from meshnode.core.dht_records import Dropped, Judge, RecordStore
from meshnode.core.dht_space import number, told_to
from meshnode.core.dht_table import Table
from meshnode.core.dht_tokens import Tokens
from meshnode.wire.dht import DhtFind, DhtFound, DhtStore, DhtStored, Provider, read_provider
from meshnode.wire.registry import LIMIT_DHT_PEERS
from meshnode.wire.values import WireError

PEERS_WITH_A_BUDGET = 1024


class Answers:
    """Answers for one node. A peer may ask `rate_per_s` in the long run and `burst` at once.

    `reachable` is set by the owner: a node that nobody can dial gives no tokens, as nobody would look there.
    `count` gets: finds, too_often, stores_kept, stores_ and why a record is not kept (without_token, of_another,
    malformed, expired, future, wrong_mesh, forged, older, provider_full, prefix_full, key_full, store_full).
    """

    def __init__(
        self,
        table: Table,
        records: RecordStore,
        judge: Judge,
        tokens: Tokens,
        *,
        rate_per_s: float,
        burst: float,
        count: Callable[[str], None],
    ) -> None:
        self._table = table
        self._records = records
        self._judge = judge
        self._tokens = tokens
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._count = count
        self._budgets: OrderedDict[bytes, Bucket] = OrderedDict()
        self.reachable = True

    def answer(self, event: Asked, now: float, now_s: float) -> DhtFound | DhtStored | None:
        """The answer to a peer, None for one that asks too often. `now` is monotonic, `now_s` wall time."""
        message = event.message
        if not self._may_ask(event.peer, message, now):
            self._count("too_often")
            return None
        if isinstance(message, DhtStore):
            return DhtStored(self._store(event, message, now, now_s))
        return self._find(event, message, now, now_s)

    def _may_ask(self, peer: bytes, message: DhtFind | DhtStore, now: float) -> bool:
        """A record costs the check of a signature, as much as a question does."""
        bucket = self._budgets.get(peer)
        if bucket is None:
            bucket = self._budgets[peer] = Bucket(self._rate_per_s, self._burst, now)
            if len(self._budgets) > PEERS_WITH_A_BUDGET:
                self._budgets.popitem(last=False)
        self._budgets.move_to_end(peer)
        return bucket.take(len(message.records) if isinstance(message, DhtStore) else 1, now)

    def _find(self, event: Asked, message: DhtFind, now: float, now_s: float) -> DhtFound:
        self._count("finds")
        if event.member and not message.hidden:
            addresses = told_to(tuple(dict.fromkeys((event.at, *event.addresses))), event.at)
            self._table.heard(event.peer, event.at, addresses, now)
        place = number(message.key)
        nearest = self._table.nearest(place, LIMIT_DHT_PEERS, event.peer)
        peers = tuple(peer for contact in nearest if (peer := contact.told_to(event.at)) is not None)
        records = self._records.get(message.key, now_s) if message.records else ()
        token = b""
        if event.member and self.reachable and self._table.is_near(place, nearest):
            token = self._tokens.make(event.peer, message.key, now)
        return DhtFound(peers, records, token)

    def _store(self, event: Asked, message: DhtStore, now: float, now_s: float) -> int:
        """How many records are kept."""
        kept = 0
        for record in message.records:
            match self._brought(event, message.token, record, now, now_s):
                case Dropped(reason):
                    refusal = reason
                case provider:
                    refusal = self._records.put(provider, record, event.at, now_s)
            self._count(f"stores_{refusal or 'kept'}")
            kept += not refusal
        return kept

    def _brought(self, event: Asked, token: bytes, record: bytes, now: float, now_s: float) -> Provider | Dropped:
        """A record that a peer wants to be kept. Without a token it costs no check of a signature."""
        try:
            provider = read_provider(record)
        except WireError:
            return Dropped("malformed")
        if provider.node != event.peer:
            return Dropped("of_another")
        if not event.member or not self._tokens.is_good(token, event.peer, provider.key, now):
            return Dropped("without_token")
        return self._judge.believe(provider, record, now_s)
