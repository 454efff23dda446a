"""Values: the vectors, round trips, and what hostile bytes may cost."""

import time
import tracemalloc
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.wire.registry import LIMIT_FRAME_BYTES, Close
from meshnode.wire.values import MAX_DEPTH, MAX_ITEMS, MAX_MEMBERS, WireError, decode, encode
from tests.wire.samples import STEADY, cases, mutations, plain_values, refused, vectors

SEEDS = [bytes.fromhex(case["hex"]) for case in vectors("values")["valid"] if len(case["hex"]) < 600]


def shown(value: Any) -> Any:
    """As the vectors write a value."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {"map": [[key, shown(inner)] for key, inner in value.items()]}
    if isinstance(value, list):
        return [shown(inner) for inner in value]
    if type(value) is int and abs(value) >= 1 << 53:
        return {"int": str(value)}
    return value


@cases("values", "valid")
def test_valid(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    value = decode(data, limit_bytes=len(data))
    assert shown(value) == case["value"]
    assert encode(value) == data


@cases("values", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: decode(bytes.fromhex(case["hex"]), limit_bytes=LIMIT_FRAME_BYTES))


@STEADY
@given(plain_values())
def test_a_value_comes_back(value: Any) -> None:
    assert decode(encode(value), limit_bytes=LIMIT_FRAME_BYTES) == value


@STEADY
@given(mutations(SEEDS) | st.binary(max_size=60))
def test_any_bytes_are_a_value_or_refused_and_a_value_has_one_form(data: bytes) -> None:
    try:
        value = decode(data, limit_bytes=LIMIT_FRAME_BYTES)
    except WireError as error:
        assert error.code is Close.PROTOCOL_ERROR
    else:
        assert encode(value) == data


def test_the_limit_is_asked_first() -> None:
    with pytest.raises(WireError, match="4 bytes, at most 3"):
        decode(b"\xc1" * 4, limit_bytes=3)


def test_keys_are_put_in_order_by_the_writer() -> None:
    assert encode({9: 1, 0: (2,)}) == encode({0: [2], 9: 1}) == bytes.fromhex("820091020901")


def test_enumerations_are_their_numbers() -> None:
    assert encode({0: IntEnum("Some", {"ONE": 1}).ONE}) == bytes.fromhex("810001")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        {"a": 1},
        {-1: 0},
        {0x10000: 0},
        {True: 0},
        1 << 64,
        -(1 << 63) - 1,
        {1, 2},
        object(),
        bytearray(b"x"),
        "\ud800",
        [0] * (MAX_ITEMS + 1),
        dict.fromkeys(range(MAX_MEMBERS + 1)),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_has_no_bytes_is_our_own_mistake(value: Any) -> None:
    with pytest.raises(WireError):
        encode(value)


def test_depth() -> None:
    value: Any = 0
    for _ in range(MAX_DEPTH):
        value = {0: value}
    assert decode(encode(value), limit_bytes=100) == value
    with pytest.raises(WireError, match="deep"):
        encode([value])
    with pytest.raises(WireError, match="deep"):
        decode(b"\x91" + encode(value), limit_bytes=100)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\x00\x00\xf0\x00" * 13_000,
        b"\xdf\x00\x00\x70\x00\x01" * 10_900,
        b"\xdc\x10\x00" * 21_000,
        b"\xde\x00\x40" + b"\x01\xde\x00\x40" * 16_000,
        b"\x91" * 65_000,
        b"\xdc\x10\x00" + (b"\x9f" + b"\x90" * 15) * 4_096,
    ],
    ids=["arrays of 61440", "maps of 28672", "arrays of 4096", "maps of 64", "arrays of 1", "empty arrays"],
)
def test_headers_that_promise_much_cost_little(data: bytes) -> None:
    """A frame full of promises: without the limits on items it took 82 MB and 60 ms."""
    refuse_for(data + b"\xc1", most_bytes=40_000_000)


def test_of_a_statement_even_less() -> None:
    """No array has more items than there are bytes."""
    refuse_for(b"\xdc\x10\x00" * 400, most_bytes=100_000)
    refuse_for(b"\xdc\x04\xaf" * 400, most_bytes=5_000_000)


def refuse_for(data: bytes, *, most_bytes: int) -> None:
    """Refusing these bytes costs at most so much memory, and not a second."""
    tracemalloc.start()
    try:
        began = time.perf_counter()
        with pytest.raises(WireError):
            decode(data, limit_bytes=2 * LIMIT_FRAME_BYTES)
        assert time.perf_counter() - began < 1.0
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()
