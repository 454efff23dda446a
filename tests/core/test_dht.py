"""The machine: it joins, says what it offers, searches, and lets nobody make it believe or do too much."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from meshnode.core.dht import SEARCHES, TIMER, DhtMachine, DhtOptions
from meshnode.core.dht_events import (
    Answer,
    Answered,
    Ask,
    Asked,
    Event,
    Failed,
    Found,
    Here,
    Offer,
    Search,
    Seen,
    TimerFired,
)
from meshnode.core.effects import Counted, SetTimer
from meshnode.wire.address import Address
from meshnode.wire.dht import (
    DhtFind,
    DhtFound,
    DhtPeer,
    DhtStore,
    DhtStored,
    Provider,
    model_key,
    node_key,
    read_provider,
    write_provider,
)
from tests.sim.dht_swarm import is_signed, signature

OWN, MESH, CONTENT = b"o" * 32, b"m" * 32, b"h" * 16
KEY = model_key(CONTENT)
HOME = Address("12.0.0.1", 9337)
NOW_S = 1_800_000_000.0
QUIET = DhtOptions(refresh_s=1e9, check_s=1e9, rejoin_s=1e9)


def where(number: int) -> Address:
    return Address(f"11.0.{number}.1", 9337)


PEERS = [DhtPeer(bytes((number,)) * 32, (where(number),)) for number in range(12)]


class Driver:
    """One machine, and what it wants."""

    def __init__(self, *, serves: bool = True, options: DhtOptions = QUIET, members: int = 12) -> None:
        self.now = 1000.0
        self.wall_s = NOW_S
        self.counted: Counter[str] = Counter()
        self.asks: list[Ask] = []
        self.found: list[Found] = []
        self.answers: list[Answer] = []
        self.timer_at: float | None = None
        self.machine = DhtMachine(
            node=OWN,
            mesh=MESH,
            serves=serves,
            sign=lambda message: signature(OWN, message),
            verify=is_signed,
            clock=lambda: self.wall_s,
            random=random.Random(1),
            secret=b"s" * 32,
            now=self.now,
            options=options,
        )
        self.give(Here((HOME,)))
        if members:
            self.give(Seen(tuple(PEERS[:members])))
            self.settle()

    def give(self, event: Event) -> None:
        for effect in self.machine.handle(event, self.now):
            match effect:
                case Counted(what):
                    self.counted[what] += 1
                case Ask():
                    self.asks.append(effect)
                case Found():
                    self.found.append(effect)
                case Answer():
                    self.answers.append(effect)
                case SetTimer(key, at):
                    assert key == TIMER
                    self.timer_at = at

    def take(self) -> list[Ask]:
        taken, self.asks = self.asks, []
        return taken

    def settle(self, message: Any = None) -> list[Ask]:
        """Answer everything with `message`, until nothing more is asked. Gives what was asked."""
        asked = []
        while asks := self.take():
            asked += asks
            for ask in asks:
                default = DhtStored(1) if isinstance(ask.message, DhtStore) else DhtFound((), (), b"t" * 16)
                self.give(Answered(ask.number, ask.addresses[0], default if message is None else message))
        return asked

    def wait(self, for_s: float) -> None:
        """Let time pass, firing the timer when it is due."""
        end = self.now + for_s
        while self.timer_at is not None and self.timer_at <= end:
            self.now, self.timer_at = max(self.now, self.timer_at), None
            self.give(TimerFired())
        self.now = end

    def live(self, for_s: float) -> list[Ask]:
        """Let time pass while everybody answers at once. Gives what was asked."""
        end, asked = self.now + for_s, []
        while self.timer_at is not None and self.timer_at <= end:
            self.wait(max(0.0, self.timer_at - self.now))
            asked += self.settle()
        self.now = end
        return asked


def record(node: bytes = PEERS[0].node, **more: Any) -> bytes:
    provider = Provider(**{"key": KEY, "node": node, "mesh": MESH, "expires_at": int(NOW_S) + 600, **more})
    return write_provider(provider, lambda message: signature(node, message))


# --- joining, offering, searching ---------------------------------------------------------------------------------


def test_a_node_that_joins_looks_for_itself() -> None:
    driver = Driver(members=0)
    driver.wait(100.0)
    assert driver.asks == []
    driver.give(Seen(tuple(PEERS)))
    asked = driver.settle()
    assert {ask.message for ask in asked} == {DhtFind(node_key(OWN))}
    assert {ask.peer for ask in asked} == {peer.node for peer in PEERS}
    assert len(driver.machine.table) == 12


def test_it_looks_around_and_asks_who_was_silent() -> None:
    options = DhtOptions(rejoin_s=5.0, refresh_s=600.0, check_s=60.0, silent_s=900.0, first_refreshes=2)
    driver = Driver(options=options)
    early = {ask.message.key for ask in driver.live(30.0)}  # type: ignore[union-attr]
    assert len(early) == 2 and node_key(OWN) not in early
    lookups = driver.counted["dht_lookups"]
    driver.live(3600.0)
    assert 5 <= driver.counted["dht_lookups"] - lookups <= 7
    assert driver.counted["dht_failures"] == 0
    assert min(contact.heard_at for contact in driver.machine.table) > driver.now - options.silent_s - 300


def test_who_falls_silent_is_noticed_and_dropped() -> None:
    driver = Driver(options=replace(QUIET, check_s=60.0))
    assert driver.live(890.0) == []
    driver.wait(8 * 60.0)
    assert len(driver.machine.table) == 0
    assert driver.counted["dht_failures"] >= 2 * len(PEERS), "each was asked twice"
    driver.wait(QUIET.retry_s + 1)
    assert {ask.peer for ask in driver.asks[-12:]} == {peer.node for peer in PEERS}, "members are asked again"


def test_an_offer_is_stored_at_the_nearest_and_said_again() -> None:
    driver = Driver()
    driver.give(Offer(((CONTENT, 0, 0),)))
    asked = driver.live(2.0)
    stores = [ask for ask in asked if isinstance(ask.message, DhtStore)]
    place = int.from_bytes(KEY, "big")
    nearest = sorted(PEERS, key=lambda peer: int.from_bytes(node_key(peer.node), "big") ^ place)[:8]
    assert {ask.peer for ask in stores} == {peer.node for peer in nearest}
    [signed] = {ask.message.records for ask in stores}  # type: ignore[union-attr]
    provider = read_provider(signed[0])
    assert provider == Provider(KEY, OWN, MESH, int(NOW_S) + 1800, (HOME,))
    assert is_signed(OWN, signed[0][:64], b"meshnode/1 provider\0" + signed[0][64:])
    assert [offered.kept for offered in driver.machine.offers] == [8]
    assert driver.live(500.0) == []
    assert len([ask for ask in driver.live(200.0) if isinstance(ask.message, DhtStore)]) == 8
    driver.give(Here((where(99),)))
    again = [ask.message for ask in driver.live(2.0) if isinstance(ask.message, DhtStore)]
    assert read_provider(again[0].records[0]).addresses == (where(99),)
    driver.give(Offer(()))
    assert driver.live(2000.0) == []


@pytest.mark.parametrize("answer", [DhtStored(0), None, DhtFound()])
def test_what_nobody_keeps_is_tried_again_soon(answer: Any) -> None:
    driver = Driver()
    driver.give(Offer(((CONTENT, 0, 0),)))
    driver.wait(2.0)
    for ask in driver.take():
        driver.give(Answered(ask.number, ask.addresses[0], DhtFound((), (), b"t" * 16)))
    stores = driver.take()
    while stores and isinstance(stores[0].message, DhtFind):
        for ask in stores:
            driver.give(Answered(ask.number, ask.addresses[0], DhtFound((), (), b"t" * 16)))
        stores = driver.take()
    assert len(stores) == 8
    for ask in stores:
        driver.give(Failed(ask.number) if answer is None else Answered(ask.number, ask.addresses[0], answer))
    assert driver.machine.offers.kept == 0
    at = driver.machine.offers.next_at()
    assert at is not None and at <= driver.now + QUIET.retry_s
    assert driver.counted["dht_hostile"] == (8 if isinstance(answer, DhtFound) else 0)


def test_a_search_finds_who_provides() -> None:
    driver = Driver()
    driver.give(Search("mine", KEY))
    asked = driver.settle(DhtFound((), (record(), record(PEERS[1].node))))
    assert {ask.message for ask in asked} == {DhtFind(KEY, records=True)}
    [found] = driver.found
    assert found.number == "mine" and found.asked == len(asked) <= 12
    assert {provider.node for provider in found.providers} == {PEERS[0].node, PEERS[1].node}


def test_what_a_provider_says_of_its_house_is_not_believed_from_outside() -> None:
    driver = Driver()
    driver.give(Search(1, KEY))
    driver.settle(DhtFound((), (record(addresses=(Address("10.0.0.1", 80), where(50), Address("127.0.0.1", 1))),)))
    [provider] = driver.found[0].providers
    assert provider.addresses == (where(50),)


def test_others_are_told_what_was_proven_and_what_a_node_says_itself_and_no_hearsay() -> None:
    driver = Driver(members=0)
    victim, named = Address("11.66.6.6", 53), Address("11.0.0.200", 9)
    driver.give(Seen((DhtPeer(b"n" * 32, (victim, where(1))),)))
    [ask] = driver.take()
    assert ask.addresses == (victim, where(1))
    driver.give(Answered(ask.number, where(1), DhtFound(), (named,)))
    driver.give(Asked(1, PEERS[0].node, where(0), (), True, DhtFind(KEY)))
    [answer] = driver.answers
    assert answer.message is not None
    assert answer.message.peers == (DhtPeer(b"n" * 32, (where(1), named)),)  # type: ignore[union-attr]


def test_what_it_keeps_itself_is_found_without_asking() -> None:
    driver = Driver(members=0)
    peer = PEERS[0]
    driver.give(Asked("find", peer.node, where(0), (), True, DhtFind(KEY)))
    token = driver.answers[-1].message.token  # type: ignore[union-attr]
    driver.give(Asked("store", peer.node, where(0), (), True, DhtStore(token, (record(),))))
    assert driver.answers[-1] == Answer("store", DhtStored(1))
    driver.give(Search(1, KEY))
    driver.settle()
    assert [provider.node for provider in driver.found[0].providers] == [peer.node]


def test_its_own_offer_is_kept_here_as_well_when_it_is_near() -> None:
    driver = Driver(members=3)
    driver.give(Offer(((CONTENT, 0, 0),)))
    driver.live(2.0)
    assert len(driver.machine.records) == 1
    hidden = Driver(members=3)
    hidden.give(Here((HOME,), reachable=False))
    hidden.give(Offer(((CONTENT, 0, 0),)))
    asked = hidden.live(2.0)
    assert all(ask.message.hidden for ask in asked if isinstance(ask.message, DhtFind))
    assert len(hidden.machine.records) == 0 and hidden.machine.offers.kept == 1


def test_alone_a_search_ends_at_once() -> None:
    driver = Driver(members=0)
    driver.give(Search(1, KEY))
    assert driver.found == [Found(1, ())]


def test_a_client_asks_and_does_not_answer() -> None:
    driver = Driver(serves=False)
    driver.give(Asked(1, PEERS[0].node, where(0), (), True, DhtFind(KEY)))
    assert driver.answers == [Answer(1, None)]
    driver.give(Search(2, KEY))
    asked = driver.settle()
    assert asked and all(ask.message.hidden for ask in asked)  # type: ignore[union-attr]


# --- hostile answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "counter"),
    [
        (record(key=b"x" * 32), "wrong_key"),
        (record(mesh=b"x" * 32), "wrong_mesh"),
        (record(expires_at=int(NOW_S) + 10**6 * 31_557_600), "future"),
        (bytes(64) + record()[64:], "forged"),
        (b"nothing", "malformed"),
    ],
)
def test_who_tells_what_no_honest_node_tells_is_dropped_with_all_it_said(bad: bytes, counter: str) -> None:
    driver = Driver()
    driver.give(Search(1, KEY))
    asked = driver.settle(DhtFound((DhtPeer(b"n" * 32, (where(77),)),), (record(), bad), b"t" * 16))
    assert driver.counted[f"dht_records_{counter}"] == driver.counted["dht_hostile"] == len(asked) == 12
    assert driver.found == [Found(1, (), 12)]
    assert len(driver.machine.table) == 0, "none of them is known any more"


def test_an_expired_record_is_passed_over() -> None:
    driver = Driver()
    driver.give(Search(1, KEY))
    driver.settle(DhtFound((), (record(expires_at=int(NOW_S) - 5), record(PEERS[3].node))))
    assert [provider.node for provider in driver.found[0].providers] == [PEERS[3].node]
    assert driver.counted["dht_records_expired"] > 0 == driver.counted["dht_hostile"]


def test_records_that_were_not_asked_for_are_hostile() -> None:
    driver = Driver(members=0)
    driver.give(Seen(tuple(PEERS)))
    driver.settle(DhtFound((), (record(),)))
    assert driver.counted["dht_records_unasked"] == driver.counted["dht_hostile"] == 12
    assert len(driver.machine.table) == 0


def test_answers_to_nothing_and_twice_and_of_another_kind() -> None:
    driver = Driver()
    driver.give(Answered(12345, where(1), DhtFound((), (record(),))))
    driver.give(Failed(12345))
    assert driver.counted["dht_late"] == 1
    driver.give(Search(1, KEY))
    first, second, *_ = driver.take()
    driver.give(Answered(first.number, where(1), DhtStored(7)))
    assert driver.counted["dht_hostile"] == 1
    answer = Answered(second.number, second.addresses[0], DhtFound((), (record(),)))
    driver.give(answer)
    driver.give(answer)
    assert driver.counted["dht_late"] == 2


def test_addresses_of_a_house_are_not_believed_from_outside() -> None:
    driver = Driver()
    driver.give(Search(1, KEY))
    inside = (Address("127.0.0.1", 22), Address("10.0.0.1", 80), Address("169.254.169.254", 80))
    asked = driver.settle(DhtFound((DhtPeer(b"n" * 32, inside),)))
    assert {ask.peer for ask in asked} <= {peer.node for peer in PEERS}
    assert driver.counted["dht_addresses_refused"] > 0


def test_no_answers_at_all_and_it_ends_in_time() -> None:
    driver = Driver()
    began_at = driver.now
    driver.give(Search(1, KEY))
    while not driver.found:
        assert driver.timer_at is not None
        driver.wait(driver.timer_at - driver.now + 0.001)
    assert driver.now - began_at <= QUIET.lookup.lookup_s + 0.1
    assert driver.found == [Found(1, (), 12)]
    assert driver.counted["dht_failures"] == 12
    assert len(driver.machine.table) == 12, "one failure is forgiven where nobody waits"


def test_no_more_searches_at_once_than_so_many() -> None:
    driver = Driver()
    for number in range(SEARCHES + 3):
        driver.give(Search(number, KEY))
    assert driver.found == [Found(SEARCHES + number, ()) for number in range(3)]
    assert driver.counted["dht_searches_full"] == 3
    assert len(driver.asks) <= SEARCHES * QUIET.lookup.paths * QUIET.lookup.at_once


def test_garbage_of_every_kind_raises_nothing_and_leaves_nothing() -> None:
    """Any answer to any question, for a minute: the machine stands, and remembers no more than it may."""
    chance = random.Random(7)
    driver = Driver(options=replace(QUIET, lookup=replace(QUIET.lookup, question_s=1.0)))
    names = [chance.randbytes(32) for _ in range(50)]
    good = [record(name) for name in names[:5]]
    for _ in range(120):
        driver.give(Search(chance.random(), KEY))
        for ask in driver.take():
            peers = tuple(
                DhtPeer(chance.choice(names), (Address(f"{chance.randrange(1, 223)}.0.{chance.randrange(9)}.1", 5),))
                for _ in range(chance.randrange(21))
            )
            records = tuple(
                chance.choice([*good, b"x", record(names[9], key=b"z" * 32)]) for _ in range(chance.randrange(4))
            )
            found = DhtFound(peers, records, chance.choice([b"", b"t" * 16]))
            answers = [Answered(ask.number, where(chance.randrange(99)), each) for each in (found, DhtStored(1))]
            driver.give(chance.choice([*answers, Failed(ask.number), Failed(-1)]))
        driver.wait(0.15)
    driver.wait(10.0)
    machine = driver.machine
    assert not machine._running and not machine._questions
    assert len(driver.found) == 120 and max(found.asked for found in driver.found) <= 60
    assert len(machine.table) <= len(names) + len(PEERS)


def test_a_node_that_is_alone_says_itself_what_it_offers() -> None:
    driver = Driver(members=0)
    driver.give(Offer(((CONTENT, 0, 0),)))
    driver.wait(5.0)
    assert driver.take() == []
    driver.give(Asked(1, b"c" * 32, where(1), (), False, DhtFind(KEY, True)))
    (answer,) = driver.answers
    assert isinstance(answer.message, DhtFound)
    assert [read_provider(record).node for record in answer.message.records] == [OWN]
