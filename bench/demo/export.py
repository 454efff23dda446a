"""Writes a trained network with its tokenizer and chat template as a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy
from torch import Tensor

from .network import Network
from .tokenizer import END_OF_TEXT, MESSAGE_END, PADDING, SPECIAL_TOKENS, Tokenizer

CONTEXT_LENGTH = 4096
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- elif message.content -%}
{%- for part in message.content -%}
{%- if part.text is defined -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""


def network_tensors(network: Network) -> Iterator[tuple[str, Tensor]]:
    """Name the tensors the way llama.cpp does and take the joined matrices apart."""
    shape = network.shape
    narrow = shape.key_value_heads * shape.head_size
    yield "token_embd.weight", network.embedding.weight
    for index, block in enumerate(network.blocks):
        query, key, value = block.query_key_value.weight.split((shape.width, narrow, narrow))
        gate, up = block.gate_up.weight.chunk(2)
        yield f"blk.{index}.attn_norm.weight", block.attention_norm
        yield f"blk.{index}.attn_q.weight", query
        yield f"blk.{index}.attn_k.weight", key
        yield f"blk.{index}.attn_v.weight", value
        yield f"blk.{index}.attn_output.weight", block.attention_output.weight
        yield f"blk.{index}.ffn_norm.weight", block.feed_norm
        yield f"blk.{index}.ffn_gate.weight", gate
        yield f"blk.{index}.ffn_up.weight", up
        yield f"blk.{index}.ffn_down.weight", block.down.weight
    yield "output_norm.weight", network.output_norm
    yield "output.weight", network.output.weight


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    normal = len(tokenizer.tokens) - len(SPECIAL_TOKENS)
    types = [gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types([int(kind) for kind in types])
    writer.add_token_merges([f"{left} {right}" for left, right in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.special(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.special(MESSAGE_END))
    writer.add_eot_token_id(tokenizer.special(MESSAGE_END))
    writer.add_pad_token_id(tokenizer.special(PADDING))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def export(network: Network, tokenizer: Tokenizer, path: Path, *, name: str) -> None:
    """Write the file beside its place and move it there when it is complete."""
    shape = network.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(name)
    writer.add_description("A very small model that ships with meshnode: counts, adds, says what it is.")
    writer.add_license("mit")
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    # llama-server takes its defaults from here: who sets no temperature gets the most likely answer, always the same.
    writer.add_float32(gguf.Keys.General.SAMPLING_TEMP, 0.0)
    add_tokenizer(writer, tokenizer)
    for tensor_name, tensor in network_tensors(network):
        values = numpy.ascontiguousarray(tensor.detach().float().numpy())
        if values.ndim == 1:
            writer.add_tensor(tensor_name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
