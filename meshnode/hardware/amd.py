"""AMD devices through the files that the amdgpu driver of Linux shows under /sys/class/drm (no library needed).

`mem_info_vram_*` is the card's own memory, `mem_info_gtt_*` the machine's memory that it may use; see "GPU
Memory" in the kernel's documentation of amdgpu. An APU has a small carve-out as VRAM and a large GTT.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from meshnode.hardware.device import Reading

VENDOR = "0x1002"
MAX_DEVICES = 64
# BIOS carve-outs of APUs; no discrete card that ROCm supports has so little.
APU_CARVE_OUT_BYTES = 4 << 30


class AmdProbe:
    """Reads sysfs. `root` stands in for / in tests."""

    name = "amd"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Sequence[Reading]:
        """One reading a card; [] where there is none. Raises OSError or ValueError for a card that does not answer."""
        folder = self._root / "sys/class/drm"
        try:
            names = [path.name for path in folder.iterdir()]
        except OSError:
            return []
        cards = sorted((name for name in names if re.fullmatch(r"card\d{1,4}", name)), key=lambda name: int(name[4:]))
        devices = [folder / card / "device" for card in cards]
        return [self._device(path) for path in devices[:MAX_DEVICES] if _read(path / "vendor", "") == VENDOR]

    def _device(self, path: Path) -> Reading:
        driver = _read(self._root / "sys/module/amdgpu/version", "amdgpu")
        name = _read(path / "product_name", "") or f"AMD GPU {_read(path / 'device', '')}".strip()
        if not (path / "mem_info_vram_total").exists():
            return Reading(name, ("ROCm", "Vulkan"), driver=driver)
        total = int(_read(path / "mem_info_vram_total"))
        used = int(_read(path / "mem_info_vram_used"))
        shared = int(_read(path / "mem_info_gtt_total", "0"))
        unified = total <= APU_CARVE_OUT_BYTES and shared > total
        if unified or total == 0:
            return Reading(name, ("ROCm", "Vulkan"), unified=unified, driver=driver)
        return Reading(name, ("ROCm", "Vulkan"), total, max(0, total - used), driver=driver)


def _read(path: Path, default: str | None = None) -> str:
    """The first line of a small file; `default` instead of OSError if it is given."""
    try:
        with path.open("rb") as file:
            return file.read(256).decode("utf-8", "replace").split("\n")[0].strip()
    except OSError:
        if default is None:
            raise
        return default
