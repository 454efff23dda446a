"""The token of the tests does as USDC does, as far as payments touch it: these are the answers of the genuine one."""

from __future__ import annotations

from typing import Any

import pytest
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from web3.contract.contract import ContractFunction

from tests.contracts.parties import (
    FOREVER,
    PAYER,
    RECEIVER,
    STRANGER,
    Parties,
    reason,
    signed,
    typed_hash,
)
from tests.lab.evm import deploy

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
NONCE = b"\7" * 32
AUTHORIZED = "address,address,uint256,uint256,uint256,bytes32"


def _order(parties: Parties, kind: str, to: str, **changes: Any) -> tuple[dict[str, Any], bytes]:
    message = {
        "from": PAYER.address,
        "to": to,
        "value": 500,
        "validAfter": 0,
        "validBefore": FOREVER,
        "nonce": NONCE,
        **changes,
    }
    return message, signed(PAYER, typed_hash(parties.token_domain, kind, message))


def _call(
    parties: Parties, name: str, types: str, arguments: list[Any], signature: bytes, split: bool
) -> ContractFunction:
    """A call in one of the two forms: the signature in one piece, or as v, r and s."""
    parts = [signature[64], signature[:32], signature[32:64]] if split else [signature]
    form = "uint8,bytes32,bytes32" if split else "bytes"
    function: ContractFunction = parties.contracts.usdc.get_function_by_signature(f"{name}({types},{form})")
    return function(*arguments, *parts)


FORMS = pytest.mark.parametrize("split", [False, True], ids=["bytes", "vrs"])


@FORMS
@pytest.mark.parametrize(
    ("name", "by"), [("transferWithAuthorization", STRANGER), ("receiveWithAuthorization", RECEIVER)]
)
def test_money_moves_by_signature_once(parties: Parties, name: str, by: LocalAccount, split: bool) -> None:
    message, signature = _order(parties, name[0].upper() + name[1:], RECEIVER.address)
    call = _call(parties, name, AUTHORIZED, list(message.values()), signature, split)
    parties.send(by, call)
    assert parties.contracts.balance(RECEIVER.address) == 500
    assert parties.contracts.usdc.functions.authorizationState(PAYER.address, NONCE).call() is True
    assert reason(call, by) == "FiatTokenV2: authorization is used or canceled"


def test_only_the_payee_receives(parties: Parties) -> None:
    message, signature = _order(parties, "ReceiveWithAuthorization", RECEIVER.address)
    call = _call(parties, "receiveWithAuthorization", AUTHORIZED, list(message.values()), signature, False)
    assert reason(call, STRANGER) == "FiatTokenV2: caller must be the payee"


def test_the_two_kinds_are_not_one_another(parties: Parties) -> None:
    message, signature = _order(parties, "ReceiveWithAuthorization", RECEIVER.address)
    call = _call(parties, "transferWithAuthorization", AUTHORIZED, list(message.values()), signature, False)
    assert reason(call, RECEIVER) == "FiatTokenV2: invalid signature"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, s, v: (r, ORDER - s, 55 - v), "ECRecover: invalid signature 's' value"),
        (lambda r, s, v: (r, s, v - 27), "ECRecover: invalid signature 'v' value"),
        (lambda r, s, v: (r, s, 55 - v), "FiatTokenV2: invalid signature"),
        (lambda r, s, v: (r, s + 1, v), "FiatTokenV2: invalid signature"),
    ],
    ids=["high-s", "v-0-or-1", "v-other", "s-other"],
)
def test_a_signature_has_one_form(parties: Parties, change: Any, words: str) -> None:
    message, signature = _order(parties, "TransferWithAuthorization", RECEIVER.address)
    parts = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    r, s, v = change(*parts)
    damaged = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([v])
    call = _call(parties, "transferWithAuthorization", AUTHORIZED, list(message.values()), damaged, False)
    assert reason(call) == words


@pytest.mark.parametrize("name", ["USD Coin", "USDCoin", "usdc"])
def test_another_name_is_another_domain(parties: Parties, name: str) -> None:
    message, _ = _order(parties, "TransferWithAuthorization", RECEIVER.address)
    digest = typed_hash({**parties.token_domain, "name": name}, "TransferWithAuthorization", message)
    call = _call(parties, "transferWithAuthorization", AUTHORIZED, list(message.values()), signed(PAYER, digest), False)
    assert reason(call) == "FiatTokenV2: invalid signature"


def test_times_are_strict(parties: Parties) -> None:
    parties.travel(10)
    now = parties.contracts.web3.eth.get_block("latest")["timestamp"]
    times = {(now - 1, now + 1): "", (now, now + 1): "not yet valid", (now - 1, now): "expired"}
    for (after, before), words in times.items():
        message, signature = _order(
            parties, "TransferWithAuthorization", RECEIVER.address, validAfter=after, validBefore=before
        )
        call = _call(parties, "transferWithAuthorization", AUTHORIZED, list(message.values()), signature, False)
        assert reason(call).endswith(words) and bool(reason(call)) == bool(words)


@FORMS
def test_an_authorization_is_canceled_by_its_author(parties: Parties, split: bool) -> None:
    message = {"authorizer": PAYER.address, "nonce": NONCE}
    signature = signed(PAYER, typed_hash(parties.token_domain, "CancelAuthorization", message))
    call = _call(parties, "cancelAuthorization", "address,bytes32", list(message.values()), signature, split)
    forged = signed(STRANGER, typed_hash(parties.token_domain, "CancelAuthorization", message))
    other = _call(parties, "cancelAuthorization", "address,bytes32", list(message.values()), forged, split)
    assert reason(other) == "FiatTokenV2: invalid signature"
    parties.send(STRANGER, call)
    order, signature = _order(parties, "TransferWithAuthorization", RECEIVER.address)
    late = _call(parties, "transferWithAuthorization", AUTHORIZED, list(order.values()), signature, False)
    assert reason(late) == reason(call) == "FiatTokenV2: authorization is used or canceled"


@FORMS
def test_an_allowance_by_signature(parties: Parties, split: bool) -> None:
    usdc = parties.contracts.usdc.functions
    message = {"owner": PAYER.address, "spender": STRANGER.address, "value": 300, "nonce": 0, "deadline": FOREVER}
    signature = signed(PAYER, typed_hash(parties.token_domain, "Permit", message))
    arguments = [PAYER.address, STRANGER.address, 300, FOREVER]
    call = _call(parties, "permit", "address,address,uint256,uint256", arguments, signature, split)
    parties.send(RECEIVER, call)
    assert reason(call) == "FiatTokenV2: invalid signature"
    parties.send(STRANGER, usdc.transferFrom(PAYER.address, RECEIVER.address, 200))
    assert parties.contracts.balance(RECEIVER.address) == 200
    over = usdc.transferFrom(PAYER.address, RECEIVER.address, 101)
    assert reason(over) == "ERC20: transfer amount exceeds allowance"
    late = _call(parties, "permit", "address,address,uint256,uint256", [*arguments[:3], 1], signature, split)
    assert reason(late) == "FiatTokenV2: permit is expired"


def test_plain_transfers(parties: Parties) -> None:
    usdc = parties.contracts.usdc.functions
    parties.send(PAYER, usdc.transfer(RECEIVER.address, 5))
    parties.send(PAYER, usdc.approve(STRANGER.address, 7))
    parties.send(STRANGER, usdc.transferFrom(PAYER.address, RECEIVER.address, 7))
    assert parties.contracts.balance(RECEIVER.address) == 12
    assert reason(usdc.transfer(PAYER.address, 13), RECEIVER) == "ERC20: transfer amount exceeds balance"
    assert reason(usdc.transfer("0x" + "00" * 20, 1), RECEIVER) == "ERC20: transfer to the zero address"


def test_an_account_with_code_signs_by_its_code(parties: Parties) -> None:
    wallet = deploy(parties.contracts.web3, "SignatureWallet", PAYER.address)
    parties.contracts.fund(wallet.address, usdc_micros=1000)
    message, signature = _order(
        parties, "TransferWithAuthorization", RECEIVER.address, **{"from": wallet.address, "value": 1000}
    )
    forged = signed(STRANGER, typed_hash(parties.token_domain, "TransferWithAuthorization", message))
    for each, words in ((forged, "FiatTokenV2: invalid signature"), (signature, "")):
        call = _call(parties, "transferWithAuthorization", AUTHORIZED, list(message.values()), each, False)
        assert reason(call) == words
    parties.send(STRANGER, wallet.functions.setBroken())
    assert reason(call) == "FiatTokenV2: invalid signature"


def test_the_domain_is_that_of_version_two(parties: Parties) -> None:
    usdc = parties.contracts.usdc.functions
    assert (usdc.name().call(), usdc.version().call(), usdc.decimals().call()) == ("USDC", "2", 6)
    whole = encode_typed_data(parties.token_domain, {"Empty": []}, {})
    assert usdc.DOMAIN_SEPARATOR().call() == whole.header


def test_paused_and_blacklisted(parties: Parties) -> None:
    usdc = parties.contracts.usdc.functions
    message, signature = _order(parties, "TransferWithAuthorization", RECEIVER.address)
    by_signature = _call(parties, "transferWithAuthorization", AUTHORIZED, list(message.values()), signature, False)
    plain = usdc.transfer(RECEIVER.address, 1)
    parties.send(STRANGER, usdc.pause())
    assert reason(plain, PAYER) == reason(by_signature) == "Pausable: paused"
    parties.send(STRANGER, usdc.unpause())
    for account in (PAYER.address, RECEIVER.address):
        parties.send(STRANGER, usdc.blacklist(account))
        assert reason(plain, PAYER) == reason(by_signature) == "Blacklistable: account is blacklisted"
        parties.send(STRANGER, usdc.unBlacklist(account))
    assert reason(plain, PAYER) == reason(by_signature) == ""
