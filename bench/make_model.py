"""Writes GGUF models with random weights, of any size, for work that needs weight but no sense: load, memory, splits.

    python bench/make_model.py /tmp/one.gguf --size-gb 1
    python bench/make_model.py /tmp/four.gguf --size-gb 4 --layers 32 --type Q4_0
    python bench/make_model.py /tmp/planned.gguf --size-gb 70 --layers 80 --hollow

The file is a function of the options alone. Weights go to disk in pieces as they are made; their scale keeps the
numbers of a forward pass near one, so that an engine computes what it would with a real model. Tokenizer and chat
template are those of the demo model, so llama-server serves the result. A hollow file has a hole where its weights
would be: it takes next to no room and serves for what reads only headers. Needs gguf and numpy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np

TOKENIZER = Path(__file__).resolve().parent.parent / "meshnode" / "models" / "demo" / "target.gguf"
ARCHITECTURES = ("llama", "qwen3")
PIECE_BLOCKS = 1 << 18
CONTEXT_TOKENS = 8192
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7}
BLOCKS: dict[str, tuple[int, np.dtype[Any]]] = {
    "F16": (32, np.dtype([("values", "<f2", 32)])),
    "Q4_0": (32, np.dtype([("scale", "<f2"), ("values", "u1", 16)])),
    "Q8_0": (32, np.dtype([("scale", "<f2"), ("values", "i1", 32)])),
}
"""Weights in a block, and how ggml lays it out (ggml-common.h). F16 has no blocks; here it is cut like the others."""
STANDARD_DEVIATION = {"Q4_0": (255 / 12) ** 0.5, "Q8_0": (254 * 256 / 12) ** 0.5}
"""Of uniform whole numbers -8..7 and -127..127: what the scale of a block is divided by."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model of the llama kind."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to be written: rows of `columns` weights with mean 0 and standard deviation `spread`; 0 is ones."""

    name: str
    rows: int
    columns: int
    kind: str
    spread: float

    @property
    def n_bytes(self) -> int:
        """Size in the file, without padding."""
        if self.kind == "F32":
            return self.rows * self.columns * 4
        block, layout = BLOCKS[self.kind]
        return self.rows * self.columns // block * layout.itemsize


def plan_shape(size_bytes: int, *, layers: int, kind: str, vocabulary: int) -> Shape:
    """The shape whose weights take `size_bytes`, as near as whole blocks allow.

    Raises ValueError when that many layers cannot be that small.
    """
    block, layout = BLOCKS[kind]
    weights = size_bytes / layout.itemsize * block
    # A layer of width w has 2.5 w^2 weights in attention and about 8.25 w^2 behind it; both ends have 2 w a token.
    ends, per_layer = 2 * vocabulary, 10.75 * layers
    width = (-ends + (ends**2 + 4 * per_layer * weights) ** 0.5) / (2 * per_layer)
    head_width = 128 if width >= 2048 else 64 if width >= 256 else 32
    # Four query heads share a key head, so the width is a multiple of four heads.
    rounded = max(4 * head_width, round(width / (4 * head_width)) * 4 * head_width)
    attention = layers * 5 * rounded**2 // 2
    hidden = int((weights - attention - ends * rounded) / (3 * layers * rounded)) // block * block
    if hidden < block:
        raise ValueError(f"{layers} layers and {vocabulary} tokens do not fit into {size_bytes:,} bytes")
    heads = rounded // head_width
    return Shape(layers, rounded, hidden, heads, heads // 4, head_width, vocabulary)


def plan_tensors(shape: Shape, *, architecture: str, kind: str) -> list[TensorPlan]:
    """Every tensor in the order of the file."""
    width, key_width = shape.width, shape.kv_heads * shape.head_width
    spread = width**-0.5
    # What a layer adds to the stream shrinks with the number of layers, as in GPT-2, so that the sum stays near one.
    added = (2 * shape.layers) ** -0.5
    plans = [
        TensorPlan("token_embd.weight", shape.vocabulary, width, kind, 1.0),
        TensorPlan("output_norm.weight", 1, width, "F32", 0),
        TensorPlan("output.weight", shape.vocabulary, width, kind, 4 * spread),
    ]
    for layer in range(shape.layers):
        matrices = {
            "attn_q": (width, width, spread),
            "attn_k": (key_width, width, spread),
            "attn_v": (key_width, width, spread),
            "attn_output": (width, width, spread * added),
            "ffn_gate": (shape.hidden, width, spread),
            "ffn_up": (shape.hidden, width, spread),
            "ffn_down": (width, shape.hidden, shape.hidden**-0.5 * added),
        }
        norms = {"attn_norm": width, "ffn_norm": width}
        if architecture == "qwen3":
            norms |= {"attn_q_norm": shape.head_width, "attn_k_norm": shape.head_width}
        plans += [TensorPlan(f"blk.{layer}.{name}.weight", 1, size, "F32", 0) for name, size in norms.items()]
        plans += [
            TensorPlan(f"blk.{layer}.{name}.weight", *sizes[:2], kind, sizes[2]) for name, sizes in matrices.items()
        ]
    return plans


def tensor_pieces(plan: TensorPlan, seed: int) -> Iterator[bytes]:
    """The bytes of a tensor, some megabytes at a time. They depend on the seed and on the tensor alone."""
    if plan.kind == "F32":
        yield np.ones(plan.rows * plan.columns, "<f4").tobytes()
        return
    draw = np.random.Generator(np.random.SFC64([seed, zlib.crc32(plan.name.encode())]))
    block, layout = BLOCKS[plan.kind]
    left = plan.rows * plan.columns // block
    while left:
        count = min(left, PIECE_BLOCKS)
        left -= count
        piece = np.empty(count, layout)
        if plan.kind == "F16":
            values = draw.random((count, block), np.float32)
            values -= 0.5
            values *= 12**0.5 * plan.spread
            piece["values"] = values
        else:
            width = layout["values"].itemsize
            values = np.frombuffer(draw.bytes(count * width), layout["values"].base).reshape(count, width)
            # A quantiser never makes -128 of a weight, and kernels may count on that.
            piece["values"] = np.maximum(values, -127) if plan.kind == "Q8_0" else values
            piece["scale"] = plan.spread / STANDARD_DEVIATION[plan.kind]
        yield piece.tobytes()


def write_model(
    path: Path,
    *,
    size_bytes: int,
    layers: int = 16,
    kind: str = "Q8_0",
    vocabulary: int | None = None,
    architecture: str = "llama",
    seed: int = 1,
    hollow: bool = False,
    tokenizer: Path = TOKENIZER,
) -> Shape:
    """Write a model whose weights take about `size_bytes`; the file appears under its name when it is complete.

    `vocabulary` above that of `tokenizer` is filled with unused tokens. Raises ValueError for sizes that cannot be,
    OSError when the disk is too small or not writable.
    """
    source = gguf.GGUFReader(tokenizer)
    known = len(source.fields["tokenizer.ggml.tokens"].data)
    if vocabulary is not None and vocabulary < known:
        raise ValueError(f"the tokenizer has {known} tokens; fewer than that cannot be")
    shape = plan_shape(size_bytes, layers=layers, kind=kind, vocabulary=vocabulary or known)
    plans = plan_tensors(shape, architecture=architecture, kind=kind)
    free = shutil.disk_usage(path.absolute().parent).free
    if free < size_bytes * 1.05 and not hollow:
        raise OSError(f"{path}: {size_bytes:,} bytes are wanted and {free:,} are free")
    partial = path.with_name(f"{path.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    try:
        _add_facts(writer, shape, path.stem, kind)
        _add_tokenizer(writer, source, shape.vocabulary)
        for plan in plans:
            _announce(writer, plan)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        if hollow:
            _leave_hole(writer.fout[0], plans, writer.data_alignment)
        else:
            _write_tensors(writer.fout[0], plans, seed, writer.data_alignment)
        os.fsync(writer.fout[0].fileno())
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return shape


def _write_tensors(file: IO[bytes], plans: list[TensorPlan], seed: int, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
    for plan in plans:
        for piece in tensor_pieces(plan, seed):
            file.write(piece)
        file.write(bytes(-plan.n_bytes % alignment))
    file.flush()


def _leave_hole(file: IO[bytes], plans: list[TensorPlan], alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
    file.flush()
    file.truncate(file.tell() + sum(plan.n_bytes + -plan.n_bytes % alignment for plan in plans))


def _announce(writer: gguf.GGUFWriter, plan: TensorPlan) -> None:
    kind = gguf.GGMLQuantizationType[plan.kind]
    sizes = [plan.columns] if plan.rows == 1 else [plan.rows, plan.columns]
    if plan.kind == "F32":
        writer.add_tensor_info(plan.name, sizes, np.dtype(np.float32), plan.n_bytes)
        return
    in_bytes = gguf.quant_shape_to_byte_shape(sizes, kind)
    writer.add_tensor_info(plan.name, in_bytes, np.dtype(np.uint8), plan.n_bytes, raw_dtype=kind)


def _add_facts(writer: gguf.GGUFWriter, shape: Shape, name: str, kind: str) -> None:
    writer.add_name(name)
    writer.add_description("random weights of meshnode's bench/make_model.py; it answers nothing of sense")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter, source: gguf.GGUFReader, vocabulary: int) -> None:
    fields = {name: field.contents() for name, field in source.fields.items() if name.startswith("tokenizer.")}
    tokens, kinds = fields.pop("tokenizer.ggml.tokens"), fields.pop("tokenizer.ggml.token_type")
    unused = range(len(tokens), vocabulary)
    writer.add_token_list([*tokens, *(f"<unused{number}>" for number in unused)])
    writer.add_token_types([*kinds, *(int(gguf.TokenType.UNUSED) for _ in unused)])
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, value)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--size-gb", type=float, default=1.0, help="size of the weights in 10^9 bytes (1)")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--type", dest="kind", choices=list(BLOCKS), default="Q8_0")
    parser.add_argument("--vocab", dest="vocabulary", type=int, help="tokens; those beyond the tokenizer's are unused")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hollow", action="store_true", help="no weights, only a hole of their size")
    options = vars(parser.parse_args())
    path, size_bytes = options.pop("path"), int(options.pop("size_gb") * 1e9)
    begun = time.monotonic()
    try:
        shape = write_model(path, size_bytes=size_bytes, **options)
    except (ValueError, OSError) as reason:
        sys.exit(f"make_model: {reason}")
    print(f"{path}: {path.stat().st_size:,} bytes in {time.monotonic() - begun:.1f} s; {shape}")


if __name__ == "__main__":
    main()
