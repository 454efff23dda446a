"""Claiming by vouchers, alone and in batches, and sending what was claimed to the receiver."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from eth_account.signers.local import LocalAccount
from web3.logs import DISCARD

from tests.contracts.parties import (
    NOBODY,
    PAYER,
    PAYER_VOUCHERS,
    RECEIVER,
    RECEIVER_CLAIMS,
    STRANGER,
    Parties,
    account,
    reason,
    signed,
)
from tests.lab.evm import artifact, deploy

HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
ORDER = 2 * HALF_ORDER + 1


@pytest.mark.parametrize("by", [RECEIVER, RECEIVER_CLAIMS])
def test_the_receiver_or_its_authorizer_claims_and_anyone_settles(parties: Parties, by: LocalAccount) -> None:
    config = parties.opened(parties.config(), 1000)
    receipt = parties.send(by, parties.call("claim", [parties.claim(config, 300, 400)]))
    (event,) = parties.contracts.channels.events.Claimed().process_receipt(receipt, DISCARD)
    assert event["args"]["channelId"] == parties.channel_id(config)
    assert (event["args"]["claimAmount"], event["args"]["newTotalClaimed"]) == (300, 300)
    assert parties.channel(config) == (1000, 300)
    assert parties.call("receivers", RECEIVER.address, parties.contracts.token).call() == [300, 0]
    assert parties.contracts.balance(RECEIVER.address) == 0
    receipt = parties.send(STRANGER, parties.call("settle", RECEIVER.address, parties.contracts.token))
    (event,) = parties.contracts.channels.events.Settled().process_receipt(receipt, DISCARD)
    assert event["args"]["amount"] == parties.contracts.balance(RECEIVER.address) == 300
    assert parties.call("receivers", RECEIVER.address, parties.contracts.token).call() == [300, 300]


@pytest.mark.parametrize("by", [PAYER, PAYER_VOUCHERS, STRANGER])
def test_nobody_else_claims(parties: Parties, by: LocalAccount) -> None:
    config = parties.opened(parties.config())
    assert reason(parties.call("claim", [parties.claim(config, 1)]), by) == "NotAParty"


def test_the_amount_claimed_only_grows(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    for total, expected in ((200, 200), (150, 200), (200, 200), (0, 200), (201, 201), (1000, 1000)):
        parties.send(RECEIVER, parties.call("claim", [parties.claim(config, total)]))
        assert parties.channel(config) == (1000, expected)
    assert parties.call("receivers", RECEIVER.address, parties.contracts.token).call() == [1000, 0]


def test_an_old_voucher_changes_nothing_and_says_nothing(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 200)]))
    receipt = parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 200, signature=b"")]))
    assert not receipt["logs"]


def test_no_claim_above_the_ceiling_that_was_signed(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    assert reason(parties.call("claim", [parties.claim(config, 301, 300)]), RECEIVER) == "AboveCeiling"
    # A ceiling written higher than the one that was signed is another voucher.
    forged = parties.claim(config, 301, 301, parties.voucher(config, 300))
    assert reason(parties.call("claim", [forged]), RECEIVER) == "InvalidSignature"


def test_no_claim_above_the_balance(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    assert reason(parties.call("claim", [parties.claim(config, 1001)]), RECEIVER) == "AboveBalance"
    parties.opened(config, 1, salt=2)
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 1001)]))
    assert parties.channel(config) == (1001, 1001)


def test_a_channel_that_was_never_paid_in_pays_nothing(parties: Parties) -> None:
    assert reason(parties.call("claim", [parties.claim(parties.config(), 1)]), RECEIVER) == "AboveBalance"


@pytest.mark.parametrize("by", [PAYER, RECEIVER, RECEIVER_CLAIMS, STRANGER])
def test_a_voucher_counts_by_the_voucher_key_only(parties: Parties, by: LocalAccount) -> None:
    config = parties.opened(parties.config())
    row = parties.claim(config, 5, signature=parties.voucher(config, 5, by))
    assert reason(parties.call("claim", [row]), RECEIVER) == "InvalidSignature"


def _elsewhere(parties: Parties, **changes: object) -> Parties:
    return Parties(dataclasses.replace(parties.contracts, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        lambda parties, config: _elsewhere(parties, chain_id=8453).voucher(config, 5),
        lambda parties, config: _elsewhere(parties, hub=parties.contracts.collector).voucher(config, 5),
        lambda parties, config: parties.voucher(parties.config(salt=1), 5),
        lambda parties, config: parties.voucher(parties.config(token=STRANGER.address), 5),
        lambda parties, config: parties.refund_signature(config, 5, 5, PAYER_VOUCHERS),
    ],
    ids=["chain", "hub", "channel", "token", "kind"],
)
def test_a_voucher_for_anything_else_is_none(parties: Parties, other: Callable[[Parties, object], bytes]) -> None:
    config = parties.opened(parties.config())
    row = parties.claim(config, 5, signature=other(parties, config))
    assert reason(parties.call("claim", [row]), RECEIVER) == "InvalidSignature"


def test_a_voucher_of_a_second_hub_on_the_same_chain_is_none(parties: Parties) -> None:
    second = _elsewhere(parties, hub=deploy(parties.contracts.web3, "PaymentChannels").address)
    config = parties.opened(parties.config())
    assert second.channel_id(config) != parties.channel_id(config)
    row = parties.claim(config, 5, signature=second.voucher(config, 5))
    assert reason(parties.call("claim", [row]), RECEIVER) == "InvalidSignature"


def _high_s(signature: bytes) -> bytes:
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


def _compact(signature: bytes) -> bytes:
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return signature[:32] + s.to_bytes(32, "big")


@pytest.mark.parametrize(
    "damage",
    [
        lambda signature: b"",
        lambda signature: signature[:64],
        lambda signature: signature + b"\0",
        lambda signature: bytes(65),
        lambda signature: b"\xff" * 65,
        lambda signature: signature[:64] + bytes([signature[64] - 27]),
        lambda signature: signature[:64] + bytes([55 - signature[64]]),
        _high_s,
        _compact,
    ],
    ids=["empty", "short", "long", "zero", "ones", "v-0", "v-other", "high-s", "compact"],
)
def test_a_signature_has_one_form(parties: Parties, damage: Callable[[bytes], bytes]) -> None:
    config = parties.opened(parties.config())
    row = parties.claim(config, 5, signature=damage(parties.voucher(config, 5)))
    assert reason(parties.call("claim", [row]), RECEIVER) == "InvalidSignature"


def test_without_a_voucher_key_the_payer_signs(parties: Parties) -> None:
    config = parties.opened(parties.config(payer_authorizer=NOBODY))
    forged = parties.claim(config, 5, signature=bytes(65))
    assert reason(parties.call("claim", [forged]), RECEIVER) == "InvalidSignature"
    row = parties.claim(config, 5, signature=parties.voucher(config, 5, PAYER))
    parties.send(RECEIVER, parties.call("claim", [row]))
    assert parties.channel(config)[1] == 5


def test_an_account_with_code_answers_for_its_vouchers(parties: Parties) -> None:
    wallet = deploy(parties.contracts.web3, "SignatureWallet", PAYER.address)
    parties.contracts.fund(wallet.address, usdc_micros=1_000_000)
    config = parties.opened(parties.config(payer=wallet.address, payer_authorizer=NOBODY))
    forged = parties.claim(config, 5, signature=parties.voucher(config, 5, STRANGER))
    assert reason(parties.call("claim", [forged]), RECEIVER) == "InvalidSignature"
    row = parties.claim(config, 5, signature=parties.voucher(config, 5, PAYER))
    parties.send(RECEIVER, parties.call("claim", [row]))
    assert parties.channel(config)[1] == 5
    parties.send(STRANGER, wallet.functions.setBroken())
    row = parties.claim(config, 6, signature=parties.voucher(config, 6, PAYER))
    assert reason(parties.call("claim", [row]), RECEIVER) == "InvalidSignature"


# --- batches --------------------------------------------------------------------------------------------------------


def test_many_channels_in_one_claim(parties: Parties) -> None:
    configs = [parties.opened(parties.config(salt=salt), 100 + salt) for salt in range(5)]
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 10 + i) for i, config in enumerate(configs)]))
    assert [parties.channel(config) for config in configs] == [(100 + i, 10 + i) for i in range(5)]
    assert parties.call("receivers", RECEIVER.address, parties.contracts.token).call() == [60, 0]


def test_the_same_channel_twice_counts_once(parties: Parties) -> None:
    config = parties.opened(parties.config(), 100)
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, total) for total in (30, 30, 50, 40)]))
    assert parties.channel(config) == (100, 50)


def test_one_bad_row_takes_the_others_with_it(parties: Parties) -> None:
    """A drained channel in a batch: nothing is claimed, so whoever claims must drop it and ask again."""
    configs = [parties.opened(parties.config(salt=salt), 100) for salt in range(3)]
    rows = [parties.claim(config, 60) for config in configs]
    parties.send(RECEIVER, parties.call("refund", configs[1], 50))
    assert reason(parties.call("claim", rows), RECEIVER) == "AboveBalance"
    parties.send(RECEIVER, parties.call("claim", [rows[0], rows[2]]))
    assert [parties.channel(config) for config in configs] == [(100, 60), (50, 0), (100, 60)]


def test_a_row_of_another_receiver_is_refused(parties: Parties) -> None:
    mine = parties.opened(parties.config(), 100)
    other = parties.opened(parties.config(receiver=STRANGER.address, receiver_authorizer=STRANGER.address), 100)
    rows = [parties.claim(mine, 5), parties.claim(other, 5)]
    assert reason(parties.call("claim", rows), RECEIVER) == "NotAParty"


def test_one_authorizer_of_two_receivers_claims_for_both(parties: Parties) -> None:
    other = parties.config(receiver=STRANGER.address)
    rows = [parties.claim(parties.opened(config, 100), 5) for config in (parties.config(), other)]
    parties.send(RECEIVER_CLAIMS, parties.call("claim", rows))
    for receiver in (RECEIVER.address, STRANGER.address):
        assert parties.call("receivers", receiver, parties.contracts.token).call() == [5, 0]


# --- claims that a stranger brings ----------------------------------------------------------------------------------


def test_anyone_brings_a_batch_that_the_authorizer_signed(parties: Parties) -> None:
    configs = [parties.opened(parties.config(salt=salt), 100) for salt in range(3)]
    rows = [parties.claim(config, 40) for config in configs]
    parties.send(STRANGER, parties.call("claimWithSignature", rows, parties.batch(rows)))
    assert [parties.channel(config) for config in configs] == [(100, 40)] * 3
    # Once more, it changes nothing.
    parties.send(STRANGER, parties.call("claimWithSignature", rows, parties.batch(rows)))
    assert [parties.channel(config) for config in configs] == [(100, 40)] * 3


def test_a_signed_batch_is_exactly_that_batch(parties: Parties) -> None:
    configs = [parties.opened(parties.config(salt=salt), 100) for salt in range(2)]
    rows = [parties.claim(config, 40, 50) for config in configs]
    signature = parties.batch(rows)
    others = (
        rows[:1],
        rows[::-1],
        [*rows, rows[0]],
        [rows[0], (rows[1][0], rows[1][1], 41)],
        [rows[0], parties.claim(configs[1], 40, 51)],
    )
    assert {reason(parties.call("claimWithSignature", other, signature)) for other in others} == {"InvalidSignature"}
    assert reason(parties.call("claimWithSignature", rows, parties.batch(rows, RECEIVER))) == "InvalidSignature"
    assert reason(parties.call("claimWithSignature", rows, signature)) == ""


def test_a_signed_batch_has_one_authorizer(parties: Parties) -> None:
    mine = parties.opened(parties.config(), 100)
    other = parties.opened(parties.config(receiver_authorizer=STRANGER.address), 100)
    rows = [parties.claim(mine, 5), parties.claim(other, 5)]
    assert reason(parties.call("claimWithSignature", rows, parties.batch(rows))) == "MixedBatch"


def test_an_empty_batch_is_none(parties: Parties) -> None:
    assert reason(parties.call("claimWithSignature", [], parties.batch([]))) == "EmptyBatch"


def test_a_channel_without_an_authorizer_is_claimed_by_nobodys_signature(parties: Parties) -> None:
    rows = [parties.claim(parties.config(receiver_authorizer=NOBODY), 5)]
    assert reason(parties.call("claimWithSignature", rows, bytes(65))) == "InvalidSignature"


def test_an_authorizer_with_code_answers_for_its_batches(parties: Parties) -> None:
    wallet = deploy(parties.contracts.web3, "SignatureWallet", RECEIVER.address).address
    rows = [parties.claim(parties.opened(parties.config(receiver_authorizer=wallet), 100), 5)]
    assert reason(parties.call("claimWithSignature", rows, parties.batch(rows, STRANGER))) == "InvalidSignature"
    parties.send(STRANGER, parties.call("claimWithSignature", rows, parties.batch(rows, RECEIVER)))


# --- sending, and several calls as one ------------------------------------------------------------------------------


def test_nothing_to_send_is_no_error(parties: Parties) -> None:
    receipt = parties.send(STRANGER, parties.call("settle", RECEIVER.address, parties.contracts.token))
    assert not receipt["logs"]


def test_each_receiver_and_token_has_its_own_account(parties: Parties) -> None:
    other = account("another receiver").address
    for receiver, total in ((RECEIVER.address, 30), (other, 70)):
        config = parties.opened(parties.config(receiver=receiver), 100)
        parties.send(RECEIVER_CLAIMS, parties.call("claim", [parties.claim(config, total)]))
    parties.send(STRANGER, parties.call("settle", other, parties.contracts.token))
    assert (parties.contracts.balance(RECEIVER.address), parties.contracts.balance(other)) == (0, 70)
    parties.send(STRANGER, parties.call("settle", RECEIVER.address, parties.contracts.token))
    assert parties.contracts.balance(RECEIVER.address) == 30


def test_claim_and_settle_as_one(parties: Parties) -> None:
    config = parties.opened(parties.config(), 100)
    hub = parties.contracts.channels
    calls = [
        hub.encode_abi("claim", [[parties.claim(config, 60)]]),
        hub.encode_abi("settle", [RECEIVER.address, parties.contracts.token]),
    ]
    parties.send(RECEIVER, parties.call("multicall", calls))
    assert parties.contracts.balance(RECEIVER.address) == 60


def test_several_calls_give_no_more_rights_and_fail_together(parties: Parties) -> None:
    config = parties.opened(parties.config(), 100)
    hub = parties.contracts.channels
    settle = hub.encode_abi("settle", [RECEIVER.address, parties.contracts.token])
    claim = hub.encode_abi("claim", [[parties.claim(config, 60)]])
    assert reason(parties.call("multicall", [settle, claim]), STRANGER) == "NotAParty"
    too_much = hub.encode_abi("claim", [[parties.claim(config, 101)]])
    assert reason(parties.call("multicall", [claim, too_much]), RECEIVER) == "AboveBalance"
    nested = hub.encode_abi("multicall", [[claim]])
    parties.send(RECEIVER, parties.call("multicall", [nested, settle]))
    assert parties.contracts.balance(RECEIVER.address) == 60


# --- what is read ---------------------------------------------------------------------------------------------------


def test_the_digests_are_those_of_typed_data(parties: Parties) -> None:
    config = parties.config(salt=2**255)
    channel_id = parties.channel_id(config)
    rows = [parties.claim(config, 5, 9), parties.claim(parties.config(), 2**128 - 1)]
    assert parties.call("getChannelId", config).call() == channel_id
    voucher = parties.call("getVoucherDigest", channel_id, 77).call()
    assert signed(PAYER_VOUCHERS, voucher) == parties.voucher(config, 77)
    refund = parties.call("getRefundDigest", channel_id, 3, 77).call()
    assert signed(RECEIVER_CLAIMS, refund) == parties.refund_signature(config, 77, 3)
    batch = parties.call("getClaimBatchDigest", rows).call()
    assert signed(RECEIVER_CLAIMS, batch) == parties.batch(rows)
    domain = parties.call("eip712Domain").call()
    assert domain[:2] == [b"\x0f", "x402 Batch Settlement"] and domain[4] == parties.contracts.hub


def test_the_nodes_abi_is_the_contracts_less_what_only_tests_call() -> None:
    import json
    from importlib.resources import files

    folder = files("meshnode.settlement") / "abi"
    for name, contract in (("hub", "PaymentChannels"), ("collector", "DepositCollector"), ("token", "TestUSDC")):
        ours = json.loads((folder / f"{name}.json").read_text("utf-8"))
        whole = artifact(contract)["abi"]
        left_out = {entry["name"] for entry in whole if entry not in ours}
        assert left_out == ({"mint", "pause", "unpause", "blacklist", "unBlacklist"} if name == "token" else set())
