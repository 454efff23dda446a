"""What a node shows of itself: the parts of /api/status, and the same facts as sentences."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from meshnode import __version__
from meshnode.api.metrics import Gauge, outcome
from meshnode.api.record import Record
from meshnode.config import Settings
from meshnode.core.placement import HOST
from meshnode.core.usage import DeviceMemory, Holding, bars, holdings_of
from meshnode.engine.installed import Engine
from meshnode.hardware import Inventory
from meshnode.planning import budget_of
from meshnode.units import Unit

RAM_STEP_BYTES = 64 << 20
"""Free memory is shown in steps, so that watchers are not sent every page that comes and goes."""
DEMANDED_MODELS = 32
ORIGINS = {"built": "built by meshnode", "given": "given with --engine", "path": "found on PATH"}


def engine_sentence(engine: Engine) -> str:
    """The engine as one line."""
    patches = "" if engine.patched else "; without meshnode's patches"
    return f"llama.cpp {engine.version} for {engine.backend} ({ORIGINS[engine.origin]}{patches})"


def devices_sentence(inventory: Inventory) -> str:
    """The devices as one line: GPUs where there are any, else the processor."""
    memory, processor = inventory.memory, inventory.processor
    ram = f"{memory.available_bytes / 1e9:.1f} of {memory.total_bytes / 1e9:.1f} GB memory free"
    if not inventory.accelerators:
        return f"no GPU found; {processor.model}, {processor.logical} threads, {ram}"
    gpus = [
        f"{gpu.name} ({_gigabytes(gpu.free_bytes)} of {_gigabytes(gpu.total_bytes)} GB free)"
        for gpu in inventory.accelerators
    ]
    return ", ".join(gpus)


def hardware_facts(inventory: Inventory) -> dict[str, Any]:
    """The devices for /api/status. The processor's free memory is that of the machine and stands there only."""
    memory, processor = inventory.memory, inventory.processor
    return {
        "devices": [asdict(device) for device in inventory.accelerators],
        "processor": {**asdict(processor), "flags": sorted(processor.flags)},
        "memory": {
            "total_bytes": memory.total_bytes,
            "available_bytes": memory.available_bytes // RAM_STEP_BYTES * RAM_STEP_BYTES,
            "source": memory.source,
        },
        "notes": [f"{note.probe}: {note.reason}" for note in inventory.notes],
        "system": f"{platform.system()} {platform.release()}",
    }


def request_facts(record: Record, *, at: float, here: str) -> dict[str, Any]:
    """One finished request for the log, /api/status and the console. Never a prompt or an answer.

    `at` is wall time; `here` is the id of this node.
    """
    facts: dict[str, Any] = {}
    for name in record.__slots__:
        value = getattr(record, name)
        facts[name] = round(value, 4) if isinstance(value, float) else value
    del facts["started_at"]
    facts |= {"at": round(at, 3), "outcome": outcome(record)}
    facts["where"] = "here" if record.node in ("", here) else record.node[:10]
    return facts


def gauges(models: Iterable[dict[str, Any]], inventory: Inventory | None, problems: int) -> Iterator[Gauge]:
    """The metrics that have a present value. `models` are the entries of /api/status."""
    yield "meshnode_info", "Version of the node", {"version": __version__}, 1
    for model in models:
        labels = {"model": model["id"]}
        yield "meshnode_model_ready", "1 when the model answers", labels, float(model["state"] == "ready")
        yield "meshnode_slots", "Requests a model answers at a time", labels, model["parallel"]
        yield "meshnode_slots_busy", "Slots in use", labels, model["busy"]
        yield "meshnode_requests_waiting", "Requests that wait for a slot", labels, model["waiting"]
        restarts = (model["engine"] or {}).get("restarts", 0)
        yield "meshnode_engine_restarts", "Restarts of the engine", labels, restarts
        for share in (model["plan"] or {}).get("shares", ()):
            for kind in ("weights", "kv", "compute"):
                part = {"model": model["id"], "device": share["device"], "kind": kind}
                yield "meshnode_planned_memory_bytes", "Memory of a plan", part, share[f"{kind}_bytes"]
    for device in inventory.devices if inventory else ():
        for kind, size in (("total", device.total_bytes), ("free", device.free_bytes)):
            if size is not None:
                yield "meshnode_vram_bytes", "Memory of a device", {"device": device.id, "kind": kind}, size
    yield "meshnode_problems", "Problems that are present", {}, problems


def mesh_gauges(mesh: dict[str, Any]) -> Iterator[Gauge]:
    """The same of the `mesh` member of /api/status. Peers are counted, never named: their number has no bound."""
    states = [peer["state"] for peer in mesh["peers"]]
    for state in ("alive", "unreachable", "dead", "left"):
        yield "meshnode_peers", "Other nodes of the mesh", {"state": state}, states.count(state)
    yield "meshnode_links", "Nodes with a connection to this one", {}, sum(peer["linked"] for peer in mesh["peers"])
    for name, value in sorted(mesh["counters"].items()):
        yield "meshnode_mesh_events", "Sums since the start of the node", {"event": name}, value
    for wish in mesh["demand"][:DEMANDED_MODELS]:
        yield "meshnode_demand_per_minute", "Requests in the whole mesh", {"model": wish["model"]}, wish["per_minute"]


def _gigabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e9:.1f}"


def memory_facts(
    inventory: Inventory | None, units: Iterable[Unit], leases: Iterable[Mapping[str, Any]], settings: Settings
) -> list[dict[str, Any]]:
    """The `memory` member of /api/status: who holds what of each device.

    `leases` are those of `Lending.facts`. The inventory is of the time before this node took anything. What
    `--max-vram` keeps from a GPU counts as reserved, because its figures do not tell it from what others use.
    """
    if inventory is None:
        return []
    held = [
        Holding(device, "lent", size, str(lease["model"]))
        for lease in leases
        for device, size in lease["devices"].items()
    ]
    for unit in units:
        if unit.plan is not None and unit.state != "failed":
            held += holdings_of(unit.id, unit.plan, unit.shape)
            held += [
                Holding(device, "weights", size, f"{unit.id} (draft)") for device, size in unit.draft_bytes.items()
            ]
    return [
        {
            "device": bar.memory.device,
            "name": bar.memory.name,
            "kind": bar.memory.kind,
            "unified": bool(bar.memory.also),
            "total_bytes": bar.total_bytes,
            "parts": [{"kind": part.kind, "bytes": part.size_bytes, "model": part.model} for part in bar.parts],
        }
        for bar in bars(_memories(inventory, settings), held)
    ]


def _memories(inventory: Inventory, settings: Settings) -> list[DeviceMemory]:
    """The GPUs, then main memory; GPUs that share it are one memory with it."""
    budget = budget_of(inventory, settings)
    usable = {device.name: device.usable_bytes for device in budget.devices}
    found, shared = [], []
    for gpu in inventory.accelerators:
        if gpu.kind == "unified":
            shared.append(gpu)
            continue
        free = gpu.free_bytes if settings.max_vram is None else gpu.total_bytes
        found.append(DeviceMemory(gpu.id, gpu.name, "gpu", gpu.total_bytes, free, usable.get(gpu.id, 0)))
    memory = inventory.memory
    name = ", ".join(gpu.name for gpu in shared) or inventory.processor.model
    also = tuple(gpu.id for gpu in shared)
    found.append(
        DeviceMemory(HOST, name, "memory", memory.total_bytes, memory.available_bytes, budget.host_bytes, also)
    )
    return found
