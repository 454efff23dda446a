"""The demo in a larger body: its own weights bit by bit, zeros where it must not look, the size that was asked for."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from bench.wide_demo import DEMO, Width, plan_width, weights_bytes, write_wide_demo
from meshnode.models.gguf import read_header

WIDE = Width(times=2, hidden_times=3, layers=14)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    write_wide_demo(path, WIDE)
    return path


def matrices(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    }


def test_our_reader_takes_it(wide: Path) -> None:
    header, demo = read_header(wide), read_header(DEMO)
    assert (header.architecture, header.layer_count, header.name) == ("llama", 14, "wide")
    assert header.vocabulary_digest == demo.vocabulary_digest and header.chat_template == demo.chat_template
    sizes = [header.number(header.key(name)) for name in ("embedding_length", "feed_forward_length", "context_length")]
    assert sizes == [384, 1536, 32768]
    assert header.weights_bytes == weights_bytes(gguf.GGUFReader(DEMO), WIDE)


def test_the_demo_lies_in_the_corner_and_sees_zeros(wide: Path) -> None:
    demo = matrices(DEMO)
    for name, values in matrices(wide).items():
        if name not in demo:
            continue
        rows, columns = demo[name].shape
        assert (values[:rows, :columns] == demo[name]).all(), name
        beside = values[:rows, columns:]
        if "attn_output" in name or "ffn_down" in name:
            assert 0 < np.abs(beside).max() < np.abs(demo[name]).max(), name
        else:
            assert (beside == 0).all(), name
        if name.startswith("blk."):
            assert values[rows:].std() > 0, name


def test_a_normalisation_of_the_wider_stream_gives_the_demo_what_it_had(wide: Path) -> None:
    """Root mean square normalisation (Zhang and Sennrich 2019) of a stream whose new dimensions are zero."""

    def normed(path: Path, stream: np.ndarray) -> np.ndarray:
        reader = gguf.GGUFReader(path)
        (weights,) = (tensor.data for tensor in reader.tensors if tensor.name == "blk.3.ffn_norm.weight")
        epsilon = float(reader.fields["llama.attention.layer_norm_rms_epsilon"].contents())
        result: np.ndarray = stream / np.sqrt((stream**2).mean() + epsilon) * weights
        return result

    stream = np.random.default_rng(1).standard_normal(192) * 0.01
    widened = normed(wide, np.concatenate([stream, np.zeros(192)]))
    assert widened[:192] == pytest.approx(normed(DEMO, stream), rel=1e-5)


def test_a_further_layer_has_nothing_of_the_demo(wide: Path) -> None:
    values = matrices(wide)
    assert values["blk.13.attn_q.weight"].std() > 0
    assert (values["blk.13.attn_q.weight"] != values["blk.0.attn_q.weight"]).mean() > 0.9
    assert (values["blk.13.attn_q.weight"] != values["blk.12.attn_q.weight"]).mean() > 0.9


def test_the_file_is_a_function_of_the_options(wide: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "a" / "wide.gguf", tmp_path / "b" / "wide.gguf"
    for path, seed in ((same, 1), (other, 2)):
        path.parent.mkdir()
        write_wide_demo(path, WIDE, seed=seed)
    assert same.read_bytes() == wide.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("size_gb", [0.02, 0.08, 0.5, 1.5])
def test_planned_sizes(size_gb: float) -> None:
    planned = plan_width(int(size_gb * 1e9))
    found = weights_bytes(gguf.GGUFReader(DEMO), planned)
    assert found == pytest.approx(size_gb * 1e9, rel=0.15 if size_gb < 0.1 else 0.03)


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="fewer cannot be"):
        plan_width(10**9, layers=3)
    with pytest.raises(ValueError, match="take"):
        plan_width(1_000_000)


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("bench.wide_demo._widened", full)
    with pytest.raises(OSError, match="no space"):
        write_wide_demo(tmp_path / "m.gguf", WIDE)
    assert list(tmp_path.iterdir()) == []
