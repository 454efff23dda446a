"""Shapes of `relay` and `punch` streams. How each may be broken: protocol/vectors/messages.json."""

import re
from pathlib import Path

import pytest

from meshnode.wire.address import Address
from meshnode.wire.messages import MESSAGES, decode_message, encode_message, message_id
from meshnode.wire.registry import LIMIT_CANDIDATES, LIMIT_LEASE_TEXT_CHARS, RELAY_TEXTS, MessageId, Nat, RelayCode
from meshnode.wire.traversal import (
    PUNCH_MESSAGES,
    RELAY_MESSAGES,
    TRAVERSAL_MESSAGES,
    PunchAnswer,
    PunchDone,
    PunchOffer,
    RelayConnect,
    RelayEnd,
    RelayFlow,
    RelayRefused,
    RelayReserve,
    RelayReserved,
)
from meshnode.wire.values import WireError, encode

HERE = Address("11.7.1.1", 9337)
LONG = (Address("2a00::ffff:1", 65535),) * LIMIT_CANDIDATES
ALL = [
    RelayReserve(),
    RelayReserved(HERE, 16, 2_000_000),
    RelayConnect(b"n" * 32),
    RelayFlow(b"n" * 32, b"f" * 8),
    RelayFlow(b"n" * 32, b"f" * 8, HERE),
    RelayRefused(RelayCode.QUOTA, "\u00e9" * LIMIT_LEASE_TEXT_CHARS),
    RelayEnd(RelayCode.LEAVING),
    PunchOffer(b"x" * 16, LONG, Nat.SYMMETRIC, True),
    PunchAnswer((), Nat.CONE, True, True),
    PunchDone(True),
]


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_and_is_small(message: object) -> None:
    body = encode_message(message)
    assert decode_message(message_id(message), body) == message
    assert len(body) < 1000, "what mesh/message_stream.py reads"


def test_the_two_kinds_of_streams_share_no_message() -> None:
    assert not RELAY_MESSAGES.keys() & PUNCH_MESSAGES.keys()
    assert {type(message) for message in ALL} == set(TRAVERSAL_MESSAGES.values())
    assert TRAVERSAL_MESSAGES.items() <= MESSAGES.items()


@pytest.mark.parametrize("host", ["e00000fb2479", "000000002479", "ffffffff2479", "0a0000010000"])
def test_a_candidate_that_is_no_node_cannot_be_named(host: str) -> None:
    with pytest.raises(WireError):
        decode_message(MessageId.PUNCH_OFFER, encode({0: b"x" * 16, 2: [bytes.fromhex(host)]}))


def test_the_document_names_every_code() -> None:
    document = Path(__file__).parents[2] / "protocol" / "14-traversal.md"
    text = document.read_text("utf-8")
    for code in RelayCode:
        assert f"| {int(code)} | `{code.name.lower()}` | {RELAY_TEXTS[code]} |" in text
    for nat in Nat:
        assert re.search(rf"^\| {int(nat)} \| `{nat.name.lower()}` \|", text, re.MULTILINE)
