"""What `llama-server --list-devices` prints, recorded and damaged."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from meshnode.hardware.llama import MAX_DEVICES, MIB, parse_devices

DATA = Path(__file__).parent / "data"


def parsed(name: str) -> list[tuple[str, str, str, int | None, int | None]]:
    devices = parse_devices((DATA / f"list_devices_{name}.txt").read_text())
    mib = [(device.total_bytes and device.total_bytes // MIB, device.free_bytes and device.free_bytes // MIB)
           for device in devices]  # fmt: skip
    return [(device.id, device.name, device.kind, *sizes) for device, sizes in zip(devices, mib, strict=True)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", []),
        ("cuda", [("CUDA0", "NVIDIA GeForce RTX 4090", "gpu", 24080, 23664),
                  ("CUDA1", "NVIDIA GeForce RTX 3090", "gpu", 24124, 11032)]),
        ("rocm", [("ROCm0", "AMD Radeon RX 7900 XTX", "gpu", 24560, 24524)]),
        ("gb10", [("CUDA0", "NVIDIA GB10", "gpu", 122572, 117204)]),
        ("metal", [("MTL0", "Apple M3 Max", "unified", 98304, 98303)]),
        ("cuda_and_vulkan", [("CUDA0", "NVIDIA GeForce RTX 4070 Ti", "gpu", 11994, 11500),
                             ("Vulkan1", "AMD Radeon Graphics (RADV RAPHAEL_MENDOCINO)", "gpu", 15929, 15012)]),
        ("rpc", [("CUDA0", "NVIDIA GeForce RTX 3060", "gpu", None, None)]),
    ],
)  # fmt: skip
def test_recorded_outputs(name: str, expected: list[tuple[object, ...]]) -> None:
    assert parsed(name) == expected


def test_backend_and_source() -> None:
    (device,) = parse_devices("  MTL0: Apple M1 (10922 MiB, 10922 MiB free)\n")
    assert (device.backend, device.source) == ("Metal", "llama.cpp")


def test_a_full_device_is_not_a_silent_one() -> None:
    (device,) = parse_devices("  Vulkan0: Card (8192 MiB, 0 MiB free)\n")
    assert device.free_bytes == 0 and device.total_bytes == 8192 * MIB


def test_hostile_text_is_bounded_and_raises_nothing() -> None:
    many = "".join(f"  CUDA{number}: x (1 MiB, 1 MiB free)\n" for number in range(5000))
    assert len(parse_devices(many)) == MAX_DEVICES
    assert parse_devices("  CUDA0: " + "(" * 100_000 + "\n") == []
    assert parse_devices("  CUDA0: x (99999999999999 MiB, 1 MiB free)\n") == []
    recorded = (DATA / "list_devices_cuda_and_vulkan.txt").read_text()
    rng = random.Random(3)
    for _ in range(300):
        text = list(recorded)
        for _ in range(rng.randint(1, 20)):
            text[rng.randrange(len(text))] = chr(rng.randrange(0x300))
        for device in parse_devices("".join(text)):
            assert device.id and (device.total_bytes is None or device.total_bytes > 0)


@pytest.mark.engine
def test_the_built_engine_is_understood(engine_bin: Path) -> None:
    text = subprocess.run(
        [engine_bin / "llama-server", "--list-devices"], capture_output=True, text=True, timeout=60
    ).stdout
    assert text.startswith("Available devices:\n")
    listed = [line for line in text.splitlines()[1:] if not line.startswith(("  (none)", "  BLAS", "  RPC"))]
    assert len(parse_devices(text)) == len(listed)
