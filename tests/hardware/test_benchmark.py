"""The micro-benchmark: hollow models, the two unknowns, predictions, the cache, and a llama-bench that misbehaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from meshnode.errors import EngineCrashed
from meshnode.hardware.benchmark import (
    NARROW,
    WIDE_PROCESSOR,
    BenchmarkResult,
    Shape,
    cache_file,
    load_cached,
    measure,
    predict_prompt_s,
    predict_tokens_per_s,
    read_rates,
    separate,
    store_cached,
    write_hollow_model,
)
from meshnode.hardware.device import Device
from meshnode.telemetry import Progress

CPU = Device("CPU", "A processor (R) of/this \u00e9 machine", "cpu", "CPU")
RESULT = BenchmarkResult("CPU", CPU.name, "b1-abc", 7, 100.0, 20.0, 463_000_000, 1e-4, 1e10, 1e11, 1e9)
ENV = {"PATH": "/usr/bin:/bin", "GGML_NO_BACKTRACE": "1"}


@pytest.mark.parametrize("shape", [NARROW, Shape(3, 64, 96, 2, 1, 32)])
def test_hollow_models_are_sound_files_of_zeros(tmp_path: Path, shape: Shape) -> None:
    matrix_bytes, weights = write_hollow_model(tmp_path / "m.gguf", shape)
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.get_field("general.architecture").contents() == "llama"
    assert reader.get_field("llama.block_count").contents() == shape.layers
    assert len(reader.tensors) == 3 + 9 * shape.layers
    multiplied = [tensor for tensor in reader.tensors if len(tensor.shape) == 2 and tensor.name != "token_embd.weight"]
    assert sum(int(tensor.n_bytes) for tensor in multiplied) == matrix_bytes
    assert sum(int(tensor.n_elements) for tensor in multiplied) == weights
    assert not any(tensor.data.any() for tensor in reader.tensors)
    last = reader.tensors[-1]
    assert last.data_offset + last.n_bytes <= (tmp_path / "m.gguf").stat().st_size


def test_the_wide_model_takes_no_disk(tmp_path: Path) -> None:
    matrix_bytes, _ = write_hollow_model(tmp_path / "m.gguf", WIDE_PROCESSOR)
    status = (tmp_path / "m.gguf").stat()
    assert status.st_size > matrix_bytes > 400_000_000
    if status.st_blocks * 512 >= status.st_size:
        pytest.skip("this file system keeps no holes")
    assert status.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(("layer_s", "bandwidth"), [(1e-5, 3e12), (2e-4, 1e10), (0.0, 5e9)])
def test_the_two_unknowns_are_recovered(layer_s: float, bandwidth: float) -> None:
    token_s = 4 * layer_s + 900_000_000 / bandwidth
    assert separate(layer_s, 4, 900_000_000, token_s) == pytest.approx((layer_s, bandwidth))


def test_noise_never_gives_an_endless_bandwidth() -> None:
    assert separate(1.0, 4, 900_000_000, 0.1) == (0.0, 9e9)
    assert separate(0.025, 4, 900_000_000, 0.1) == (0.0, 9e9)


def test_predictions() -> None:
    assert predict_tokens_per_s(RESULT, 4_000_000_000, 32) == pytest.approx(1 / (32e-4 + 0.4))
    assert predict_tokens_per_s(RESULT, 4_000_000_000, 32, kv_bytes=1_000_000_000) == pytest.approx(1 / (32e-4 + 0.5))
    assert predict_prompt_s(RESULT, 7_000_000_000, 100) == pytest.approx(14.0)


def test_cache_keeps_and_tells_apart(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    assert load_cached(folder, CPU, "b1-abc", 7) is None
    path = store_cached(folder, CPU, RESULT)
    assert load_cached(folder, CPU, "b1-abc", 7) == RESULT
    assert load_cached(folder, CPU, "b2-abc", 7) is None
    assert load_cached(folder, CPU, "b1-abc", 8) is None
    assert load_cached(folder, replace(CPU, name="another"), "b1-abc", 7) is None
    assert list(folder.iterdir()) == [path] and path.name.isascii() and "/" not in path.name


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "device": "CPU"}', "[" * 60000]
    + [json.dumps({"format": 1, **{name: getattr(RESULT, name) for name in RESULT.__slots__}, **change})
       for change in ({"bandwidth_bytes_per_s": 0}, {"layer_s": -1}, {"flops_per_s": "x"}, {"format": 2},
                      {"decode_tokens_per_s": float("nan")}, {"more": 1}, {"device_name": "other"})],
)  # fmt: skip
def test_a_damaged_cache_is_no_cache(tmp_path: Path, text: str) -> None:
    path = cache_file(tmp_path, CPU, "b1-abc", 7)
    path.write_text(text)
    assert load_cached(tmp_path, CPU, "b1-abc", 7) is None


def runs(prompt: object, decode: object) -> bytes:
    records = [{"n_prompt": 128, "n_gen": 0, "samples_ts": prompt}, {"n_prompt": 0, "n_gen": 64, "samples_ts": decode}]
    return json.dumps(records).encode()


def test_rates_are_the_best_of_the_repetitions() -> None:
    assert read_rates(runs([90.0, 100.5, 20], [7.5, 8])) == (100.5, 8.0)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"\xff",
        b"[]",
        b"[{}]",
        b"3",
        b"[" * 60000,
        runs([], [1]),
        runs(["x"], [1]),
        runs([0], [1]),
        runs([float("inf")], [1]),
    ],
)
def test_rates_that_are_none(output: bytes) -> None:
    with pytest.raises(EngineCrashed):
        read_rates(output)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo one; echo 'no such device' >&2; exit 3", "ended with 3 on A processor .*no such device"),
        ("exec sleep 60", "took longer than 0 s"),
        ("echo '[]'", "cannot be read"),
        (None, "could not be run: No such file"),
    ],
)
def test_a_llama_bench_that_misbehaves(tmp_path: Path, script: str | None, words: str) -> None:
    bench = tmp_path / "llama-bench"
    if script is not None:
        bench.write_text(f"#!/bin/sh\n{script}\n")
        bench.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(EngineCrashed, match=words):
        measure(bench, [CPU], lambda _: None, engine="e", threads=1, folder=work, environ=ENV, timeout_s=0.4)
    assert list(work.iterdir()) == []


@pytest.mark.engine
def test_measuring_this_processor(engine_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A tenth of the weights: that it measures is the point here, not how well.
    monkeypatch.setattr("meshnode.hardware.benchmark.WIDE_PROCESSOR", Shape(2, 1024, 4096, 8, 8))
    seen: list[Progress] = []
    (result,) = measure(
        engine_bin / "llama-bench", [CPU], seen.append, engine="e", threads=1, folder=tmp_path, environ=ENV
    )
    assert result.device == "CPU" and result.engine == "e"
    assert result.bandwidth_bytes_per_s > 1e8 and result.flops_per_s > 1e8 and 0 <= result.layer_s < 0.1
    predicted = predict_tokens_per_s(result, result.model_bytes, 2)
    assert predicted == pytest.approx(result.decode_tokens_per_s, rel=0.01)
    assert [progress.finished for progress in seen] == [False, True]
    assert list(tmp_path.iterdir()) == []
