"""The whole inventory: which figure wins, what a failed probe costs, and the cap of --max-vram."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from meshnode.hardware import Inventory, Memory, Processor, Reading, probe_all

DATA = Path(__file__).parent / "data"
MIB, GIB = 1 << 20, 1 << 30
MEMORY = Memory(32 * GIB, 20 * GIB)
PROCESSOR = Processor("A processor", 8, 4)


class FakeProbe:
    """Answers with fixed readings, or fails."""

    def __init__(self, name: str, *readings: Reading, error: Exception | None = None) -> None:
        self.name = name
        self._readings = readings
        self._error = error

    def read(self) -> Sequence[Reading]:
        if self._error:
            raise self._error
        return self._readings


def nvidia(name: str, total: int | None, free: int | None, unified: bool = False) -> Reading:
    return Reading(name, ("CUDA", "Vulkan"), total, free, unified, "580.95")


def listed(name: str) -> Callable[[], str]:
    return (DATA / f"list_devices_{name}.txt").read_text


def look(
    text: Callable[[], str] | None, *probes: FakeProbe, cap: int | None = None, memory: Memory = MEMORY
) -> Inventory:
    return probe_all(text, cap, probes=probes, memory=memory, processor=PROCESSOR)


def test_the_processor_comes_last_and_has_the_memory() -> None:
    *_, cpu = look(listed("cuda")).devices
    assert (cpu.id, cpu.kind, cpu.name, cpu.total_bytes, cpu.free_bytes) == (
        "CPU",
        "cpu",
        "A processor",
        32 * GIB,
        20 * GIB,
    )


def test_names_join_readings_whatever_their_order_and_the_smaller_free_wins() -> None:
    probe = FakeProbe(
        "nvidia",
        nvidia("NVIDIA GeForce RTX 3090", 24576 * MIB, 12000 * MIB),
        nvidia("NVIDIA GeForce RTX 4090", 24564 * MIB, 20000 * MIB),
    )
    first, second = look(listed("cuda"), probe).accelerators
    assert (first.id, first.total_bytes, first.free_bytes) == ("CUDA0", 24080 * MIB, 20000 * MIB)
    assert (second.id, second.free_bytes, second.driver) == ("CUDA1", 11032 * MIB, "580.95")
    assert first.source == "llama.cpp, nvidia"


def test_equal_cards_are_told_apart_by_their_free_memory() -> None:
    text = "".join(
        f"  CUDA{number}: NVIDIA L4 (22000 MiB, {free} MiB free)\n" for number, free in enumerate((21000, 3000))
    )
    probe = FakeProbe(
        "nvidia", nvidia("NVIDIA L4", 23034 * MIB, 2900 * MIB), nvidia("NVIDIA L4", 23034 * MIB, 21500 * MIB)
    )
    first, second = look(lambda: text, probe).accelerators
    assert (first.free_bytes, second.free_bytes) == (21000 * MIB, 2900 * MIB)


def test_a_name_that_only_begins_alike_is_another_card() -> None:
    probe = FakeProbe("nvidia", nvidia("NVIDIA GeForce RTX 4070", 12 * GIB, GIB))
    first = look(listed("cuda_and_vulkan"), probe).accelerators[0]
    assert first.source == "llama.cpp" and first.free_bytes == 11500 * MIB


def test_unified_boards_have_what_the_machine_has() -> None:
    probe = FakeProbe("nvidia", nvidia("NVIDIA GB10", None, None, unified=True))
    memory = Memory(120 * GIB, 70 * GIB)
    (gb10,) = look(listed("gb10"), probe, memory=memory).accelerators
    assert (gb10.kind, gb10.total_bytes, gb10.free_bytes) == ("unified", 122572 * MIB, 70 * GIB)
    (alone,) = look(None, probe, memory=memory).accelerators
    assert (alone.id, alone.kind, alone.total_bytes, alone.free_bytes) == ("CUDA0", "unified", 120 * GIB, 70 * GIB)


def test_metal_has_no_more_than_the_machine_has_left() -> None:
    probe = FakeProbe("apple", Reading("Apple M3 Max", ("Metal",), 96 * GIB, None, True))
    (gpu,) = look(listed("metal"), probe, memory=Memory(128 * GIB, 50 * GIB)).accelerators
    assert (gpu.id, gpu.kind, gpu.total_bytes, gpu.free_bytes) == ("MTL0", "unified", 98304 * MIB, 50 * GIB)


def test_amd_cards_are_joined_by_size_and_apus_by_name() -> None:
    card = Reading("AMD GPU 0x744c", ("ROCm", "Vulkan"), 24560 * MIB, 9 * GIB, driver="6.12")
    (gpu,) = look(listed("rocm"), FakeProbe("amd", card)).accelerators
    assert (gpu.free_bytes, gpu.driver, gpu.kind) == (9 * GIB, "6.12", "gpu")
    apu = Reading("AMD GPU 0x164e", ("ROCm", "Vulkan"), unified=True)
    nvidia_card, shared = look(listed("cuda_and_vulkan"), FakeProbe("amd", apu)).accelerators
    assert (shared.id, shared.kind) == ("Vulkan1", "unified") and nvidia_card.kind == "gpu"


def test_what_was_not_reported_stays_none() -> None:
    (gpu,) = look(listed("rpc")).accelerators
    assert gpu.total_bytes is None and gpu.free_bytes is None


def test_failed_probes_are_notes() -> None:
    def fail() -> str:
        raise OSError("llama-server is missing")

    probe = FakeProbe("nvidia", error=RuntimeError("Driver/library version mismatch " + "x" * 1000))
    inventory = look(fail, probe, FakeProbe("amd", Reading("Card", ("ROCm",), 8 * GIB, 7 * GIB)))
    assert [note.probe for note in inventory.notes] == ["llama.cpp", "nvidia"]
    assert "is missing" in inventory.notes[0].reason and len(inventory.notes[1].reason) <= 300
    assert [device.id for device in inventory.accelerators] == ["ROCm0"]


def test_llama_lists_nothing_then_nothing_is_used() -> None:
    probe = FakeProbe("nvidia", nvidia("NVIDIA L4", 23 * GIB, 22 * GIB))
    assert look(listed("none"), probe).accelerators == ()


@pytest.mark.parametrize(
    ("name", "cap", "free_mib"),
    [("cuda", 100 * GIB, [23664, 11032]), ("cuda", 20 * GIB, [10230, 10249]), ("cuda", 0, [0, 0]),
     ("rpc", 8 * GIB, [8192]), ("none", GIB, [])],
)  # fmt: skip
def test_max_vram_bounds_all_gpus_together(name: str, cap: int, free_mib: list[int]) -> None:
    inventory = look(listed(name), cap=cap)
    assert [(device.free_bytes or 0) // MIB for device in inventory.accelerators] == free_mib
    assert sum(device.free_bytes or 0 for device in inventory.accelerators) <= cap
    assert inventory.devices[-1].free_bytes == 20 * GIB


def test_this_machine() -> None:
    inventory = probe_all()
    assert inventory.memory.total_bytes > 64 * MIB and inventory.processor.logical >= 1
    assert inventory.devices[-1].id == "CPU"


def test_heavy_libraries_wait_until_they_are_asked() -> None:
    code = "import sys, meshnode.hardware; sys.exit(bool({'psutil', 'pynvml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
