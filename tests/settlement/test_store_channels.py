"""Lines of channels: what is kept, and what never goes back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace

import pytest

from meshnode.errors import LedgerDamaged
from meshnode.settlement import store_channels
from meshnode.settlement.store_channels import (
    Channel,
    OnChain,
    add_channel,
    channel_of,
    channels,
    check_voucher,
    seen_on_chain,
)
from meshnode.settlement.store_schema import prepare
from meshnode.settlement.typed_data import voucher_digest
from tests.lab.paying_ends import CHANNEL, CONFIG, NETWORK, PAYER, RECEIVER, channel_line

SIGNATURE = bytes(65)


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    prepare(connection)
    yield connection
    connection.close()


def known(db: sqlite3.Connection, channel: bytes) -> Channel:
    found = channel_of(db, channel)
    assert found is not None
    return found


def test_a_channel_is_read_as_it_was_written(db: sqlite3.Connection) -> None:
    first = Channel(CHANNEL, "payer", bytes(32), NETWORK.chain, NETWORK.hub, CONFIG, "opening", 7, 6, 5, opened_at=1.5)
    add_channel(db, first)
    assert known(db, CHANNEL) == first
    assert channel_of(db, bytes(32)) is None


def test_one_that_is_there_stays_unless_it_was_closed_and_is_opened_again(db: sqlite3.Connection) -> None:
    channel = channel_line(db, signed_micros=5)
    add_channel(db, replace(known(db, channel), state="opening", signed_micros=0))
    assert known(db, channel).state == "open" and known(db, channel).signed_micros == 5
    db.execute("UPDATE channels SET state = 'closed'")
    add_channel(db, replace(known(db, channel), state="opening", signed_micros=0))
    assert known(db, channel).state == "opening" and known(db, channel).signed_micros == 5


def test_they_are_listed_by_role_and_by_node_the_newest_first(db: sqlite3.Connection) -> None:
    one, two = channel_line(db, 1), channel_line(db, 2)
    three = channel_line(db, 3, role="receiver", node=bytes([1]) * 32)
    assert [item.id for item in channels(db)] == [three, two, one]
    assert [item.id for item in channels(db, "payer")] == [two, one]
    assert [item.id for item in channels(db, node=bytes([1]) * 32)] == [three, one]
    assert [item.id for item in channels(db, "payer", bytes([1]) * 32)] == [one]


def test_the_last_word_of_the_chain_counts_whatever_the_clock_says(db: sqlite3.Connection) -> None:
    channel = channel_line(db, usable_micros=100, depositing_micros=50)
    after = seen_on_chain(db, channel, OnChain(180, 130, 20, "withdrawing", at=10.0, withdrawable_at=99.0))
    assert after is not None and after == known(db, channel)
    assert (after.balance_micros, after.usable_micros, after.claimed_micros) == (180, 130, 20)
    assert (after.state, after.withdrawable_at, after.depositing_micros) == ("withdrawing", 99.0, 20)
    later = seen_on_chain(db, channel, OnChain(180, 180, 30, "closed", at=9.0))
    assert later is not None and later == known(db, channel)
    assert (later.usable_micros, later.claimed_micros, later.state, later.depositing_micros) == (180, 30, "closed", 0)
    assert seen_on_chain(db, bytes(32), OnChain(1, 1, 1, "open", at=9.0)) is None


def test_a_look_that_began_before_opens_no_closed_channel(db: sqlite3.Connection) -> None:
    channel = channel_line(db)
    for state, kept in (("closed", "closed"), ("opening", "closed"), ("open", "open")):
        seen = seen_on_chain(db, channel, OnChain(0, 0, 0, state, at=1.0))  # type: ignore[arg-type]
        assert seen is not None and seen.state == kept


def test_a_signed_amount_only_rises(db: sqlite3.Connection) -> None:
    channel = channel_line(db)
    store_channels.signed(db, channel, 10, SIGNATURE)
    store_channels.signed(db, channel, 10, SIGNATURE)
    with pytest.raises(sqlite3.IntegrityError):
        store_channels.signed(db, channel, 9, SIGNATURE)
    assert known(db, channel).signed_micros == 10


def test_what_is_charged_unsure_written_off_and_on_its_way_is_kept(db: sqlite3.Connection) -> None:
    channel = channel_line(db, role="receiver")
    store_channels.charged(db, channel, 8, unsure_micros=2, written_off_micros=3)
    store_channels.depositing(db, channel, 4)
    store_channels.bound(db, channel, bytes([9]) * 32)
    line = known(db, channel)
    assert (line.charged_micros, line.unsure_micros, line.written_off_micros, line.depositing_micros) == (8, 2, 3, 4)
    assert line.node == bytes([9]) * 32


def test_an_entry_for_a_channel_that_is_not_there_is_an_error(db: sqlite3.Connection) -> None:
    with pytest.raises(LedgerDamaged):
        store_channels.signed(db, bytes(32), 10, SIGNATURE)
    with pytest.raises(LedgerDamaged):
        store_channels.charged(db, bytes(32), 10)


def test_a_voucher_is_worth_what_the_channel_holds(db: sqlite3.Connection) -> None:
    channel = known(db, channel_line(db, balance_micros=100, claimed_micros=30))
    assert replace(channel, signed_micros=80).unclaimed_micros == 50
    assert replace(channel, signed_micros=180).unclaimed_micros == 70
    assert replace(channel, signed_micros=10).unclaimed_micros == 0


def test_a_voucher_that_was_changed_is_found(db: sqlite3.Connection) -> None:
    channel = known(db, channel_line(db))
    check_voucher(channel)
    digest = voucher_digest(channel.id, 70, channel.chain, channel.hub)
    signed = replace(channel, signed_micros=70, signature=PAYER.sign(digest))
    check_voucher(signed)
    for wrong in (
        replace(signed, signed_micros=71),
        replace(signed, chain=1),
        replace(signed, signature=RECEIVER.sign(digest)),
        replace(signed, signature=bytes(65)),
    ):
        with pytest.raises(LedgerDamaged):
            check_voucher(wrong)
