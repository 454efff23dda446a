"""Questions about open meshes, and their answers, as bytes."""

from __future__ import annotations

import dataclasses

import pytest

from meshnode.wire.address import Address
from meshnode.wire.inquiry import Inquiry, Prospect
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.registry import (
    LIMIT_FRAME_BYTES,
    LIMIT_PROSPECT_STATEMENTS,
    LIMIT_STATEMENT_BYTES,
    VERSION,
    MessageId,
    Role,
)
from meshnode.wire.values import WireError, encode

MESH = b"m" * 32
PROSPECT = Prospect(VERSION, MESH, "meshnode", True, True, 7, 2, (b"s" * 200, b"t" * 200), Address("192.0.2.1", 9338))


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (Inquiry(VERSION), MessageId.INQUIRY),
        (Inquiry(VERSION, MESH, Role.CLIENT), MessageId.INQUIRY),
        (PROSPECT, MessageId.PROSPECT),
        (Prospect(VERSION, MESH), MessageId.PROSPECT),
    ],
)
def test_there_and_back(message: Inquiry | Prospect, number: int) -> None:
    assert message_id(message) == number
    assert decode_message(number, encode_message(message)) == message


def test_what_is_not_said_takes_no_room() -> None:
    assert Inquiry(VERSION).role == Role.MEMBER
    assert len(encode_message(Inquiry(VERSION))) < 8


def test_the_largest_answer_fits_into_a_frame() -> None:
    statements = tuple(bytes([number]) * LIMIT_STATEMENT_BYTES for number in range(LIMIT_PROSPECT_STATEMENTS))
    largest = dataclasses.replace(PROSPECT, name="n" * 40, nodes=(1 << 32) - 1, statements=statements)
    assert len(encode_message(largest)) < LIMIT_FRAME_BYTES


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {0: VERSION, 2: b"m" * 31},
        {0: VERSION, 2: MESH, 3: 9},
        {0: VERSION, 2: MESH, 4: 1},
        {0: "1"},
    ],
)
def test_a_question_that_cannot_be_read(plain: dict[int, object]) -> None:
    with pytest.raises(WireError):
        decode_message(MessageId.INQUIRY, encode(plain))


@pytest.mark.parametrize(
    "plain",
    [
        {0: VERSION},
        {0: VERSION, 2: b""},
        {0: VERSION, 2: MESH, 4: "a\u0000b"},
        {0: VERSION, 2: MESH, 6: 1},
        {0: VERSION, 2: MESH, 10: -1},
        {0: VERSION, 2: MESH, 14: [b"s"] * (LIMIT_PROSPECT_STATEMENTS + 1)},
        {0: VERSION, 2: MESH, 14: [b"s" * (LIMIT_STATEMENT_BYTES + 1)]},
        {0: VERSION, 2: MESH, 15: b"\0" * 6},
    ],
)
def test_an_answer_that_cannot_be_read(plain: dict[int, object]) -> None:
    with pytest.raises(WireError):
        decode_message(MessageId.PROSPECT, encode(plain))
