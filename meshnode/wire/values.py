"""Values and their bytes: the subset of msgpack that nodes exchange, in one canonical form.

Allowed are nil, booleans, integers of 64 bits, byte strings, UTF-8 texts, arrays, and maps whose keys are integers
from 0 to 65535. There are no floats (units are chosen so that integers do), no extension types, no other keys. The
canonical form has the shortest encoding of every value and map keys in ascending order, so equal values are equal
bytes; it is demanded of everything that is signed. See protocol/02-framing.md.
"""

from __future__ import annotations

from typing import Any

import msgpack

from meshnode.wire.registry import Close

MAX_DEPTH = 8
MAX_KEY = 0xFFFF


class WireError(Exception):
    """Bytes that break the rules. `code` is the close code that answers them."""

    def __init__(self, reason: str, code: Close = Close.PROTOCOL_ERROR) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


def encode(value: Any) -> bytes:
    """The canonical bytes of `value`. Raises WireError for a value that has none: that is our own mistake."""
    try:
        packed: bytes = msgpack.packb(_ordered(value, 0), use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as reason:
        raise WireError(f"cannot be encoded: {reason}") from None
    return packed


def decode(data: bytes, *, limit_bytes: int, canonical: bool = False) -> Any:
    """The value in `data`, all of it. Raises WireError for anything malformed, larger than the limit, or, with
    `canonical`, for bytes that `encode` would have written differently.
    """
    if len(data) > limit_bytes:
        raise WireError(f"{len(data)} bytes, at most {limit_bytes}")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            use_list=True,
            object_pairs_hook=_pairs,
            ext_hook=_no_extension,
        )
    except WireError:
        raise
    except Exception as reason:  # msgpack raises many kinds, ValueError and its own tree among them
        raise WireError(f"not a value: {type(reason).__name__}") from None
    _check(value, 0)
    if canonical and encode(value) != data:
        raise WireError("not in canonical form")
    return value


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for key, value in pairs:
        if type(key) is not int or not 0 <= key <= MAX_KEY:
            raise WireError("a map key is not a small integer")
        if key in found:
            raise WireError("a map key appears twice")
        found[key] = value
    return found


def _no_extension(code: int, _: bytes) -> Any:
    raise WireError(f"extension type {code}")


def _check(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is int or kind is bytes or kind is str or kind is bool or value is None:
        return
    if depth >= MAX_DEPTH:
        raise WireError("nested too deeply")
    if kind is list:
        for item in value:
            _check(item, depth + 1)
    elif kind is dict:
        for item in value.values():
            _check(item, depth + 1)
    else:
        raise WireError(f"values of type {kind.__name__} are not exchanged")


def _ordered(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is dict:
        _deep(depth)
        if any(type(key) is not int or not 0 <= key <= MAX_KEY for key in value):
            raise WireError("a map key is not a small integer")
        return {key: _ordered(value[key], depth + 1) for key in sorted(value)}
    if kind is list or kind is tuple:
        _deep(depth)
        return [_ordered(item, depth + 1) for item in value]
    if value is None or kind in (int, bool, bytes, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, bytes):
        return bytes(value)
    raise WireError(f"values of type {kind.__name__} are not exchanged")


def _deep(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise WireError("nested too deeply")
