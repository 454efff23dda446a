"""Small models made of the demo: other metadata, other tensors, the same weights. Written with the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from meshnode.models.catalog import DEMO_TARGET

TOOLS_TEMPLATE = """\
{%- if tools -%}
{{- '<|im_start|>system\\nCall a tool with one JSON object.\\n' -}}
{%- for tool in tools -%}{{- tool | tojson -}}{{- '\\n' -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}' -}}
{%- endfor -%}
{%- elif message.content is string -%}
{{- message.content -}}
{%- elif message.content -%}
{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
POOLING_MEAN = 1
POOLING_RANK = 4
HEAD_LENGTH = 64


def copy_demo(
    target: Path,
    *,
    architecture: str = "llama",
    change: Mapping[str, int | float | str] | None = None,
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """Write the demo to `target` with some metadata changed and further float tensors.

    In `change` a key that begins with a dot belongs to the architecture (".context_length").
    """
    reader = gguf.GGUFReader(DEMO_TARGET)
    writer = gguf.GGUFWriter(target, architecture)
    wanted = {(architecture + key if key[0] == "." else key): value for key, value in (change or {}).items()}
    for field in reader.fields.values():
        name = field.name.replace("llama.", f"{architecture}.", 1) if field.name.startswith("llama.") else field.name
        if name.startswith("GGUF.") or name == "general.architecture" or name in wanted:
            continue
        sub_type = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for name, value in wanted.items():
        kind = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}
        writer.add_key_value(name, value, kind[type(value)])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def many_bits_model(target: Path) -> Path:
    """The demo with its weights as F16: what one would quantise."""
    reader = gguf.GGUFReader(DEMO_TARGET)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        whole = gguf.dequantize(tensor.data, tensor.tensor_type)
        vector = len(tensor.shape) == 1
        writer.add_tensor(tensor.name, whole.astype(np.float32) if vector else whole.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def embedding_model(target: Path) -> Path:
    """A decoder that is declared to pool its last layer into one vector."""
    return copy_demo(target, change={".pooling_type": POOLING_MEAN, "general.name": "embedder"})


def rerank_model(target: Path) -> Path:
    """A decoder of the Qwen3 family with a head for one score; the scores mean nothing."""
    layers, width = 12, 192
    ones = np.ones(HEAD_LENGTH, dtype=np.float32)
    extra = {f"blk.{layer}.attn_{kind}_norm.weight": ones for layer in range(layers) for kind in "qk"}
    head = np.linspace(-1, 1, width, dtype=np.float32).reshape(1, width)
    change = {
        ".pooling_type": POOLING_RANK,
        ".attention.key_length": HEAD_LENGTH,
        ".attention.value_length": HEAD_LENGTH,
        "general.name": "reranker",
    }
    return copy_demo(target, architecture="qwen3", change=change, extra={**extra, "cls.output.weight": head})


def long_model(target: Path) -> Path:
    """The demo with room for 32,768 tokens, so that an answer can go on for as long as a test needs."""
    return copy_demo(target, change={".context_length": 32768, "general.name": "long"})


def tools_model(target: Path) -> Path:
    """The demo with a chat template that knows tools: a call is a bare JSON object, which the grammar completes."""
    return copy_demo(target, change={"tokenizer.chat_template": TOOLS_TEMPLATE, "general.name": "tools"})
