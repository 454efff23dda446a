"""What this machine has to run models on: devices with their free memory, the processor, the RAM.

llama.cpp itself is asked first, because what it lists is what will run, and the variables that hide devices
(CUDA_VISIBLE_DEVICES and the like) are respected by that. The vendors' interfaces add live figures and drivers, and
stand in while no engine is built. A probe that fails costs a note, never the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from meshnode.hardware.device import Device, Inventory, Kind, Memory, Note, Probe, Processor, Reading

__all__ = ["Device", "Inventory", "Memory", "Note", "Probe", "Processor", "Reading", "probe_all", "vendor_probes"]


def vendor_probes() -> list[Probe]:
    """The probes of this package, each of which finds nothing where its vendor is absent."""
    from meshnode.hardware.amd import AmdProbe
    from meshnode.hardware.apple import AppleProbe
    from meshnode.hardware.nvidia import NvidiaProbe

    return [NvidiaProbe(), AmdProbe(), AppleProbe()]


def probe_all(
    list_devices_text: Callable[[], str] | None = None,
    max_vram_bytes: int | None = None,
    *,
    probes: Sequence[Probe] | None = None,
    memory: Memory | None = None,
    processor: Processor | None = None,
) -> Inventory:
    """Look at everything once; blocking, some 10 ms without `list_devices_text`.

    `list_devices_text` returns what `llama-server --list-devices` prints, None if there is no engine yet; it may
    raise. `max_vram_bytes` bounds what is offered of all GPUs together, split in proportion to their memory, and
    stands in for devices that report none. The last three stand in for the machine in tests. Raises nothing.
    """
    from meshnode.hardware.memory import read_memory, read_processor

    notes: list[Note] = []
    memory = memory or read_memory()
    processor = processor or read_processor()
    listed: list[Device] | None = None
    if list_devices_text is not None:
        listed = _listed(list_devices_text, notes)
    readings: list[tuple[str, Reading]] = []
    for probe in vendor_probes() if probes is None else probes:
        try:
            readings += [(probe.name, reading) for reading in probe.read()]
        except Exception as error:
            notes.append(Note(probe.name, f"{type(error).__name__}: {error}"[:300]))
    found = _from_readings(readings) if listed is None else _with_readings(listed, readings)
    found = [_within_memory(device, memory) for device in found]
    cpu = Device("CPU", processor.model, "cpu", "CPU", memory.total_bytes, memory.available_bytes, "", memory.source)
    return Inventory((*_capped(found, max_vram_bytes), cpu), processor, memory, tuple(notes))


def _listed(list_devices_text: Callable[[], str], notes: list[Note]) -> list[Device] | None:
    from meshnode.hardware.llama import parse_devices

    try:
        return parse_devices(list_devices_text())
    except Exception as error:
        notes.append(Note("llama.cpp", f"{type(error).__name__}: {error}"[:300]))
        return None


def _with_readings(listed: Sequence[Device], readings: Sequence[tuple[str, Reading]]) -> list[Device]:
    """Join each device of llama.cpp with the reading that fits it best, each reading used once.

    llama.cpp numbers devices by speed and after hiding some, so positions mean nothing. A reading fits by backend
    and name (AMD's differ from llama.cpp's: by size); of several equal cards the one whose free memory is nearest.
    """
    left = list(readings)
    joined = []
    for device in listed:
        fitting = [pair for pair in left if _fits(device, pair[1])]
        if not fitting:
            joined.append(device)
            continue
        best = min(fitting, key=lambda pair: abs((pair[1].free_bytes or 0) - (device.free_bytes or 0)))
        left.remove(best)
        joined.append(_joined(device, *best))
    return joined


def _fits(device: Device, reading: Reading) -> bool:
    if device.backend not in reading.backends:
        return False
    # A driver may add to the name in parentheses; a bare prefix would take an RTX 4070 for an RTX 4070 Ti.
    if f"{device.name} (".lower().startswith(f"{reading.name} (".lower()) or device.backend == "Metal":
        return True
    if "ROCm" not in reading.backends:
        return False
    if device.total_bytes is None or reading.total_bytes is None:
        return reading.unified and "graphics" in device.name.lower()
    return abs(device.total_bytes - reading.total_bytes) < reading.total_bytes // 20


def _joined(device: Device, source: str, reading: Reading) -> Device:
    """What both say. Of two figures for free memory the smaller: neither sees what the other counts as used."""
    kind: Kind = "unified" if reading.unified else device.kind
    free = [figure for figure in (device.free_bytes, reading.free_bytes) if figure is not None]
    return replace(
        device,
        kind=kind,
        total_bytes=device.total_bytes or reading.total_bytes,
        free_bytes=min(free, default=None),
        driver=reading.driver,
        source=f"{device.source}, {source}",
    )


def _from_readings(readings: Sequence[tuple[str, Reading]]) -> list[Device]:
    """Devices as the vendors list them, for a machine without an engine; ids as llama.cpp will likely give them."""
    devices = []
    counts: dict[str, int] = {}
    for source, reading in readings:
        backend = reading.backends[0]
        number = counts.get(backend, 0)
        counts[backend] = number + 1
        name = "MTL" if backend == "Metal" else backend
        kind: Kind = "unified" if reading.unified else "gpu"
        figures = (reading.total_bytes, reading.free_bytes, reading.driver, source)
        devices.append(Device(f"{name}{number}", reading.name, kind, backend, *figures))
    return devices


def _within_memory(device: Device, memory: Memory) -> Device:
    """A unified device has what the machine has, and never more free than that."""
    if device.kind != "unified":
        return device
    total = memory.total_bytes if device.total_bytes is None else min(device.total_bytes, memory.total_bytes)
    free = total if device.free_bytes is None else device.free_bytes
    return replace(device, total_bytes=total, free_bytes=min(free, memory.available_bytes))


def _capped(devices: Sequence[Device], max_vram_bytes: int | None) -> list[Device]:
    if max_vram_bytes is None or not devices:
        return list(devices)
    known = [device.total_bytes for device in devices if device.total_bytes]
    usual = sum(known) / len(known) if known else 1.0
    whole = sum(device.total_bytes or usual for device in devices)
    capped = []
    for device in devices:
        share = int(max_vram_bytes * (device.total_bytes or usual) / whole)
        free = share if device.free_bytes is None else min(device.free_bytes, share)
        capped.append(replace(device, free_bytes=free))
    return capped
