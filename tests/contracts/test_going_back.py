"""Money back to the payer: the payer's own exit after a delay, and refunds by the receiver at once."""

from __future__ import annotations

import pytest
from eth_account.signers.local import LocalAccount
from web3.logs import DISCARD

from tests.contracts.parties import (
    DAY_S,
    PAYER,
    PAYER_VOUCHERS,
    RECEIVER,
    RECEIVER_CLAIMS,
    STRANGER,
    Parties,
    reason,
)


@pytest.mark.parametrize("by", [PAYER, PAYER_VOUCHERS])
def test_the_payer_leaves_after_the_delay(parties: Parties, by: LocalAccount) -> None:
    config = parties.opened(parties.config(), 1000)
    before = parties.contracts.balance(PAYER.address)
    receipt = parties.send(by, parties.call("initiateWithdraw", config, 400))
    (event,) = parties.contracts.channels.events.WithdrawInitiated().process_receipt(receipt, DISCARD)
    started = parties.contracts.web3.eth.get_block(receipt["blockNumber"])["timestamp"]
    assert (event["args"]["amount"], event["args"]["finalizeAfter"]) == (400, started + DAY_S)
    assert parties.call("pendingWithdrawals", parties.channel_id(config)).call() == [400, started]
    assert reason(parties.call("finalizeWithdraw", config), PAYER) == "TooEarly"
    parties.travel(DAY_S)
    receipt = parties.send(by, parties.call("finalizeWithdraw", config))
    (event,) = parties.contracts.channels.events.WithdrawFinalized().process_receipt(receipt, DISCARD)
    assert event["args"]["amount"] == 400
    assert parties.contracts.balance(PAYER.address) == before + 400
    assert parties.channel(config) == (600, 0)
    assert reason(parties.call("finalizeWithdraw", config), PAYER) == "NoWithdrawal"


def test_the_last_second_of_the_delay_is_too_early(parties: Parties) -> None:
    config = parties.opened(parties.config(delay_s=900), 1000)
    receipt = parties.send(PAYER, parties.call("initiateWithdraw", config, 1))
    assert receipt["blockNumber"] == parties.contracts.web3.eth.block_number
    parties.travel(899)
    assert reason(parties.call("finalizeWithdraw", config), PAYER) == "TooEarly"
    parties.travel(1)
    assert reason(parties.call("finalizeWithdraw", config), PAYER) == ""


@pytest.mark.parametrize("by", [RECEIVER, RECEIVER_CLAIMS, STRANGER])
def test_nobody_else_starts_or_ends_the_payers_exit(parties: Parties, by: LocalAccount) -> None:
    config = parties.opened(parties.config(), 1000)
    assert reason(parties.call("initiateWithdraw", config, 1), by) == "NotAParty"
    parties.send(PAYER, parties.call("initiateWithdraw", config, 1))
    parties.travel(DAY_S)
    assert reason(parties.call("finalizeWithdraw", config), by) == "NotAParty"


def test_an_exit_asks_for_something_that_is_there(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 300)]))
    assert reason(parties.call("initiateWithdraw", config, 0), PAYER) == "InvalidAmount"
    assert reason(parties.call("initiateWithdraw", config, 701), PAYER) == "AboveBalance"
    assert reason(parties.call("initiateWithdraw", parties.config(salt=5), 1), PAYER) == "AboveBalance"
    parties.send(PAYER, parties.call("initiateWithdraw", config, 700))
    assert reason(parties.call("initiateWithdraw", config, 1), PAYER) == "WithdrawalPending"


@pytest.mark.parametrize(("claimed", "paid"), [(0, 1000), (300, 700), (999, 1), (1000, 0)])
def test_what_the_receiver_claims_in_time_goes_first(parties: Parties, claimed: int, paid: int) -> None:
    config = parties.opened(parties.config(), 1000)
    before = parties.contracts.balance(PAYER.address)
    parties.send(PAYER, parties.call("initiateWithdraw", config, 1000))
    parties.travel(DAY_S)
    if claimed:
        parties.send(RECEIVER, parties.call("claim", [parties.claim(config, claimed)]))
    parties.send(PAYER, parties.call("finalizeWithdraw", config))
    assert parties.contracts.balance(PAYER.address) == before + paid
    assert parties.channel(config) == (claimed, claimed)
    assert parties.pending(config) == 0
    assert reason(parties.call("claim", [parties.claim(config, claimed + 1)]), RECEIVER) == "AboveBalance"


def test_a_drained_channel_is_closed_and_may_be_filled_again(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 300)]))
    receipt = parties.send(RECEIVER, parties.call("refund", config, 700))
    events = parties.contracts.channels.events
    (closed,) = events.ChannelClosed().process_receipt(receipt, DISCARD)
    assert closed["args"]["channelId"] == parties.channel_id(config)
    receipt = parties.send(STRANGER, parties.deposit(config, 50, salt=2))
    assert len(events.ChannelCreated().process_receipt(receipt, DISCARD)) == 1
    # Ceilings go on where they were: an old voucher does not count a second time.
    assert parties.channel(config) == (350, 300)
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 300)]))
    assert parties.channel(config) == (350, 300)
    assert reason(parties.call("claim", [parties.claim(config, 351)]), RECEIVER) == "AboveBalance"


@pytest.mark.parametrize("by", [RECEIVER, RECEIVER_CLAIMS])
def test_the_receiver_gives_back_at_once(parties: Parties, by: LocalAccount) -> None:
    config = parties.opened(parties.config(), 1000)
    before = parties.contracts.balance(PAYER.address)
    receipt = parties.send(by, parties.call("refund", config, 400))
    (event,) = parties.contracts.channels.events.Refunded().process_receipt(receipt, DISCARD)
    assert event["args"]["amount"] == parties.contracts.balance(PAYER.address) - before == 400
    assert parties.channel(config) == (600, 0)


@pytest.mark.parametrize("by", [PAYER, PAYER_VOUCHERS, STRANGER])
def test_nobody_else_gives_back(parties: Parties, by: LocalAccount) -> None:
    config = parties.opened(parties.config(), 1000)
    assert reason(parties.call("refund", config, 1), by) == "NotAParty"


def test_at_most_what_is_not_claimed_goes_back(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    before = parties.contracts.balance(PAYER.address)
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 300)]))
    parties.send(RECEIVER, parties.call("refund", config, 2**128 - 1))
    assert parties.contracts.balance(PAYER.address) == before + 700
    receipt = parties.send(RECEIVER, parties.call("refund", config, 1))
    assert not receipt["logs"] and parties.channel(config) == (300, 300)
    parties.send(STRANGER, parties.call("settle", RECEIVER.address, parties.contracts.token))
    assert parties.contracts.balance(RECEIVER.address) == 300
    assert parties.contracts.balance(parties.contracts.hub) == 0


@pytest.mark.parametrize(("refunded", "pending", "paid"), [(200, 700, 700), (500, 500, 500), (1000, 0, None)])
def test_a_refund_leaves_no_exit_larger_than_the_rest(
    parties: Parties, refunded: int, pending: int, paid: int | None
) -> None:
    config = parties.opened(parties.config(), 1000)
    parties.send(PAYER, parties.call("initiateWithdraw", config, 700))
    parties.send(RECEIVER, parties.call("refund", config, refunded))
    assert parties.pending(config) == pending
    parties.travel(DAY_S)
    if paid is None:
        assert reason(parties.call("finalizeWithdraw", config), PAYER) == "NoWithdrawal"
        return
    before = parties.contracts.balance(PAYER.address)
    parties.send(PAYER, parties.call("finalizeWithdraw", config))
    assert parties.contracts.balance(PAYER.address) == before + paid


def test_anyone_brings_a_refund_that_the_authorizer_signed_once(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    before = parties.contracts.balance(PAYER.address)
    call = parties.call("refundWithSignature", config, 400, 0, parties.refund_signature(config, 400, 0))
    parties.send(STRANGER, call)
    assert parties.contracts.balance(PAYER.address) == before + 400
    assert parties.call("refundNonce", parties.channel_id(config)).call() == 1
    assert reason(call) == "WrongNonce"
    # An empty refund uses its number up as well.
    parties.send(RECEIVER, parties.call("refund", config, 600))
    parties.send(STRANGER, parties.call("refundWithSignature", config, 9, 1, parties.refund_signature(config, 9, 1)))
    assert parties.call("refundNonce", parties.channel_id(config)).call() == 2


@pytest.mark.parametrize("end", ["finalized", "drained"])
def test_exits_and_signed_refunds_leave_each_other_alone(parties: Parties, end: str) -> None:
    """They share a slot of storage: no end of an exit makes a used refund good again."""
    config = parties.opened(parties.config(), 1000)
    receipt = parties.send(PAYER, parties.call("initiateWithdraw", config, 300))
    started = parties.contracts.web3.eth.get_block(receipt["blockNumber"])["timestamp"]
    used = parties.call("refundWithSignature", config, 400, 0, parties.refund_signature(config, 400, 0))
    parties.send(STRANGER, used)
    channel = parties.channel_id(config)
    assert parties.call("pendingWithdrawals", channel).call() == [300, started]
    if end == "finalized":
        parties.travel(DAY_S)
        parties.send(PAYER, parties.call("finalizeWithdraw", config))
    else:
        parties.send(RECEIVER, parties.call("refund", config, 600))
    assert parties.call("pendingWithdrawals", channel).call() == [0, 0]
    assert parties.call("refundNonce", channel).call() == 1 and reason(used) == "WrongNonce"


def test_a_signed_refund_is_exactly_that_refund(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    other = parties.opened(parties.config(salt=1), 1000)
    signature = parties.refund_signature(config, 400, 0)
    assert reason(parties.call("refundWithSignature", config, 400, 1, signature)) == "WrongNonce"
    assert reason(parties.call("refundWithSignature", config, 401, 0, signature)) == "InvalidSignature"
    assert reason(parties.call("refundWithSignature", other, 400, 0, signature)) == "InvalidSignature"
    for by in (PAYER, PAYER_VOUCHERS, RECEIVER, STRANGER):
        forged = parties.refund_signature(config, 400, 0, by)
        assert reason(parties.call("refundWithSignature", config, 400, 0, forged)) == "InvalidSignature"
