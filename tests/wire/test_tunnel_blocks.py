import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.wire.tunnel_blocks import (
    MOST_BLOCK_BYTES,
    MOST_PUSH_BYTES,
    WHOLE_BLOCK_BYTES,
    Block,
    BlockReader,
    Option,
    PushFlag,
    PushReader,
    base_block,
    block,
    bytes_block,
    failed_block,
    generation_block,
    options_block,
    push_head,
    read_base,
    read_failed,
    read_generation,
    read_options,
)
from meshnode.wire.values import WireError
from tests.wire.samples import STEADY, cases, refused


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@cases("tunnel-blocks", "valid")
def test_valid_blocks(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for pieces in ([data], one_by_one(data), [data[:3], b"", data[3:]]):
        reader = BlockReader()
        found = [each for piece in pieces for each in reader.feed(piece)]
        assert [{"kind": kind, "hex": body.hex()} for kind, body in found] == case["blocks"]
        assert reader.waiting_bytes == case["left_bytes"]


@cases("tunnel-blocks", "invalid")
def test_invalid_blocks(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for pieces in ([data], one_by_one(data)):
        reader = BlockReader()
        refused(case, lambda reader=reader, pieces=pieces: [reader.feed(piece) for piece in pieces])  # type: ignore[misc]


@STEADY
@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=5), st.integers(1, 4000))
def test_pieces_of_blocks_make_no_difference(bodies: list[bytes], size: int) -> None:
    data = b"".join(block(Block.BYTES, body) for body in bodies)
    reader = BlockReader()
    found = [each for at in range(0, len(data), size) for each in reader.feed(data[at : at + size])]
    assert found == [(Block.BYTES, body) for body in bodies]


@STEADY
@given(st.lists(st.integers(1, 3 * WHOLE_BLOCK_BYTES), min_size=1, max_size=4), st.integers(5000, 1 << 18))
def test_large_bodies_pass_as_they_come(sizes: list[int], size: int) -> None:
    bodies = [bytes([number + 1]) * each for number, each in enumerate(sizes)]
    data = b"".join(block(Block.BYTES, body) for body in bodies) + block(Block.ALIVE)
    reader = BlockReader()
    found = []
    for at in range(0, len(data), size):
        found += reader.feed(data[at : at + size])
        assert reader.waiting_bytes <= WHOLE_BLOCK_BYTES + 5
    assert found.pop() == (Block.ALIVE, b"")
    assert {kind for kind, _ in found} == {Block.BYTES}
    assert b"".join(body for _, body in found) == b"".join(bodies)
    held = [body for _, body in found if len(set(body)) == 1 and len(body) <= WHOLE_BLOCK_BYTES]
    assert all(body in held for body in bodies if len(body) <= WHOLE_BLOCK_BYTES), "small ones stay whole"


def test_what_is_written_is_read() -> None:
    def body(written: bytes) -> bytes:
        [(_, found)] = BlockReader().feed(written)
        return found

    assert read_options(body(options_block(Option.HALF))) == Option.HALF
    assert read_generation(body(generation_block(Block.RESTART, 7))) == 7
    assert read_base(body(base_block(1 << 63, 5))) == (1 << 63, 5)
    assert body(bytes_block([b"ab", b"c"], 3)) == b"abc"
    assert read_failed(body(failed_block("no weights"))) == "no weights"


def test_options_of_another_version_are_refused_and_unknown_flags_passed_over() -> None:
    assert read_options(b"\1\xff") == Option.HALF | Option.PUSH
    with pytest.raises(WireError):
        read_options(b"\2\0")


def test_words_are_cut_and_cleaned() -> None:
    assert len(failed_block("\u20ac" * 400)) == 505
    assert read_failed(b"one\ntwo\x1b[31m\xff") == "one two [31m\ufffd"


def test_bodies_that_nobody_would_read_are_not_written() -> None:
    for kind, body in ((Block.ALIVE, b"a"), (Block.BYTES, b""), (Block.BYTES, bytes(MOST_BLOCK_BYTES + 1))):
        with pytest.raises(WireError):
            block(kind, body)


# --- pushes -------------------------------------------------------------------------------------------------------


@cases("tunnel-pushes", "valid")
def test_valid_pushes(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for pieces in ([data], one_by_one(data)):
        reader = PushReader()
        found = [each for piece in pieces for each in reader.feed(piece)]
        shown = [{"id": number, "flags": int(flags), "hex": body.hex()} for number, flags, body in found]
        assert shown == case["pushes"]
        assert reader.is_between is not bool(case["left_bytes"])


@cases("tunnel-pushes", "invalid")
def test_invalid_pushes(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for pieces in ([data], one_by_one(data)):
        reader = PushReader()
        refused(case, lambda reader=reader, pieces=pieces: [reader.feed(piece) for piece in pieces])  # type: ignore[misc]


def test_the_head_of_a_push() -> None:
    assert push_head(5, PushFlag.HALF, 2) == struct.pack("!QBI", 5, 1, 2)
    for size in (0, MOST_PUSH_BYTES + 1):
        with pytest.raises(WireError):
            push_head(5, PushFlag(0), size)


@STEADY
@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=5), st.integers(1, 4000))
def test_pieces_of_pushes_make_no_difference(bodies: list[bytes], size: int) -> None:
    data = b"".join(push_head(number, PushFlag(0), len(body)) + body for number, body in enumerate(bodies))
    reader = PushReader()
    found = [each for at in range(0, len(data), size) for each in reader.feed(data[at : at + size])]
    assert found == [(number, PushFlag(0), body) for number, body in enumerate(bodies)]
