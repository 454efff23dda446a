"""Values and their bytes: the subset of msgpack that nodes exchange, in one canonical form.

Allowed are nil, booleans, integers of 64 bits, byte strings, UTF-8 texts, arrays, and maps whose keys are integers
from 0 to 65535. There are no floats (units are chosen so that integers do), no extension types, no other keys. The
canonical form has the shortest encoding of every value and map keys in ascending order, so equal values are equal
bytes; a reader refuses every other form. See protocol/02-framing.md.
"""

from __future__ import annotations

from typing import Any

import msgpack

from meshnode.wire.registry import Close

MAX_DEPTH = 8
MAX_KEY = 0xFFFF
MAX_ITEMS = 4096
MAX_MEMBERS = 64

_SCALARS = frozenset((int, bytes, str, bool, type(None)))


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


def decode(data: bytes, *, limit_bytes: int) -> Any:
    """The value in `data`, all of it. Raises WireError for anything malformed, not canonical, or above the limit."""
    value = parse(data, limit_bytes=limit_bytes)
    check(value, 0)
    return value


def parse(data: bytes, *, limit_bytes: int) -> Any:
    """The half of `decode` that costs little: `check`, or a schema, has yet to judge types, keys and depth.

    Raises WireError. What it returns is made of msgpack's types, floats and timestamps among them.
    """
    if len(data) > limit_bytes:
        raise WireError(f"{len(data)} bytes, at most {limit_bytes}")
    try:
        # A header may claim far more items than follow, and msgpack makes room for them at once, at every level.
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            ext_hook=_no_extension,
            max_array_len=min(MAX_ITEMS, len(data)),
            max_map_len=MAX_MEMBERS,
        )
        # Equal bytes mean shortest forms and no key twice. The order of keys is still to be seen: a dict keeps it.
        same = msgpack.packb(value, use_bin_type=True) == data
    except WireError:
        raise
    except Exception as reason:  # msgpack raises many kinds, ValueError, TypeError and its own tree among them
        raise WireError(f"not a value: {type(reason).__name__}") from None
    if not same:
        raise WireError("not in canonical form")
    return value


def check(value: Any, depth: int) -> None:
    """Raise WireError for a parsed value that is not exchanged; `depth` counts the containers around it."""
    kind = type(value)
    if kind in _SCALARS:
        return
    if kind is not list and kind is not dict:
        raise WireError(f"values of type {kind.__name__} are not exchanged")
    deep(depth)
    if kind is dict:
        last = -1
        for key in value:
            last = follow(key, last)
        value = value.values()
    for item in value:
        check(item, depth + 1)


def follow(key: Any, last: int) -> int:
    """`key`, if it may come after the key `last` of a map (-1: it is the first). Raises WireError."""
    if type(key) is not int or not 0 <= key <= MAX_KEY:
        raise WireError("a map key is not a small integer")
    if key <= last:
        raise WireError("map keys are not in ascending order")
    return key


def deep(depth: int) -> None:
    """Raise WireError for a container with `depth` others around it, if these are too many."""
    if depth >= MAX_DEPTH:
        raise WireError("nested too deeply")


def _no_extension(code: int, _: bytes) -> Any:
    raise WireError(f"extension type {code}")


def _ordered(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is dict:
        deep(depth)
        if len(value) > MAX_MEMBERS or any(type(key) is not int or not 0 <= key <= MAX_KEY for key in value):
            raise WireError("a map has too many keys, or one that is not a small integer")
        return {key: _ordered(value[key], depth + 1) for key in sorted(value)}
    if kind is list or kind is tuple:
        deep(depth)
        if len(value) > MAX_ITEMS:
            raise WireError(f"an array of {len(value)} items, at most {MAX_ITEMS}")
        return [_ordered(item, depth + 1) for item in value]
    if kind in _SCALARS:
        return value
    if isinstance(value, int):
        return int(value)
    raise WireError(f"values of type {kind.__name__} are not exchanged")
