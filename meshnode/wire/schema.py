"""The shape of a message, declared once: a frozen dataclass whose fields carry a key and a kind.

From one declaration follow the encoding, the checks on what arrives, and the JSON Schema in protocol/schema/. A field
that equals its default is left out. A key that is not declared is passed over when odd and refused when even
(protocol/02-framing.md), so that a later version may add both hints and duties.

    @dataclass(frozen=True, slots=True)
    class Probe:
        number: int = member(0, UInt(MAX_U32))
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any, Final, Protocol, TypeVar

from meshnode.wire.address import Address
from meshnode.wire.values import MAX_DEPTH, WireError, check, deep, encode, follow, parse

MAX_U8 = (1 << 8) - 1
MAX_U16 = (1 << 16) - 1
MAX_U32 = (1 << 32) - 1
MAX_U63 = (1 << 63) - 1

HIDDEN: Final = (
    r"\u0000-\u001F\u007F-\u00A0\u00AD\u034F\u061C\u115F\u1160\u1680\u17B4\u17B5\u180B-\u180F\u2000-\u200F\u2028-\u202F"
    r"\u205F-\u206F\u2800\u3000\u3164\uD800-\uF8FF\uFDD0-\uFDEF\uFEFF\uFFA0\uFFF0-\uFFFB\uFFFE\uFFFF"
)
"""Characters that no text has: controls, spaces but U+0020, what joins, hides or turns other characters, private use.

A fixed list, because what Unicode calls printable grows with every version, and nodes of different age must agree.
"""
HIDDEN_PLANES: Final = "\U000e0000-\U0010ffff"
_HIDDEN = re.compile(f"[{HIDDEN}{HIDDEN_PLANES}]")

T = TypeVar("T")


class Kind(Protocol):
    """How one value is checked and turned into a plain one, and back. Both raise WireError.

    `depth` counts the containers around the plain value.
    """

    def pack(self, value: Any) -> Any: ...
    def unpack(self, plain: Any, depth: int) -> Any: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class UInt:
    """An integer from 0 to `maximum`."""

    maximum: int

    def pack(self, value: Any) -> Any:
        return self.unpack(_integer(value), 0)

    def unpack(self, plain: Any, _: int) -> int:
        if type(plain) is int and 0 <= plain <= self.maximum:
            return plain
        raise WireError(f"expected an integer from 0 to {self.maximum}")

    def describe(self) -> dict[str, Any]:
        if self.maximum < 1 << 53:
            return {"type": "integer", "minimum": 0, "maximum": self.maximum}
        # A reader of JSON that knows doubles alone would round 2^63 - 1 up, and let 2^63 pass.
        return {"type": "integer", "minimum": 0, "exclusiveMaximum": self.maximum + 1}


@dataclass(frozen=True, slots=True)
class Int:
    """An integer from `minimum` to `maximum`."""

    minimum: int
    maximum: int

    def pack(self, value: Any) -> Any:
        return self.unpack(_integer(value), 0)

    def unpack(self, plain: Any, _: int) -> int:
        if type(plain) is int and self.minimum <= plain <= self.maximum:
            return plain
        raise WireError(f"expected an integer from {self.minimum} to {self.maximum}")

    def describe(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def pack(self, value: Any) -> Any:
        return self.unpack(value, 0)

    def unpack(self, plain: Any, _: int) -> bool:
        if type(plain) is bool:
            return plain
        raise WireError("expected true or false")

    def describe(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Bytes:
    """A byte string of `minimum` to `maximum` bytes, in whole steps."""

    minimum: int
    maximum: int
    step: int = 1

    def pack(self, value: Any) -> Any:
        return self.unpack(value, 0)

    def unpack(self, plain: Any, _: int) -> bytes:
        if type(plain) is bytes and self.minimum <= len(plain) <= self.maximum and not len(plain) % self.step:
            return plain
        raise WireError(f"expected {self.minimum} to {self.maximum} bytes")

    def describe(self) -> dict[str, Any]:
        bounds = {"minBytes": self.minimum, "maxBytes": self.maximum}
        return {"type": "string", "encoding": "bytes", **bounds, **({"stepBytes": self.step} if self.step > 1 else {})}


@dataclass(frozen=True, slots=True)
class Text:
    """A text of at most `maximum` characters (code points), none of them HIDDEN."""

    maximum: int
    minimum: int = 0

    def pack(self, value: Any) -> Any:
        return self.unpack(str(value) if isinstance(value, str) else value, 0)

    def unpack(self, plain: Any, _: int) -> str:
        if type(plain) is str and self.minimum <= len(plain) <= self.maximum and can_be_shown(plain):
            return plain
        raise WireError(f"expected a text of {self.minimum} to {self.maximum} characters that can be shown")

    def describe(self) -> dict[str, Any]:
        pattern = rf"^[^{HIDDEN}\u{{E0000}}-\u{{10FFFF}}]*$"
        return {"type": "string", "minLength": self.minimum, "maxLength": self.maximum, "pattern": pattern}


@dataclass(frozen=True, slots=True)
class Where:
    """An Address in its packed form."""

    def pack(self, value: Any) -> Any:
        try:
            return value.to_bytes()
        except ValueError as reason:
            raise WireError(str(reason)) from None

    def unpack(self, plain: Any, _: int) -> Address:
        if type(plain) is not bytes:
            raise WireError("expected an address")
        try:
            return Address.from_bytes(plain)
        except ValueError as reason:
            raise WireError(str(reason)) from None

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "encoding": "address", "minBytes": 6, "maxBytes": 18}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A tuple of at most `maximum` values of one kind."""

    kind: Kind
    maximum: int
    minimum: int = 0

    def pack(self, value: Any) -> Any:
        self._bound(value)
        pack_item = self.kind.pack
        return [pack_item(item) for item in value]

    def unpack(self, plain: Any, depth: int) -> tuple[Any, ...]:
        if type(plain) is not list:
            raise WireError("expected an array")
        self._bound(plain)
        deep(depth)
        unpack_item, inside = self.kind.unpack, depth + 1
        return tuple([unpack_item(item, inside) for item in plain])

    def _bound(self, items: Any) -> None:
        if not self.minimum <= len(items) <= self.maximum:
            raise WireError(f"expected an array of {self.minimum} to {self.maximum} items")

    def describe(self) -> dict[str, Any]:
        return {
            "type": "array",
            "items": self.kind.describe(),
            "minItems": self.minimum,
            "maxItems": self.maximum,
        }


@dataclass(frozen=True, slots=True)
class Nested:
    """Another declared shape."""

    shape: type[Any]

    def pack(self, value: Any) -> Any:
        return pack(value)

    def unpack(self, plain: Any, depth: int) -> Any:
        return unpack(self.shape, plain, depth)

    def describe(self) -> dict[str, Any]:
        return describe(self.shape)


def member(key: int, kind: Kind, default: Any = MISSING) -> Any:
    """A field of a shape. Without a default it must be there."""
    metadata = {"key": key, "kind": kind}
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is known of a shape before any value is: `members` by ascending key, `fields` in the order of the class."""

    members: tuple[tuple[int, str, Kind, Any], ...]
    readers: dict[int, tuple[int, Callable[[Any, int], Any]]]
    defaults: tuple[Any, ...]
    required: tuple[tuple[int, str], ...]


_LAYOUTS: dict[type[Any], _Layout] = {}


def _layout(shape: type[Any]) -> _Layout:
    fields = dataclasses.fields(shape)
    members = sorted((item.metadata["key"], item.name, item.metadata["kind"], item.default) for item in fields)
    readers = {item.metadata["key"]: (at, item.metadata["kind"].unpack) for at, item in enumerate(fields)}
    assert len(readers) == len(fields), f"{shape.__name__} declares a key twice"
    required = tuple((at, item.name) for at, item in enumerate(fields) if item.default is MISSING)
    found = _Layout(tuple(members), readers, tuple(item.default for item in fields), required)
    return _LAYOUTS.setdefault(shape, found)


def pack(value: Any) -> dict[int, Any]:
    """The plain map of a shape. Raises WireError for a member out of its bounds: that is our own mistake."""
    plain: dict[int, Any] = {}
    for key, name, kind, default in (_LAYOUTS.get(type(value)) or _layout(type(value))).members:
        given = getattr(value, name)
        if default is MISSING or given != default:
            plain[key] = kind.pack(given)
    return plain


def unpack(shape: type[T], plain: Any, depth: int = 0) -> T:
    """The value of a shape from a parsed map, all of which is checked. Raises WireError."""
    if type(plain) is not dict:
        raise WireError(f"{shape.__name__} is not a map")
    layout = _LAYOUTS.get(shape) or _layout(shape)
    readers, given, last = layout.readers, list(layout.defaults), -1
    if depth >= MAX_DEPTH:
        deep(depth)
    depth += 1
    for key, value in plain.items():
        if type(key) is not int or key <= last:  # what `follow` asks first, without the price of a call
            follow(key, last)
        last = key
        if key in readers:
            at, reader = readers[key]
            given[at] = reader(value, depth)
        elif follow(key, -1) % 2 == 0:
            raise WireError(f"{shape.__name__} has the unknown member {key}")
        else:
            check(value, depth)
    for at, name in layout.required:
        if given[at] is MISSING:
            raise WireError(f"{shape.__name__} lacks {name}")
    return shape(*given)


def write(value: Any) -> bytes:
    """The canonical bytes of a shape. Raises WireError for a member out of its bounds: that is our own mistake."""
    return encode(pack(value))


def read(shape: type[T], data: bytes, *, limit_bytes: int) -> T:
    """The value of a shape from its canonical bytes. Raises WireError."""
    return unpack(shape, parse(data, limit_bytes=limit_bytes))


def describe(shape: type[Any]) -> dict[str, Any]:
    """JSON Schema of a shape; its properties are named by their keys, `title` is the name of the field."""
    members = _layout(shape).members
    properties = {str(key): {**kind.describe(), "title": name} for key, name, kind, _ in members}
    required = [str(key) for key, _, _, default in members if default is MISSING]
    return {"title": shape.__name__, "type": "object", "properties": properties, "required": required}


def can_be_shown(text: str) -> bool:
    """Whether a text has no HIDDEN characters, so that it neither ends a line nor turns what stands beside it."""
    return text.isprintable() if text.isascii() else not _HIDDEN.search(text)


def showable(text: str, limit_chars: int) -> str:
    """The nearest text that can be sent: HIDDEN characters become spaces, and what is too long is cut."""
    return _HIDDEN.sub(" ", text)[:limit_chars].strip()


def _integer(value: Any) -> Any:
    """A plain integer, where an enumeration's member stands for one."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
