"""Manifests as a build writes them, and as a damaged disk leaves them."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode.engine.backend import Backend
from meshnode.engine.build import TARGETS, engine_flags
from meshnode.engine.installed import MANIFEST_LIMIT_BYTES, built_engines, find_built, read_built
from meshnode.engine.source import Upstream, read_upstream

AVX2 = ("-DGGML_AVX2=ON", "-DGGML_AVX512=OFF")
AVX512 = ("-DGGML_AVX2=ON", "-DGGML_AVX512=ON")
CPU = Backend("cpu", "cpu-x86_64-avx2", AVX2, "")
CUDA = Backend("cuda", "cuda-any-x86_64-avx2", ("-DGGML_CUDA=ON", *AVX2), "")


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return read_upstream()


def put(cache: Path, upstream: Upstream, backend: Backend, *, name: str = "", **changes: Any) -> Path:
    """An engine folder with empty programs."""
    folder = cache / "engine" / (name or backend.tag)
    folder.mkdir(parents=True)
    for target in TARGETS:
        (folder / target).touch(0o755)
    manifest = {
        "schema": 1,
        "source": upstream.key,
        "backend": backend.tag,
        "kind": backend.kind,
        "asked": False,
        "compiler": "gcc 12.2.0",
        "flags": list(engine_flags(upstream, backend)),
        "version": "0.5.0-dev",
        "rpc": [7, 0, 0],
        "seconds": 1.5,
        "built_at": 1000,
        "files": dict.fromkeys(TARGETS, 0),
    } | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_engine_is_read_back(tmp_path: Path, upstream: Upstream) -> None:
    folder = put(tmp_path, upstream, CPU)
    found = find_built(tmp_path, upstream, CPU)
    assert found is not None
    engine = found.engine
    assert (engine.server, engine.rpc_server) == (folder / "llama-server", folder / "ggml-rpc-server")
    assert (engine.quantize, engine.bench) == (folder / "llama-quantize", folder / "llama-bench")
    assert (engine.fit_params, engine.folder) == (folder / "llama-fit-params", folder)
    assert (engine.version, engine.rpc_version, engine.backend) == ("0.5.0-dev", (7, 0, 0), CPU.tag)
    assert (engine.patched, engine.origin, engine.losses) == (True, "built", ())
    assert engine.as_dict()["rpc_version"] == "7.0.0"


def test_nothing_is_found_where_nothing_is(tmp_path: Path, upstream: Upstream) -> None:
    assert built_engines(tmp_path / "nowhere") == []
    assert find_built(tmp_path / "nowhere", upstream, CPU) is None


def test_another_processor_backend_or_source_is_another_engine(tmp_path: Path, upstream: Upstream) -> None:
    put(tmp_path, upstream, CPU)
    assert find_built(tmp_path, upstream, replace(CPU, flags=AVX512)) is None
    assert find_built(tmp_path, upstream, CUDA) is None
    assert find_built(tmp_path, replace(upstream, patches=()), CPU) is None
    assert find_built(tmp_path, replace(upstream, version="0.3.37"), CPU) is None


def test_the_newest_of_two_compilers_counts(tmp_path: Path, upstream: Upstream) -> None:
    put(tmp_path, upstream, CPU, name="a", compiler="gcc 12.2.0", built_at=3)
    put(tmp_path, upstream, CPU, name="b", compiler="clang 19.1", built_at=2)
    found = find_built(tmp_path, upstream, CPU)
    assert found is not None and found.compiler == "gcc 12.2.0"
    assert [built.compiler for built in built_engines(tmp_path)] == ["gcc 12.2.0", "clang 19.1"]


def test_an_engine_asked_for_by_name_stands_in_for_the_usual_one(tmp_path: Path, upstream: Upstream) -> None:
    put(tmp_path, upstream, CPU, asked=False)
    assert find_built(tmp_path, upstream, CUDA, others=True) is None
    asked = put(tmp_path, upstream, CPU, name="asked", asked=True)
    found = find_built(tmp_path, upstream, CUDA, others=True)
    assert found is not None and found.engine.folder == asked
    lesser = replace(CUDA, flags=("-DGGML_CUDA=ON", "-DGGML_AVX2=OFF", "-DGGML_AVX512=OFF"))
    assert find_built(tmp_path, upstream, lesser, others=True) is None, "it would end in an illegal instruction"


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"schema": None},
        {"files": {"llama-server": 1}},
        {"files": {"../../outside": 0}},
        {"files": {"gone.so": 0}},
        {"files": []},
        {"rpc": [7]},
        {"rpc": "seven"},
        {"built_at": "yesterday"},
        {"flags": None},
    ],
)
def test_a_damaged_manifest_is_no_engine(tmp_path: Path, upstream: Upstream, change: dict[str, Any]) -> None:
    (tmp_path / "engine" / "outside").mkdir(parents=True)
    assert read_built(put(tmp_path, upstream, CPU, **change)) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (MANIFEST_LIMIT_BYTES + 1)]
)
def test_a_manifest_of_anything_is_no_engine(tmp_path: Path, upstream: Upstream, content: bytes) -> None:
    folder = put(tmp_path, upstream, CPU)
    (folder / "manifest.json").write_bytes(content)
    assert read_built(folder) is None


def test_a_program_that_may_not_run_is_no_engine(tmp_path: Path, upstream: Upstream) -> None:
    folder = put(tmp_path, upstream, CPU)
    (folder / "llama-quantize").chmod(0o644)
    assert read_built(folder) is None


def test_looking_is_fast_among_many(tmp_path: Path, upstream: Upstream) -> None:
    for number in range(20):
        put(tmp_path, upstream, CPU, name=str(number), built_at=number)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert find_built(tmp_path, upstream, CPU) is not None
        times.append(time.perf_counter() - started)
    assert min(times) < 0.02
