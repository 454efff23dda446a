"""Quotes: the vectors, what comes back, what contradicts itself, whom and what they are for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given

from meshnode.identity import verify
from meshnode.wire import schema
from meshnode.wire.quotes import Quote, expect, is_timely, issue, read, read_genuine
from meshnode.wire.registry import LIMIT_CLOCK_SKEW_S, LIMIT_QUOTE_BYTES, LIMIT_QUOTE_TTL_S
from meshnode.wire.values import WireError
from tests.wire.samples import STEADY, Signer, cases, mutations, refused, shapes, vectors
from tests.wire.test_values import shown

NOW_S = 1_800_000_000
ALICE, BOB = Signer.named("alice"), Signer.named("bob")
QUOTE = Quote(
    id=b"q" * 16,
    node=ALICE.node,
    model="qwen3-8b",
    content_hash=b"h" * 16,
    price_in=200_000,
    price_out=600_000,
    every_tokens=32,
    ahead_tokens=64,
    credit_tokens=0,
    unpaid_prefill_tokens=2048,
    not_after=NOW_S + LIMIT_QUOTE_TTL_S,
    chain=84532,
    hub=b"H" * 20,
    token=b"T" * 20,
    receiver=b"R" * 20,
    receiver_authorizer=b"A" * 20,
    withdraw_delay_s=86_400,
    min_deposit=500_000,
)
USED: dict[str, Any] = {"channel": b"c" * 32, "charged": 1_200, "vouched": 1_214, "signature": b"v" * 65}
SEEDS = [bytes.fromhex(case["hex"]) for case in vectors("quotes")["valid"]]


def genuine(case: dict[str, Any]) -> Quote:
    return read_genuine(bytes.fromhex(case["hex"]), node=bytes.fromhex(case["node"]), verify=verify)


@cases("quotes", "valid")
def test_valid(case: dict[str, Any]) -> None:
    quote = genuine(case)
    known = {key for key, _ in case["value"]["map"]} - {43, 253}
    assert {key: shown(value) for key, value in schema.pack(quote).items()} == {
        key: value for key, value in case["value"]["map"] if key in known
    }
    assert is_timely(quote, case["now_s"])


@cases("quotes", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: genuine(case))


def mended(quote: Quote) -> Quote:
    """The nearest quote by Alice that does not contradict itself."""
    places = {name: b"\1" + getattr(quote, name)[1:] for name in ("hub", "token", "receiver", "receiver_authorizer")}
    if not quote.model or not quote.content_hash:
        places |= {"model": "", "content_hash": b"", "price_in": 0, "price_out": 0}
    if not quote.channel or not quote.vouched or not quote.signature:
        places |= {"vouched": 0, "signature": b""}
    if not quote.channel:
        places["charged"] = 0
    every = min(quote.every_tokens, quote.ahead_tokens)
    return dataclasses.replace(quote, node=ALICE.node, chain=quote.chain or 1, every_tokens=every, **places)


@STEADY
@given(shapes(Quote).map(mended))
def test_what_does_not_contradict_itself_comes_back(quote: Quote) -> None:
    signed = issue(quote, ALICE.sign)
    assert read(signed) == read_genuine(signed, node=ALICE.node, verify=verify) == quote


@STEADY
@given(shapes(Quote))
def test_what_is_issued_can_be_read(quote: Quote) -> None:
    try:
        signed = issue(quote, ALICE.sign)
    except WireError:
        assert mended(quote) != dataclasses.replace(quote, node=ALICE.node)
    else:
        assert read(signed) == quote


@STEADY
@given(mutations(SEEDS))
def test_no_change_is_accepted(data: bytes) -> None:
    for case in vectors("quotes")["valid"][:5]:
        try:
            read_genuine(data, node=bytes.fromhex(case["node"]), verify=verify)
        except WireError:
            continue
        assert data in SEEDS


def test_the_longest_that_can_be_said_fits() -> None:
    most = {"price_in": 10**12, "price_out": 10**12, "not_after": (1 << 63) - 1, "chain": (1 << 63) - 1}
    longest = dataclasses.replace(
        QUOTE,
        model="\U0001f600" * 64,
        every_tokens=256,
        ahead_tokens=256,
        credit_tokens=64,
        unpaid_prefill_tokens=(1 << 32) - 1,
        min_deposit=10**15,
        withdraw_delay_s=2_592_000,
        **most,
        **(USED | {"charged": 10**15, "vouched": 10**15}),
    )
    signed = issue(longest, ALICE.sign)
    assert read(signed) == longest
    assert len(signed) < LIMIT_QUOTE_BYTES - 50, "room for hints of later versions"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"content_hash": b""}, "the hash of its weights"),
        ({"model": ""}, "the hash of its weights"),
        ({"model": "", "content_hash": b""}, "a price of nothing"),
        ({"every_tokens": 65}, "stand still"),
        ({"chain": 0}, "whom to pay where"),
        ({"receiver": bytes(20)}, "whom to pay where"),
        ({"charged": 1}, "no channel"),
        (USED | {"signature": b""}, "with its signature"),
        (USED | {"vouched": 0}, "with its signature"),
    ],
)
def test_what_contradicts_itself_is_neither_issued_nor_read(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(WireError, match=words):
        issue(dataclasses.replace(QUOTE, **changes), ALICE.sign)


def test_credit_does_not_make_up_for_rare_vouchers() -> None:
    """A payer that signs for less than it has received would ask for credit that nobody has to give."""
    with pytest.raises(WireError, match="stand still"):
        issue(dataclasses.replace(QUOTE, every_tokens=96, credit_tokens=64), ALICE.sign)


def test_the_signature_is_asked_for_once_and_last() -> None:
    asked = []

    def counted(key: bytes, signature: bytes, message: bytes) -> bool:
        asked.append(key)
        return verify(key, signature, message)

    signed = issue(QUOTE, ALICE.sign)
    with pytest.raises(WireError, match="another node"):
        read_genuine(signed, node=BOB.node, verify=counted)
    assert asked == []
    with pytest.raises(WireError, match="forged"):
        read_genuine(issue(QUOTE, BOB.sign), node=ALICE.node, verify=counted)
    assert read_genuine(signed, node=ALICE.node, verify=counted) == QUOTE
    assert asked == [ALICE.node, ALICE.node]


def test_its_time() -> None:
    assert is_timely(QUOTE, QUOTE.not_after + LIMIT_CLOCK_SKEW_S)
    assert not is_timely(QUOTE, QUOTE.not_after + LIMIT_CLOCK_SKEW_S + 0.5)


def test_what_it_is_for() -> None:
    right: dict[str, Any] = {"model": QUOTE.model, "content_hash": QUOTE.content_hash, "chain": 84532, "channel": b""}
    expect(QUOTE, **right)
    expect(QUOTE, **(right | {"content_hash": b""}))
    for changes, words in (
        ({"model": "qwen3-80b"}, "another model"),
        ({"content_hash": bytes(16)}, "another model"),
        ({"chain": 8453}, "another chain"),
        ({"channel": b"c" * 32}, "another channel"),
    ):
        with pytest.raises(WireError, match=words):
            expect(QUOTE, **(right | changes))
    with pytest.raises(WireError, match="another channel"):
        expect(dataclasses.replace(QUOTE, **USED), **right)
