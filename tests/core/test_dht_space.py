"""Distances, and how addresses are weighed."""

from __future__ import annotations

import random

import pytest

from meshnode.core import dht_space
from meshnode.core.dht_space import (
    Scope,
    far_key,
    key_bytes,
    least_told,
    most,
    nearest_scope,
    number,
    prefix,
    scope,
    told_to,
)
from meshnode.wire.address import Address

HERE, HOUSE, WORLD, OTHER_WORLD, DETOUR = (
    Address(host, 9337) for host in ("127.0.0.1", "192.168.1.5", "11.7.1.9", "2a00:1450::5", "100::3")
)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.9.9.9", Scope.LOOPBACK),
        ("::1", Scope.LOOPBACK),
        ("10.1.2.3", Scope.PRIVATE),
        ("172.16.0.1", Scope.PRIVATE),
        ("169.254.3.4", Scope.PRIVATE),
        ("100.64.1.1", Scope.PRIVATE),
        ("fd00::1", Scope.PRIVATE),
        ("fe80::1", Scope.PRIVATE),
        ("100::1", Scope.DETOUR),
        ("11.7.1.2", Scope.PUBLIC),
        ("2a00:1450::1", Scope.PUBLIC),
    ],
)
def test_from_where_an_address_is_reached(host: str, expected: Scope) -> None:
    assert scope(Address(host, 1)) is expected


def test_nobody_is_told_of_what_lies_nearer_than_itself() -> None:
    everything = (DETOUR, HERE, HOUSE, WORLD, OTHER_WORLD)
    assert told_to(everything, HERE) == everything[1:]
    assert told_to(everything, HOUSE) == everything[2:]
    assert told_to(everything, WORLD) == everything[3:]
    assert told_to(everything, DETOUR) == everything[3:]
    assert told_to((WORLD,), OTHER_WORLD) == (WORLD,)
    assert told_to((), HERE) == ()
    assert nearest_scope(()) is nearest_scope(everything) is Scope.DETOUR
    assert least_told(DETOUR) is Scope.PUBLIC


def test_addresses_are_counted_by_prefix() -> None:
    assert prefix(Address("11.7.1.9", 1)) == prefix(Address("11.7.1.200", 2)) != prefix(Address("11.7.2.9", 1))
    assert prefix(Address("2a00:1:2:300::1", 1)) == prefix(Address("2a00:1:2:3ff::9", 1))
    assert prefix(Address("2a00:1:2:300::1", 1)) != prefix(Address("2a00:1:2:400::1", 1))
    assert [most(each, 2) for each in (WORLD, DETOUR, HOUSE, HERE)] == [2, 2, dht_space.WIDE, dht_space.WIDE]


def test_keys_at_a_distance() -> None:
    chance = random.Random(1)
    own = number(chance.randbytes(32))
    for bits in (1, 2, 31, 32, 33, 200, 256):
        found = {far_key(own, bits, chance) for _ in range(20)}
        assert {(key ^ own).bit_length() for key in found} == {bits}
        assert len(found) == 20 or bits < 32
    assert len({far_key(own, 256, chance) for _ in range(100)}) == 100
    assert number(key_bytes(own)) == own
