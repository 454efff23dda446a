"""The shapes of x402: what is read of a stranger's header, and what its clients read of ours."""

from __future__ import annotations

import base64
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    decode_payment_signature_header,
)
from x402.mechanisms.evm.batch_settlement import errors
from x402.mechanisms.evm.batch_settlement.types import (
    ChannelStateExtra,
    DepositPayload,
    PaymentRequirementsExtra,
    VoucherPayload,
    VoucherStateExtra,
)
from x402.schemas import PaymentRequired

from meshnode.api import x402
from meshnode.api.x402 import Offer, Payment, Terms, objection, read_payment
from meshnode.core.prices import Price
from meshnode.errors import BadRequest
from meshnode.wire.payments import ChannelConfig, PayStand, PayVoucher
from meshnode.wire.registry import LIMIT_MONEY_MICROS, PayCode

PAYER, AUTHORIZER, RECEIVER, CLAIMS, TOKEN = (bytes([number]) * 20 for number in range(1, 6))
SALT, CHANNEL, SIGNATURE = b"\x0a" * 32, b"\x0b" * 32, b"\x0c" * 65
TERMS = Terms(84532, TOKEN, "USDC", "2", RECEIVER, CLAIMS, 86_400, 100_000)
OFFER = Offer("demo", Price(200_000, 600_000), 100, 50, 50)
ADDRESSES = {
    "payer": PAYER,
    "payerAuthorizer": AUTHORIZER,
    "receiver": RECEIVER,
    "receiverAuthorizer": CLAIMS,
    "token": TOKEN,
}


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"


def _sent(*, deposit: bool = False) -> dict[str, Any]:
    """What a client sends for OFFER."""
    accepted = x402.required("", "http://localhost/", TERMS, OFFER)["accepts"][0]  # type: ignore[index]
    payload: dict[str, Any] = {
        "type": "deposit" if deposit else "voucher",
        "channelConfig": {name: _hex(address) for name, address in ADDRESSES.items()}
        | {"withdrawDelay": 86_400, "salt": _hex(SALT)},
        "voucher": {"channelId": _hex(CHANNEL), "maxClaimableAmount": "50", "signature": _hex(SIGNATURE)},
    }
    if deposit:
        authorization = {
            "validAfter": "0",
            "validBefore": "1800000000",
            "salt": _hex(SALT),
            "signature": _hex(SIGNATURE),
        }
        payload["deposit"] = {"amount": "100000", "authorization": {"erc3009Authorization": authorization}}
    return {"x402Version": 2, "accepted": accepted, "payload": payload}


def _read(value: object) -> Payment:
    return read_payment(base64.b64encode(json.dumps(value).encode()))


PAYMENT = _read(_sent())


# --- what comes -------------------------------------------------------------------------------------------------------


def test_a_voucher_and_a_deposit_are_read() -> None:
    config = ChannelConfig(PAYER, AUTHORIZER, RECEIVER, CLAIMS, TOKEN, 86_400, SALT)
    assert Payment("eip155:84532", TOKEN, RECEIVER, 50, config, PayVoucher(CHANNEL, 50, SIGNATURE)) == PAYMENT
    opening = _read(_sent(deposit=True)).opening(84532)
    assert (opening.channel, opening.chain, opening.amount) == (config, 84532, 100_000)
    assert (opening.valid_after, opening.valid_before, opening.salt) == (0, 1_800_000_000, SALT)
    assert opening.signature == SIGNATURE
    assert objection(PAYMENT, TERMS, 50) == ""


def test_the_types_of_the_reference_read_the_same() -> None:
    """Its own parsers take what ours take, so the member names here are not made up."""
    for deposit, kind in ((False, VoucherPayload), (True, DepositPayload)):
        sent = _sent(deposit=deposit)
        theirs = decode_payment_signature_header(x402.header(sent))
        assert kind.from_dict(theirs.payload).to_dict() == sent["payload"]


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"A", b"====", b"e30", b"e30=", b"W10=", b"bnVsbA==", b"\xff\xfe", b"e30=\x00", b"e3 0="),
        base64.b64encode(b'{"x402Version":2,"x402Version":2}'),
        base64.b64encode(b'{"x402Version":NaN}'),
        base64.b64encode(b'{"x402Version":' + b"9" * 4400 + b"}"),
        base64.b64encode(b"[" * 6000),
        base64.b64encode(b'{"a":' * 1200),
        base64.b64encode(json.dumps(_sent()).encode()) + b" " * x402.MOST_HEADER_BYTES,
        base64.urlsafe_b64encode(b"\xfb\xff" * 30),
    ],
)
def test_what_is_no_object_in_base64_is_refused(header: bytes) -> None:
    with pytest.raises(BadRequest, match="PAYMENT-SIGNATURE"):
        read_payment(header)


WHOLE = json.dumps(_sent())


@pytest.mark.parametrize(
    "text",
    [
        WHOLE.replace('"amount"', '"amount": "50", "amount"'),
        WHOLE.replace('"salt"', '"salt": "0x", "salt"'),
        WHOLE.replace('"x402Version": 2', '"x402Version": 2, "more": NaN'),
        WHOLE.replace('"x402Version": 2', '"x402Version": 2, "more": Infinity'),
        WHOLE.replace('"x402Version": 2', '"x402Version": 2, "more": 1' + "0" * 4400),
        WHOLE + "{}",
    ],
)
def test_what_two_readers_could_take_for_two_things_is_refused(text: str) -> None:
    assert text != WHOLE
    with pytest.raises(BadRequest, match="base64"):
        read_payment(base64.b64encode(text.encode()))


def test_deep_json_fails_in_words() -> None:
    deep = WHOLE.replace('"x402Version": 2', '"x402Version": 2, "more": ' + "[" * 1500 + "]" * 1500)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # that of the interpreter: packages of the tests have raised it
    try:
        with pytest.raises(BadRequest, match="base64"):
            read_payment(base64.b64encode(deep.encode()))
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("junk", [b"!", b" ", b"\n", b"-", b"_", b"=", b"\xff"])
def test_base64_has_no_other_characters_in_it(junk: bytes) -> None:
    right = base64.b64encode(WHOLE.encode())
    assert read_payment(right) == PAYMENT
    with pytest.raises(BadRequest, match="base64"):
        read_payment(right[:40] + junk + right[40:])


def _paths(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, name)
            yield from _paths(inner, (*path, name))


READ = [
    path
    for path in _paths(_sent(deposit=True))
    if path[:2] != ("accepted", "extra") and path != ("accepted", "maxTimeoutSeconds")
]
"""All that is read of a payment."""


def _with(path: tuple[str, ...], value: object) -> dict[str, Any]:
    sent = copy.deepcopy(_sent(deposit=True))
    at = sent
    for name in path[:-1]:
        at = at[name]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return sent


@pytest.mark.parametrize("path", READ, ids=".".join)
@pytest.mark.parametrize("value", [..., None, True, -1, 2.0, "", "x", "0x", [], {}, "0" * 200])
def test_no_member_may_be_missing_or_of_another_kind(path: tuple[str, ...], value: object) -> None:
    with pytest.raises(BadRequest, match="PAYMENT-SIGNATURE"):
        _read(_with(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("x402Version", 1),
        ("accepted.scheme", "exact"),
        ("accepted.network", "base-sepolia"),
        ("accepted.network", "eip155:0"),
        ("accepted.network", "eip155:84532 "),
        ("accepted.network", "solana:84532"),
        ("accepted.amount", "1.5"),
        ("accepted.amount", "01"),
        ("accepted.amount", "+1"),
        ("accepted.amount", " 1"),
        ("accepted.amount", "١"),
        ("accepted.amount", str(LIMIT_MONEY_MICROS + 1)),
        ("accepted.asset", _hex(TOKEN) + "00"),
        ("accepted.asset", TOKEN.hex()),
        ("accepted.asset", _hex(TOKEN)[:-1] + "g"),
        ("accepted.asset", _hex(TOKEN) + "\n"),
        ("payload.type", "refund"),
        ("payload.type", "claim"),
        ("payload.channelConfig.withdrawDelay", 899),
        ("payload.channelConfig.withdrawDelay", 2_592_001),
        ("payload.channelConfig.withdrawDelay", "86400"),
        ("payload.voucher.maxClaimableAmount", 50),
        ("payload.voucher.signature", _hex(SIGNATURE[:-1])),
        ("payload.deposit.authorization", {"permit2Authorization": {}}),
        ("payload.deposit.authorization.erc3009Authorization.validBefore", str(2**63)),
    ],
)
def test_values_out_of_their_form_are_refused(path: str, value: object) -> None:
    with pytest.raises(BadRequest, match="PAYMENT-SIGNATURE"):
        _read(_with(tuple(path.split(".")), value))


def test_hex_digits_may_be_in_capitals_and_unknown_members_are_passed_over() -> None:
    sent = _sent()
    sent["accepted"]["asset"] = "0x" + TOKEN.hex().upper()
    sent["payload"]["more"] = sent["accepted"]["more"] = sent["extensions"] = {"a": [1.5]}
    assert _read(sent) == PAYMENT


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: base64.b64encode(text.encode())))
def test_no_bytes_do_anything_but_fail_in_words(header: bytes) -> None:
    with pytest.raises(BadRequest):
        read_payment(header)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(path=st.sampled_from(READ), value=JSON)
def test_whatever_stands_in_a_member_it_is_read_or_refused(path: tuple[str, ...], value: object) -> None:
    try:
        found = _read(_with(path, value))
    except BadRequest:
        return
    assert 0 <= found.amount <= LIMIT_MONEY_MICROS and 0 <= found.voucher.cumulative <= LIMIT_MONEY_MICROS
    assert len(found.voucher.signature) == 65 and len(found.config.salt) == 32


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"network": "eip155:8453"}, x402.WRONG_NETWORK),
        ({"asset": PAYER}, x402.WRONG_TOKEN),
        ({"pay_to": PAYER}, x402.WRONG_RECEIVER),
        ({"amount": 49}, x402.OTHER_TERMS),
        ({"amount": 51}, x402.OTHER_TERMS),
        ({"config": replace(PAYMENT.config, token=PAYER)}, x402.WRONG_TOKEN),
        ({"config": replace(PAYMENT.config, receiver=PAYER)}, x402.WRONG_RECEIVER),
        ({"config": replace(PAYMENT.config, receiver_authorizer=PAYER)}, x402.WRONG_AUTHORIZER),
        ({"config": replace(PAYMENT.config, withdraw_delay_s=86_399)}, x402.WRONG_DELAY),
        ({"config": replace(PAYMENT.config, withdraw_delay_s=86_401)}, ""),
        ({"config": replace(PAYMENT.config, payer=RECEIVER)}, x402.WRONG_PAYLOAD),
        ({"config": replace(PAYMENT.config, payer_authorizer=bytes(20))}, x402.WRONG_PAYLOAD),
    ],
)
def test_a_payment_on_other_terms_is_objected_to(changes: dict[str, Any], why: str) -> None:
    assert objection(replace(PAYMENT, **changes), TERMS, 50) == why


def test_payers_have_ids_that_no_node_has_and_that_show_their_address() -> None:
    name = x402.payer_id(AUTHORIZER)
    assert len(name) == 32 and name.startswith(b"x402\0\0") and name.endswith(AUTHORIZER)


# --- what goes --------------------------------------------------------------------------------------------------------

STAND = PayStand(charged=70, vouched=120, signature=SIGNATURE, balance=1000, claimed=30)


def test_clients_read_what_a_request_costs() -> None:
    said = decode_payment_required_header(x402.header(x402.required(x402.WANTED, "http://n/v1/x", TERMS, OFFER)))
    assert isinstance(said, PaymentRequired) and said.error == x402.WANTED
    assert said.resource is not None and said.resource.url == "http://n/v1/x"
    [asked] = said.accepts
    assert (asked.scheme, asked.network, asked.amount) == ("batch-settlement", "eip155:84532", "50")
    assert (asked.asset, asked.pay_to) == (_hex(TOKEN), _hex(RECEIVER)) and asked.max_timeout_seconds == 900
    extra = PaymentRequirementsExtra.from_dict(asked.extra)
    assert (extra.receiver_authorizer, extra.withdraw_delay) == (_hex(CLAIMS), 86_400)
    assert (extra.name, extra.version, extra.asset_transfer_method) == ("USDC", "2", "eip3009")
    assert extra.min_deposit == "100000" and extra.channel_state is None and extra.voucher_state is None


def test_a_deposit_holds_one_request_at_least() -> None:
    dear = replace(OFFER, amount=7_000_000)
    extra = x402.required("", "", TERMS, dear)["accepts"][0]["extra"]  # type: ignore[index]
    assert extra["minDeposit"] == "7000000"


def test_clients_read_how_their_channel_stands() -> None:
    wanted = x402.required(x402.WRONG_AMOUNT, "", TERMS, OFFER, STAND, CHANNEL)
    said = decode_payment_required_header(x402.header(wanted))
    assert isinstance(said, PaymentRequired)
    extra = PaymentRequirementsExtra.from_dict(said.accepts[0].extra)
    assert extra.channel_state == ChannelStateExtra(_hex(CHANNEL), "1000", "30", charged_cumulative_amount="70")
    assert extra.voucher_state == VoucherStateExtra("120", _hex(SIGNATURE))
    fresh = x402.required(x402.WRONG_AMOUNT, "", TERMS, OFFER, PayStand(balance=9), CHANNEL)
    assert "voucherState" not in fresh["accepts"][0]["extra"]  # type: ignore[index]


def test_clients_read_what_a_request_came_to() -> None:
    said = decode_payment_response_header(
        x402.header(x402.settled(PAYMENT, STAND, charged=12, total=82, receipt=b'{"v":"1"}'))
    )
    assert said.success and (said.network, said.transaction, said.payer) == ("eip155:84532", "", _hex(PAYER))
    assert said.extra is not None and said.extra["chargedAmount"] == "12"
    assert ChannelStateExtra.from_dict(said.extra["channelState"]).charged_cumulative_amount == "82"
    deposit = _read(_sent(deposit=True))
    said = decode_payment_response_header(x402.header(x402.settled(deposit, None, transaction=SALT)))
    assert (said.transaction, said.amount) == (_hex(SALT), "100000")
    assert said.extra == {"channelState": {"channelId": _hex(CHANNEL)}}, "what is not known is not said"


def test_reasons_are_those_of_the_scheme() -> None:
    theirs = {value for name, value in vars(errors).items() if name.startswith("ERR_")}
    ours = {value for name, value in vars(x402).items() if name.startswith(("WRONG_", "TOO_", "SMALL_", "BUSY"))}
    assert ours <= theirs and len(ours) == 12
    assert x402.WRONG_AMOUNT == errors.ERR_CUMULATIVE_AMOUNT_MISMATCH, "clients act upon this one"
    for code in PayCode:
        reason = x402.reason_of(code)
        assert reason in theirs if reason.startswith("invalid_") else " " in reason
    assert x402.reason_of(200)
