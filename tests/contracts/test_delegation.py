"""Accounts that delegate to code (EIP-7702) while channels are open: what still counts and what no longer does."""

from __future__ import annotations

from eth_account.signers.local import LocalAccount

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
)
from tests.lab.evm import artifact, deploy

SET_CODE = 4


def _delegate(parties: Parties, who: LocalAccount, to: str) -> bytes:
    """Have an account delegate to code (to nobody: no longer); the code that it has then. A stranger brings it."""
    web3 = parties.contracts.web3
    nonce = web3.eth.get_transaction_count(who.address)
    permission = who.sign_authorization({"chainId": web3.eth.chain_id, "address": to, "nonce": nonce})
    asked = {
        "type": SET_CODE,
        "chainId": web3.eth.chain_id,
        "nonce": web3.eth.get_transaction_count(STRANGER.address),
        "to": STRANGER.address,
        "value": 0,
        "data": "0x",
        "gas": 200_000,
        "maxFeePerGas": 20 * 10**9,
        "maxPriorityFeePerGas": 10**9,
        "authorizationList": [permission],
    }
    sent = web3.eth.send_raw_transaction(STRANGER.sign_transaction(asked).raw_transaction)
    assert web3.eth.wait_for_transaction_receipt(sent)["status"] == 1
    return bytes(web3.eth.get_code(who.address))


def _code(parties: Parties) -> str:
    return str(deploy(parties.contracts.web3, "Delegate").address)


def test_a_payer_that_delegates_pays_nothing_in_by_signature(parties: Parties) -> None:
    """What must be looked for before a payer is asked to sign: if it has code, its signature is worthless."""
    at = _code(parties)
    assert _delegate(parties, PAYER, at) == b"\xef\x01\x00" + bytes.fromhex(at[2:])
    assert reason(parties.deposit(parties.config(), 100)) == "FiatTokenV2: invalid signature"
    assert _delegate(parties, PAYER, NOBODY) == b""
    assert reason(parties.deposit(parties.config(), 100)) == ""


def test_channels_of_a_payer_that_delegates_later_stay_good(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    _delegate(parties, PAYER, _code(parties))
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 400)]))
    parties.send(RECEIVER, parties.call("refund", config, 600))
    assert parties.channel(config) == (400, 400)


def test_a_voucher_key_counts_by_signature_whatever_its_account_delegates_to(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    _delegate(parties, PAYER_VOUCHERS, _code(parties))
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 400)]))
    assert parties.channel(config) == (1000, 400)


def test_without_a_voucher_key_a_payer_can_take_its_vouchers_back_by_delegating(parties: Parties) -> None:
    """Why a channel is only taken with a voucher key: checks on this machine stay true on the chain."""
    config = parties.opened(parties.config(payer_authorizer=NOBODY), 1000)
    row = parties.claim(config, 400, signature=parties.voucher(config, 400, PAYER))
    assert reason(parties.call("claim", [row]), RECEIVER) == ""
    _delegate(parties, PAYER, _code(parties))
    assert reason(parties.call("claim", [row]), RECEIVER) == "InvalidSignature"


def test_an_authorizer_that_delegates_still_claims_itself(parties: Parties) -> None:
    config = parties.opened(parties.config(), 1000)
    rows = [parties.claim(config, 400)]
    _delegate(parties, RECEIVER_CLAIMS, _code(parties))
    assert reason(parties.call("claimWithSignature", rows, parties.batch(rows))) == "InvalidSignature"
    parties.send(RECEIVER_CLAIMS, parties.call("claim", rows))
    assert parties.channel(config) == (1000, 400)


def test_a_token_that_is_gone_has_not_paid(parties: Parties) -> None:
    """A call to an account without code succeeds and answers nothing, as a silent token does."""
    web3 = parties.contracts.web3
    token = account("a token by delegation")
    _delegate(parties, token, deploy(web3, "ReentrantToken").address)
    there = web3.eth.contract(address=token.address, abi=artifact("ReentrantToken")["abi"])
    parties.send(STRANGER, there.functions.mint(PAYER.address, 1000))
    config = parties.opened(parties.config(token=token.address), 1000)
    parties.send(RECEIVER, parties.call("claim", [parties.claim(config, 400)]))
    settle = parties.call("settle", RECEIVER.address, token.address)
    assert reason(settle) == ""
    assert _delegate(parties, token, NOBODY) == b""
    assert reason(settle) == "TransferFailed"
