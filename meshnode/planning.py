"""What this machine can do with a model: memory to plan with, measured speed, and a plan in words.

Connects the values of hardware and models with the pure planner; starts nothing that stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshnode.config import Settings
from meshnode.core.placement import (
    HOST,
    Budget,
    DeviceBudget,
    Refusal,
    SoloPlan,
    Wishes,
    plan_solo,
    usable_device_bytes,
    usable_host_bytes,
)
from meshnode.core.prediction import Speed, predict_solo
from meshnode.engine.commands import Mode, plan_threads
from meshnode.engine.installed import Engine
from meshnode.engine.process import child_environment
from meshnode.errors import EngineError, SettingsError
from meshnode.hardware import Device, Inventory
from meshnode.hardware.benchmark import BenchmarkResult, load_cached, measure, store_cached
from meshnode.models.header import Header
from meshnode.models.shapes import ModelShape
from meshnode.telemetry import LOG, Report

Speeds = Mapping[str, BenchmarkResult]
"""What each device did in the micro-benchmark, by its id; the processor is `CPU`."""


NO_DEVICE = ("none", "cpu")


def mode_of(header: Header) -> Mode:
    """What the model is for, by the pooling that its header declares."""
    if header.pooling == "rank":
        return "rerank"
    return "embedding" if header.pooling else "chat"


def usable_accelerators(inventory: Inventory, settings: Settings) -> list[Device]:
    """The GPUs that the settings allow; `--device none` allows none. Raises SettingsError for an unknown name."""
    known = {device.id: device for device in inventory.accelerators}
    unknown = [name for name in settings.device if name not in known and name.lower() not in NO_DEVICE]
    if unknown:
        there = ", ".join(known) or "no GPU"
        raise SettingsError(f"there is no device {unknown[0]!r} here", fix=f"this machine has: {there}")
    return [device for name, device in known.items() if not settings.device or name in settings.device]


def threads_of(inventory: Inventory, settings: Settings) -> int:
    """Processor threads of the engine."""
    return settings.threads or plan_threads(inventory.processor.logical, inventory.processor.physical)


def budget_of(inventory: Inventory, settings: Settings, *, taken_host_bytes: int = 0) -> Budget:
    """The memory that a new model may take, after what others of this node were planned to take.

    `--max-vram` bounds GPUs; where there is none, it bounds main memory, which takes their place.
    """
    host = usable_host_bytes(inventory.memory.available_bytes)
    devices = []
    accelerators = usable_accelerators(inventory, settings)
    if settings.max_vram is not None and not accelerators:
        host = min(host, settings.max_vram)
    host -= taken_host_bytes
    for device in accelerators:
        free = device.free_bytes if device.free_bytes is not None else device.total_bytes
        if free is not None:
            devices.append(DeviceBudget(device.id, usable_device_bytes(free)))
    unified = any(device.kind == "unified" for device in accelerators)
    return Budget(host_bytes=max(0, host), devices=tuple(devices), unified=unified)


def wishes_of(settings: Settings) -> Wishes:
    """What the settings fix of a plan."""
    return Wishes(context=settings.ctx_size, parallel=settings.parallel, kv_type=settings.kv_type)


# --- speed ----------------------------------------------------------------------------------------------------


def known_speeds(engine: Engine, inventory: Inventory, settings: Settings, cache: Path) -> dict[str, BenchmarkResult]:
    """The kept results for the devices of this machine."""
    threads = threads_of(inventory, settings)
    found = (load_cached(cache / "benchmarks", device, engine.version, threads) for device in _measured(inventory))
    return {result.device: result for result in found if result}


def measure_speeds(
    engine: Engine, inventory: Inventory, settings: Settings, cache: Path, environ: Mapping[str, str], report: Report
) -> dict[str, BenchmarkResult]:
    """As `known_speeds`, measuring what was never measured: once, some seconds a device. A failure costs figures."""
    speeds = known_speeds(engine, inventory, settings, cache)
    missing = [device for device in _measured(inventory) if device.id not in speeds]
    if not missing or engine.bench is None:
        return speeds
    folder = cache / "benchmarks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results = measure(
            engine.bench,
            missing,
            report,
            engine=engine.version,
            threads=threads_of(inventory, settings),
            folder=folder,
            environ=child_environment(environ, {}),
        )
        for device, result in zip(missing, results, strict=True):
            speeds[device.id] = result
            store_cached(folder, device, result)
    except (OSError, EngineError) as error:
        LOG.warning("the micro-benchmark failed: %s", error)
    return speeds


def _measured(inventory: Inventory) -> list[Device]:
    return [device for device in inventory.devices if device.kind != "cpu"] or list(inventory.devices)


def predict(shape: ModelShape, plan: SoloPlan, speeds: Speeds) -> float | None:
    """Tokens per second of one conversation at its start, None while a device of the plan was never measured."""
    measured = {HOST if name == "CPU" else name: speed_of(result) for name, result in speeds.items()}
    return predict_solo(shape, plan, measured)


def speed_of(result: BenchmarkResult) -> Speed:
    """What the predictor reads of a measurement."""
    return Speed(result.bandwidth_bytes_per_s, result.layer_s, result.flops_per_s)


# --- words ----------------------------------------------------------------------------------------------------


def describe_plan(name: str, shape: ModelShape, plan: SoloPlan, predicted: float | None = None) -> str:
    """A plan as one sentence."""
    layers = f"{plan.gpu_layers}/{len(shape.layers) + 1} layers on GPU"
    where = layers if plan.gpu_layers else "on the processor"
    size = f"{shape.total_bytes / 1e9:.1f} GB" if shape.total_bytes >= 1e8 else f"{shape.total_bytes / 1e6:.1f} MB"
    speed = f", about {predicted:.0f} tokens/s" if predicted else ""
    text = f"{name}  {size}  fits here: {where}, context {plan.context} x {plan.parallel} ({plan.kv_type}){speed}"
    return f"{text}; {plan.reason}" if plan.reason else text


def describe_fit(shape: ModelShape, inventory: Inventory, settings: Settings, speeds: Speeds) -> dict[str, Any]:
    """Whether a model fits on this machine, for `meshnode show`: `fits`, `sentence`, and the plan or the refusal."""
    found = plan_solo(shape, budget_of(inventory, settings), wishes_of(settings))
    if isinstance(found, Refusal):
        return {"fits": False, "sentence": f"does not fit here: {found.reason}", **dataclasses.asdict(found)}
    predicted = predict(shape, found, speeds)
    return {
        "fits": True,
        "sentence": describe_plan(shape.name, shape, found, predicted).partition("  fits here: ")[2],
        "plan": dataclasses.asdict(found),
        "predicted_tokens_per_s": predicted,
    }
