"""Entries of the ledger as lines of the journal: what is read back is what was written."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from meshnode.core.ledger import Ledger
from meshnode.core.ledger_entries import Entry, Line, State
from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.windows import Window
from meshnode.errors import LedgerDamaged
from meshnode.settlement.store_channels import Channel, channel_of
from meshnode.settlement.store_schema import prepare
from meshnode.settlement.typed_data import voucher_digest
from meshnode.spending_journal import INTERRUPTED, Outcome, is_payable, put, read
from tests.lab.paying_ends import MODEL, NETWORK, PAYER, PRICE, RECEIVER, channel_line
from tests.money_stage import NOVEMBER

POLICY = Policy(mode="auto", ceiling=PRICE, month_micros=5_000_000)
MONTH = "2026-11"


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    prepare(connection)
    yield connection
    connection.close()


def sign(line: Line) -> bytes:
    return PAYER.sign(voucher_digest(line.channel, line.signed_micros, NETWORK.chain, NETWORK.hub))


def state_of(db: sqlite3.Connection) -> State:
    return read(db, PAYER.address, NETWORK, NOVEMBER)[1]


def write(db: sqlite3.Connection, *entries: Entry | None, **more: Any) -> None:
    for entry in entries:
        if entry is not None:
            put(db, entry, NOVEMBER, more.get("outcome", INTERRUPTED), sign, more.get("shown", b""))


def test_what_is_written_is_the_state_of_the_ledger_after_every_step(db: sqlite3.Connection) -> None:
    one, two = channel_line(db, 1), channel_line(db, 2)
    ledger = Ledger(POLICY, state_of(db))

    def same() -> None:
        found, kept = state_of(db), ledger.state()
        assert (found.lines, found.spent) == (kept.lines, kept.spent)
        names = {name: (item.channel, item.covered_out, item.tokens_in) for name, item in kept.running.items()}
        assert {name: (item.channel, item.covered_out, item.tokens_in) for name, item in found.running.items()} == names

    write(db, ledger.reserve("a", one, MODEL, PRICE, 400, 100, MONTH))
    write(db, ledger.reserve("b", two, MODEL, PRICE, 400, 1, MONTH))
    same()
    for tokens in range(0, 97, 16):
        write(db, ledger.due("a", 50 if tokens else 0, tokens, Window(), MONTH))
        same()
    write(db, *ledger.finished("a", 111, MONTH), outcome=Outcome(50, 80, "stop", b"{}"))
    same()
    write(db, ledger.release("b"))
    same()
    write(db, ledger.deposit(one, 500, MONTH))
    write(db, ledger.deposit_ended(one, 200))
    same()
    digest = voucher_digest(two, 5_000, NETWORK.chain, NETWORK.hub)
    write(db, ledger.proven(two, 5_000, MONTH), shown=PAYER.sign(digest))
    same()
    write(db, *ledger.funded(one, 1_000_000, 900, MONTH))
    found = channel_of(db, one)
    assert found is not None and (found.signed_micros, found.signature) == (900, b"")


def test_channels_of_other_chains_hubs_and_keys_are_not_paid_on(db: sqlite3.Connection) -> None:
    ours = channel_line(db, 1)
    channel_line(db, 2, chain=1)
    channel_line(db, 3, hub=bytes(20))
    channel_line(db, 4, role="receiver")
    closed = channel_line(db, 5, state="withdrawing")
    found, state = read(db, PAYER.address, NETWORK, NOVEMBER)
    assert {channel.id for channel in found} == {ours, closed}
    assert state.lines[ours].is_open and not state.lines[closed].is_open
    assert not any(line.is_open for line in read(db, RECEIVER.address, NETWORK, NOVEMBER)[1].lines.values())


def test_a_channel_is_payable_until_it_is_being_closed_and_while_its_key_is_ours(db: sqlite3.Connection) -> None:
    states = {}
    for number, state in enumerate(("opening", "open", "withdrawing", "closing", "closed"), 1):
        channel = channel_of(db, channel_line(db, number, state=state))
        assert isinstance(channel, Channel)
        states[state] = (is_payable(channel, PAYER.address), is_payable(channel, RECEIVER.address))
    assert states == dict.fromkeys(states, (False, False)) | {"opening": (True, False), "open": (True, False)}


def test_a_request_that_was_there_before_is_not_begun_again(db: sqlite3.Connection) -> None:
    channel = channel_line(db)
    entry = Ledger(POLICY, state_of(db)).reserve("a", channel, MODEL, PRICE, 400, 100, MONTH)
    write(db, entry)
    with pytest.raises(LedgerDamaged):
        write(db, entry)


def test_a_debt_is_not_written_as_paid(db: sqlite3.Connection) -> None:
    """Tokens that ran unpaid, and a policy that was switched off: charged is never more than signed."""
    channel = channel_line(db)
    ledger = Ledger(POLICY, state_of(db))
    write(db, ledger.reserve("a", channel, MODEL, PRICE, 400, 100, MONTH), ledger.due("a", 0, 0, Window(), MONTH))
    ledger.policy = Policy()
    write(db, *ledger.finished("a", 150, MONTH), outcome=Outcome(50, 100, "length", b"{}"))
    found = channel_of(db, channel)
    assert found is not None and found.charged_micros == found.signed_micros < 150


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_journal_says_what_the_ledger_knows(db: sqlite3.Connection, seed: int) -> None:
    """Some hundred steps in any order: lines, months and running requests are read back as they are in memory."""
    chance = random.Random(seed)
    all_channels = [channel_line(db, number) for number in range(1, 4)]
    ledger = Ledger(POLICY, state_of(db))
    for step in range(150):
        channel, runs = chance.choice(all_channels), sorted(ledger.state().running)
        try:
            match chance.randrange(7) if runs else 0:
                case 0:
                    write(db, ledger.reserve(f"r{step}", channel, MODEL, PRICE, 400, chance.randint(1, 500), MONTH))
                case 1 | 2 | 3:
                    tokens_in, tokens_out = chance.choice([0, 50]), chance.randint(0, 500)
                    write(
                        db, ledger.due(chance.choice(runs), tokens_in, tokens_out, Window(), MONTH, asked=step % 2 == 0)
                    )
                case 4:
                    write(db, *ledger.finished(chance.choice(runs), chance.randint(0, 200), MONTH))
                case 5:
                    write(db, ledger.release(chance.choice(runs)))
                case 6:
                    line = ledger.line(channel)
                    assert line is not None
                    cumulative = line.signed_micros + chance.randint(0, 50)
                    digest = voucher_digest(channel, cumulative, NETWORK.chain, NETWORK.hub)
                    write(db, ledger.proven(channel, cumulative, MONTH), shown=PAYER.sign(digest))
        except Refused:
            continue
        found, kept = state_of(db), ledger.state()
        assert found.spent == kept.spent and set(found.running) == set(kept.running)
        # What headroom covers is not signed, so there is nothing to write for it.
        assert all(item.covered_out <= kept.running[name].covered_out for name, item in found.running.items())
        for line in kept.lines.values():
            # A debt above what was signed is the provider's to ask for again; all else is on the disk.
            on_disk = replace(line, settled_micros=min(line.settled_micros, line.signed_micros))
            assert found.lines[line.channel] == on_disk
    assert sum(ledger.state().spent.values()) == sum(line.signed_micros for line in ledger.state().lines.values())
