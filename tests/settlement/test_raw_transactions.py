from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.settlement.addresses import shown
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.raw_transactions import signed

SECRET = b"\x17" * 32
FIELDS: dict[str, Any] = {
    "chainId": 84532,
    "nonce": 3,
    "maxPriorityFeePerGas": 1_000_000,
    "maxFeePerGas": 12_000_000,
    "gas": 140_117,
    "to": b"\x33" * 20,
    "value": 0,
    "data": b"\x12\x34\x56\x78" + bytes(96),
}


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "chainId": st.integers(1, 2**53),
            "nonce": st.integers(0, 2**53),
            "maxPriorityFeePerGas": st.integers(0, 2**60),
            "maxFeePerGas": st.integers(0, 2**60),
            "gas": st.integers(21_000, 2**40),
            "to": st.binary(min_size=20, max_size=20),
            "value": st.integers(0, 2**90),
            "data": st.binary(max_size=300),
        }
    )
)
def test_the_bytes_are_those_of_eth_account(fields: dict[str, Any]) -> None:
    theirs = Account.sign_transaction({**fields, "to": shown(fields["to"]), "type": 2}, SECRET)
    ours = signed(VoucherKey.from_secret(SECRET), fields)
    assert ours.raw == bytes(theirs.raw_transaction)
    assert ours.hash == bytes(theirs.hash)


def test_the_sender_can_be_found() -> None:
    key = VoucherKey.from_secret(SECRET)
    assert Account.recover_transaction(signed(key, FIELDS).raw) == shown(key.address)


@pytest.mark.parametrize(
    "change",
    [
        {"to": b""},
        {"to": bytes(32)},
        {"nonce": -1},
        {"nonce": 2**63},
        {"gas": 2**63},
        {"value": 2**256},
        {"maxFeePerGas": 2**256},
        {"accessList": []},
        {"gasPrice": 1},
    ],
)
def test_fields_that_are_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        signed(VoucherKey.from_secret(SECRET), {**FIELDS, **change})


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_are_missing(name: str) -> None:
    with pytest.raises(ValueError, match="not the fields"):
        signed(VoucherKey.from_secret(SECRET), {key: value for key, value in FIELDS.items() if key != name})
