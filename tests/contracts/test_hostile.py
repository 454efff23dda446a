"""Tokens, collectors and moments that are against the channels: reentrancy, short deposits, pause and blacklist."""

from __future__ import annotations

from typing import Any

import pytest
from web3.contract import Contract

from tests.contracts.parties import (
    DAY_S,
    PAYER,
    RECEIVER,
    STRANGER,
    Config,
    Parties,
    account,
    error_name,
    reason,
)
from tests.lab.evm import deploy

OWNER = account("owner of a token")


class Trap:
    """A channel of a hostile token that is payer, receiver and authorizer of its own: nothing is refused to it as a
    stranger, so that only the guard against calls from inside is left.
    """

    def __init__(self, parties: Parties) -> None:
        self.parties = parties
        self.hub = parties.contracts.channels
        self.token = deploy(parties.contracts.web3, "ReentrantToken")
        at = self.token.address
        self.config = parties.config(payer=at, receiver=at, receiver_authorizer=OWNER.address, token=at)
        parties.send(STRANGER, self.token.functions.mint(at, 10_000))
        self.data = parties.authorization(self.config, 1)
        parties.send(STRANGER, parties.deposit(self.config, 1000, data=self.data))
        parties.send(STRANGER, self.told("claim", [parties.claim(self.config, 100)]))
        parties.send(STRANGER, self.told("initiateWithdraw", self.config, 50))
        parties.travel(DAY_S)

    def told(self, name: str, *arguments: Any) -> Any:
        """The token itself makes a call to the hub."""
        return self.token.functions.call(self.hub.address, self.hub.encode_abi(name, list(arguments)))

    def calls(self) -> dict[str, tuple[str, list[Any]]]:
        """Every call that changes state, each such that it goes through when it is made from outside."""
        config, parties = self.config, self.parties
        rows = [parties.claim(config, 200)]
        return {
            "deposit": ("deposit", [config, 5, parties.contracts.collector, self.data]),
            "claim": ("claim", [rows]),
            "claimWithSignature": ("claimWithSignature", [rows, parties.batch(rows, OWNER)]),
            "settle": ("settle", [self.token.address, self.token.address]),
            "refund": ("refund", [config, 5]),
            "refundWithSignature": (
                "refundWithSignature",
                [config, 5, 0, parties.refund_signature(config, 5, 0, OWNER)],
            ),
            "finalizeWithdraw": ("finalizeWithdraw", [config]),
            "multicall": ("multicall", [[self.hub.encode_abi("settle", [self.token.address] * 2)]]),
        }


OUTER = ("deposit", "settle", "refund", "refundWithSignature", "finalizeWithdraw", "multicall")
"""The calls in which the hub lets a token run."""


@pytest.mark.parametrize("outer", OUTER)
def test_nothing_is_called_from_inside(parties: Parties, outer: str) -> None:
    trap = Trap(parties)
    calls = trap.calls()
    for inner, (name, arguments) in calls.items():
        alone = trap.told(name, *arguments)
        assert alone.call() is True, f"{inner} alone must go through for this to say anything"
        parties.send(STRANGER, trap.token.functions.arm(trap.hub.address, trap.hub.encode_abi(name, arguments)))
        tester = parties.contracts.web3.provider.ethereum_tester  # type: ignore[attr-defined]
        before = tester.take_snapshot()
        parties.send(STRANGER, trap.told(calls[outer][0], *calls[outer][1]))
        assert trap.token.functions.tried().call() > 0
        assert trap.token.functions.succeeded().call() is False, f"{inner} inside of {outer}"
        assert error_name(trap.hub.abi, trap.token.functions.words().call()) == "Busy"
        tester.revert_to_snapshot(before)


def test_an_exit_is_not_started_from_inside_either(parties: Parties) -> None:
    trap = Trap(parties)
    parties.send(STRANGER, trap.told("finalizeWithdraw", trap.config))
    armed = trap.hub.encode_abi("initiateWithdraw", [trap.config, 5])
    assert trap.told("initiateWithdraw", trap.config, 5).call() is True
    parties.send(STRANGER, trap.token.functions.arm(trap.hub.address, armed))
    parties.send(STRANGER, trap.told("refund", trap.config, 5))
    assert error_name(trap.hub.abi, trap.token.functions.words().call()) == "Busy"


def _hostile(parties: Parties, extra: int, target: str = "", data: str = "0x") -> tuple[Config, Contract]:
    collector = deploy(parties.contracts.web3, "HostileCollector")
    parties.contracts.fund(collector.address, usdc_micros=10_000)
    at = target or parties.contracts.hub
    parties.send(STRANGER, collector.functions.arm(extra, at, data))
    return parties.config(), collector


@pytest.mark.parametrize(("extra", "why"), [(0, ""), (-1, "DepositNotReceived"), (1, "DepositNotReceived")])
def test_a_deposit_is_what_arrives(parties: Parties, extra: int, why: str) -> None:
    config, collector = _hostile(parties, extra)
    call = parties.call("deposit", config, 100, collector.address, b"")
    assert reason(call) == why


def test_a_collector_does_not_count_one_payment_twice(parties: Parties) -> None:
    hub = parties.contracts.channels
    config = parties.config(salt=3)
    honest = [config, 100, parties.contracts.collector, parties.authorization(config, 100)]
    _, collector = _hostile(parties, 0, hub.address, hub.encode_abi("deposit", honest))
    parties.send(STRANGER, parties.call("deposit", parties.config(), 100, collector.address, b""))
    assert collector.functions.succeeded().call() is False
    assert error_name(hub.abi, collector.functions.words().call()) == "Busy"
    assert parties.contracts.balance(parties.contracts.hub) == 100
    assert parties.channel(config) == (0, 0)


@pytest.mark.parametrize("collector", ["hub", "token", "nobody"])
def test_what_is_no_collector_collects_nothing(parties: Parties, collector: str) -> None:
    parties.contracts.fund(parties.contracts.hub, usdc_micros=1000)
    at = {"hub": parties.contracts.hub, "token": parties.contracts.token, "nobody": STRANGER.address}[collector]
    assert reason(parties.call("deposit", parties.config(), 100, at, b"")) != ""


def test_a_token_may_be_silent_but_not_refuse(parties: Parties) -> None:
    trap = Trap(parties)
    settle = parties.call("settle", trap.token.address, trap.token.address)
    parties.send(STRANGER, trap.token.functions.setManners(True, False))
    assert reason(settle) == "TransferFailed"
    parties.send(STRANGER, trap.token.functions.setManners(False, True))
    parties.send(STRANGER, settle)
    assert parties.call("receivers", trap.token.address, trap.token.address).call() == [100, 100]


def test_a_token_of_no_worth_moves_no_other(parties: Parties) -> None:
    """Money of one token never pays what another token's channels owe."""
    parties.opened(parties.config(), 1000)
    trap = Trap(parties)
    before = parties.contracts.balance(parties.contracts.hub)
    for name in ("settle", "refund"):
        parties.send(STRANGER, trap.told(name, *trap.calls()[name][1]))
    assert parties.contracts.balance(parties.contracts.hub) == before == 1000


# --- pause and blacklist --------------------------------------------------------------------------------------------


def test_while_the_token_is_paused_nothing_is_lost(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    parties.send(PAYER, parties.call("initiateWithdraw", config, 500))
    parties.send(STRANGER, parties.contracts.usdc.functions.pause())
    # Claiming moves no money, so it goes on: an exit cannot outrun it.
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 600)]))
    parties.travel(DAY_S)
    moves = {
        "deposit": (parties.deposit(config, 5, salt=9), STRANGER),
        "settle": (parties.call("settle", RECEIVER.address, parties.contracts.token), STRANGER),
        "refund": (parties.call("refund", config, 5), RECEIVER),
        "finalizeWithdraw": (parties.call("finalizeWithdraw", config), PAYER),
    }
    assert {name: reason(*move) for name, move in moves.items()} == dict.fromkeys(moves, "Pausable: paused")
    parties.send(STRANGER, parties.contracts.usdc.functions.unpause())
    before = parties.contracts.balance(PAYER.address)
    parties.send(PAYER, moves["finalizeWithdraw"][0])
    parties.send(STRANGER, moves["settle"][0])
    assert parties.contracts.balance(PAYER.address) == before + 400
    assert parties.contracts.balance(RECEIVER.address) == 600


def test_a_blacklisted_payer_pays_nothing_in_and_gets_nothing_out_but_owes(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    parties.send(STRANGER, parties.contracts.usdc.functions.blacklist(PAYER.address))
    words = "Blacklistable: account is blacklisted"
    assert reason(parties.deposit(config, 5, salt=2)) == words
    assert reason(parties.call("refund", config, 5), RECEIVER) == words
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 600)]))
    parties.send(STRANGER, parties.call("settle", RECEIVER.address, parties.contracts.token))
    assert parties.contracts.balance(RECEIVER.address) == 600


def test_a_blacklisted_receiver_keeps_its_claims_for_later(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    usdc = parties.contracts.usdc.functions
    parties.send(STRANGER, usdc.blacklist(RECEIVER.address))
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 600)]))
    settle = parties.call("settle", RECEIVER.address, parties.contracts.token)
    assert reason(settle) == "Blacklistable: account is blacklisted"
    parties.send(STRANGER, usdc.unBlacklist(RECEIVER.address))
    parties.send(STRANGER, settle)
    assert parties.contracts.balance(RECEIVER.address) == 600


def test_a_blacklisted_hub_stands_still_and_goes_on(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    usdc = parties.contracts.usdc.functions
    parties.send(STRANGER, usdc.blacklist(parties.contracts.hub))
    assert reason(parties.deposit(config, 5, salt=2)) == "Blacklistable: account is blacklisted"
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 600)]))
    parties.send(STRANGER, usdc.unBlacklist(parties.contracts.hub))
    parties.send(RECEIVER, parties.call("refund", config, 400))
    assert parties.channel(config) == (600, 600)
