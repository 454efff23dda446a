"""Half-precision rows of the engine's library, against `struct`."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.config import find_places
from meshnode.engine.halves import Halves, OutOfRange, load_halves
from meshnode.engine.provision import find

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def halves(engine_bin: Path) -> Halves:
    found = load_halves(engine_bin)
    assert found is not None
    return found


def test_the_engine_of_this_machine_has_them() -> None:
    engine = find(find_places().cache)
    assert engine is not None and load_halves(engine.folder) is not None


@given(st.lists(st.floats(-65504, 65504, width=32)))
def test_numbers_are_rounded_as_struct_rounds_them(halves: Halves, values: list[float]) -> None:
    whole = struct.pack(f"<{len(values)}f", *values)
    half = halves.to_half(whole)
    assert half == struct.pack(f"<{len(values)}e", *values)
    back = struct.unpack(f"<{len(values)}f", halves.from_half(half))
    assert back == struct.unpack(f"<{len(values)}e", half)


def test_every_half_survives_the_way_there_and_back(halves: Halves) -> None:
    every = struct.pack("<63488H", *range(0x7C00), *range(0x8000, 0xFC00))
    assert halves.to_half(halves.from_half(every)) == every


@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e9, float("inf")])
@pytest.mark.parametrize("position", [0, 1, 7, 99])
def test_what_would_become_infinite_is_refused(halves: Halves, value: float, position: int) -> None:
    values = [0.25] * 100
    values[position] = value
    with pytest.raises(OutOfRange):
        halves.to_half(struct.pack("<100f", *values))


def test_bytes_that_look_like_an_infinity_but_lie_across_two_numbers(halves: Halves) -> None:
    half = b"\x00\x00\x7c\x00"
    assert halves.to_half(halves.from_half(half)) == half


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_no_row_of_numbers(halves: Halves, length: int) -> None:
    with pytest.raises(ValueError):
        halves.to_half(bytes(length))
    if length % 2:
        with pytest.raises(ValueError):
            halves.from_half(bytes(length))
    assert halves.to_half(b"") == halves.from_half(b"") == b""


def test_other_threads_run_meanwhile(halves: Halves) -> None:
    """A conversion of 64 MB does not hold the interpreter for its length: one would see no step of another thread."""
    data, steps, done = bytes(64 << 20), 0, threading.Event()

    def count() -> None:
        nonlocal steps
        while not done.is_set():
            steps += 1

    counter = threading.Thread(target=count)
    counter.start()
    before = steps
    halves.from_half(data)
    seen = steps - before
    done.set()
    counter.join()
    assert seen > 1000


def test_without_the_library(tmp_path: Path) -> None:
    assert load_halves(tmp_path) is None
    (tmp_path / "libggml-base.so").write_bytes(b"not a library")
    assert load_halves(tmp_path) is None
