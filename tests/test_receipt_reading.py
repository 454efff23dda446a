"""Receipts from outside: one, many, forged, and text that is none."""

from __future__ import annotations

import json
import random

import pytest

from meshnode import identity
from meshnode.errors import ReceiptInvalid
from meshnode.receipt_reading import MOST_RECEIPTS, judged, verify
from meshnode.wire import receipts
from meshnode.wire.receipts import Receipt

PROVIDER = identity.ephemeral()


def a_receipt(number: int = 1, **values: object) -> bytes:
    """A receipt as its provider signed it."""
    facts = {
        "request": f"req_{number}",
        "quote": bytes([number % 256]) * 16,
        "node": PROVIDER.node_id,
        "model": "qwen",
        "content_hash": b"h" * 16,
        "payer": b"p" * 20,
        "channel": b"c" * 32,
        "chain": 84532,
        "hub": b"u" * 20,
        "price_in": 200_000,
        "price_out": 600_000,
        "tokens_in": 50,
        "tokens_out": 100,
        "charged_micros": 70,
        "channel_charged_micros": 70 * number,
        "finish": "stop",
        "output_sha256": b"o" * 32,
        "at": 1_790_000_000 + number,
    }
    return receipts.write(Receipt(**{**facts, **values}), PROVIDER.sign)  # type: ignore[arg-type]


def test_a_genuine_one_says_what_it_says() -> None:
    facts = verify(a_receipt())
    assert facts["node"] == PROVIDER.node_id.hex() and facts["charged_micros"] == 70
    assert (facts["payer"], facts["hub"], facts["channel"]) == (f"0x{'70' * 20}", f"0x{'75' * 20}", f"0x{'63' * 32}")
    json.dumps(facts)


def test_no_byte_of_it_can_be_changed() -> None:
    text, chance = a_receipt(), random.Random(7)
    for at in sorted(chance.sample(range(len(text)), 200)):
        for other in {text[at] ^ 1, text[at] ^ 0x20, ord("0")} - {text[at]}:
            with pytest.raises(ReceiptInvalid):
                verify(text[:at] + bytes([other]) + text[at + 1 :])


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b"null", b"[" * 100_000, b'{"signed": 1}', b"x" * 5000])
def test_what_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(ReceiptInvalid):
        verify(text)


@pytest.mark.parametrize("form", ["lines", "listed"])
def test_each_is_judged_by_itself(form: str) -> None:
    good, other = a_receipt(1), a_receipt(3)
    forged = a_receipt(2).replace(b'"tokens_out":"100"', b'"tokens_out":"101"')
    if form == "lines":
        text = b"\n".join([good, b"", forged, other + b"\r"])
    else:
        signed = [{"request": "any", "signed": each.decode()} for each in (good, forged, other)]
        text = json.dumps({"schema": 1, "receipts": signed}).encode()
    found = list(judged(text))
    assert [(each.number, each.facts is not None) for each in found] == [(1, True), (2, False), (3, True)]
    assert found[1].fault and found[1].as_dict()["genuine"] is False and not found[0].fault


@pytest.mark.parametrize("text", [b"", b" \n\n ", b"\n" * 5])
def test_a_text_without_any_says_so(text: bytes) -> None:
    with pytest.raises(ReceiptInvalid, match="there is no receipt in it"):
        list(judged(text))


def test_a_list_may_be_empty() -> None:
    assert list(judged(b'{"schema": 1, "receipts": []}')) == []


@pytest.mark.parametrize(
    "text",
    [
        b'{"receipts": [{"signed": 7}]}',
        b'{"receipts": 7, "signed": 1}',
        b'{"receipts": [{"signed": "\\ud800"}]}',
        b'"signed"',
        b'{"receipts": ' + b"[" * 5000,
    ],
)
def test_a_list_that_is_damaged_is_not_genuine(text: bytes) -> None:
    assert all(each.facts is None for each in judged(text))


def test_there_is_a_most() -> None:
    with pytest.raises(ReceiptInvalid, match="more than"):
        list(judged(b"x\n" * (MOST_RECEIPTS + 1)))
