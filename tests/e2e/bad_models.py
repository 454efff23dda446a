"""Model files that cannot be served, each wrong in its own way. Made of the demo, or written by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from meshnode.models.catalog import DEMO_TARGET
from tests.e2e.small_models import copy_demo

TIB = 1 << 40


def _truncated(path: Path) -> None:
    path.write_bytes(DEMO_TARGET.read_bytes()[: DEMO_TARGET.stat().st_size // 2])


def _cut_in_the_header(path: Path) -> None:
    path.write_bytes(DEMO_TARGET.read_bytes()[:5000])


def _empty(path: Path) -> None:
    path.touch()


def _not_gguf(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(5000))


def _web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><title>404 Not Found</title></html>")


def _absurd_counts(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 61) + bytes(4096))


def _absurd_text(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 62) + bytes(4096))


def _scrambled_header(path: Path) -> None:
    data = bytearray(DEMO_TARGET.read_bytes())
    noise = np.random.default_rng(7).integers(0, 256, 400, dtype=np.uint8).tobytes()
    data[600:1000] = noise
    path.write_bytes(data)


def _unknown_architecture(path: Path) -> None:
    copy_demo(path, architecture="nonsense")


def _no_layers(path: Path) -> None:
    copy_demo(path, change={".block_count": 0})


def _more_layers_than_tensors(path: Path) -> None:
    copy_demo(path, change={".block_count": 13})


def _heads_that_do_not_divide(path: Path) -> None:
    copy_demo(path, change={".attention.head_count": 7})


def _too_large(path: Path) -> None:
    """2 TiB of weights in a sparse file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(64)
    writer.add_context_length(4096)
    writer.add_embedding_length(8192)
    writer.add_feed_forward_length(28672)
    writer.add_head_count(64)
    writer.add_vocab_size(32000)
    for layer in range(64):
        shape = (1 << 20, 8192)
        writer.add_tensor_info(f"blk.{layer}.ffn_up.weight", shape, np.dtype(np.float32), (1 << 20) * 8192 * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2 * TIB + 4096)


BAD_MODELS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated": (_truncated, "model-file-invalid", "are missing"),
    "cut in the header": (_cut_in_the_header, "model-file-invalid", "cut short|truncated|incomplete|ends"),
    "empty": (_empty, "model-file-invalid", "empty"),
    "not gguf": (_not_gguf, "model-file-invalid", "not a GGUF|GGUF"),
    "a web page": (_web_page, "model-file-invalid", "web page|HTML|GGUF"),
    "absurd counts": (_absurd_counts, "model-file-invalid", "claims"),
    "absurd text": (_absurd_text, "model-file-invalid", "claims"),
    "scrambled header": (_scrambled_header, "model-file-invalid", ""),
    "unknown architecture": (_unknown_architecture, "model-file-invalid", "nonsense"),
    "no layers": (_no_layers, "model-file-invalid", ""),
    "more layers than tensors": (_more_layers_than_tensors, "model-file-invalid", "layer|tensor|blk.12"),
    "heads that do not divide": (_heads_that_do_not_divide, "model-file-invalid", ""),
    "too large": (_too_large, "model-does-not-fit", "needs .* GiB"),
}
"""Name: how it is written, the code of the error, a pattern of its sentence."""
