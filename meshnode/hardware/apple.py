"""Apple silicon through sysctl: one memory for processor and GPU, of which Metal may wire a part.

`iogpu.wired_limit_mb` is that part if the user set it; 0 leaves it to macOS, which takes about two thirds, and three
quarters from 36 GiB on (the recommendedMaxWorkingSetSize that llama.cpp reports).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from meshnode.hardware.device import Reading

GIB = 1 << 30
KEYS = ("hw.memsize", "iogpu.wired_limit_mb", "machdep.cpu.brand_string", "hw.optional.arm64")


def run_sysctl(keys: Sequence[str]) -> str:
    """The output of `sysctl KEY…`; keys that this macOS does not know are left out of it. Raises OSError."""
    done = subprocess.run(
        ["/usr/sbin/sysctl", *keys], capture_output=True, text=True, errors="replace", timeout=5, check=False
    )
    return done.stdout[:65536]


class AppleProbe:
    """Asks sysctl on macOS. `sysctl` stands in for the command in tests."""

    name = "apple"

    def __init__(self, sysctl: Callable[[Sequence[str]], str] | None = None) -> None:
        self._sysctl = sysctl or (run_sysctl if sys.platform == "darwin" else None)

    def read(self) -> Sequence[Reading]:
        """The GPU of Apple silicon; [] on any other machine. Raises OSError, ValueError or TimeoutExpired."""
        if self._sysctl is None:
            return []
        values = parse_sysctl(self._sysctl(KEYS))
        if values.get("hw.optional.arm64") != "1":
            return []
        memory_bytes = int(values["hw.memsize"])
        limit_bytes = int(values.get("iogpu.wired_limit_mb", "0")) << 20
        usual = memory_bytes * 3 // 4 if memory_bytes >= 36 * GIB else memory_bytes * 2 // 3
        total = min(limit_bytes or usual, memory_bytes)
        return [Reading(values.get("machdep.cpu.brand_string", "Apple GPU"), ("Metal",), total, None, unified=True)]


def parse_sysctl(text: str) -> dict[str, str]:
    """`key: value` lines as a mapping."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {key: value.strip() for key, colon, value in pairs if colon}
