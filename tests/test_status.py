"""What a node shows of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from meshnode.api.inference import Record
from meshnode.api.metrics import Metrics
from meshnode.config import Settings
from meshnode.core.placement import HOST_RESERVE_BYTES, Share, SoloPlan
from meshnode.engine.installed import Engine
from meshnode.hardware import Device, Inventory, Memory, Note, Processor
from meshnode.models.names import ModelRef
from meshnode.status import (
    DEMANDED_MODELS,
    RAM_STEP_BYTES,
    devices_sentence,
    engine_sentence,
    gauges,
    hardware_facts,
    memory_facts,
    mesh_gauges,
    request_facts,
)
from meshnode.units import Unit

GPU = Device("CUDA0", "RTX 4090", "gpu", "CUDA", 24_000_000_000, None, "580.95", "nvml")
CPU = Device("CPU", "Ryzen", "cpu", "CPU", 32_000_000_000, 20_000_000_123)
INVENTORY = Inventory(
    (GPU, CPU),
    Processor("Ryzen", 16, 8, frozenset({"avx2", "avx"})),
    Memory(32_000_000_000, 20_000_000_123),
    (Note("amd", "no card"),),
)
ENGINE = Engine(
    server=Path("/cache/engine/llama-server"),
    rpc_server=None,
    quantize=None,
    bench=None,
    fit_params=None,
    version="0.5.0",
    rpc_version=(7, 0, 0),
    backend="cpu-x86_64-avx2",
    patched=False,
    origin="given",
    losses=("splits send weights",),
)
MODEL = {
    "id": "demo",
    "state": "ready",
    "parallel": 4,
    "busy": 1,
    "waiting": 2,
    "engine": {"restarts": 3},
    "plan": {"shares": [{"device": "host", "weights_bytes": 5, "kv_bytes": 6, "compute_bytes": 7}]},
}


def test_engine_in_words() -> None:
    assert engine_sentence(ENGINE) == (
        "llama.cpp 0.5.0 for cpu-x86_64-avx2 (given with --engine; without meshnode's patches)"
    )


def test_devices_in_words() -> None:
    assert devices_sentence(INVENTORY) == "RTX 4090 (? of 24.0 GB free)"
    bare = Inventory((CPU,), INVENTORY.processor, INVENTORY.memory)
    assert devices_sentence(bare) == "no GPU found; Ryzen, 16 threads, 20.0 of 32.0 GB memory free"


def test_hardware_is_json_and_free_memory_moves_in_steps() -> None:
    facts = json.loads(json.dumps(hardware_facts(INVENTORY)))
    assert [device["id"] for device in facts["devices"]] == ["CUDA0"]
    assert facts["devices"][0]["free_bytes"] is None
    assert facts["memory"]["available_bytes"] % RAM_STEP_BYTES == 0
    assert 0 <= 20_000_000_123 - facts["memory"]["available_bytes"] < RAM_STEP_BYTES
    assert facts["processor"]["flags"] == ["avx", "avx2"]
    assert facts["notes"] == ["amd: no card"]


def test_a_finished_request_tells_numbers_and_no_text() -> None:
    record = Record(
        "req_1", "/v1/messages", 12.0, model="demo", status=200, tokens_in=7, tokens_out=40, total_s=1.23456
    )
    facts = request_facts(record, at=1_790_000_000.12345, here="ab" * 32)
    assert facts["total_s"] == 1.2346 and facts["at"] == 1_790_000_000.123 and facts["outcome"] == "ok"
    assert "started_at" not in facts
    assert request_facts(Record("r", "/v1/messages", 0.0, status=499), at=0.0, here="")["outcome"] == "left"


def test_gauges_are_what_prometheus_reads() -> None:
    rendered = Metrics(lambda: gauges([MODEL], INVENTORY, 2)).render().decode()
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(rendered)
        for sample in family.samples
    }
    assert values["meshnode_model_ready", ("model", "demo")] == 1
    assert values["meshnode_requests_waiting", ("model", "demo")] == 2
    assert values["meshnode_engine_restarts", ("model", "demo")] == 3
    assert values["meshnode_problems",] == 2
    part = ("meshnode_planned_memory_bytes", ("device", "host"), ("kind", "kv"), ("model", "demo"))
    assert values[part] == 6
    # "Not reported" is no figure, and never a zero.
    assert ("meshnode_vram_bytes", ("device", "CUDA0"), ("kind", "free")) not in values
    assert values["meshnode_vram_bytes", ("device", "CUDA0"), ("kind", "total")] == 24_000_000_000


def test_gauges_of_a_node_that_has_nothing_yet() -> None:
    loading = {**MODEL, "state": "loading", "engine": None, "plan": None}
    assert ("meshnode_model_ready", "1 when the model answers", {"model": "demo"}, 0.0) in list(
        gauges([loading], None, 0)
    )


def test_peers_are_counted_and_not_named() -> None:
    mesh = {
        "peers": [{"state": "alive", "linked": True}, {"state": "alive", "linked": False}, {"state": "dead"}],
        "counters": {"junk": 7, "accuse_refused": 1},
        "demand": [{"model": f"m{number}", "per_minute": 1.5} for number in range(100)],
    }
    mesh["peers"][2]["linked"] = False  # type: ignore[index]
    found = list(mesh_gauges(mesh))
    values = {(name, *labels.values()): value for name, _, labels, value in found}
    assert values["meshnode_peers", "alive"] == 2 and values["meshnode_peers", "dead"] == 1
    assert values["meshnode_peers", "left"] == 0 and values["meshnode_links",] == 1
    assert values["meshnode_mesh_events", "junk"] == 7
    assert sum(name == "meshnode_demand_per_minute" for name, *_ in found) == DEMANDED_MODELS


# --- memory -----------------------------------------------------------------------------------------------------

CARD = replace(GPU, free_bytes=20_000_000_000)
PLAN = SoloPlan(
    context=8192,
    parallel=4,
    kv_type="f16",
    gpu_layers=30,
    tensor_split=(),
    shares=(
        Share("CUDA0", 30, 5_000_000_000, 1_000_000_000, 500_000_000, 20_000_000_000),
        Share("host", 3, 600_000_000, 0, 16_777_216, 15_000_000_000),
    ),
    prompt_cache_bytes=0,
)
LEASE = {"model": "far", "devices": {"CUDA0": 2_000_000_000}}


def unit(**values: Any) -> Unit:
    """A served model."""
    model = Unit("seven", ModelRef("owner/seven", "hub"), "seven", 0.0, state="ready", plan=PLAN)
    for name, value in values.items():
        setattr(model, name, value)
    return model


def parts_of(bar: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Bytes by kind and model, once it is clear that they add up."""
    assert sum(part["bytes"] for part in bar["parts"]) == bar["total_bytes"]
    return {(part["kind"], part["model"]): part["bytes"] for part in bar["parts"]}


def inventory(*devices: Device) -> Inventory:
    """A machine with these GPUs."""
    return replace(INVENTORY, devices=(*devices, CPU))


def test_memory_says_who_holds_what_of_each_device() -> None:
    draft = {"CUDA0": 300_000_000}
    gpu, ram = json.loads(json.dumps(memory_facts(inventory(CARD), [unit(draft_bytes=draft)], [LEASE], Settings())))
    assert (gpu["device"], gpu["name"], gpu["kind"], gpu["unified"]) == ("CUDA0", "RTX 4090", "gpu", False)
    assert (ram["device"], ram["name"], ram["kind"], ram["unified"]) == ("host", "Ryzen", "memory", False)
    held = parts_of(gpu)
    assert [part["kind"] for part in gpu["parts"]] == [
        "weights", "weights", "kv", "compute", "lent", "other", "reserved", "free",
    ]  # fmt: skip
    assert held["weights", "seven"] == 5_000_000_000 and held["weights", "seven (draft)"] == 300_000_000
    assert held["kv", "seven"] == 1_000_000_000 and held["lent", "far"] == 2_000_000_000
    assert held["other", ""] == 4_000_000_000
    host = parts_of(ram)
    assert host["weights", "seven"] == 600_000_000 and ("kv", "seven") not in host
    assert host["reserved", ""] >= HOST_RESERVE_BYTES


def test_a_model_that_failed_or_has_no_plan_yet_holds_nothing() -> None:
    for model in (unit(state="failed"), unit(plan=None)):
        gpu, ram = memory_facts(inventory(CARD), [model], [], Settings())
        assert {kind for kind, _ in {**parts_of(gpu), **parts_of(ram)}} == {"other", "reserved", "free"}


def test_what_max_vram_keeps_from_a_card_is_reserved_and_not_used_by_others() -> None:
    capped = replace(CARD, free_bytes=8_000_000_000)
    gpu, _ = memory_facts(inventory(capped), [], [], Settings(max_vram=8_000_000_000))
    held = parts_of(gpu)
    assert ("other", "") not in held and held["free", ""] < 8_000_000_000 < held["reserved", ""]


def test_a_card_that_is_not_to_be_used_has_nothing_free() -> None:
    gpu, _ = memory_facts(inventory(CARD), [], [], Settings(device=("none",)))
    assert parts_of(gpu) == {("other", ""): 4_000_000_000, ("reserved", ""): 20_000_000_000}


def test_a_unified_memory_stands_once() -> None:
    metal = Device("MTL0", "Apple M3", "unified", "Metal", 32_000_000_000, 20_000_000_000)
    plan = replace(PLAN, shares=(replace(PLAN.shares[0], device="MTL0"), PLAN.shares[1]))
    (bar,) = memory_facts(inventory(metal), [unit(plan=plan)], [], Settings())
    assert (bar["device"], bar["name"], bar["kind"], bar["unified"]) == ("host", "Apple M3", "memory", True)
    assert parts_of(bar)["weights", "seven"] == 5_600_000_000


def test_a_silent_card_and_a_node_without_an_inventory() -> None:
    gpu, _ = memory_facts(inventory(replace(GPU, total_bytes=None)), [], [], Settings())
    assert (gpu["total_bytes"], gpu["parts"]) == (0, [])
    assert memory_facts(None, [unit()], [LEASE], Settings()) == []
