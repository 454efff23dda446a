"""The records: frozen, and the processor is told apart from what accelerates."""

from __future__ import annotations

import dataclasses

import pytest

from meshnode.hardware.device import Device, Inventory, Memory, Processor


def test_accelerators_leave_the_processor_out() -> None:
    gpu, shared = Device("CUDA0", "a", "gpu", "CUDA"), Device("MTL0", "b", "unified", "Metal")
    cpu = Device("CPU", "c", "cpu", "CPU", 8, 4)
    inventory = Inventory((gpu, shared, cpu), Processor("c", 4), Memory(8, 4))
    assert inventory.accelerators == (gpu, shared)
    assert gpu.total_bytes is None and gpu.free_bytes is None


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Device("CUDA0", "a", "gpu", "CUDA").name = "b"  # type: ignore[misc]
