"""Numbers of 32 bits as 16-bit ones and back (IEEE 754 binary16), by the engine's own library: fast, and off the GIL.

What passes between the machines of a split may travel in half the bytes. ggml's rows do it with the processor's own
instructions; Python would take a hundred times as long and stop the event loop meanwhile (ctypes lets go of the GIL for
the length of a call).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# By the processor's own instructions, where the build has one library for the processor; else by plain code. The way
# back is taken from the plain library: the other one reads a table that only a started engine fills.
NARROWING = (("libggml-cpu", "ggml_cpu_fp32_to_fp16"), ("libggml-base", "ggml_fp32_to_fp16_row"))
WIDENING = ("libggml-base", "ggml_fp16_to_fp32_row")
SUFFIXES = (".so", ".dylib")
MOST_BYTES = 1 << 30
_SAMPLE = (0.0, -0.0, 1.0, -2.5, 65504.0, 6.103515625e-05, 5.960464477539063e-08, 0.1)
_INFINITE_HIGH = (0x7C, 0xFC)
Row = Callable[[bytes, "ctypes.Array[ctypes.c_char]", int], None]


class OutOfRange(ValueError):
    """A value is beyond what 16 bits hold (65504): these numbers must travel whole."""


@dataclass(frozen=True, slots=True)
class Halves:
    """The two conversions of one library. Calls may come from any thread; little endian, as all the engine's bytes."""

    _narrow: Row
    _widen: Row

    def to_half(self, data: bytes) -> bytes:
        """Numbers of 4 bytes as numbers of 2, rounded to the nearest.

        Raises OutOfRange where a number would become infinite, ValueError for bytes that are no whole numbers.
        """
        count = _count(data, 4)
        out = bytearray(2 * count)
        if count:
            self._narrow(data, _place(out), count)
        if _holds_infinity(out):
            raise OutOfRange("a value is beyond what 16 bits hold")
        return bytes(out)

    def from_half(self, data: bytes) -> bytes:
        """Numbers of 2 bytes as numbers of 4, exactly. Raises ValueError for bytes that are no whole numbers."""
        count = _count(data, 2)
        out = bytearray(4 * count)
        if count:
            self._widen(data, _place(out), count)
        return bytes(out)


def load_halves(folder: Path) -> Halves | None:
    """The conversions of the engine in `folder`; None where it has no library that counts as it should."""
    return next((halves for halves in _found(folder) if _is_sound(halves)), None)


def _found(folder: Path) -> Iterator[Halves]:
    widen = _row(folder, *WIDENING)
    for library, name in NARROWING:
        narrow = _row(folder, library, name)
        if narrow is not None and widen is not None:
            yield Halves(narrow, widen)


def _row(folder: Path, library: str, name: str) -> Row | None:
    for path in (folder / f"{library}{suffix}" for suffix in SUFFIXES):
        if path.is_file():
            try:
                row = getattr(ctypes.CDLL(str(path)), name)
            except (OSError, AttributeError):
                continue
            row.argtypes, row.restype = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64], None
            return row  # type: ignore[no-any-return]  # a foreign function
    return None


def _is_sound(halves: Halves) -> bool:
    """Whether it makes of some numbers what `struct` makes of them, however many stand in a row."""
    numbers = f"<{len(_SAMPLE)}"
    whole, half = struct.pack(f"{numbers}f", *_SAMPLE), struct.pack(f"{numbers}e", *_SAMPLE)
    back = struct.pack(f"{numbers}f", *struct.unpack(f"{numbers}e", half))
    return all(
        halves.to_half(whole * n) == half * n and halves.from_half(half * n) == back * n for n in (1, 3, 4)
    ) and (halves.to_half(whole[:12]) == half[:6] and halves.from_half(half[:6]) == back[:12])


def _count(data: bytes, width: int) -> int:
    count, rest = divmod(len(data), width)
    if rest or len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes are no row of numbers of {width}")
    return count


def _place(out: bytearray) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * len(out)).from_buffer(out)


def _holds_infinity(halves: bytearray) -> bool:
    # Only infinities and numbers that are none begin so; a search for both bytes at once takes ten times as long.
    high = halves[1::2]
    for first in _INFINITE_HIGH:
        at = high.find(first)
        while at >= 0:
            if halves[2 * at] == 0:
                return True
            at = high.find(first, at + 1)
    return False
