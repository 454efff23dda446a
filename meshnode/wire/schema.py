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
from dataclasses import MISSING, dataclass
from typing import Any, Protocol, TypeVar

from meshnode.wire.address import Address
from meshnode.wire.values import WireError

MAX_U8 = (1 << 8) - 1
MAX_U16 = (1 << 16) - 1
MAX_U32 = (1 << 32) - 1
MAX_U63 = (1 << 63) - 1

T = TypeVar("T")


class Kind(Protocol):
    """How one value is checked and turned into a plain one, and back. Both raise WireError."""

    def pack(self, value: Any) -> Any: ...
    def unpack(self, plain: Any) -> Any: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class UInt:
    """An integer from 0 to `maximum`."""

    maximum: int

    def pack(self, value: Any) -> Any:
        return self.unpack(value)

    def unpack(self, plain: Any) -> int:
        if isinstance(plain, bool) or not isinstance(plain, int) or not 0 <= plain <= self.maximum:
            raise WireError(f"expected an integer from 0 to {self.maximum}")
        return plain

    def describe(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": 0, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Int:
    """An integer from `minimum` to `maximum`."""

    minimum: int
    maximum: int

    def pack(self, value: Any) -> Any:
        return self.unpack(value)

    def unpack(self, plain: Any) -> int:
        if isinstance(plain, bool) or not isinstance(plain, int) or not self.minimum <= plain <= self.maximum:
            raise WireError(f"expected an integer from {self.minimum} to {self.maximum}")
        return plain

    def describe(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def pack(self, value: Any) -> Any:
        return self.unpack(value)

    def unpack(self, plain: Any) -> bool:
        if not isinstance(plain, bool):
            raise WireError("expected true or false")
        return plain

    def describe(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Bytes:
    """A byte string of `minimum` to `maximum` bytes."""

    minimum: int
    maximum: int

    def pack(self, value: Any) -> Any:
        return self.unpack(value)

    def unpack(self, plain: Any) -> bytes:
        if not isinstance(plain, bytes) or not self.minimum <= len(plain) <= self.maximum:
            raise WireError(f"expected {self.minimum} to {self.maximum} bytes")
        return plain

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "encoding": "bytes", "minBytes": self.minimum, "maxBytes": self.maximum}


@dataclass(frozen=True, slots=True)
class Text:
    """A text of at most `maximum` characters that can be shown: no control or formatting characters."""

    maximum: int
    minimum: int = 0

    def pack(self, value: Any) -> Any:
        return self.unpack(value)

    def unpack(self, plain: Any) -> str:
        if not isinstance(plain, str) or not self.minimum <= len(plain) <= self.maximum or not plain.isprintable():
            raise WireError(f"expected a printable text of {self.minimum} to {self.maximum} characters")
        return plain

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "minLength": self.minimum, "maxLength": self.maximum}


@dataclass(frozen=True, slots=True)
class Where:
    """An Address in its packed form."""

    def pack(self, value: Any) -> Any:
        return value.to_bytes()

    def unpack(self, plain: Any) -> Address:
        if not isinstance(plain, bytes):
            raise WireError("expected an address")
        try:
            return Address.from_bytes(plain)
        except ValueError as reason:
            raise WireError(str(reason)) from None

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "encoding": "bytes", "minBytes": 6, "maxBytes": 18}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A tuple of at most `maximum` values of one kind."""

    kind: Kind
    maximum: int
    minimum: int = 0

    def pack(self, value: Any) -> Any:
        self._bound(value)
        return [self.kind.pack(item) for item in value]

    def unpack(self, plain: Any) -> tuple[Any, ...]:
        if not isinstance(plain, list):
            raise WireError("expected an array")
        self._bound(plain)
        return tuple([self.kind.unpack(item) for item in plain])

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

    def unpack(self, plain: Any) -> Any:
        return unpack(self.shape, plain)

    def describe(self) -> dict[str, Any]:
        return describe(self.shape)


def member(key: int, kind: Kind, default: Any = MISSING) -> Any:
    """A field of a shape. Without a default it must be there."""
    metadata = {"key": key, "kind": kind}
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_MEMBERS: dict[type[Any], dict[int, tuple[str, Kind, Any]]] = {}


def _members(shape: type[Any]) -> dict[int, tuple[str, Kind, Any]]:
    """key -> (name, kind, default) of a shape, read once."""
    known = _MEMBERS.get(shape)
    if known is not None:
        return known
    found = _MEMBERS[shape] = {}
    for item in dataclasses.fields(shape):
        key = item.metadata["key"]
        assert key not in found, f"{shape.__name__} declares key {key} twice"
        found[key] = (item.name, item.metadata["kind"], item.default)
    return found


def pack(value: Any) -> dict[int, Any]:
    """The plain map of a shape. Raises WireError for a member out of its bounds: that is our own mistake."""
    plain: dict[int, Any] = {}
    for key, (name, kind, default) in _members(type(value)).items():
        given = getattr(value, name)
        if default is MISSING or given != default:
            plain[key] = kind.pack(given)
    return plain


def unpack(shape: type[T], plain: Any) -> T:
    """The value of a shape from a decoded map. Raises WireError."""
    if not isinstance(plain, dict):
        raise WireError(f"{shape.__name__} is not a map")
    members = _members(shape)
    given: dict[str, Any] = {}
    for key, value in plain.items():
        declared = members.get(key)
        if declared is None:
            if key % 2 == 0:
                raise WireError(f"{shape.__name__} has the unknown member {key}")
            continue
        given[declared[0]] = declared[1].unpack(value)
    for name, _, default in members.values():
        if default is MISSING and name not in given:
            raise WireError(f"{shape.__name__} lacks {name}")
    return shape(**given)


def describe(shape: type[Any]) -> dict[str, Any]:
    """JSON Schema of a shape; its properties are named by their keys, `title` is the name of the field."""
    properties: dict[str, Any] = {}
    required = []
    for key, (name, kind, default) in sorted(_members(shape).items()):
        properties[str(key)] = {"title": name, **kind.describe()}
        if default is MISSING:
            required.append(str(key))
    return {"title": shape.__name__, "type": "object", "properties": properties, "required": required}
