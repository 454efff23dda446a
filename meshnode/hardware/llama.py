"""Reads what `llama-server --list-devices` prints: the devices that will really be used.

The form is that of `common_print_available_devices` in llama.cpp's common/arg.cpp:

    Available devices:
      CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23681 MiB free)

A description may hold parentheses and colons itself. `0 MiB, 0 MiB free` is how a backend says that it does not know.
"""

from __future__ import annotations

import re

from meshnode.hardware.device import Device, Kind

MIB = 1 << 20
MAX_DEVICES = 64

_LINE = re.compile(
    r"^  (?P<id>[A-Za-z][\w.-]{0,31}): (?P<name>.{0,200}) \((?P<total>\d{1,9}) MiB, (?P<free>\d{1,9}) MiB free\)$"
)
_BACKENDS = {"MTL": "Metal"}
# RPC devices are other machines; BLAS is a library that computes in the processor's memory.
_NOT_DEVICES = {"RPC", "BLAS"}
# A card may be listed by two backends of one build; the native one is faster.
_SECOND_CHOICE = ("Vulkan", "SYCL", "GPUOpenCL")


def parse_devices(text: str) -> list[Device]:
    """The devices in `text`, in its order; other lines are passed over. Each card once, by its native backend."""
    devices: list[Device] = []
    for line in text[: 1 << 20].splitlines():
        if (found := _LINE.match(line)) and len(devices) < MAX_DEVICES:
            prefix = found["id"].rstrip("0123456789")
            if prefix in _NOT_DEVICES:
                continue
            backend = _BACKENDS.get(prefix, prefix)
            kind: Kind = "unified" if backend == "Metal" else "gpu"
            total = int(found["total"]) * MIB or None
            free = int(found["free"]) * MIB if total else None
            devices.append(Device(found["id"], found["name"].strip(), kind, backend, total, free, source="llama.cpp"))
    native = {_card(device) for device in devices if device.backend not in _SECOND_CHOICE}
    return [device for device in devices if device.backend not in _SECOND_CHOICE or _card(device) not in native]


def _card(device: Device) -> str:
    """The name without what a driver adds: Vulkan says `AMD Radeon RX 7900 XTX (RADV NAVI31)`."""
    return re.sub(r" \(.*\)$", "", device.name).lower()
