"""NVIDIA devices through NVML (the package `nvidia-ml-py`, imported as `pynvml` and only when asked).

Boards whose GPU shares the machine's memory (GB10, Jetson) answer NOT_SUPPORTED when asked for theirs: they come out
as unified, and the machine's memory takes the place of the figure.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

from meshnode.hardware.device import Reading

MAX_DEVICES = 64
# Tegra drivers report a figure on some versions; it is the machine's memory all the same.
_SHARED = re.compile(r"\b(GB10|Orin|Thor|Xavier|Tegra|Jetson)\b", re.IGNORECASE)


class NvidiaProbe:
    """Asks NVML. `nvml` stands in for the module in tests."""

    name = "nvidia"

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml

    def read(self) -> Sequence[Reading]:
        """One reading a device; [] where there is no driver. Raises pynvml.NVMLError if there is one that fails."""
        nvml = self._nvml or importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
        except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
            return []
        try:
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            count = min(nvml.nvmlDeviceGetCount(), MAX_DEVICES)
            return [self._device(nvml, nvml.nvmlDeviceGetHandleByIndex(index), driver) for index in range(count)]
        finally:
            nvml.nvmlShutdown()

    def _device(self, nvml: Any, handle: Any, driver: str) -> Reading:
        name = _text(nvml.nvmlDeviceGetName(handle))
        total = free = None
        unified = bool(_SHARED.search(name))
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            total, free = int(memory.total) or None, int(memory.free)
        except nvml.NVMLError_NotSupported:
            unified = True
        if unified or total is None:
            total = free = None
        return Reading(name, ("CUDA", "Vulkan"), total, free, unified, driver)


def _text(value: str | bytes) -> str:
    """NVML strings are bytes in older versions of the package."""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))[:200]
