"""The demo model made as heavy as wanted: it still counts, so every lost, repeated or crossed token shows.

    python -m bench.wide_demo /tmp/heavy.gguf --size-gb 1.5
    python -m bench.wide_demo /tmp/deep.gguf --widen 2 --layers 32

Theory of operation. The stream of activations gets more dimensions, the layers more heads and hidden units, and there
may be more layers. In each matrix the demo's own weights lie in the upper left corner, bit by bit as they were. To its
right they see zeros, so the demo's part computes what it did; the scale and the epsilon of each normalisation make up
for the dimensions by which its mean is divided (the sum of squares is the same). What is new has random weights, and
adds a little noise to the old dimensions: too little to change a word that the demo is sure of, enough that the
numbers behind the words tell whether a layer was left out. The file is a function of the options alone.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bench.disk import kept

DEMO = Path(__file__).resolve().parent.parent / "meshnode" / "models" / "demo" / "target.gguf"
BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", 32)])
UNIFORM_SPREAD = (254 * 256 / 12) ** 0.5
"""Standard deviation of uniform whole numbers -127..127."""
NOISE = 0.5
"""Words stay as they are up to 1 and are lost at 4; their probabilities show 0.1 already."""
CONTEXT_TOKENS = 32768

Matrix = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Width:
    """How much wider everything is than in the demo: stream and heads `times`, hidden units `hidden_times`."""

    times: int
    hidden_times: int
    layers: int


def plan_width(size_bytes: int, *, layers: int | None = None) -> Width:
    """The width at which the weights take about `size_bytes`. Raises ValueError for less than the demo has."""
    demo = gguf.GGUFReader(DEMO)
    own = int(demo.fields["llama.block_count"].contents())
    count = layers or own
    if count < own:
        raise ValueError(f"the demo has {own} layers; fewer cannot be")
    found = min(
        (Width(times, hidden, count) for times in range(1, 65) for hidden in range(max(1, times // 2), 2 * times + 1)),
        key=lambda width: (abs(weights_bytes(demo, width) - size_bytes), abs(width.hidden_times - width.times)),
    )
    if weights_bytes(demo, found) > 2 * size_bytes:
        raise ValueError(f"{count} layers of the demo take {weights_bytes(demo, found):,} bytes")
    return found


def weights_bytes(demo: gguf.GGUFReader, width: Width) -> int:
    """The size of all tensors, without padding between them."""
    own = int(demo.fields["llama.block_count"].contents())
    total = 0
    for tensor in demo.tensors:
        rows, columns = _widened_shape(tensor.name, _shape(tensor), width)
        size = rows * columns * 4 if tensor.tensor_type == gguf.GGMLQuantizationType.F32 else rows * columns // 32 * 34
        total += size * (width.layers - own + 1 if tensor.name.startswith("blk.0.") else 1)
    return total


def write_wide_demo(path: Path, width: Width, *, noise: float = NOISE, seed: int = 1) -> None:
    """Write it; the file appears under its name when it is complete. Raises OSError when there is no room."""
    demo = gguf.GGUFReader(DEMO)
    own = int(demo.fields["llama.block_count"].contents())
    partial = path.with_name(f"{path.name}.partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _copy_facts(writer, demo, path.stem, width)
    first = {tensor.name: tensor for tensor in demo.tensors if tensor.name.startswith("blk.0.")}
    tensors = [(tensor.name, tensor, True) for tensor in demo.tensors]
    tensors += [
        (name.replace("blk.0.", f"blk.{layer}."), tensor, False)
        for layer in range(own, width.layers)
        for name, tensor in first.items()
    ]
    try:
        # Two rounds, as the announcement of all tensors stands before the first of them.
        for name, tensor, _ in tensors:
            rows, columns = _widened_shape(name, _shape(tensor), width)
            if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
                writer.add_tensor_info(name, [columns], np.dtype(np.float32), columns * 4)
            else:
                size = rows * columns // 32 * 34
                in_bytes = [rows, columns // 32 * 34]
                writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), size, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        file.write(bytes(-file.tell() % writer.data_alignment))
        for name, tensor, ours in tensors:
            data = _widened(name, tensor, width, ours=ours, noise=noise, seed=seed).tobytes()
            file.write(data)
            file.write(bytes(-len(data) % writer.data_alignment))
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def kept_wide_demo(width: Width) -> Path:
    """That model from the cache of this user; written when it is not there."""
    stem = f"counting-{width.times}x{width.hidden_times}x{width.layers}"
    return kept(stem, lambda path: write_wide_demo(path, width))


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, int]:
    """Rows and columns; a vector is one row."""
    sizes = [int(size) for size in tensor.shape]
    return (sizes[1], sizes[0]) if len(sizes) == 2 else (1, sizes[0])


def _widened_shape(name: str, shape: tuple[int, int], width: Width) -> tuple[int, int]:
    rows, columns = shape
    hidden = width.hidden_times
    if "embd" in name or name.startswith("output.") or "norm" in name:
        return rows, columns * width.times
    if "ffn_down" in name:
        return rows * width.times, columns * hidden
    if "ffn_" in name:
        return rows * hidden, columns * width.times
    return rows * width.times, columns * width.times


def _widened(name: str, tensor: gguf.ReaderTensor, width: Width, *, ours: bool, noise: float, seed: int) -> Matrix:
    """The tensor in its new size; without `ours` nothing of the demo is in it."""
    rows, columns = _widened_shape(name, _shape(tensor), width)
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        return np.tile(np.asarray(tensor.data, "<f4"), width.times) * np.float32(width.times**-0.5)
    if tensor.tensor_type != gguf.GGMLQuantizationType.Q8_0:
        raise ValueError(f"{name} is {tensor.tensor_type.name}, and only Q8_0 is known here")
    old_rows, old_columns = _shape(tensor)
    blocks = np.zeros((rows, columns // 32), BLOCK)
    inner = name.startswith("blk.")
    if inner:
        draw = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
        values = np.frombuffer(draw.bytes(blocks.size * 32), "i1").reshape(*blocks.shape, 32)
        blocks["values"] = np.maximum(values, -127)
        blocks["scale"] = old_columns**-0.5 / UNIFORM_SPREAD
        if "attn_output" in name or "ffn_down" in name:
            blocks["scale"] = noise * columns**-0.5 / UNIFORM_SPREAD
    if ours or not inner:
        if inner and "attn_output" not in name and "ffn_down" not in name:
            blocks[:old_rows, old_columns // 32 :] = 0
        corner = np.ascontiguousarray(tensor.data).view(BLOCK).reshape(old_rows, old_columns // 32)
        blocks[:old_rows, : old_columns // 32] = corner
    return blocks


def _copy_facts(writer: gguf.GGUFWriter, demo: gguf.GGUFReader, name: str, width: Width) -> None:
    changed: dict[str, Any] = {
        "general.name": name,
        "llama.block_count": width.layers,
        "llama.context_length": CONTEXT_TOKENS,
    }
    for key, times in {
        "llama.embedding_length": width.times,
        "llama.feed_forward_length": width.hidden_times,
        "llama.attention.head_count": width.times,
        "llama.attention.head_count_kv": width.times,
    }.items():
        changed[key] = int(demo.fields[key].contents()) * times
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    changed[epsilon] = float(demo.fields[epsilon].contents()) / width.times
    for field in demo.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub_type = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, changed.pop(field.name, field.contents()), field.types[0], sub_type)
    assert not changed, f"the demo does not say {changed}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--size-gb", type=float, help="size of the weights in 10^9 bytes, about")
    parser.add_argument("--widen", type=int, default=1, help="how many times as wide as the demo")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        if options.size_gb:
            width = plan_width(int(options.size_gb * 1e9), layers=options.layers)
        else:
            width = Width(options.widen, options.widen, options.layers or 12)
        write_wide_demo(options.path, width, noise=options.noise, seed=options.seed)
    except (ValueError, OSError) as reason:
        sys.exit(f"wide_demo: {reason}")
    size = options.path.stat().st_size
    print(f"{options.path}: {size:,} bytes in {time.monotonic() - begun:.1f} s; {width}")


if __name__ == "__main__":
    main()
