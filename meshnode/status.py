"""What a node shows of itself: the parts of /api/status, and the same facts as sentences."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from meshnode import __version__
from meshnode.api.metrics import Gauge, outcome
from meshnode.api.record import Record
from meshnode.engine.installed import Engine
from meshnode.hardware import Inventory

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
