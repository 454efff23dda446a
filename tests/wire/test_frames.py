"""Frames and stream headers, whole, byte by byte, and in any pieces."""

import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.wire.frames import (
    HEADER_BYTES,
    FrameReader,
    decode_stream_header,
    encode_frame,
    encode_stream_header,
)
from meshnode.wire.registry import LIMIT_FRAME_BYTES, LIMIT_STREAM_HEADER_BYTES
from meshnode.wire.values import WireError
from tests.wire.samples import STEADY, cases, refused

FRAMES = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=5)


def taken(reader: FrameReader, pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for piece in pieces:
        found += [{"id": number, "hex": body.hex()} for number, body in reader.feed(piece)]
    return found


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@cases("frames", "valid")
def test_valid(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for pieces in ([data], one_by_one(data), [data[:3], b"", data[3:]]):
        reader = FrameReader()
        assert taken(reader, pieces) == case["frames"]
        assert reader.waiting_bytes == case["left_bytes"]


@cases("frames", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    """The frames before the impossible one are still delivered."""
    data = bytes.fromhex(case["hex"])
    for pieces in ([data], one_by_one(data)):
        reader, found = FrameReader(), []

        def all_of_it(reader: FrameReader = reader, pieces: list[bytes] = pieces, found: list[Any] = found) -> None:
            for piece in pieces:
                found += ({"id": number, "hex": body.hex()} for number, body in reader.feed(piece))

        refused(case, all_of_it)
        assert len(found) <= len(case["frames"])
        assert found == case["frames"][: len(found)]


@STEADY
@given(FRAMES, st.lists(st.integers(1, 9), max_size=60))
def test_frames_come_back_in_any_pieces(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(encode_frame(number, body) for number, body in frames)
    reader, found = FrameReader(), []
    for size in cuts:
        found += list(reader.feed(data[:size]))
        data = data[size:]
    found += list(reader.feed(data))
    assert found == frames
    assert reader.waiting_bytes == 0


def test_what_was_not_taken_comes_later() -> None:
    reader = FrameReader()
    reader.feed(encode_frame(6, b"a") + encode_frame(8, b"b"))
    assert next(reader.feed(encode_frame(10, b"c"))) == (6, b"a")
    assert list(reader.feed(b"")) == [(8, b"b"), (10, b"c")]


def test_the_largest_frame() -> None:
    body = bytes(LIMIT_FRAME_BYTES - 2)
    assert list(FrameReader().feed(encode_frame(4, body))) == [(4, body)]
    with pytest.raises(WireError):
        encode_frame(4, body + b"\0")


@pytest.mark.parametrize("number", [-1, 1 << 16])
def test_an_id_has_two_bytes(number: int) -> None:
    with pytest.raises(WireError):
        encode_frame(number, b"")


def test_the_work_is_linear_in_tiny_pieces() -> None:
    """A frame that comes byte by byte costs what its bytes cost: 65536 calls, not 65536 copies of what is held."""
    data = encode_frame(4, bytes(LIMIT_FRAME_BYTES - 2))
    reader = FrameReader()
    began = time.perf_counter()
    assert len(taken(reader, one_by_one(data))) == 1
    assert time.perf_counter() - began < 2.0


def test_no_more_than_a_frame_is_held() -> None:
    reader = FrameReader()
    list(reader.feed(encode_frame(4, bytes(60_000)) * 5 + b"\0\0"))
    assert reader.waiting_bytes == 2
    list(reader.feed(b"\0"))
    assert reader.waiting_bytes == 3


# --- stream headers -----------------------------------------------------------------------------------------------


@cases("stream-headers", "valid")
def test_valid_headers(case: dict[str, Any]) -> None:
    begin = bytes.fromhex(case["hex"])
    assert decode_stream_header(begin) == (case["type"], case["header_bytes"])
    assert encode_stream_header(case["type"], bytes(case["header_bytes"]))[:HEADER_BYTES] == begin


@cases("stream-headers", "invalid")
def test_invalid_headers(case: dict[str, Any]) -> None:
    begin = bytes.fromhex(case["hex"])[:HEADER_BYTES]
    refused(case, lambda: decode_stream_header(begin))


def test_the_writer_keeps_to_the_limits() -> None:
    with pytest.raises(WireError):
        encode_stream_header(2, bytes(LIMIT_STREAM_HEADER_BYTES + 1))
    with pytest.raises(WireError):
        encode_stream_header(256, b"")
