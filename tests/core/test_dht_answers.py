"""What others are told, and who may store what."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from meshnode.core.dht_answers import PEERS_WITH_A_BUDGET, Answers
from meshnode.core.dht_events import Asked
from meshnode.core.dht_records import Judge, RecordStore
from meshnode.core.dht_space import place
from meshnode.core.dht_table import Table
from meshnode.core.dht_tokens import Tokens
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFind, DhtFound, DhtPeer, DhtStore, DhtStored, Provider, write_provider
from tests.sim.dht_swarm import is_signed, signature

OWN, PEER, OTHER, MESH, KEY = (letter * 32 for letter in (b"o", b"p", b"q", b"m", b"k"))
NOW, NOW_S = 1000.0, 1_800_000_000.0
AT, HOUSE = Address("11.1.1.1", 9337), Address("192.168.7.7", 9337)
GOOD = Provider(KEY, PEER, MESH, int(NOW_S) + 600)


class Asks:
    """One answering node."""

    def __init__(self, burst: float = 1000.0) -> None:
        self.counted: Counter[str] = Counter()
        self.table = Table(OWN)
        self.records = RecordStore(self.table.key)
        self.answers = Answers(
            self.table,
            self.records,
            Judge(MESH, is_signed),
            Tokens(b"s" * 32),
            rate_per_s=1.0,
            burst=burst,
            count=lambda what: self.counted.update((what,)),
        )

    def ask(self, message: DhtFind | DhtStore, peer: bytes = PEER, *, now: float = NOW, **more: Any) -> Any:
        asked = Asked(0, peer, **{"at": AT, "addresses": (), "member": True, "message": message, **more})
        return self.answers.answer(asked, now, NOW_S)

    def token(self, peer: bytes = PEER, key: bytes = KEY) -> bytes:
        found: DhtFound = self.ask(DhtFind(key), peer)
        return found.token


def signed(provider: Provider, signer: bytes = PEER) -> bytes:
    return write_provider(provider, lambda message: signature(signer, message))


def test_who_asks_is_known_from_then_on() -> None:
    asks = Asks()
    assert asks.ask(DhtFind(KEY), addresses=(HOUSE, Address("11.9.9.9", 1))).peers == ()
    found = asks.ask(DhtFind(KEY), OTHER)
    assert found.peers == (DhtPeer(PEER, (AT, Address("11.9.9.9", 1))),), "without the address of its house"
    assert asks.ask(DhtFind(KEY), PEER).peers == (DhtPeer(OTHER, (AT,)),), "not itself"


def test_clients_and_hidden_nodes_ask_and_are_not_known() -> None:
    asks = Asks()
    assert asks.ask(DhtFind(KEY), member=False).token == b""
    assert len(asks.ask(DhtFind(KEY, hidden=True)).token) == 16, "it provides as others do"
    assert len(asks.table) == 0
    asks.answers.reachable = False
    assert asks.token() == b"", "who cannot be dialled keeps nothing"


def test_a_neighbour_in_the_house_is_told_to_the_house_alone() -> None:
    asks = Asks()
    asks.ask(DhtFind(KEY), at=HOUSE)
    assert asks.ask(DhtFind(KEY), OTHER).peers == ()
    assert [peer.node for peer in asks.ask(DhtFind(KEY), b"r" * 32, at=HOUSE).peers] == [PEER, OTHER]


def test_a_record_is_kept_for_its_provider_and_told_to_who_asks() -> None:
    asks = Asks()
    assert asks.ask(DhtStore(asks.token(), (signed(GOOD),))) == DhtStored(1)
    assert asks.ask(DhtFind(KEY), OTHER).records == ()
    assert asks.ask(DhtFind(KEY, records=True), OTHER).records == (signed(GOOD),)
    assert asks.counted["stores_kept"] == 1


def test_what_is_not_kept() -> None:
    asks = Asks()
    token, elsewhere = asks.token(), asks.token(key=b"x" * 32)
    cases = {
        "without_token": [(bytes(16), signed(GOOD)), (asks.token(OTHER), signed(GOOD)), (elsewhere, signed(GOOD))],
        "of_another": [(token, signed(replace(GOOD, node=OTHER), OTHER))],
        "forged": [(token, signed(GOOD, OTHER))],
        "malformed": [(token, b"x"), (token, signed(GOOD)[:-1])],
        "wrong_mesh": [(token, signed(replace(GOOD, mesh=OTHER)))],
        "expired": [(token, signed(replace(GOOD, expires_at=int(NOW_S) - 1)))],
        "future": [(token, signed(replace(GOOD, expires_at=int(NOW_S) + 31_557_600_000_000)))],
    }
    for reason, stores in cases.items():
        for given, record in stores:
            assert asks.ask(DhtStore(given, (record,))) == DhtStored(0), reason
        assert asks.counted[f"stores_{reason}"] == len(stores), reason
    assert asks.ask(DhtStore(token, (signed(GOOD),)), member=False) == DhtStored(0)
    assert len(asks.records) == 0


def test_far_keys_are_for_others() -> None:
    asks = Asks()
    far = place(OWN) ^ ((1 << 256) - 1)
    for number in range(400):
        node = number.to_bytes(4, "big") * 8
        at = Address(f"12.{number >> 8}.{number & 255}.1", 1)
        asks.table.heard(node, at, (at,), NOW)
    assert asks.token(key=far.to_bytes(32, "big")) == b""
    assert len(asks.token(key=place(OWN).to_bytes(32, "big"))) == 16


def test_who_asks_too_often_is_refused_and_records_count() -> None:
    asks = Asks(burst=20)
    token = asks.token()
    assert asks.ask(DhtStore(token, (signed(GOOD),) * 16)) == DhtStored(16)
    assert asks.ask(DhtStore(token, (signed(GOOD),) * 16)) is None
    assert all(asks.ask(DhtFind(KEY)) is not None for _ in range(3))
    assert asks.ask(DhtFind(KEY)) is None
    assert asks.counted["too_often"] == 2
    assert asks.ask(DhtFind(KEY), OTHER) is not None, "others are not held back by it"
    assert asks.ask(DhtFind(KEY), now=NOW + 1) is not None
    for number in range(2 * PEERS_WITH_A_BUDGET):
        asks.ask(DhtFind(KEY, hidden=True), number.to_bytes(4, "big") * 8)
    assert len(asks.answers._budgets) == PEERS_WITH_A_BUDGET
