"""Messages: the vectors, round trips of every message, ids."""

from typing import Any

import pytest
from hypothesis import given, settings

from meshnode.wire.frames import FrameReader, encode_frame
from meshnode.wire.messages import DIGEST_BYTES, MESSAGES, Digest, IHave, decode_message, encode_message, message_id
from meshnode.wire.registry import LIMIT_FRAME_BYTES, LIMIT_IHAVE_IDS, Close, MessageId
from meshnode.wire.values import WireError, decode
from tests.wire.samples import STEADY, cases, mutations, refused, shapes, vectors
from tests.wire.test_values import shown

SEEDS: dict[int, list[bytes]] = {}
for found in vectors("messages")["valid"]:
    SEEDS.setdefault(found["id"], []).append(bytes.fromhex(found["body"]))


@cases("messages", "valid")
def test_valid(case: dict[str, Any]) -> None:
    body = bytes.fromhex(case["body"])
    message = decode_message(case["id"], body)
    assert shown(decode(body, limit_bytes=len(body))) == case["value"]
    if case["message"] is None:
        assert message is None
        return
    assert type(message) is MESSAGES[case["id"]]
    assert message_id(message) == case["id"] == MessageId[case["message"].upper()]
    assert decode_message(case["id"], encode_message(message)) == message


@cases("messages", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: decode_message(case["id"], bytes.fromhex(case["body"])))


@pytest.mark.parametrize("number", MESSAGES, ids=lambda number: MessageId(number).name)
def test_a_message_comes_back(number: int) -> None:
    @settings(STEADY, max_examples=20)
    @given(shapes(MESSAGES[number]))
    def comes_back(message: Any) -> None:
        frame = encode_frame(message_id(message), encode_message(message))
        ((given_id, body),) = FrameReader().feed(frame)
        assert decode_message(given_id, body) == message

    comes_back()


@pytest.mark.parametrize("number", MESSAGES, ids=lambda number: MessageId(number).name)
def test_any_bytes_are_a_message_or_refused(number: int) -> None:
    @settings(STEADY, max_examples=30)
    @given(mutations(SEEDS[number]))
    def refused_or_read(body: bytes) -> None:
        try:
            message = decode_message(number, body)
        except WireError as error:
            assert error.code is Close.PROTOCOL_ERROR
        else:
            assert type(message) is MESSAGES[number]

    refused_or_read()


def test_every_message_has_a_number_and_vectors() -> None:
    assert set(MESSAGES) == set(MessageId)
    assert set(SEEDS) >= set(MessageId)


def test_the_largest_messages_fit_into_a_frame() -> None:
    most = IHave(tuple(number.to_bytes(10, "big") for number in range(LIMIT_IHAVE_IDS)))
    for message in (most, Digest(bytes(DIGEST_BYTES))):
        assert len(encode_message(message)) <= LIMIT_FRAME_BYTES - 2
    assert decode_message(MessageId.IHAVE, encode_message(most)) == most
    with pytest.raises(WireError):
        encode_message(IHave((*most.ids, bytes(10))))
