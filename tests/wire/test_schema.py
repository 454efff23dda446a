"""Shapes: members, defaults, unknown keys, and the kinds one by one."""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.wire.schema import (
    HIDDEN,
    HIDDEN_PLANES,
    MAX_U8,
    MAX_U63,
    Bytes,
    Flag,
    Int,
    ListOf,
    Nested,
    Text,
    UInt,
    can_be_shown,
    describe,
    member,
    pack,
    read,
    showable,
    unpack,
    write,
)
from meshnode.wire.values import MAX_DEPTH, WireError, encode
from tests.wire.samples import STEADY, cases, refused, shapes
from tests.wire.samples import can_be_shown as can_be_shown_by_the_list


@dataclass(frozen=True, slots=True)
class Inner:
    """A small shape."""

    word: str = member(1, Text(8, 1))


@dataclass(frozen=True, slots=True)
class Outer:
    """A shape with every kind."""

    flag: bool = member(8, Flag())
    number: int = member(0, UInt(MAX_U63))
    signed: int = member(2, Int(-5, 5), 0)
    data: bytes = member(4, Bytes(2, 4), b"ab")
    inners: tuple[Inner, ...] = member(7, ListOf(Nested(Inner), 2), ())
    inner: Inner | None = member(9, Nested(Inner), None)


@STEADY
@given(shapes(Outer))
def test_a_value_comes_back(value: Outer) -> None:
    assert read(Outer, write(value), limit_bytes=500) == value


def test_defaults_are_left_out_and_keys_ascend() -> None:
    assert pack(Outer(True, 7)) == {0: 7, 8: True}
    assert write(Outer(True, 7)) == bytes.fromhex("82000708c3")
    whole = Outer(False, 1, -5, b"abc", (Inner("x"),), Inner("y"))
    assert list(pack(whole)) == [0, 2, 4, 7, 8, 9]


def test_a_default_that_is_sent_is_accepted() -> None:
    assert unpack(Outer, {0: 7, 2: 0, 4: b"ab", 7: [], 8: True}) == Outer(True, 7)


def test_odd_members_are_passed_over_and_even_ones_refused() -> None:
    later = {0: 7, 8: True, 11: [{2: b"hint"}]}
    assert unpack(Outer, later) == Outer(True, 7)
    with pytest.raises(WireError, match="unknown member 10"):
        unpack(Outer, {0: 7, 8: True, 10: None})
    with pytest.raises(WireError, match="unknown member 0"):
        unpack(Outer, {0: 7, 8: True, 9: {0: 1, 1: "x"}})


@pytest.mark.parametrize(
    "odd",
    [1.5, {"a": 0}, {2: 0, 1: 0}, object(), {70_000: 0}, [[[[[[[[]]]]]]]]],
    ids=["float", "text key", "order", "object", "large key", "depth"],
)
def test_what_is_passed_over_is_checked_all_the_same(odd: Any) -> None:
    with pytest.raises(WireError):
        unpack(Outer, {0: 7, 8: True, 11: odd})


def test_depth_counts_from_the_outermost() -> None:
    deep: Any = []
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    assert unpack(Outer, {0: 7, 8: True, 11: deep}) == Outer(True, 7)
    nested = {0: 7, 8: True, 9: {1: "x", 3: deep}}
    with pytest.raises(WireError, match="deep"):
        unpack(Outer, nested)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        {0: 7},
        {8: True, 0: 7},
        {0: 7, 8: 1},
        {0: True, 8: True},
        {0: 7.0, 8: True},
        {False: 7, 8: True},
        {0.0: 7, 8: True},
        {0: 7, 8: True, 70_001: 0},
        {0: -1, 8: True},
        {0: MAX_U63 + 1, 8: True},
        {0: 7, 2: 6, 8: True},
        {0: 7, 2: -6, 8: True},
        {0: 7, 4: b"a", 8: True},
        {0: 7, 4: "ab", 8: True},
        {0: 7, 4: bytearray(b"ab"), 8: True},
        {0: 7, 7: (), 8: True},
        {0: 7, 7: [{1: "x"}] * 3, 8: True},
        {0: 7, 7: [{}], 8: True},
        {0: 7, 8: True, 9: None},
    ],
    ids=repr,
)
def test_what_a_shape_is_not(plain: Any) -> None:
    with pytest.raises(WireError):
        unpack(Outer, plain)


@pytest.mark.parametrize(
    "value",
    [
        Outer(1, 7),  # type: ignore[arg-type]
        Outer(True, -1),
        Outer(True, True),
        Outer(True, 7, 6),
        Outer(True, 7, data=b""),
        Outer(True, 7, inners=(Inner("x"),) * 3),
        Outer(True, 7, inner=Inner("")),
        Outer(True, 7, inner=Inner("a\nb")),
    ],
    ids=repr,
)
def test_a_value_out_of_its_bounds_is_never_sent(value: Outer) -> None:
    with pytest.raises(WireError):
        write(value)


def test_enumerations_are_sent_as_their_numbers() -> None:
    assert write(Outer(True, IntEnum("Some", {"TWO": 2}).TWO)) == bytes.fromhex("82000208c3")  # type: ignore[attr-defined]


def test_a_shape_is_canonical() -> None:
    with pytest.raises(WireError, match="canonical"):
        read(Outer, bytes.fromhex("8200cc0708c3"), limit_bytes=100)
    with pytest.raises(WireError, match="order"):
        read(Outer, bytes.fromhex("8208c30007"), limit_bytes=100)


def test_two_members_with_one_key_are_a_mistake() -> None:
    @dataclass(frozen=True)
    class Twice:
        one: int = member(1, UInt(MAX_U8))
        two: int = member(1, UInt(MAX_U8))

    with pytest.raises(AssertionError, match="twice"):
        pack(Twice(1, 2))


def test_description() -> None:
    found = describe(Outer)
    assert found["required"] == ["0", "8"]
    assert list(found["properties"]) == ["0", "2", "4", "7", "8", "9"]
    assert found["properties"]["0"]["exclusiveMaximum"] == 1 << 63
    assert found["properties"]["2"] == {"title": "signed", "type": "integer", "minimum": -5, "maximum": 5}
    assert found["properties"]["7"]["items"]["properties"]["1"]["title"] == "word"


# --- texts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worded:
    """One text, as in the vectors."""

    word: str = member(0, Text(8, 1))


@cases("texts", "valid")
def test_texts(case: dict[str, Any]) -> None:
    assert read(Worded, encode({0: case["text"]}), limit_bytes=100).word == case["text"]


@cases("texts", "invalid")
def test_no_texts(case: dict[str, Any]) -> None:
    refused(case, lambda: read(Worded, encode({0: case["text"]}), limit_bytes=100))


@STEADY
@given(st.text(max_size=8))
def test_hidden_characters(text: str) -> None:
    assert can_be_shown(text) is can_be_shown_by_the_list(text)


@STEADY
@given(st.text(max_size=60))
def test_any_text_can_be_made_showable(text: str) -> None:
    shown = showable(text, 8)
    assert can_be_shown(shown)
    assert len(shown) <= 8


def test_showable_keeps_what_it_can() -> None:
    assert showable("a\u202eb\n", 8) == "a b"
    assert showable("K\u00fcche", 40) == "K\u00fcche"
    assert showable("\u3164", 40) == ""


def test_every_character_once() -> None:
    """The short way for ASCII and the pattern for the rest agree with the list, whatever Unicode this Python knows."""
    pattern = re.compile(f"[{HIDDEN}{HIDDEN_PLANES}]")
    every = [chr(number) for number in range(0x110000)]
    assert [character for character in every if can_be_shown(character) == bool(pattern.match(character))] == []
    assert sum(map(can_be_shown, every)) == 908_885
