"""Receipts: the vectors, what comes back, one form only, sums that cannot be, and no change that goes unnoticed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.identity import verify
from meshnode.wire.receipts import FINISHES, Receipt, most_micros, read, read_genuine, write
from meshnode.wire.registry import LIMIT_MONEY_MICROS, LIMIT_PRICE_MICROS, LIMIT_RECEIPT_BYTES
from meshnode.wire.values import WireError
from tests.wire.samples import STEADY, Signer, can_be_shown, cases, mutations, refused, vectors

ALICE, BOB = Signer.named("alice"), Signer.named("bob")
RECEIPT = Receipt(
    request="5f0c2a.1",
    quote=b"q" * 16,
    node=ALICE.node,
    model="qwen3-8b",
    content_hash=b"h" * 16,
    payer=b"p" * 20,
    channel=b"c" * 32,
    chain=84532,
    hub=b"H" * 20,
    price_in=200_000,
    price_out=600_000,
    tokens_in=1001,
    tokens_out=500,
    charged_micros=501,
    channel_charged_micros=1701,
    finish="stop",
    output_sha256=b"o" * 32,
    at=1_800_000_000,
)
SEEDS = [case["text"].encode() for case in vectors("receipts")["valid"]]
TEXTS = st.text(min_size=1, max_size=64).filter(can_be_shown)
U32 = st.integers(0, (1 << 32) - 1)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    """Receipts whose sums can be."""
    prices = draw(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
    tokens = draw(st.tuples(U32, U32))
    charged = draw(st.integers(0, most_micros(*prices, *tokens)))
    return Receipt(
        request=draw(TEXTS),
        quote=draw(st.binary(min_size=16, max_size=16)),
        node=ALICE.node,
        model=draw(TEXTS),
        content_hash=draw(st.binary(min_size=16, max_size=16)),
        payer=draw(st.binary(min_size=20, max_size=20)),
        channel=draw(st.binary(min_size=32, max_size=32)),
        chain=draw(st.integers(0, (1 << 63) - 1)),
        hub=draw(st.binary(min_size=20, max_size=20)),
        price_in=prices[0],
        price_out=prices[1],
        tokens_in=tokens[0],
        tokens_out=tokens[1],
        charged_micros=charged,
        channel_charged_micros=draw(st.integers(charged, LIMIT_MONEY_MICROS)),
        finish=draw(st.sampled_from(FINISHES)),
        output_sha256=draw(st.binary(min_size=32, max_size=32)),
        at=draw(st.integers(0, (1 << 63) - 1)),
    )


@cases("receipts", "valid")
def test_valid(case: dict[str, Any]) -> None:
    found = read_genuine(case["text"].encode(), verify)
    said = case["receipt"]
    for name, value in dataclasses.asdict(found).items():
        shown = value.hex() if isinstance(value, bytes) else str(value)
        assert said[name].removeprefix("0x") == shown, name


@cases("receipts", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: read_genuine(case["text"].encode("utf-8", "surrogatepass"), verify))


@STEADY
@given(receipts())
def test_a_receipt_comes_back_in_one_form(receipt: Receipt) -> None:
    text = write(receipt, ALICE.sign)
    assert read(text) == read_genuine(text, verify) == receipt
    plain = json.loads(text)
    assert list(plain) == sorted(plain) and all(type(value) is str for value in plain.values())
    assert len(text) <= LIMIT_RECEIPT_BYTES
    assert write(receipt, ALICE.sign) == text


@STEADY
@given(mutations(SEEDS))
def test_no_change_is_accepted(data: bytes) -> None:
    try:
        read_genuine(data, verify)
    except WireError:
        return
    assert data in SEEDS


@STEADY
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        read_genuine(data, verify)


@pytest.mark.parametrize(
    "changes",
    [
        {"charged_micros": 502},
        {"channel_charged_micros": 500},
        {"charged_micros": -1},
        {"price_in": LIMIT_PRICE_MICROS + 1},
        {"tokens_out": 1 << 32},
        {"finish": "gone"},
        {"request": ""},
        {"model": "a\nb"},
        {"quote": b""},
        {"payer": b"p" * 32},
    ],
    ids=str,
)
def test_what_no_reader_would_take_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        write(dataclasses.replace(RECEIPT, **changes), ALICE.sign)


@pytest.mark.parametrize(
    ("prices", "tokens", "micros"),
    [
        ((200_000, 600_000), (0, 0), 0),
        ((200_000, 600_000), (1, 0), 1),
        ((200_000, 600_000), (5, 0), 1),
        ((200_000, 600_000), (5, 1), 2),
        ((200_000, 600_000), (1001, 500), 501),
        ((0, 0), (1 << 31, 1 << 31), 0),
        ((1, 0), (1_000_000, 0), 1),
        ((1, 0), (1_000_001, 0), 2),
    ],
)
def test_what_tokens_cost(prices: tuple[int, int], tokens: tuple[int, int], micros: int) -> None:
    assert most_micros(*prices, *tokens) == micros


def test_it_names_the_key_that_counts() -> None:
    """A receipt by another key is a right receipt of another node: whose it is, the reader compares."""
    other = dataclasses.replace(RECEIPT, node=BOB.node)
    assert read_genuine(write(other, BOB.sign), verify).node == BOB.node
    with pytest.raises(WireError, match="forged"):
        read_genuine(write(other, ALICE.sign), verify)


def test_it_tells_nothing_but_what_it_must() -> None:
    assert set(json.loads(write(RECEIPT, ALICE.sign))) == {item.name for item in dataclasses.fields(Receipt)} | {
        "v",
        "sig",
    }
