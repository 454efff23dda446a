"""What a node shows of itself."""

from __future__ import annotations

import json
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from meshnode.api.inference import Record
from meshnode.api.metrics import Metrics
from meshnode.engine.installed import Engine
from meshnode.hardware import Device, Inventory, Memory, Note, Processor
from meshnode.status import (
    DEMANDED_MODELS,
    RAM_STEP_BYTES,
    devices_sentence,
    engine_sentence,
    gauges,
    hardware_facts,
    mesh_gauges,
    request_facts,
)

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
