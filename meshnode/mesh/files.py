"""Declared shapes (wire/schema.py) as files: canonical bytes on the disk, checked in full when they are read.

A damaged file is told with what to do about it; nothing is guessed from a part of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from meshnode import durable
from meshnode.errors import StateError
from meshnode.wire import schema
from meshnode.wire.schema import MAX_U63, UInt, member
from meshnode.wire.values import WireError

T = TypeVar("T")

COUNTER_BYTES = 32


def load(shape: type[T], file: Path, *, limit_bytes: int, fix: str) -> T | None:
    """The value kept in `file`; None where there is no file.

    Raises StateError with `fix` for a file that is damaged, too large, or written by a later version.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None
    try:
        return schema.read(shape, data, limit_bytes=limit_bytes)
    except WireError as error:
        raise StateError(f"{file} is damaged ({error.reason})", fix=fix) from None


def save(file: Path, value: Any) -> None:
    """Keep a value; it is on the disk when this returns. Raises HomeNotWritable."""
    durable.write(file, schema.write(value))


@dataclass(frozen=True, slots=True)
class _Counter:
    value: int = member(0, UInt(MAX_U63))


class Counter:
    """A number that only grows, and outlives the process."""

    def __init__(self, file: Path) -> None:
        """Raises StateError when the file is damaged."""
        self._file = file
        kept = load(_Counter, file, limit_bytes=COUNTER_BYTES, fix=f"remove {file}: the count begins anew")
        self._value = kept.value if kept else 0

    def next(self) -> int:
        """One more than ever before, on disk before it is used. Raises HomeNotWritable."""
        self.raise_to(self._value + 1)
        return self._value

    def raise_to(self, value: int) -> None:
        """Keep a greater number; a smaller one changes nothing. Raises HomeNotWritable."""
        if value > self._value:
            save(self._file, _Counter(value))
            self._value = value
