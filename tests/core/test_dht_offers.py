"""What is offered is said again in time, and at once where it is new."""

from __future__ import annotations

import random

from meshnode.core.dht_offers import MOST_OFFERS, Offers
from meshnode.wire.address import Address
from meshnode.wire.dht import model_key

ONE, TWO = (b"1" * 16, 0, 0), (b"2" * 16, 4, 8)


def offers() -> Offers:
    return Offers(random.Random(1), publish_s=600.0, retry_s=30.0, spread_s=1.0)


def test_what_is_new_is_said_soon_and_then_every_ten_minutes() -> None:
    found = offers()
    found.replace([ONE, TWO], 100.0)
    first = found.next_at()
    assert first is not None and 100.0 <= first <= 101.0
    assert found.due(99.0, 9) == []
    assert len(found.due(101.0, 1)) == len(found.due(101.0, 1)) == 1
    assert found.due(101.0, 9) == []
    again = found.next_at()
    assert again is not None and 101.0 + 540 <= again <= 101.0 + 660
    assert len(found.due(101.0 + 660, 9)) == 2
    assert found.due(10_000.0, 0) == []


def test_an_offer_that_stays_keeps_its_time_and_one_that_goes_is_forgotten() -> None:
    found = offers()
    found.replace([ONE, TWO], 0.0)
    for each in found.due(1.0, 9):
        each.kept = 3
    assert (len(found), found.kept) == (2, 2)
    found.replace([ONE], 5.0)
    assert [each.key for each in found] == [model_key(*ONE)]
    assert found.due(6.0, 9) == []
    assert found.get(model_key(*TWO)) is None
    found.replace([], 6.0)
    assert (len(found), found.next_at(), found.kept) == (0, None, 0)


def test_what_nobody_took_is_tried_again_soon() -> None:
    found = offers()
    found.replace([ONE], 0.0)
    found.due(1.0, 9)
    found.untaken(model_key(*ONE), 1.0)
    found.untaken(model_key(*TWO), 1.0)
    assert found.next_at() == 31.0


def test_a_node_that_moves_says_everything_again() -> None:
    found = offers()
    found.replace([ONE, TWO], 0.0)
    found.due(1.0, 9)
    found.moved(50.0)
    assert len(found.due(51.0, 9)) == 2


def test_no_more_than_so_many() -> None:
    found = offers()
    found.replace([(bytes((number,)) * 16, 0, 0) for number in range(MOST_OFFERS + 5)], 0.0)
    assert len(found) == MOST_OFFERS


def test_a_record_says_where_the_node_is_now() -> None:
    found = offers()
    found.replace([TWO], 0.0)
    [offered] = found
    where = (Address("11.1.1.1", 9337),)
    record = offered.record(node=b"n" * 32, mesh=b"m" * 32, addresses=where, expires_at=77)
    assert (record.key, record.first_layer, record.layers) == (model_key(*TWO), 4, 8)
    assert (record.node, record.mesh, record.addresses, record.expires_at) == (b"n" * 32, b"m" * 32, where, 77)
