"""Plans for this machine: memory, speed and words, from values that stand for other machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.config import Settings
from meshnode.core.placement import Refusal, SoloPlan, plan_solo
from meshnode.engine.installed import Engine
from meshnode.errors import SettingsError
from meshnode.hardware import Device, Inventory, Memory, Note, Processor
from meshnode.hardware.benchmark import BenchmarkResult, store_cached
from meshnode.models.header import Header
from meshnode.models.shapes import LayerShape, ModelShape
from meshnode.planning import (
    budget_of,
    describe_fit,
    describe_plan,
    known_speeds,
    measure_speeds,
    mode_of,
    predict,
    threads_of,
    usable_accelerators,
    wishes_of,
)
from meshnode.telemetry import silent

GIB = 1 << 30
SHAPE = ModelShape(
    name="seven",
    architecture="llama",
    layers=tuple(LayerShape(200 << 20, 1024, 1024) for _ in range(32)),
    embedding_bytes=100 << 20,
    output_bytes=100 << 20,
    other_bytes=0,
    context_train=131072,
    n_embd=4096,
    n_ff=14336,
    n_vocab=128256,
    n_expert=0,
    n_expert_used=0,
    parameters=7_000_000_000,
    active_bytes=32 * (200 << 20) + (100 << 20),
)
GPU = Device("CUDA0", "RTX 4090", "gpu", "CUDA", 24 * GIB, 23 * GIB)
CPU = Device("CPU", "Ryzen", "cpu", "CPU", 32 * GIB, 28 * GIB)


def inventory(*devices: Device, available: int = 28 * GIB) -> Inventory:
    return Inventory((*devices, CPU), Processor("Ryzen", 16, 8), Memory(32 * GIB, available), (Note("x", "y"),))


def speed(device: Device, *, bandwidth: float, layer_s: float = 0.0) -> BenchmarkResult:
    return BenchmarkResult(
        device.id, device.name, "engine 1", 8, 1000.0, 10.0, 1 << 28, layer_s, bandwidth, 1e12, 1_790_000_000.0
    )


def engine(bench: Path | None = None) -> Engine:
    return Engine(
        server=Path("/e/llama-server"),
        rpc_server=None,
        quantize=None,
        bench=bench,
        fit_params=None,
        version="engine 1",
        rpc_version=None,
        backend="cpu",
        patched=True,
        origin="built",
        losses=(),
    )


def plan_on(budgeted: Inventory, settings: Settings = Settings()) -> SoloPlan:  # noqa: B008
    found = plan_solo(SHAPE, budget_of(budgeted, settings), wishes_of(settings))
    assert isinstance(found, SoloPlan)
    return found


def test_a_gpu_takes_every_layer_that_fits() -> None:
    plan = plan_on(inventory(GPU))
    assert plan.gpu_layers == 33
    assert plan.shares[0].device == "CUDA0" and plan.shares[0].layers == 33


def test_device_setting_chooses_among_gpus() -> None:
    second = replace(GPU, id="CUDA1")
    chosen = usable_accelerators(inventory(GPU, second), Settings(device=("CUDA1",)))
    assert chosen == [second]
    assert budget_of(inventory(GPU), Settings(device=("none",))).devices == ()
    with pytest.raises(SettingsError, match="no device 'CUDA7'.*") as caught:
        usable_accelerators(inventory(GPU, second), Settings(device=("CUDA7",)))
    assert caught.value.fix == "this machine has: CUDA0, CUDA1"


def test_a_gpu_that_reports_no_free_memory_counts_with_its_total_and_a_silent_one_not_at_all() -> None:
    quiet = replace(GPU, free_bytes=None)
    (budget,) = budget_of(inventory(quiet), Settings()).devices
    assert 23 * GIB < budget.usable_bytes < 24 * GIB
    assert budget_of(inventory(replace(quiet, total_bytes=None)), Settings()).devices == ()


def test_unified_memory_is_said_so() -> None:
    assert budget_of(inventory(replace(GPU, kind="unified")), Settings()).unified is True
    assert budget_of(inventory(GPU), Settings()).unified is False


def test_memory_that_others_were_promised_is_gone() -> None:
    whole = budget_of(inventory(), Settings()).host_bytes
    assert budget_of(inventory(), Settings(), taken_host_bytes=4 * GIB).host_bytes == whole - 4 * GIB
    assert budget_of(inventory(), Settings(), taken_host_bytes=400 * GIB).host_bytes == 0


def test_wishes_and_threads_follow_the_settings() -> None:
    settings = Settings(ctx_size=9000, parallel=3, kv_type="q8_0", threads=5)
    wishes = wishes_of(settings)
    assert (wishes.context, wishes.parallel, wishes.kv_type) == (9000, 3, "q8_0")
    assert threads_of(inventory(), settings) == 5
    assert threads_of(inventory(), Settings()) == 8


@pytest.mark.parametrize(("pooling", "mode"), [(None, "chat"), (1, "embedding"), (3, "embedding"), (4, "rerank")])
def test_mode_is_what_the_header_declares(pooling: int | None, mode: str) -> None:
    metadata: dict[str, str | int] = {"general.architecture": "llama"}
    if pooling is not None:
        metadata["llama.pooling_type"] = pooling
    assert mode_of(Header(3, metadata, {}, (), 100, 100)) == mode


def test_prediction_is_bytes_over_bandwidth_plus_layers() -> None:
    plan = plan_on(inventory(GPU))
    read = 33 * (200 << 20) - (100 << 20)
    fast = predict(SHAPE, plan, {"CUDA0": speed(GPU, bandwidth=1e12), "CPU": speed(CPU, bandwidth=5e10)})
    assert fast == pytest.approx(1e12 / read, rel=0.03)
    slowed = predict(SHAPE, plan, {"CUDA0": speed(GPU, bandwidth=1e12, layer_s=1e-3)})
    assert slowed == pytest.approx(1 / (read / 1e12 + 33e-3), rel=0.03)


def test_a_mixture_of_experts_reads_only_its_active_part() -> None:
    plan = plan_on(inventory(GPU))
    speeds = {"CUDA0": speed(GPU, bandwidth=1e12)}
    sparse = replace(SHAPE, active_bytes=SHAPE.active_bytes // 8)
    dense_rate, sparse_rate = predict(SHAPE, plan, speeds), predict(sparse, plan, speeds)
    assert dense_rate and sparse_rate == pytest.approx(8 * dense_rate, rel=0.01)


def test_no_prediction_for_a_device_that_was_never_measured() -> None:
    assert predict(SHAPE, plan_on(inventory(GPU)), {"CPU": speed(CPU, bandwidth=5e10)}) is None


def test_sentences_say_where_how_long_and_how_fast() -> None:
    plan = plan_on(inventory(GPU))
    text = describe_plan("seven", SHAPE, plan, 142.4)
    assert "33/33 layers on GPU" in text and "about 142 tokens/s" in text and f"context {plan.context}" in text
    assert "tokens/s" not in describe_plan("seven", SHAPE, plan)
    assert "on the processor" in describe_plan("seven", SHAPE, plan_on(inventory()))


def test_fit_of_what_fits_and_of_what_does_not() -> None:
    fits = describe_fit(SHAPE, inventory(GPU), Settings(), {"CUDA0": speed(GPU, bandwidth=1e12)})
    assert fits["fits"] is True and fits["predicted_tokens_per_s"] > 100
    assert fits["sentence"].startswith("33/33 layers on GPU")
    refused = describe_fit(SHAPE, inventory(available=4 * GIB), Settings(), {})
    assert refused["fits"] is False
    assert refused["sentence"].startswith("does not fit here: seven needs ")
    assert refused["needed_bytes"] > refused["available_bytes"]
    assert isinstance(
        plan_solo(SHAPE, budget_of(inventory(available=4 * GIB), Settings()), wishes_of(Settings())), Refusal
    )


def test_kept_speeds_are_found_again(tmp_path: Path) -> None:
    store_cached(tmp_path / "benchmarks", GPU, speed(GPU, bandwidth=1e12))
    assert set(known_speeds(engine(), inventory(GPU), Settings(), tmp_path)) == {"CUDA0"}
    # What is known is not measured again: this bench does not exist.
    again = measure_speeds(engine(Path("/nowhere")), inventory(GPU), Settings(), tmp_path, {}, silent)
    assert again["CUDA0"].bandwidth_bytes_per_s == 1e12


def test_a_benchmark_that_fails_costs_only_the_figures(tmp_path: Path) -> None:
    assert measure_speeds(engine(Path("/nowhere")), inventory(), Settings(), tmp_path, {}, silent) == {}
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert measure_speeds(engine(Path("/nowhere")), inventory(), Settings(), blocked, {}, silent) == {}
