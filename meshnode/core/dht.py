"""The hash table machine: who is near a key, and who provides what is behind it. Events in, effects out.

    dht_events.py    what can happen, what is to be done      dht_table.py     the nodes that are known
    dht_lookup.py    one lookup over disjoint paths           dht_records.py   records: judged, and kept
    dht_answers.py   what others are told                     dht_tokens.py    who may store
    dht_offers.py    what this node offers                    dht_space.py     distances; how addresses are weighed

`handle(event, now)` never raises for what a peer sent: that is dropped and counted. `now` is monotonic seconds, `clock`
gives wall time, as records end at a wall time. There is one timer, TIMER. Besides searching, the machine does three
things: it says again what its node offers, asks nodes that were silent for long, and looks for keys in parts of the
table that it knows little of. The protocol is that of protocol/13-dht.md.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import count

from meshnode.core.dht_answers import Answers
from meshnode.core.dht_events import (
    Answer,
    Answered,
    Ask,
    Asked,
    Effect,
    Event,
    Failed,
    Found,
    Here,
    Offer,
    Search,
    Seen,
    TimerFired,
)
from meshnode.core.dht_lookup import Answerer, Lookup, LookupLimits
from meshnode.core.dht_offers import Offers
from meshnode.core.dht_records import MOST_RECORDS, RECORD_TTL_S, Dropped, Judge, RecordStore
from meshnode.core.dht_space import key_bytes, told_to
from meshnode.core.dht_table import Table
from meshnode.core.dht_tokens import Tokens
from meshnode.core.effects import Counted, SetTimer
from meshnode.core.randomness import Randomness
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFind, DhtFound, DhtPeer, DhtStore, DhtStored, Provider, node_key, write_provider
from meshnode.wire.registry import LIMIT_ADDRESSES, LIMIT_DHT_PEERS
from meshnode.wire.signed import Sign, Verify

__all__ = ["TIMER", "DhtMachine", "DhtOptions"]

TIMER = "dht"
SEARCHES = 32
UPKEEP = 3
"""So many lookups of its own the machine runs at a time."""


@dataclass(frozen=True, slots=True)
class DhtOptions:
    """The times of the machine in seconds, and its bounds.

    A record lives `record_ttl_s`; its provider says it again every `publish_s`, or `retry_s` after nobody took it, and
    for the first time within `spread_s`. Every `check_s` the `checks` contacts are asked that were silent for longest,
    if for `silent_s`; every `refresh_s` one part of the table is looked through, and `first_refreshes` parts at the
    start, `rejoin_s` apart. A peer may ask `questions_per_s` in the long run, and `questions_burst` at once.
    """

    lookup: LookupLimits = LookupLimits()
    record_ttl_s: float = RECORD_TTL_S
    publish_s: float = 600.0
    retry_s: float = 30.0
    spread_s: float = 1.0
    check_s: float = 60.0
    checks: int = 3
    silent_s: float = 900.0
    refresh_s: float = 600.0
    first_refreshes: int = 3
    rejoin_s: float = 5.0
    questions_per_s: float = 10.0
    questions_burst: float = 100.0
    most_records: int = MOST_RECORDS


@dataclass(frozen=True, slots=True)
class _Running:
    """A lookup and what it is for: a search that somebody waits for, an offer to be stored, or neither."""

    lookup: Lookup
    search: Hashable | None = None
    offered: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Question:
    """What was asked of a peer, with or without `records`: for a lookup, to store an offer, or to see whether it is
    there. Over at `ends_at`.
    """

    peer: bytes
    ends_at: float
    key: bytes = b""
    records: bool = False
    lookup: int | None = None
    offered: bytes | None = None


class DhtMachine:
    """One node's part in the hash table of `mesh`.

    `serves`: whether it answers and keeps records, as members do and client-only nodes do not. `secret` has 16 to 32
    random bytes, new in every life. `Counted` effects carry, behind `dht_`: those of Answers; lookups, questions,
    answers, failures, late, hostile, addresses_refused, records_unasked, records_ and why one was not believed,
    published, searches_full.
    """

    def __init__(
        self,
        *,
        node: bytes,
        mesh: bytes,
        serves: bool,
        sign: Sign,
        verify: Verify,
        clock: Callable[[], float],
        random: Randomness,
        secret: bytes,
        now: float,
        options: DhtOptions = DhtOptions(),
    ) -> None:
        self._node = node
        self._mesh = mesh
        self._serves = serves
        self._sign = sign
        self._clock = clock
        self._random = random
        self._options = options
        self.table = Table(node)
        self.records = RecordStore(self.table.key, most_records=options.most_records)
        self._judge = Judge(mesh, verify, options.record_ttl_s)
        self._answers = Answers(
            self.table,
            self.records,
            self._judge,
            Tokens(secret),
            rate_per_s=options.questions_per_s,
            burst=options.questions_burst,
            count=self._count,
        )
        self.offers = Offers(random, publish_s=options.publish_s, retry_s=options.retry_s, spread_s=options.spread_s)
        self._addresses: tuple[Address, ...] = ()
        self._hidden = not serves
        self._members: tuple[DhtPeer, ...] = ()
        self._running: dict[int, _Running] = {}
        self._questions: dict[int, _Question] = {}
        self._numbers = count()
        self._check_at = now + options.check_s * random.random()
        self._refresh_at = now
        self._refreshes = 0
        self._timer_at: float | None = None
        self._out: list[Effect] = []

    # --- events ---------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What follows from an event at the monotonic time `now`, to be carried out in order."""
        match event:
            case Asked():
                answer = self._answers.answer(event, now, self._clock()) if self._serves else None
                self._out.append(Answer(event.number, answer))
                return self._take()
            case Answered():
                self._answered(event, now)
            case Failed():
                self._failed(event.number, now)
            case Search():
                self._search(event, now)
            case Offer():
                self.offers.replace(event.contents, now)
            case Here():
                self._here(event, now)
            case Seen():
                self._seen(event, now)
            case TimerFired():
                self._timer_at = None
        self._work(now)
        return self._take()

    def _here(self, event: Here, now: float) -> None:
        addresses = event.addresses[:LIMIT_ADDRESSES]
        if set(addresses) != set(self._addresses):
            self.offers.moved(now)
        self._addresses = addresses
        self._hidden = not self._serves or not event.reachable
        self._answers.reachable = not self._hidden

    def _seen(self, event: Seen, now: float) -> None:
        """Members that could be asked. A table that was empty is filled at once."""
        alone = self._is_alone()
        self._members = event.peers
        if alone and event.peers:
            self._refreshes, self._refresh_at = 0, now

    def _search(self, event: Search, now: float) -> None:
        if sum(running.search is not None for running in self._running.values()) >= SEARCHES:
            self._count("searches_full")
            self._out.append(Found(event.number, ()))
            return
        self._look(event.key, now, records=True, search=event.number)

    # --- answers --------------------------------------------------------------------------------------------------

    def _answered(self, event: Answered, now: float) -> None:
        question = self._questions.pop(event.number, None)
        if question is None:
            self._count("late")
            return
        if isinstance(event.message, DhtStored) != (question.offered is not None):
            self._hostile(question, now)
            return
        if isinstance(event.message, DhtStored):
            self._stored(question, event.message.kept, now)
            return
        running = None if question.lookup is None else self._running.get(question.lookup)
        providers = self._providers(event.message, event.at, question, needed=running is not None)
        if providers is None:
            self._hostile(question, now)
            return
        self._count("answers")
        # Not where it was said to be: that is hearsay, and would be passed on from here as if it were known.
        addresses = told_to(tuple(dict.fromkeys((event.at, *event.addresses))), event.at)
        self.table.heard(question.peer, event.at, addresses, now)
        if running is not None:
            message = event.message
            refused = running.lookup.answered(question.peer, event.at, message.peers, providers, message.token)
            for _ in range(refused):
                self._count("addresses_refused")

    def _providers(self, message: DhtFound, at: Address, question: _Question, *, needed: bool) -> list[Provider] | None:
        """The records of an answer that are believed, with the addresses that a node at `at` may tell of.

        None for an answer that no honest node gives. Once a lookup is over, its records are not looked at any more.
        """
        if message.records and not question.records:
            self._count("records_unasked")
            return None
        found = []
        now_s = self._clock()
        for record in message.records if needed else ():
            provider = self._judge.read(record, key=question.key, now_s=now_s)
            if not isinstance(provider, Dropped):
                found.append(replace(provider, addresses=told_to(provider.addresses, at)))
                continue
            self._count(f"records_{provider.reason}")
            if provider.hostile:
                return None
        return found

    def _hostile(self, question: _Question, now: float) -> None:
        """An answer breaks the rules: all of it is dropped, and the node with it."""
        self._count("hostile")
        self.table.forget(question.peer)
        self._unanswered(question, now)

    def _failed(self, number: int, now: float) -> None:
        question = self._questions.pop(number, None)
        if question is not None:
            self._count("failures")
            self.table.failed(question.peer)
            self._unanswered(question, now)

    def _unanswered(self, question: _Question, now: float) -> None:
        running = None if question.lookup is None else self._running.get(question.lookup)
        if running is not None:
            running.lookup.failed(question.peer)
        self._stored(question, 0, now)

    def _stored(self, question: _Question, kept: int, now: float) -> None:
        """So many of a record that was to be stored are kept. When nobody keeps it, it is tried again soon."""
        offered = None if question.offered is None else self.offers.get(question.offered)
        if offered is None:
            return
        if kept:
            offered.kept += 1
            self._count("published")
        elif not offered.kept and not any(other.offered == offered.key for other in self._questions.values()):
            self.offers.untaken(offered.key, now)

    # --- lookups --------------------------------------------------------------------------------------------------

    def _look(
        self,
        key: bytes,
        now: float,
        *,
        records: bool = False,
        search: Hashable | None = None,
        offered: bytes | None = None,
    ) -> None:
        """Begin a lookup. Seeds are the nearest contacts, and members of the mesh where there are too few."""
        place = int.from_bytes(key, "big")
        nearest = self.table.nearest(place, LIMIT_DHT_PEERS)
        # A node behind a relay has no address that others could use; over its link it can be asked.
        seeds = [
            contact.peer if contact.peer.addresses else DhtPeer(contact.node, (contact.at,)) for contact in nearest
        ]
        known = {seed.node for seed in seeds}
        spare = [peer for peer in self._members if peer.node not in known]
        seeds += spare[: LIMIT_DHT_PEERS - len(seeds)]
        lookup = Lookup(key, seeds, own=self._node, records=records, now=now, limits=self._options.lookup)
        now_s = self._clock()
        for record in self.records.get(key, now_s) if records else ():
            provider = self._judge.read(record, key=key, now_s=now_s)
            if not isinstance(provider, Dropped):
                lookup.knows(provider)
        self._count("lookups")
        self._running[next(self._numbers)] = _Running(lookup, search, offered)

    def _work(self, now: float) -> None:
        """Do what is due, until nothing more is."""
        for number, question in list(self._questions.items()):
            if question.ends_at <= now:
                self._failed(number, now)
        self._begin_upkeep(now)
        for number, running in list(self._running.items()):
            for step in running.lookup.step(now):
                self._ask(
                    step.node,
                    step.addresses,
                    DhtFind(running.lookup.key, running.lookup.records, self._hidden),
                    now,
                    number,
                )
            if running.lookup.is_done:
                del self._running[number]
                self._ended(running, now)
        self._set_timer(now)

    def _ask(
        self,
        node: bytes,
        addresses: tuple[Address, ...],
        message: DhtFind | DhtStore,
        now: float,
        lookup: int | None = None,
        offered: bytes | None = None,
    ) -> None:
        number = next(self._numbers)
        ends_at = now + self._options.lookup.question_s
        key, records = (message.key, message.records) if isinstance(message, DhtFind) else (b"", False)
        self._questions[number] = _Question(node, ends_at, key, records, lookup, offered)
        self._count("questions")
        self._out.append(Ask(number, node, addresses, message))

    def _ended(self, running: _Running, now: float) -> None:
        """A lookup is over: tell who waits, or store."""
        if running.search is not None:
            self._out.append(Found(running.search, tuple(running.lookup.providers), running.lookup.asked))
        elif running.offered is not None:
            self._publish(running.offered, running.lookup.nearest, now)

    def _publish(self, key: bytes, nearest: list[Answerer], now: float) -> None:
        """Store the record of an offer at the nodes nearest to its key, and here where this is one of them."""
        offered = self.offers.get(key)
        if offered is None:
            return
        offered.kept = 0
        now_s = self._clock()
        expires_at = int(now_s + self._options.record_ttl_s)
        provider = offered.record(node=self._node, mesh=self._mesh, addresses=self._addresses, expires_at=expires_at)
        record = write_provider(provider, self._sign)
        for each in nearest:
            if each.token:
                self._ask(each.node, each.addresses, DhtStore(each.token, (record,)), now, offered=key)
        if not any(each.token for each in nearest):
            self.offers.untaken(key, now)
        if self._addresses and not self._hidden and self._belongs_here(key, nearest):
            self.records.put(provider, record, self._addresses[0], now_s)

    def _belongs_here(self, key: bytes, nearest: list[Answerer]) -> bool:
        distance = self.table.key ^ int.from_bytes(key, "big")
        return len(nearest) < self._options.lookup.replicas or distance < nearest[-1].distance

    # --- upkeep ---------------------------------------------------------------------------------------------------

    def _begin_upkeep(self, now: float) -> None:
        options = self._options
        if now >= self._check_at:
            self._check_at = now + options.check_s
            self.records.expire(self._clock())
            for contact in self.table.stalest(options.checks, now - options.silent_s):
                self._ask(contact.node, contact.peer.addresses, DhtFind(node_key(self._node), False, self._hidden), now)
        if self._is_alone():
            # Clients may ask all the same.
            for offered in self.offers.due(now, UPKEEP):
                self._publish(offered.key, [], now)
            return
        if not len(self.table):
            self._refresh_at = min(self._refresh_at, now + options.retry_s)
        room = UPKEEP - sum(running.search is None for running in self._running.values())
        if room > 0 and now >= self._refresh_at:
            self._refresh(now)
            room -= 1
        for offered in self.offers.due(now, room):
            self._look(offered.key, now, offered=offered.key)

    def _is_alone(self) -> bool:
        """Nobody is known who could be asked."""
        return not len(self.table) and not self._members

    def _refresh(self, now: float) -> None:
        """Look for this node itself, then for keys in other parts of the space, in turns."""
        options = self._options
        nearby = self._refreshes == 0 or (self._refreshes > options.first_refreshes and self._refreshes % 2 == 0)
        place = self.table.key if nearby else self.table.key_to_look_for(self._random)
        self._refreshes += 1
        early = self._refreshes <= options.first_refreshes
        pause_s = options.rejoin_s if early else options.refresh_s
        self._refresh_at = now + pause_s * (0.9 + 0.2 * self._random.random())
        self._look(key_bytes(place), now)

    def _set_timer(self, now: float) -> None:
        moments = [self._check_at]
        moments += [running.lookup.next_after(now) for running in self._running.values()]
        moments += [question.ends_at for question in self._questions.values()]
        if sum(running.search is None for running in self._running.values()) < UPKEEP:
            if not self._is_alone():
                moments.append(self._refresh_at)
            if (offer_at := self.offers.next_at()) is not None:
                moments.append(offer_at)
        at = min(moments)
        if self._timer_at is None or abs(at - self._timer_at) > 1e-3:
            self._timer_at = at
            self._out.append(SetTimer(TIMER, at))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _count(self, what: str) -> None:
        self._out.append(Counted(f"dht_{what}"))

    def _take(self) -> list[Effect]:
        taken, self._out = self._out, []
        return taken
