"""sysctl of Apple machines, recorded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meshnode.hardware.apple import AppleProbe

DATA = Path(__file__).parent / "data"
GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "chip", "total"), [("m3_max", "Apple M3 Max", 96 * GIB), ("m1_limit", "Apple M1", 14 * GIB)]
)
def test_apple_silicon(name: str, chip: str, total: int) -> None:
    (reading,) = AppleProbe(lambda keys: (DATA / f"sysctl_{name}.txt").read_text()).read()
    assert (reading.name, reading.total_bytes, reading.free_bytes) == (chip, total, None)
    assert reading.unified and reading.backends == ("Metal",)


def test_small_machines_give_two_thirds() -> None:
    text = "hw.memsize: 17179869184\nhw.optional.arm64: 1\n"
    (reading,) = AppleProbe(lambda keys: text).read()
    assert reading.total_bytes == 17179869184 * 2 // 3 and reading.name == "Apple GPU"


def test_a_limit_above_the_memory_is_not_believed() -> None:
    text = "hw.memsize: 17179869184\nhw.optional.arm64: 1\niogpu.wired_limit_mb: 999999\n"
    assert AppleProbe(lambda keys: text).read()[0].total_bytes == 17179869184


def test_intel_macs_have_no_unified_memory() -> None:
    assert AppleProbe(lambda keys: (DATA / "sysctl_intel.txt").read_text()).read() == []


def test_damaged_output_raises() -> None:
    with pytest.raises((KeyError, ValueError)):
        AppleProbe(lambda keys: "hw.optional.arm64: 1\n").read()


@pytest.mark.skipif(sys.platform == "darwin", reason="finds something on a Mac")
def test_other_machines() -> None:
    assert AppleProbe().read() == []
