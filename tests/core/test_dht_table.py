"""The table: who stays, who waits, and how much of it one network can have."""

from __future__ import annotations

import random

import pytest

from meshnode.core.dht_space import place
from meshnode.core.dht_table import (
    A_PREFIX_IN_A_BUCKET,
    A_PREFIX_IN_THE_TABLE,
    ADDRESSES,
    BUCKET,
    SPARES,
    Table,
)
from meshnode.wire.address import Address

OWN = b"o" * 32


def where(number: int) -> Address:
    """An address in a network of its own."""
    return Address(f"11.{number >> 8}.{number & 255}.1", 9337)


def bucket_of(table: Table, node: bytes) -> int:
    return (place(node) ^ table.key).bit_length()


def names(count: int, seed: int = 1, *, bits: int | None = None) -> list[bytes]:
    """Names of nodes, all in one bucket if `bits` says which."""
    chance, table, found = random.Random(seed), Table(OWN), []
    while len(found) < count:
        name = chance.randbytes(32)
        if bits is None or bucket_of(table, name) == bits:
            found.append(name)
    return found


def filled(nodes: list[bytes]) -> Table:
    table = Table(OWN)
    for number, node in enumerate(nodes):
        table.heard(node, where(number), (where(number),), float(number))
    return table


def test_the_nearest_are_found_in_their_order() -> None:
    nodes = names(600)
    table = filled(nodes)
    assert len(table) == sum(1 for _ in table)
    known = [contact.node for contact in table]
    for target in [place(each) for each in names(50, 2)] + [table.key, place(known[0])]:
        expected = sorted(known, key=lambda node: place(node) ^ target)[:20]
        assert [contact.node for contact in table.nearest(target, 20)] == expected
        without = expected[3]
        expected = sorted(set(known) - {without}, key=lambda node: place(node) ^ target)[:20]
        assert [contact.node for contact in table.nearest(target, 20, without)] == expected


def test_who_is_known_stays_and_who_is_new_waits() -> None:
    nodes = names(BUCKET + SPARES + 5, bits=256)
    table = filled(nodes)
    assert {contact.node for contact in table} == set(nodes[:BUCKET])
    table.failed(nodes[0])
    assert nodes[0] not in table and nodes[-1] in table, "the newest that waits takes the place"
    for node in nodes[1 : 1 + SPARES + 5]:
        table.failed(node)
        table.failed(node)
    assert len(table) == BUCKET - 6, "no more wait than there is room for"


def test_without_somebody_who_waits_one_failure_is_forgiven() -> None:
    table = filled(names(1))
    [contact] = table
    table.failed(contact.node)
    assert contact.node in table
    table.heard(contact.node, contact.at, (contact.at,), 5.0)
    table.failed(contact.node)
    table.failed(contact.node)
    table.failed(contact.node)
    assert (len(table), list(table)) == (0, [])
    table.forget(contact.node)


def test_one_network_gets_few_places() -> None:
    chance = random.Random(3)
    table = Table(OWN)
    for number in range(1000):
        at = Address(f"11.1.1.{number % 250 + 1}", 1000 + number)
        table.heard(chance.randbytes(32), at, (at,), 0.0)
    assert len(table) == A_PREFIX_IN_THE_TABLE
    buckets = [bucket_of(table, contact.node) for contact in table]
    assert max(map(buckets.count, buckets)) <= A_PREFIX_IN_A_BUCKET
    assert table.heard(chance.randbytes(32), where(9), (where(9),), 0.0)
    for contact in list(table):
        table.forget(contact.node)
    assert len(table) <= A_PREFIX_IN_THE_TABLE and len(table._prefixes) == len({c.at.host[:6] for c in table})


def test_a_house_may_fill_the_table() -> None:
    table = Table(OWN)
    for number, node in enumerate(names(60)):
        at = Address("127.0.0.1", 2000 + number)
        table.heard(node, at, (at,), 0.0)
    assert len(table) > 40


def test_a_node_that_moves_is_counted_where_it_is() -> None:
    [node] = names(1)
    table = filled([node])
    table.heard(node, where(0), (where(0), where(5)), 3.0)
    table.heard(node, where(7), tuple(where(number) for number in range(9)), 4.0)
    [contact] = table
    assert (contact.at, contact.heard_at, len(contact.peer.addresses)) == (where(7), 4.0, ADDRESSES)
    assert len(table._prefixes) == 1
    assert not table.heard(OWN, where(1), (), 0.0), "it does not know itself"


def test_what_others_are_told_of_a_contact() -> None:
    [node] = names(1)
    house, world = Address("192.168.0.2", 1), where(3)
    table = Table(OWN)
    table.heard(node, house, (house, world), 0.0)
    [contact] = table
    assert contact.told_to(house) is contact.peer
    told = contact.told_to(where(9))
    assert told is not None and told.addresses == (world,)
    table.heard(node, house, (house,), 0.0)
    assert contact.told_to(where(9)) is None


def test_whether_this_node_is_near() -> None:
    table = filled(names(600))
    assert table.is_near(table.key, table.nearest(table.key, BUCKET))
    far = table.key ^ ((1 << 256) - 1)
    assert not table.is_near(far, table.nearest(far, BUCKET))
    small = filled(names(5))
    assert small.is_near(far, small.nearest(far, BUCKET)), "in a small mesh everybody is"


def test_the_longest_silent_are_asked_first() -> None:
    nodes = names(10)
    table = filled(nodes)
    assert [contact.node for contact in table.stalest(3, 5.0)] == nodes[:3]
    assert table.stalest(3, 0.0) == []


@pytest.mark.parametrize("count", [0, 3, 400])
def test_keys_to_look_for_lie_in_buckets_that_could_be_filled(count: int) -> None:
    table = filled(names(count))
    chance = random.Random(5)
    lowest = min(map(lambda contact: bucket_of(table, contact.node), table), default=256)
    bits = {(table.key_to_look_for(chance) ^ table.key).bit_length() for _ in range(300)}
    assert bits == set(range(lowest, 257))
