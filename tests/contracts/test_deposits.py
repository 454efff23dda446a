"""Paying in: whose money, into which channel, and what a channel may look like."""

from __future__ import annotations

import pytest
from eth_abi import encode
from web3.logs import DISCARD

from tests.contracts.parties import DAY_S, NOBODY, PAYER, RECEIVER, STRANGER, Parties, reason
from tests.lab.evm import deploy


def test_a_stranger_brings_the_deposit_that_the_payer_signed(parties: Parties) -> None:
    config = parties.config()
    before = parties.contracts.balance(PAYER.address)
    receipt = parties.send(STRANGER, parties.deposit(config, 700))
    assert parties.channel(config) == (700, 0)
    assert parties.contracts.balance(PAYER.address) == before - 700
    assert parties.contracts.balance(parties.contracts.hub) == 700
    assert parties.contracts.balance(parties.contracts.collector) == 0
    events = parties.contracts.channels.events
    (made,) = events.ChannelCreated().process_receipt(receipt, DISCARD)
    (paid,) = events.Deposited().process_receipt(receipt, DISCARD)
    assert made["args"]["channelId"] == paid["args"]["channelId"] == parties.channel_id(config)
    assert tuple(made["args"]["config"].values()) == config
    assert (paid["args"]["sender"], paid["args"]["amount"], paid["args"]["newBalance"]) == (STRANGER.address, 700, 700)


def test_a_channel_is_filled_up_and_announced_once(parties: Parties) -> None:
    config = parties.opened(parties.config(), 100)
    receipt = parties.send(PAYER, parties.deposit(config, 50, salt=2))
    assert parties.channel(config) == (150, 0)
    assert not parties.contracts.channels.events.ChannelCreated().process_receipt(receipt, DISCARD)


@pytest.mark.parametrize(
    "changes",
    [
        {"payer": NOBODY},
        {"receiver": NOBODY},
        {"receiver_authorizer": NOBODY},
        {"token": NOBODY},
        {"delay_s": 15 * 60 - 1},
        {"delay_s": 30 * DAY_S + 1},
    ],
)
def test_no_channel_without_its_parties_or_with_an_odd_delay(parties: Parties, changes: dict[str, object]) -> None:
    config = parties.config(**changes)  # type: ignore[arg-type]
    assert reason(parties.deposit(config, 100, data=b"")) == "InvalidConfig"


@pytest.mark.parametrize("delay_s", [15 * 60, 30 * DAY_S])
def test_the_ends_of_the_range_of_delays_are_in_it(parties: Parties, delay_s: int) -> None:
    assert parties.channel(parties.opened(parties.config(delay_s=delay_s), 5)) == (5, 0)


def test_nothing_is_no_deposit(parties: Parties) -> None:
    assert reason(parties.deposit(parties.config(), 0)) == "InvalidAmount"


def test_an_authorization_pays_once(parties: Parties) -> None:
    config = parties.opened(parties.config(), 100)
    assert reason(parties.deposit(config, 100)) == "FiatTokenV2: authorization is used or canceled"


@pytest.mark.parametrize("other", ["salt", "receiver", "authorizer", "delay"])
def test_an_authorization_funds_its_own_channel_only(parties: Parties, other: str) -> None:
    config = parties.config()
    data = parties.authorization(config, 100)
    elsewhere = {
        "salt": parties.config(salt=7),
        "receiver": parties.config(receiver=STRANGER.address),
        "authorizer": parties.config(payer_authorizer=STRANGER.address),
        "delay": parties.config(delay_s=900),
    }[other]
    assert reason(parties.deposit(elsewhere, 100, data=data)) == "FiatTokenV2: invalid signature"


def test_an_authorization_is_for_its_amount_only(parties: Parties) -> None:
    config = parties.config()
    data = parties.authorization(config, 100)
    assert reason(parties.deposit(config, 101, data=data)) == "FiatTokenV2: invalid signature"
    assert reason(parties.deposit(config, 99, data=data)) == "FiatTokenV2: invalid signature"


def test_only_the_payers_signature_moves_the_payers_money(parties: Parties) -> None:
    config = parties.config()
    data = parties.authorization(config, 100, by=STRANGER)
    assert reason(parties.deposit(config, 100, data=data)) == "FiatTokenV2: invalid signature"


def test_an_authorization_has_its_time(parties: Parties) -> None:
    config = parties.config()
    now = parties.contracts.web3.eth.get_block("latest")["timestamp"]
    early = parties.authorization(config, 100, valid_after=now + 1000)
    late = parties.authorization(config, 100, valid_before=now)
    assert reason(parties.deposit(config, 100, data=early)) == "FiatTokenV2: authorization is not yet valid"
    assert reason(parties.deposit(config, 100, data=late)) == "FiatTokenV2: authorization is expired"


def test_nobody_takes_the_money_on_its_way(parties: Parties) -> None:
    """Neither through the collector, which answers to the hub alone, nor with the signature at the token itself."""
    config = parties.config()
    collector = parties.contracts.web3.eth.contract(
        address=parties.contracts.collector, abi=deploy(parties.contracts.web3, "DepositCollector", NOBODY).abi
    )
    data = parties.authorization(config, 100)
    arguments = (PAYER.address, parties.contracts.token, 100, parties.channel_id(config), data)
    assert reason(collector.functions.collect(*arguments), STRANGER) == "NotTheChannels"
    taken = parties.contracts.usdc.get_function_by_signature(
        "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
    )
    call = taken(PAYER.address, parties.contracts.collector, 100, 0, 2**256 - 1, b"\1" * 32, bytes(65))
    assert reason(call, STRANGER) == "FiatTokenV2: caller must be the payee"


def test_more_than_the_payer_has_is_refused(parties: Parties) -> None:
    config = parties.config(payer=RECEIVER.address)
    data = parties.authorization(config, 1, by=RECEIVER)
    assert reason(parties.deposit(config, 1, data=data)) == "ERC20: transfer amount exceeds balance"


@pytest.mark.parametrize("data", [b"", b"\0" * 95, encode(["uint256"] * 4, [0, 2**256 - 1, 1, 2**255])])
def test_odd_collector_data_is_refused(parties: Parties, data: bytes) -> None:
    assert reason(parties.deposit(parties.config(), 100, data=data)) != ""


def test_a_balance_does_not_overflow(parties: Parties) -> None:
    parties.contracts.fund(PAYER.address, usdc_micros=2**129)
    config = parties.opened(parties.config(), 2**128 - 1)
    assert parties.channel(config) == (2**128 - 1, 0)
    assert reason(parties.deposit(config, 1, salt=2)).startswith("Panic error 0x11")
