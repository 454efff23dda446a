"""Vectors of messages, made from their shapes: of each a sparse and a full example, and every way to break one.

`body` is the body of the frame; `value` what it decodes to, in the notation of cases_values.py. What a shape declares
is broken member by member: left out, of another type, out of its bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from cases_values import CODE, packed, plain

from meshnode.wire.messages import MESSAGES
from meshnode.wire.registry import MessageId
from meshnode.wire.schema import Bytes, Flag, Int, ListOf, Nested, Text, UInt, Where
from meshnode.wire.values import encode

MOST_BYTES = 2100
UNKNOWN_EVEN, UNKNOWN_ODD = 252, 253
ADDRESS = bytes.fromhex("c00002012479")


def files() -> dict[str, dict[str, Any]]:
    """The file of messages."""
    valid, invalid = [], []
    for number, shape in MESSAGES.items():
        head = {"message": MessageId(number).name.lower(), "id": int(number)}
        full = map_of(shape, full=True)
        for comment, value in (
            ("only what must be there", map_of(shape, full=False)),
            ("everything", full),
            ("with an unknown odd member, which a reader passes over", {**full, UNKNOWN_ODD: [None, {1: "later"}]}),
        ):
            valid.append({**head, "comment": comment, "body": encode(value).hex(), "value": plain(value)})
        for comment, value in broken(shape, full):
            invalid.append({**head, "comment": comment, "body": packed(value).hex(), "code": CODE})
        whole = packed(full)
        for comment, body in (("no body", b""), ("a byte too many", whole + b"\xc0"), ("cut short", whole[:-1])):
            invalid.append({**head, "comment": comment, "body": body.hex(), "code": CODE})
    odd = {"message": None, "id": 0xFFFF, "comment": "an unknown odd message is passed over"}
    even = {"message": None, "id": 0xFFFE}
    valid.append({**odd, "body": encode([1]).hex(), "value": [1]})
    invalid.append({**even, "comment": "an unknown even message", "body": encode({}).hex(), "code": CODE})
    invalid.append({**odd, "comment": "an unknown odd message that is no value", "body": "c1", "code": CODE})
    return {"messages.json": {"about": "bodies of frames: 03-messages.md", "valid": valid, "invalid": invalid}}


def map_of(shape: type[Any], *, full: bool) -> dict[int, Any]:
    """A value of this shape as the map that travels: all of its members, or those that must be there."""
    chosen = [item for item in fields(shape) if full or item.default is MISSING]
    return {
        item.metadata["key"]: example(item.metadata["kind"], item.name, full)
        for item in sorted(chosen, key=lambda item: item.metadata["key"])
    }


def example(kind: Any, name: str, full: bool) -> Any:
    """One plain value of a kind: its greatest and longest where that is short, or its least."""
    match kind:
        case UInt() | Int():
            return kind.maximum if full else (0 if isinstance(kind, UInt) else kind.minimum)
        case Flag():
            return full
        case Bytes():
            size = max(kind.minimum, min(kind.maximum, 90)) if full else kind.minimum
            return (name.encode() * kind.maximum)[:size]
        case Text():
            return (f"{name} " * kind.maximum)[: kind.maximum].strip() if full else "x" * kind.minimum
        case Where():
            return ADDRESS
        case ListOf():
            return [example(kind.kind, name, full)] * (
                max(kind.minimum, min(kind.maximum, 2)) if full else kind.minimum
            )
        case Nested():
            return map_of(kind.shape, full=full)
    raise TypeError(kind)


def broken(shape: type[Any], whole: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """(comment, value) for each way to break a member of `whole`."""
    yield "an array in place of a map", list(whole.values())
    yield f"the unknown even member {UNKNOWN_EVEN}", {**whole, UNKNOWN_EVEN: 0}
    yield f"the unknown odd member {UNKNOWN_ODD} nested too deeply", {**whole, UNKNOWN_ODD: [[[[[[[[]]]]]]]]}
    for item in fields(shape):
        key, kind = item.metadata["key"], item.metadata["kind"]
        if item.default is MISSING:
            yield f"{item.name} is missing", {other: value for other, value in whole.items() if other != key}
        for comment, wrong in wrong_values(kind, whole[key]):
            yield f"{item.name}: {comment}", {**whole, key: wrong}


def wrong_values(kind: Any, right: Any) -> Iterator[tuple[str, Any]]:
    """(comment, plain value) of what a member of this kind may not be."""
    yield "nil", None
    match kind:
        case UInt() | Int():
            yield "true", True
            yield "a text of digits", "1"
            least = kind.minimum if isinstance(kind, Int) else 0
            yield "too small", least - 1
            yield "too great", kind.maximum + 1
        case Flag():
            yield "an integer", 1
        case Bytes():
            yield "a text", "a" * max(kind.minimum, 1)
            if kind.minimum:
                yield "too short", bytes(kind.minimum - 1)
            if kind.maximum < MOST_BYTES:
                yield "too long", bytes(kind.maximum + 1)
            if kind.step > 1:
                yield "not in whole steps", bytes(kind.step + 1)
        case Text():
            yield "bytes", b"a"
            yield "too long", "a" * (kind.maximum + 1)
            yield "turned from right to left", "a\u202eb"
            if kind.minimum:
                yield "empty", ""
        case Where():
            yield "no bytes", b""
            yield "a text", "192.0.2.1:9337"
            yield "multicast", bytes.fromhex("e00000fb2479")
        case ListOf():
            yield "not an array", 0
            if kind.minimum:
                yield "empty", []
            one = right[0]
            if len(packed(one)) * (kind.maximum + 1) < MOST_BYTES:
                yield "too many", [one] * (kind.maximum + 1)
            for comment, wrong in wrong_values(kind.kind, one):
                yield f"an item: {comment}", [one, wrong]
        case Nested():
            for comment, wrong in broken(kind.shape, right):
                yield comment, wrong
