"""Memory shapes: by hand for small cases, and against llama-fit-params for one file of each family."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gguf_samples as samples
import pytest

from meshnode.errors import ModelFileInvalid
from meshnode.models.gguf import read_model
from meshnode.models.shapes import LayerShape, ModelShape, layer_kv_bytes, shape_of

MIB = 1 << 20


def shape(path: Path) -> ModelShape:
    return shape_of(read_model(path))


def test_dense_model_by_hand(tmp_path: Path) -> None:
    model = shape(samples.llama(tmp_path / "m.gguf", layers=3, kind="F16"))
    width, vocabulary = samples.WIDTH, samples.VOCABULARY
    attention = 2 * (width * 1024 + 2 * width * 256 + 1024 * width)
    layer = attention + 3 * 2 * width * 2048 + 2 * 4 * width
    assert [item.weights_bytes for item in model.layers] == [layer] * 3
    assert model.embedding_bytes == 2 * width * vocabulary
    assert model.output_bytes == 2 * width * vocabulary + 4 * width
    assert (model.tied_bytes, model.other_bytes, model.exact) == (0, 0, True)
    assert {(item.k_elements, item.v_elements, item.window, item.state_bytes) for item in model.layers} == {
        (256, 256, None, 0)
    }
    assert model.kv_bytes_per_token() == 3 * 512 * 2
    assert model.kv_bytes_per_token("q8_0") == 3 * 512 * 34 // 32
    assert (model.context_train, model.n_embd, model.n_ff, model.n_vocab) == (32768, width, 2048, vocabulary)


def test_tied_embedding_counts_twice_and_says_so(tmp_path: Path) -> None:
    untied = shape(samples.llama(tmp_path / "a.gguf", layers=1))
    tied = shape(samples.llama(tmp_path / "b.gguf", layers=1, tied=True))
    assert tied.total_bytes == untied.total_bytes
    assert tied.tied_bytes == tied.embedding_bytes


def test_every_number_of_the_planner_is_plain(tmp_path: Path) -> None:
    model = shape(samples.gpt_oss(tmp_path / "m.gguf"))
    assert (model.n_expert, model.n_expert_used) == (8, 2)
    used = model.total_bytes - model.active_bytes - model.embedding_bytes
    assert used == pytest.approx(0.75 * 8 * 3 * 1024 * 512 * 8 * 17 / 32, rel=0.02)
    assert [layer.window for layer in model.layers] == [128, None] * 4


@pytest.mark.parametrize(
    ("context", "sequences", "unified", "cells"),
    [
        (1, 1, True, 256),
        (256, 1, True, 256),
        (257, 1, True, 512),
        (4096, 4, True, 4096),
        (4096, 4, False, 4 * 1024),
        (1000, 3, False, 3 * 512),
    ],
)
def test_cells_are_padded_to_256(context: int, sequences: int, unified: bool, cells: int) -> None:
    layer = LayerShape(0, k_elements=32, v_elements=32)
    assert layer_kv_bytes(layer, context, sequences=sequences, unified=unified) == cells * 64 * 2


def test_a_window_bounds_the_cells_and_a_state_does_not_grow() -> None:
    window = LayerShape(0, k_elements=32, v_elements=0, window=1024)
    assert layer_kv_bytes(window, 65536) == 1536 * 64
    assert layer_kv_bytes(window, 65536, sequences=4) == (4 * 1024 + 512) * 64
    assert layer_kv_bytes(window, 65536, sequences=4, unified=False) == 4 * 1536 * 64
    assert layer_kv_bytes(window, 65536, ubatch=256) == 1280 * 64
    assert layer_kv_bytes(window, 512) == 512 * 64
    state = LayerShape(0, state_bytes=1000)
    assert layer_kv_bytes(state, 100) == layer_kv_bytes(state, 100_000) == 1000
    assert layer_kv_bytes(state, 100, sequences=4) == 4000


def test_cache_types_may_differ_for_keys_and_values() -> None:
    layer = LayerShape(0, k_elements=64, v_elements=32)
    assert layer_kv_bytes(layer, 256, cache_type="q8_0", cache_type_v="q4_0") == 256 * (2 * 34 + 18)


def test_a_projector_is_refused(tmp_path: Path) -> None:
    path = samples.write_gguf(tmp_path / "p.gguf", "clip", {"has_vision_encoder": True}, [], vocabulary=0)
    with pytest.raises(ModelFileInvalid, match="projector"):
        shape(path)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"block_count": 0}, "0 layers"),
        ({"embedding_length": 0}, "width 0"),
        ({"embedding_length": 1 << 30}, "width"),
        ({"attention.head_count_kv": 1 << 30}, "cached values"),
    ],
)
def test_absurd_numbers_are_refused(tmp_path: Path, keys: dict[str, object], reason: str) -> None:
    path = samples.write_gguf(tmp_path / "m.gguf", "llama", samples.base_keys(2) | keys, samples.ends())
    with pytest.raises(ModelFileInvalid, match=reason):
        shape(path)


def test_a_tensor_of_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tensors = samples.ends() + samples.norms(7, "attn_norm")
    path = samples.write_gguf(tmp_path / "m.gguf", "llama", samples.base_keys(2), tensors)
    with pytest.raises(ModelFileInvalid, match=r"blk\.7"):
        shape(path)


@pytest.fixture
def rpc_device(fit_params: Path, tmp_path: Path) -> Iterator[str]:
    """An idle ggml-rpc-server, so that the tool reports what lies on a device apart from what stays in main memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [fit_params.with_name("ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                probe.settimeout(0.05)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def ask_engine(tool: Path, model: Path, *arguments: str) -> dict[str, tuple[int, int]]:
    """MiB of model and of context, by device, as llama-fit-params prints them (rounded down)."""
    run = subprocess.run(
        [tool, "-m", model, "-fitp", "on", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line.split() for line in run.stdout.splitlines()]
    return {row[0]: (int(row[1]), int(row[2])) for row in rows if len(row) >= 4}


@pytest.mark.engine
@pytest.mark.parametrize("family", samples.FAMILIES)
def test_the_engine_agrees_to_the_mebibyte(family: str, tmp_path: Path, fit_params: Path, rpc_device: str) -> None:
    path = samples.FAMILIES[family](tmp_path / "m.gguf")
    model = shape(path)
    plain = ask_engine(fit_params, path, "-c", "16384", "-ngl", "99", "--rpc", rpc_device)
    on_device = model.total_bytes - model.embedding_bytes
    assert plain["RPC0"] == (on_device // MIB, model.kv_bytes(16384) // MIB)
    assert plain["Host"][0] == model.embedding_bytes // MIB
    several = ask_engine(
        fit_params, path, "-c", "16384", "-np", "4", "-ctk", "q8_0", "-ctv", "q8_0", "-ub", "256", "-ngl", "99",
        "--rpc", rpc_device,
    )  # fmt: skip
    kv = model.kv_bytes(16384, cache_type="q8_0", sequences=4, unified=False, ubatch=256)
    assert several["RPC0"][1] == kv // MIB


@pytest.mark.engine
def test_layers_lie_where_the_engine_puts_them(tmp_path: Path, fit_params: Path, rpc_device: str) -> None:
    path = samples.llama(tmp_path / "m.gguf", layers=12, tied=True)
    model = shape(path)
    split = ask_engine(fit_params, path, "-c", "16384", "-ngl", "5", "--rpc", rpc_device)
    last = model.layers[-4:]
    kv = sum(layer_kv_bytes(layer, 16384) for layer in last)
    weights = sum(layer.weights_bytes for layer in last) + model.output_bytes
    assert split["RPC0"] == (weights // MIB, kv // MIB)


def test_what_a_layer_keeps_of_conversations_of_their_own() -> None:
    full = LayerShape(0, 1024, 1024)
    assert full.kv_bytes(1000, sequences=2) == 2 * 1024 * 2048 * 2
    assert full.kv_bytes(1024, cache_type="q8_0") == 1024 * 2048 * 34 // 32
    windowed = LayerShape(0, 1024, 1024, window=1024)
    assert windowed.kv_bytes(32768) == (1024 + 512) * 2048 * 2
    assert windowed.kv_bytes(256) == 256 * 2048 * 2
    assert LayerShape(0, state_bytes=1000).kv_bytes(32768, sequences=3) == 3000
