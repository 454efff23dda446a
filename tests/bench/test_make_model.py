"""Random models: the size that was asked for, the same bytes every time, readable by our reader and by `gguf`."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from bench.make_model import TOKENIZER, TensorPlan, plan_shape, plan_tensors, tensor_pieces, write_model
from meshnode.models.gguf import read_header

SIZE = 2_000_000


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_both_readers_take_it(tmp_path: Path, kind: str, architecture: str) -> None:
    path = tmp_path / "m.gguf"
    shape = write_model(path, size_bytes=SIZE, layers=3, kind=kind, architecture=architecture)
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    assert (ours.architecture, ours.layer_count) == (architecture, 3)
    assert ours.weights_bytes == pytest.approx(SIZE, rel=0.1)
    assert [(t.name, t.type, t.n_bytes) for t in ours.tensors] == [
        (t.name, t.tensor_type.name, int(t.n_bytes)) for t in theirs.tensors
    ]
    assert ours.chat_template == read_header(TOKENIZER).chat_template
    assert ours.vocabulary_digest == read_header(TOKENIZER).vocabulary_digest
    assert ours.number(ours.key("embedding_length")) == shape.width
    last = theirs.tensors[-1]
    assert ours.data_offset + ours.tensors[-1].offset + last.n_bytes <= path.stat().st_size


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_weights_have_the_planned_spread(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    shape = write_model(path, size_bytes=SIZE, layers=2, kind=kind)
    plans = {plan.name: plan for plan in plan_tensors(shape, architecture="llama", kind=kind)}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        plan = plans[tensor.name]
        if plan.kind == "F32":
            assert (values == 1).all(), tensor.name
            continue
        assert values.shape == (plan.rows, plan.columns), tensor.name
        # The numbers of Q4_0 are -8 to 7, so their mean is half a step below zero.
        assert values.std() == pytest.approx(plan.spread, rel=0.05), tensor.name
        assert abs(values.mean()) < 0.15 * plan.spread, tensor.name


def test_the_file_is_a_function_of_the_options(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name / "m.gguf" for name in "abc")
    for path, seed in ((one, 1), (same, 1), (other, 2)):
        path.parent.mkdir()
        write_model(path, size_bytes=SIZE, layers=2, seed=seed)
    assert one.read_bytes() == same.read_bytes()
    assert one.read_bytes() != other.read_bytes()


def test_a_layer_does_not_depend_on_how_many_there_are() -> None:
    plan = TensorPlan("blk.0.attn_q.weight", 64, 64, "Q8_0", 0.1)
    assert b"".join(tensor_pieces(plan, 7)) == b"".join(tensor_pieces(plan, 7))
    elsewhere = TensorPlan("blk.1.attn_q.weight", 64, 64, "Q8_0", 0.1)
    assert b"".join(tensor_pieces(plan, 7)) != b"".join(tensor_pieces(elsewhere, 7))


def test_pieces_are_whole_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.make_model.PIECE_BLOCKS", 100)
    plan = TensorPlan("x", 100, 96, "Q8_0", 0.1)
    pieces = list(tensor_pieces(plan, 1))
    assert [len(piece) for piece in pieces] == [3400, 3400, 3400]
    assert sum(map(len, pieces)) == plan.n_bytes


def test_no_quantised_weight_is_below_the_range() -> None:
    (piece,) = tensor_pieces(TensorPlan("x", 1000, 320, "Q8_0", 0.1), 1)
    values = np.frombuffer(piece, np.dtype([("scale", "<f2"), ("values", "i1", 32)]))["values"]
    assert (values.min(), values.max()) == (-127, 127)


@pytest.mark.parametrize("size_gb", [0.002, 0.3, 1, 8])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_planned_sizes(size_gb: float, kind: str) -> None:
    shape = plan_shape(int(size_gb * 1e9), layers=12, kind=kind, vocabulary=1252)
    planned = sum(plan.n_bytes for plan in plan_tensors(shape, architecture="llama", kind=kind))
    assert planned == pytest.approx(size_gb * 1e9, rel=0.2 if size_gb < 0.1 else 0.02)
    assert shape.heads * shape.head_width == shape.width and shape.heads == 4 * shape.kv_heads
    assert 0.2 < shape.hidden / shape.width < 8


def test_a_larger_vocabulary_is_filled_with_unused_tokens(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, size_bytes=SIZE, layers=2, vocabulary=4000)
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len(set(tokens)) == 4000
    assert fields["tokenizer.ggml.token_type"].contents()[-1] == gguf.TokenType.UNUSED


def test_a_hollow_model_has_a_header_and_takes_no_room(tmp_path: Path) -> None:
    full, hollow = tmp_path / "full.gguf", tmp_path / "hollow.gguf"
    write_model(full, size_bytes=SIZE, layers=2)
    write_model(hollow, size_bytes=SIZE, layers=2, hollow=True)
    assert hollow.stat().st_size == full.stat().st_size
    assert read_header(hollow).tensors == read_header(full).tensors
    large = tmp_path / "large.gguf"
    write_model(large, size_bytes=70 * 10**9, layers=80, hollow=True)
    assert read_header(large).weights_bytes == pytest.approx(70e9, rel=0.02)
    assert large.stat().st_blocks * 512 < 1_000_000


def test_sizes_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(ValueError, match="do not fit"):
        write_model(path, size_bytes=200_000, layers=64)
    with pytest.raises(ValueError, match="tokenizer has"):
        write_model(path, size_bytes=SIZE, vocabulary=10)
    with pytest.raises(OSError, match="are free"):
        write_model(path, size_bytes=1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("bench.make_model._write_tensors", full)
    with pytest.raises(OSError, match="no space"):
        write_model(tmp_path / "m.gguf", size_bytes=SIZE)
    assert list(tmp_path.iterdir()) == []
