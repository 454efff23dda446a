"""Calls and answers of a contract as bytes, by its ABI (Solidity's contract ABI specification).

An Interface is made of the JSON that a compiler writes, and knows no chain: it turns a name and its arguments into
calldata, and what a call returned, logged or failed with into Python values. Addresses are 20 bytes here, `bytes32` and
`bytes` are bytes, integers are int, a struct is a tuple in the order of its members. What comes from an endpoint is
checked and bounded: anything that does not decode, whole and without a rest, is Malformed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from meshnode.settlement.keccak import keccak256

WORD_BYTES = 32
MOST_ANSWER_BYTES = 1 << 20
MOST_REASON = 200
ERROR_TEXT = bytes.fromhex("08c379a0")
"""Error(string): what `require(..., "text")` fails with."""
PANIC = bytes.fromhex("4e487b71")
"""Panic(uint256): an assertion, a division by zero, an overflow."""


class Malformed(ValueError):
    """What was answered is not what the contract can answer."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function: its first four bytes, and the ABI types of what goes in and comes out."""

    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EventShape:
    """One event: its first topic, and name, ABI type and place (indexed or not) of each member."""

    name: str
    topic: bytes
    members: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """A decoded log: the name of the event and its members by name."""

    name: str
    members: Mapping[str, Any]


class Interface:
    """The functions, events and errors of one contract. A name stands for its only form; of overloaded ones the whole
    signature is asked for, as in `permit(address,uint256)`.
    """

    def __init__(self, abi: Sequence[Mapping[str, Any]]) -> None:
        self.functions: dict[str, Function] = {}
        self.events: dict[str, EventShape] = {}
        self.errors: dict[bytes, tuple[str, tuple[str, ...]]] = {}
        self._events_by_topic: dict[bytes, EventShape] = {}
        overloaded: set[str] = set()
        for item in abi:
            name = str(item.get("name", ""))
            inputs = tuple(type_text(member) for member in item.get("inputs", ()))
            signature = f"{name}({','.join(inputs)})"
            match item["type"]:
                case "function":
                    outputs = tuple(type_text(member) for member in item.get("outputs", ()))
                    function = Function(keccak256(signature.encode())[:4], inputs, outputs)
                    if name in self.functions:
                        overloaded.add(name)
                    self.functions[name] = self.functions[signature] = function
                case "event":
                    members = tuple(
                        (str(member["name"]), kind, bool(member.get("indexed")))
                        for member, kind in zip(item["inputs"], inputs, strict=True)
                    )
                    shape = EventShape(name, keccak256(signature.encode()), members)
                    self.events[name] = self._events_by_topic[shape.topic] = shape
                case "error":
                    self.errors[keccak256(signature.encode())[:4]] = (name, inputs)
        for name in overloaded:
            del self.functions[name]

    def encode(self, name: str, *arguments: Any) -> bytes:
        """Calldata. Raises ValueError for arguments that do not fit their types."""
        function = self.functions[name]
        return function.selector + encode(function.inputs, arguments)

    def arguments(self, name: str, calldata: bytes) -> tuple[Any, ...]:
        """What `encode` was given. Raises Malformed for calldata of another function."""
        function = self.functions[name]
        if calldata[:4] != function.selector:
            raise Malformed(f"no call of {name}")
        return decode(function.inputs, calldata[4:])

    def decode(self, name: str, answer: bytes) -> tuple[Any, ...]:
        """What a call returned. Raises Malformed."""
        return decode(self.functions[name].outputs, answer)

    def event(self, topics: Sequence[bytes], data: bytes) -> Event | None:
        """The event that a log is; None for one of another contract. Raises Malformed for a log that lies about it."""
        shape = self._events_by_topic.get(topics[0]) if topics else None
        if shape is None:
            return None
        indexed = [(name, kind) for name, kind, is_indexed in shape.members if is_indexed]
        plain = [(name, kind) for name, kind, is_indexed in shape.members if not is_indexed]
        if len(topics) != 1 + len(indexed):
            raise Malformed(f"a log of {shape.name} with {len(topics)} topics")
        members = {name: decode((kind,), topic)[0] for (name, kind), topic in zip(indexed, topics[1:], strict=True)}
        values = decode(tuple(kind for _, kind in plain), data)
        members.update({name: value for (name, _), value in zip(plain, values, strict=True)})
        return Event(shape.name, members)

    def reason(self, data: bytes) -> str:
        """Why a call failed, in the contract's words: a text, the name of an error, or the bytes themselves."""
        selector, rest = data[:4], data[4:]
        try:
            if selector == ERROR_TEXT:
                return plain_text(decode(("string",), rest)[0])
            if selector == PANIC:
                return f"panic {decode(('uint256',), rest)[0]:#x}"
        except Malformed:
            return f"0x{data[:WORD_BYTES].hex()}"
        if selector in self.errors:
            return self.errors[selector][0]
        return f"0x{data[:WORD_BYTES].hex()}" if data else "no reason given"


def type_text(member: Mapping[str, Any]) -> str:
    """The canonical type of a member of the ABI's JSON: structs become `(a,b)`."""
    kind = str(member["type"])
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(type_text(part) for part in member['components'])}){kind.removeprefix('tuple')}"


def encode(kinds: Sequence[str], values: Sequence[Any]) -> bytes:
    """`abi.encode`. Raises ValueError for values that do not fit; eth_abi would fill a short `bytes32` up."""
    from eth_abi.abi import encode as encoded
    from eth_abi.exceptions import EncodingError

    if any(kind == "bytes32" and len(value) != WORD_BYTES for kind, value in zip(kinds, values, strict=False)):
        raise ValueError(f"a bytes32 has {WORD_BYTES} bytes")
    try:
        return bytes(encoded(kinds, values))
    except (EncodingError, TypeError, OverflowError) as error:
        raise ValueError(f"cannot be encoded as {','.join(kinds)}: {error}") from None


def decode(kinds: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """`abi.decode`; addresses come as 20 bytes. Raises Malformed."""
    from eth_abi.abi import decode as decoded
    from eth_abi.abi import encode as encoded
    from eth_abi.exceptions import DecodingError

    if not kinds:
        return ()
    if len(data) > MOST_ANSWER_BYTES:
        raise Malformed(f"an answer of {len(data)} bytes")
    try:
        values = decoded(kinds, data)
    except (DecodingError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise Malformed(f"no {','.join(kinds)}: {plain_text(str(error))}") from None
    if encoded(kinds, values) != data:
        raise Malformed(f"more or less than {','.join(kinds)}")
    return tuple(_without_text(kind, value) for kind, value in zip(kinds, values, strict=True))


def _without_text(kind: str, value: Any) -> Any:
    """Addresses as bytes, also inside of structs and lists."""
    if kind == "address":
        return bytes.fromhex(value[2:])
    if kind.endswith("]"):
        element = kind[: kind.rindex("[")]
        return tuple(_without_text(element, item) for item in value)
    if kind.startswith("("):
        return tuple(_without_text(part, item) for part, item in zip(_parts(kind), value, strict=True))
    return value


@cache
def _parts(kind: str) -> tuple[str, ...]:
    """The members of a struct type: `(a,(b,c)[],d)` gives `a`, `(b,c)[]`, `d`."""
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(kind[1:-1], 1):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(kind[start:place])
            start = place + 1
    parts.append(kind[start:-1])
    return tuple(parts)


def plain_text(text: str) -> str:
    """Words of an endpoint or contract as they may be shown: one line, printable, MOST_REASON characters at most."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MOST_REASON]).strip()
