"""Records: which are believed, and how many are kept."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshnode.core.dht_records import (
    A_PREFIX_IN_ALL,
    A_PREFIX_UNDER_A_KEY,
    A_PROVIDER,
    FORGOTTEN_AT_ONCE,
    RECORD_TTL_S,
    Dropped,
    Judge,
    RecordStore,
)
from meshnode.core.dht_space import place
from meshnode.wire.address import Address
from meshnode.wire.dht import Provider, write_provider
from meshnode.wire.registry import LIMIT_DHT_RECORDS
from tests.sim.dht_swarm import is_signed, signature

MESH, KEY, NODE = b"m" * 32, b"k" * 32, b"n" * 32
NOW_S = 1_800_000_000.0
GOOD = Provider(KEY, NODE, MESH, int(NOW_S) + 600)
YEAR_S = 31_557_600


def signed(provider: Provider, signer: bytes | None = None) -> bytes:
    return write_provider(provider, lambda message: signature(signer or provider.node, message))


@pytest.mark.parametrize(
    ("record", "reason", "hostile"),
    [
        (signed(replace(GOOD, key=b"o" * 32)), "wrong_key", True),
        (signed(replace(GOOD, mesh=b"o" * 32)), "wrong_mesh", True),
        (signed(replace(GOOD, expires_at=int(NOW_S))), "expired", False),
        (signed(replace(GOOD, expires_at=int(NOW_S) + 1_000_000 * YEAR_S)), "future", True),
        (signed(replace(GOOD, expires_at=int(NOW_S) + RECORD_TTL_S + 61)), "future", True),
        (signed(GOOD, b"somebody else's name of 32 bytes"), "forged", True),
        (signed(GOOD)[:-1], "malformed", True),
        (b"", "malformed", True),
    ],
)
def test_what_is_not_believed(record: bytes, reason: str, hostile: bool) -> None:
    judge = Judge(MESH, is_signed)
    assert judge.read(record, key=KEY, now_s=NOW_S) == Dropped(reason, hostile)


def test_what_is_believed() -> None:
    judge = Judge(MESH, is_signed)
    assert judge.read(signed(GOOD), key=KEY, now_s=NOW_S) == GOOD
    longest = replace(GOOD, expires_at=int(NOW_S) + RECORD_TTL_S + 60)
    assert judge.read(signed(longest), key=KEY, now_s=NOW_S) == longest


def test_no_signature_is_checked_of_what_is_wrong_anyway() -> None:
    def verify(*_: bytes) -> bool:
        raise AssertionError("a signature was checked")

    judge = Judge(MESH, verify)
    for bad in (replace(GOOD, mesh=b"o" * 32), replace(GOOD, expires_at=1), replace(GOOD, expires_at=1 << 60)):
        assert isinstance(judge.read(signed(bad), key=KEY, now_s=NOW_S), Dropped)


# --- what is kept ---------------------------------------------------------------------------------------------------


def where(number: int) -> Address:
    return Address(f"11.{number >> 8 & 255}.{number & 255}.1", 9337)


def put(store: RecordStore, node: int, key: bytes = KEY, *, at: Address | None = None, ends_s: float = 600) -> str:
    name = node.to_bytes(4, "big") * 8
    provider = Provider(key, name, MESH, int(NOW_S + ends_s))
    return store.put(provider, b"%d" % node, at or where(node), NOW_S)


def test_records_are_told_and_end() -> None:
    store = RecordStore(0)
    assert [put(store, node, ends_s=100 * node) for node in (1, 3, 2)] == ["", "", ""]
    assert store.get(KEY, NOW_S) == (b"3", b"2", b"1")
    assert store.get(KEY, NOW_S + 200) == (b"3",)
    assert store.get(b"o" * 32, NOW_S) == ()
    store.expire(NOW_S + 200)
    assert (len(store), store.keys) == (1, 1)
    store.expire(NOW_S + 300)
    assert (len(store), store.keys, store._by_distance, store._providers, store._networks) == (0, 0, [], {}, {})


def test_a_full_store_that_ends_at_once_is_forgotten_in_pieces() -> None:
    store = RecordStore(0)
    for node in range(2 * FORGOTTEN_AT_ONCE + 5):
        put(store, node, b"%032d" % node)
    lengths = []
    while len(store):
        store.expire(NOW_S + 600)
        assert store.get(b"%032d" % (2 * FORGOTTEN_AT_ONCE), NOW_S + 600) == ()
        lengths.append(len(store))
    assert lengths == [FORGOTTEN_AT_ONCE + 5, 5, 0]


def test_the_newest_of_a_provider_counts() -> None:
    store = RecordStore(0)
    put(store, 1, ends_s=100)
    assert put(store, 1, ends_s=50) == "older"
    assert put(store, 1, ends_s=100) == ""
    assert put(store, 1, ends_s=200) == ""
    assert len(store) == 1
    assert store.get(KEY, NOW_S + 150) == (b"1",)


def test_a_key_has_so_much_room() -> None:
    store = RecordStore(0)
    assert {put(store, node) for node in range(LIMIT_DHT_RECORDS)} == {""}
    assert put(store, 99) == "key_full"
    assert put(store, 1) == "", "who is in it says it again"
    assert put(store, 99, b"o" * 32) == ""
    ended = RecordStore(0)
    for node in range(LIMIT_DHT_RECORDS):
        put(ended, node, ends_s=-1 if node == 5 else 600)
    assert put(ended, 99) == "", "what has ended makes room"
    assert len(ended) == LIMIT_DHT_RECORDS


def test_one_network_has_so_much_room() -> None:
    store = RecordStore(0)
    at = where(1)
    assert [put(store, node, at=at) for node in range(A_PREFIX_UNDER_A_KEY + 1)][-1] == "prefix_full"
    assert put(store, 77) == ""
    kept = [put(store, node, b"%032d" % node, at=at) for node in range(2 * A_PREFIX_IN_ALL)]
    assert kept.count("") == A_PREFIX_IN_ALL - A_PREFIX_UNDER_A_KEY
    house = RecordStore(0)
    assert {put(house, node, at=Address("10.0.0.1", node + 1)) for node in range(LIMIT_DHT_RECORDS)} == {""}


def test_one_provider_has_so_much_room() -> None:
    store = RecordStore(0)
    kept = [put(store, 1, b"%032d" % number) for number in range(A_PROVIDER + 3)]
    assert kept == [""] * A_PROVIDER + ["provider_full"] * 3
    assert put(store, 1, b"%032d" % 0, ends_s=700) == ""


def test_a_full_store_keeps_what_is_near() -> None:
    chance = random.Random(1)
    own = place(b"o" * 32)
    store = RecordStore(own, most_records=100)
    keys = [chance.randbytes(32) for _ in range(300)]
    kept = [put(store, number, key) for number, key in enumerate(keys)]
    assert len(store) == 100
    nearest = sorted(keys, key=lambda key: int.from_bytes(key, "big") ^ own)[:100]
    assert {key for key in keys if store.get(key, NOW_S)} == set(nearest)
    assert kept[:100] == [""] * 100 and "store_full" in kept


def test_a_record_with_any_bytes_changed_is_not_believed_and_raises_nothing() -> None:
    chance = random.Random(2)
    judge = Judge(MESH, is_signed)
    good = signed(replace(GOOD, addresses=(where(1), where(2)), first_layer=3, layers=4))
    reasons = set()
    for _ in range(1000):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        cut = bytes(bad[: chance.choice([len(bad), chance.randrange(len(bad))])])
        found = judge.read(cut, key=KEY, now_s=NOW_S)
        assert isinstance(found, Dropped) or cut == good
        reasons.add(found.reason if isinstance(found, Dropped) else "")
    assert {"malformed", "forged", "wrong_key", "wrong_mesh"} <= reasons
