"""What the tests of wire/ share: the vectors, keys, and hypothesis strategies that follow from the shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st

from meshnode.identity import Identity
from meshnode.wire.address import Address
from meshnode.wire.registry import Close
from meshnode.wire.schema import HIDDEN, HIDDEN_PLANES, Bytes, Flag, Int, ListOf, Nested, Text, UInt, Where
from meshnode.wire.values import MAX_KEY, WireError

STEADY = settings(deadline=None, derandomize=True)
"""The same examples in every run, however busy the machine is."""
VECTORS = Path(__file__).parent.parent.parent / "protocol" / "vectors"


@cache
def vectors(name: str) -> dict[str, Any]:
    """The content of one file of vectors."""
    content: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))
    return content


def cases(name: str, which: str) -> Any:
    """The valid or the invalid cases of a file, each a parameter `case`."""

    def label(case: dict[str, Any]) -> str:
        text = f"{case.get('message') or ''} {case.get('comment') or case.get('text') or case.get('hex')}"
        return ascii(text.strip())[1:41]

    return pytest.mark.parametrize("case", vectors(name)[which], ids=label)


def refused(case: dict[str, Any], decoder: Callable[[], Any]) -> WireError:
    """The WireError with which `decoder` refuses an invalid case; its code must be that of the case."""
    with pytest.raises(WireError) as caught:
        decoder()
    assert caught.value.code is Close[case["code"].upper()]
    assert caught.value.reason
    return caught.value


@dataclass(frozen=True)
class Signer:
    """An identity made from a name."""

    identity: Identity

    @classmethod
    def named(cls, name: str) -> Signer:
        seed = hashlib.sha256(b"tests of wire " + name.encode()).digest()
        return cls(Identity(Ed25519PrivateKey.from_private_bytes(seed)))

    @property
    def node(self) -> bytes:
        return self.identity.node_id

    def sign(self, message: bytes) -> bytes:
        return self.identity.sign(message)


# --- strategies -----------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)


def plain_values(depth: int = 3) -> st.SearchStrategy[Any]:
    """Whatever may be exchanged."""
    if not depth:
        return SCALARS
    inner = plain_values(depth - 1)
    return SCALARS | st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, MAX_KEY), inner, max_size=4)


def addresses() -> st.SearchStrategy[Address]:
    """What a peer may name as its address."""
    ports = st.integers(1, 0xFFFF).map(lambda port: port.to_bytes(2, "big"))
    four = st.binary(min_size=4, max_size=4).filter(lambda ip: ip[0] not in (0, *range(224, 240)) and ip != b"\xff" * 4)
    six = st.binary(min_size=16, max_size=16).filter(lambda ip: ip[0] not in (0, 255))
    return st.builds(lambda ip, port: Address.from_bytes(ip + port), four | six, ports)


def of_kind(kind: Any) -> st.SearchStrategy[Any]:
    """The values that a kind can have; long ones are not tried."""
    match kind:
        case UInt():
            return st.integers(0, kind.maximum)
        case Int():
            return st.integers(kind.minimum, kind.maximum)
        case Flag():
            return st.booleans()
        case Bytes():
            data = st.binary(min_size=kind.minimum, max_size=max(kind.minimum, min(kind.maximum, 70)))
            return data.map(lambda found: found[: len(found) - len(found) % kind.step])
        case Text():
            shown = st.text(min_size=kind.minimum, max_size=min(kind.maximum, 12))
            return shown.filter(lambda text: can_be_shown(text))
        case Where():
            return addresses()
        case ListOf():
            return st.lists(
                of_kind(kind.kind), min_size=kind.minimum, max_size=max(kind.minimum, min(kind.maximum, 3))
            ).map(tuple)
        case Nested():
            return shapes(kind.shape)
    raise TypeError(kind)


def can_be_shown(text: str) -> bool:
    """The rule of 02-framing.md, read from its list once more and character by character."""
    return not any(first <= character <= last for character in text for first, last in _hidden_ranges())


@cache
def _hidden_ranges() -> tuple[tuple[str, str], ...]:
    listed = (HIDDEN + HIDDEN_PLANES).encode("ascii", "backslashreplace").decode().replace("\\U", "\\u")
    numbers = [part.split("-") for part in _joined(listed.split("\\u")[1:])]
    return tuple((chr(int(part[0], 16)), chr(int(part[-1], 16))) for part in numbers)


def _joined(parts: list[str]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if found and found[-1].endswith("-"):
            found[-1] += part
        else:
            found.append(part)
    return found


@cache
def shapes(shape: type[Any]) -> st.SearchStrategy[Any]:
    """Values of a shape, with and without the members that need not be there."""
    members = {}
    for item in fields(shape):
        strategy = of_kind(item.metadata["kind"])
        members[item.name] = strategy if item.default is MISSING else st.just(item.default) | strategy
    return st.builds(shape, **members)


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A few changes to bytes that were valid: bits, bytes, lengths, pieces left out, doubled or from another seed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 9))
        match draw(st.sampled_from(["bit", "set", "cut", "end", "double", "insert", "mix"])):
            case "bit" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(data):
                data[at] = draw(st.sampled_from([0, 0x7F, 0x80, 0x91, 0xC0, 0xC1, 0xC6, 0xCB, 0xCF, 0xDD, 0xDF, 0xFF]))
            case "cut":
                del data[at : at + length]
            case "end":
                del data[at:]
            case "double":
                data[at:at] = data[at : at + length]
            case "insert":
                data[at:at] = draw(st.binary(max_size=9))
            case "mix":
                data[at:] = draw(st.sampled_from(seeds))[at:]
    return bytes(data)
