"""Messages of paid streams and of `pay` streams. How each may be broken: protocol/vectors/messages.json."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.wire.frames import FrameReader, encode_frame
from meshnode.wire.messages import MESSAGES, decode_message, encode_message, message_id
from meshnode.wire.payments import (
    ANSWERS,
    FREE_HEADER,
    FROM_PAYER,
    FROM_PROVIDER,
    PAID_HEADER,
    PAY_ANSWERS,
    PAY_MESSAGES,
    PAY_QUESTIONS,
    ChannelConfig,
    PayAsk,
    PayDue,
    PayHttp,
    PayOpen,
    PayOpened,
    PayQuote,
    PayReceipt,
    PayRefund,
    PayRefunded,
    PayRefused,
    PayStand,
    PayState,
    PayTerms,
    PayVoucher,
    is_paid,
    pieces,
)
from meshnode.wire.registry import (
    LIMIT_FRAME_BYTES,
    LIMIT_MODEL_NAME_CHARS,
    LIMIT_MONEY_MICROS,
    LIMIT_PAY_FRAME_BYTES,
    LIMIT_PAY_HTTP_BYTES,
    LIMIT_PAY_TEXT_CHARS,
    LIMIT_QUOTE_BYTES,
    LIMIT_RECEIPT_BYTES,
    MessageId,
    PayCode,
)
from meshnode.wire.values import WireError, encode
from tests.wire.samples import STEADY, cases, refused

CHANNEL = ChannelConfig(b"p" * 20, b"a" * 20, b"r" * 20, b"c" * 20, b"t" * 20, 86_400, b"s" * 32)
WIDE = "\U0001f600" * LIMIT_MODEL_NAME_CHARS
ALL = [
    PayHttp(b"x", 4096, 17),
    PayAsk("r" * 64, WIDE, 1 << 20, 84532),
    PayAsk("5f0c2a.1", "demo", 0, (1 << 63) - 1, CHANNEL, b"q" * 16),
    PayQuote(b"q" * LIMIT_QUOTE_BYTES),
    PayVoucher(b"h" * 32, LIMIT_MONEY_MICROS, b"v" * 65),
    PayDue(1_200, 1001, 500),
    PayReceipt(b"{" * LIMIT_RECEIPT_BYTES),
    PayRefused(PayCode.NO_VOUCHER, "\u00e9" * LIMIT_PAY_TEXT_CHARS),
    PayTerms(),
    PayTerms(WIDE, 8453),
    PayState(b"h" * 32),
    PayStand(900, 1_200, b"v" * 65, 500_000, 300),
    PayOpen(CHANNEL, 84532, 500_000, 0, (1 << 63) - 1, b"n" * 32, b"v" * 65),
    PayOpened(b"t" * 32),
    PayRefund(b"h" * 32, 7, 250_000, b"v" * 65),
    PayRefunded(b"t" * 32),
]
TABLES = {"payer": FROM_PAYER, "provider": FROM_PROVIDER}


def delivered(header: bytes, data: bytes, sender: str) -> tuple[list[Any], int]:
    """(messages, bytes left) of what one end of an `http` stream has sent; WireError where it may not be."""
    if not is_paid(header):
        raise WireError("not paid")
    reader = FrameReader()
    found = []
    for number, body in reader.feed(data):
        if number % 2 == 0 and number not in TABLES[sender]:
            raise WireError("it has no place here")
        found.append(decode_message(number, body))
    return [message for message in found if message is not None], reader.waiting_bytes


@cases("paid-streams", "valid")
def test_valid(case: dict[str, Any]) -> None:
    messages, left = delivered(bytes.fromhex(case["header"]), bytes.fromhex(case["hex"]), case["from"])
    assert [MessageId(message_id(message)).name.lower() for message in messages] == case["messages"]
    assert b"".join(each.data for each in messages if type(each) is PayHttp).hex() == case["http"]
    assert left == case["left_bytes"]


@cases("paid-streams", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: delivered(bytes.fromhex(case["header"]), bytes.fromhex(case["hex"]), case["from"]))


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_and_is_small(message: object) -> None:
    body = encode_message(message)
    assert decode_message(message_id(message), body) == message
    assert len(body) + 2 <= LIMIT_PAY_FRAME_BYTES, "what a reader of a `pay` stream takes"


def test_each_has_its_place() -> None:
    assert {type(message) for message in ALL} == set(PAY_MESSAGES.values())
    assert PAY_MESSAGES.items() <= MESSAGES.items()
    assert PAY_MESSAGES.keys() == {number for number in MessageId if number.name.startswith("PAY_")}
    assert FROM_PAYER.keys() & FROM_PROVIDER.keys() == {MessageId.PAY_HTTP, MessageId.PAY_REFUSED}
    assert not (FROM_PAYER.keys() | FROM_PROVIDER.keys()) & PAY_QUESTIONS.keys()
    assert set(ANSWERS) == set(PAY_QUESTIONS.values())
    assert {*ANSWERS.values(), PayRefused} == set(PAY_ANSWERS.values())


def test_the_header_says_whether_it_is_paid() -> None:
    assert (is_paid(FREE_HEADER), is_paid(PAID_HEADER)) == (False, True)
    for header in (b"\0", b"\2", b"\1\1", b"\x80"):
        with pytest.raises(WireError):
            is_paid(header)


@STEADY
@given(st.binary(max_size=300), st.integers(0, 3), st.integers(-1, 1))
def test_http_in_pieces_comes_back(data: bytes, times: int, more: int) -> None:
    whole = data + bytes(max(0, times * LIMIT_PAY_HTTP_BYTES + more))
    made = list(pieces(whole))
    assert b"".join(piece.data for piece in made) == whole
    assert all(0 < len(piece.data) <= LIMIT_PAY_HTTP_BYTES for piece in made)
    assert len(made) == -(-len(whole) // LIMIT_PAY_HTTP_BYTES)


def test_the_largest_piece_fits_into_a_frame_and_a_larger_one_is_refused() -> None:
    (piece,) = pieces(b"x" * LIMIT_PAY_HTTP_BYTES)
    counted = dataclasses.replace(piece, tokens_in=(1 << 32) - 1, tokens_out=(1 << 32) - 1)
    frame = encode_frame(message_id(counted), encode_message(counted))
    assert len(frame) <= 4 + LIMIT_FRAME_BYTES
    assert decode_message(MessageId.PAY_HTTP, frame[6:]) == counted
    with pytest.raises(WireError):
        encode_message(PayHttp(b"x" * (LIMIT_PAY_HTTP_BYTES + 1)))
    with pytest.raises(WireError):
        decode_message(MessageId.PAY_HTTP, encode({0: b"x" * (LIMIT_PAY_HTTP_BYTES + 1)}))


@pytest.mark.parametrize("amount", [-1, LIMIT_MONEY_MICROS + 1, 1.0, True, "1", (1 << 64)])
def test_an_amount_that_cannot_be_is_neither_sent_nor_read(amount: Any) -> None:
    with pytest.raises(WireError):
        encode_message(PayVoucher(b"h" * 32, amount, b"v" * 65))
    with pytest.raises(WireError):
        decode_message(
            MessageId.PAY_DUE, encode({0: amount}) if not isinstance(amount, float) else b"\x81\0\xca\0\0\0\0"
        )


@pytest.mark.parametrize("name", ["payer", "payer_authorizer", "receiver", "receiver_authorizer", "token"])
def test_a_channel_of_nobody_is_not_sound(name: str) -> None:
    assert CHANNEL.is_sound
    assert not dataclasses.replace(CHANNEL, **{name: bytes(20)}).is_sound


def test_a_channel_to_oneself_is_not_sound() -> None:
    assert not dataclasses.replace(CHANNEL, receiver=CHANNEL.payer).is_sound
    assert dataclasses.replace(CHANNEL, payer_authorizer=CHANNEL.payer).is_sound


@pytest.mark.parametrize("delay_s", [0, 899, 2_592_001])
def test_a_delay_that_no_contract_takes_is_refused(delay_s: int) -> None:
    with pytest.raises(WireError):
        encode_message(PayAsk("r", "m", 1, 1, dataclasses.replace(CHANNEL, withdraw_delay_s=delay_s)))
