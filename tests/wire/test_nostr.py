"""Nostr events: what is read, what is refused, the id against the library that has the curve, work."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.wire.nostr import MAX_TAG_CHARS, MAX_TAGS, Event, event_id, leading_zero_bits, read_event, to_json
from meshnode.wire.registry import LIMIT_LISTING_BYTES
from meshnode.wire.values import WireError
from tests.wire.listing_samples import BITS, NOW_S, changed, event, listing
from tests.wire.samples import STEADY

GOOD = event(listing())


def with_tags(*tags: list[str], id: str = "00" * 32) -> Event:
    return read_event(changed(GOOD, tags=list(tags), id=id))


def test_an_event_comes_back() -> None:
    found = read_event(GOOD)
    assert to_json(found) == GOOD
    assert found.values("t") == ("meshnode", "meshnode-v1")
    assert found.expires_at == NOW_S + 180
    assert found.work_bits == BITS


@pytest.mark.parametrize(
    "members",
    [
        {"id": GOOD["id"][:-1]},
        {"id": GOOD["id"].upper()},
        {"id": None},
        {"pubkey": 7},
        {"sig": "zz" * 64},
        {"sig": " " + "0" * 127},
        {"created_at": -1},
        {"created_at": 1 << 63},
        {"created_at": 1.5},
        {"created_at": True},
        {"created_at": str(NOW_S)},
        {"kind": 1 << 16},
        {"tags": None},
        {"tags": {}},
        {"tags": [[]]},
        {"tags": ["d"]},
        {"tags": [["d", 1]]},
        {"tags": [["d", "x" * (MAX_TAG_CHARS + 1)]]},
        {"tags": [["d"] * 9]},
        {"tags": [["d", "x"]] * (MAX_TAGS + 1)},
        {"content": None},
        {"content": {}},
    ],
    ids=lambda members: str(members)[:40],
)
def test_what_is_no_event(members: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        read_event(changed(GOOD, **members))


@pytest.mark.parametrize("raw", [None, [], "x", 7, {}, {"id": GOOD["id"]}], ids=repr)
def test_what_is_nothing_like_one(raw: Any) -> None:
    with pytest.raises(WireError):
        read_event(raw)


def test_a_long_content_is_not_kept() -> None:
    assert len(read_event(changed(GOOD, content="x" * 100_000)).content) == LIMIT_LISTING_BYTES + 1


@pytest.mark.parametrize("content", ['{"a":"\u00fc\\n"}', '\u20ac\U0001f640 " \\ / \n \r \t \b \f', "\x7f\u2028", ""])
def test_the_id_is_that_of_another_implementation(content: str) -> None:
    keys = nostr_sdk.Keys.generate()
    made = nostr_sdk.EventBuilder(nostr_sdk.Kind(30078), content).tags([nostr_sdk.Tag.parse(["d", content[:3] or "x"])])
    found = read_event(json.loads(made.finalize(keys).as_json()))
    assert event_id(found.publisher, found.created_at, found.kind, found.tags, found.content) == found.id


@STEADY
@given(st.binary(min_size=32, max_size=32))
def test_zero_bits_are_those_before_the_first_one(data: bytes) -> None:
    bits = "".join(f"{byte:08b}" for byte in data)
    assert leading_zero_bits(data) == len(bits) - len(bits.lstrip("0"))


def test_zero_bits_of_nothing_else() -> None:
    assert leading_zero_bits(bytes(32)) == 256
    assert leading_zero_bits(hashlib.sha256(b"").digest()) == 0


@pytest.mark.parametrize(
    ("tags", "bits"),
    [
        ([["nonce", "1", "16"]], 16),
        ([["nonce", "1", "300"]], 256),
        ([["nonce", "1"]], 0),
        ([], 0),
        ([["nonce", "1", "16"], ["nonce", "2", "20"]], 0),
        ([["nonce", "1", "-16"]], 0),
        ([["nonce", "1", "16.0"]], 0),
        ([["nonce", "1", "1000"]], 0),
        ([["nonce", "1", "\u0661\u0666"]], 0),
    ],
)
def test_work_is_what_was_aimed_at(tags: list[list[str]], bits: int) -> None:
    assert with_tags(*tags).work_bits == bits


def test_luck_is_no_work() -> None:
    assert with_tags(["nonce", "1", "8"]).work_bits == 8
    assert with_tags(["nonce", "1", "8"], id="01" + "00" * 31).work_bits == 7


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "\u0661", "1" * 13])
def test_an_expiration_is_a_number(value: str) -> None:
    assert with_tags(["expiration", value]).expires_at is None
    assert with_tags(["expiration"]).expires_at is None
    assert with_tags(["expiration", "5"], ["expiration", "6"]).expires_at is None
