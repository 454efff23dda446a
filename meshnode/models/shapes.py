"""How much memory a model takes, layer by layer, from its header alone.

Weights: every tensor rounded up to `ALIGNMENT_BYTES` (the CPU's; CUDA rounds to 128, which adds under 0.1 MiB to a
whole model). The token embedding counts a second time beside the output when there is no output tensor. Cache: cells
times elements; a layer with a sliding window has few cells, a recurrent one none but a fixed state, and latent
attention (MLA) keeps keys only. Which layer is which is in `families.py`. The tests compare with llama-fit-params.

Sources in llama.cpp: llama-context.cpp, llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from meshnode.errors import ModelFileInvalid
from meshnode.models.families import cached_layers, predicting_layers
from meshnode.models.header import Header, Tensor
from meshnode.models.scratch import scratch_of

ALIGNMENT_BYTES = 32
CELLS_PAD = 256
UBATCH = 512
# Cache number formats: elements of one block and its bytes (ggml-common.h).
CACHE_TYPES = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}

# No output head, so nothing is duplicated for one.
_NO_OUTPUT = {
    "bert", "clip", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe",
    "t5encoder", "wavtokenizer-dec", "eurobert",
}  # fmt: skip
# Without an output tensor these load their embedding twice, even where both copies lie in one memory.
_LOADED_TWICE = {"gemma3n", "gemma4"}
# Cache layouts that are not modelled here: what is given is an estimate.
_ESTIMATED = {"deepseek4", "dots3note", "glm5-next", "hrm_text", "minimax-m3", "nanbeige", "qwen4exp", "t5"}
_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.(\d{1,3})\.")
_FIRST_LAYER = ("per_layer_model_proj", "per_layer_proj_norm")
_INPUT = ("token_embd", "per_layer_token_embd", "position_embd", "token_types", "masked_embd")


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer. `k_elements` and `v_elements` are cached for each token of context; `window` bounds how many tokens
    (None: all); `state_bytes` is the recurrent state of one conversation, whatever its length. `scratch_elements` are
    alive at once for each token of a batch, `spare_elements` bound the holes between them (scratch.py)."""

    weights_bytes: int
    k_elements: int = 0
    v_elements: int = 0
    window: int | None = None
    state_bytes: int = 0
    scratch_elements: int = 0
    spare_elements: int = 0

    def kv_bytes(self, context: int, *, sequences: int = 1, cache_type: str = "f16") -> int:
        """Cache and state of `sequences` conversations of `context` tokens each, every one with cells of its own."""
        return layer_kv_bytes(self, context * sequences, cache_type=cache_type, sequences=sequences, unified=False)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The memory of a model.

    `embedding_bytes` stays in main memory, `output_bytes` lies with the last layer (the norm before it included),
    `other_bytes` is small and lies with every device. `tied_bytes` is the part of `output_bytes` that is a copy of the
    embedding; where both share a memory there is no copy. `active_bytes` are read for one token (of a mixture of
    experts only the chosen ones). `exact` is False where the cache of this architecture is estimated.
    """

    name: str
    architecture: str
    layers: tuple[LayerShape, ...]
    embedding_bytes: int
    output_bytes: int
    other_bytes: int
    context_train: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_expert: int
    n_expert_used: int
    parameters: int
    active_bytes: int
    tied_bytes: int = 0
    exact: bool = True

    @property
    def total_bytes(self) -> int:
        """All weights as loaded, with the output on another device than the embedding."""
        return sum(layer.weights_bytes for layer in self.layers) + (
            self.embedding_bytes + self.output_bytes + self.other_bytes
        )

    @property
    def state_bytes(self) -> int:
        """Recurrent state of one conversation, all layers."""
        return sum(layer.state_bytes for layer in self.layers)

    def kv_bytes_per_token(self, cache_type: str = "f16") -> int:
        """What one more token of context costs, while it is inside every window."""
        return sum(
            _row_bytes(layer.k_elements, cache_type) + _row_bytes(layer.v_elements, cache_type) for layer in self.layers
        )

    def kv_bytes(
        self,
        context: int,
        *,
        cache_type: str = "f16",
        cache_type_v: str = "",
        sequences: int = 1,
        unified: bool = True,
        ubatch: int = UBATCH,
    ) -> int:
        """Cache and state of all layers together; see `layer_kv_bytes`."""
        return sum(
            layer_kv_bytes(
                layer,
                context,
                cache_type=cache_type,
                cache_type_v=cache_type_v,
                sequences=sequences,
                unified=unified,
                ubatch=ubatch,
            )
            for layer in self.layers
        )


def layer_kv_bytes(
    layer: LayerShape,
    context: int,
    *,
    cache_type: str = "f16",
    cache_type_v: str = "",
    sequences: int = 1,
    unified: bool = True,
    ubatch: int = UBATCH,
) -> int:
    """Cache and state of one layer, in bytes, with flash attention on.

    `context` is the engine's `--ctx-size`: the tokens of all `sequences` together. `unified` lets them share one
    buffer; otherwise each has its own part. Source: llama-context.cpp, llama-kv-cache.cpp, llama-kv-cache-iswa.cpp.
    """
    streams = 1 if unified else sequences
    cells = _pad(context, CELLS_PAD) if unified else _pad(_pad(context, CELLS_PAD) // sequences, CELLS_PAD)
    if layer.window is not None:
        cells = _pad(min(cells, layer.window * (sequences if unified else 1) + ubatch), CELLS_PAD)
    row = _row_bytes(layer.k_elements, cache_type) + _row_bytes(layer.v_elements, cache_type_v or cache_type)
    return streams * cells * row + sequences * layer.state_bytes


def shape_of(header: Header, *, alignment: int = ALIGNMENT_BYTES) -> ModelShape:
    """The memory shape of a model, from its (merged) header.

    Raises ModelFileInvalid where the header lacks what every model must say, or where the numbers cannot be.
    """
    count = header.layer_count
    n_embd = header.number(header.key("embedding_length"))
    if header.is_projector:
        raise ModelFileInvalid(
            "it is a vision or audio projector (mmproj), not a model", fix="pass the model beside it"
        )
    if count < 1 or not 0 < n_embd < 1 << 20:
        raise ModelFileInvalid(f"its header gives {count} layers of width {n_embd}")
    used = max(header.per_layer("expert_used_count"))
    experts = header.number(header.key("expert_count"))
    share = used / experts if 0 < used <= experts else 1.0
    weights, embedding, output, tied, other = _weights(header, alignment)
    cached = cached_layers(header)
    return ModelShape(
        name=header.name,
        architecture=header.architecture,
        layers=tuple(
            LayerShape(
                size, layer.k_elements, layer.v_elements, layer.window, layer.state_bytes, scratch.peak, scratch.spare
            )
            for size, layer, scratch in zip(weights, cached, scratch_of(header), strict=True)
        ),
        embedding_bytes=embedding,
        output_bytes=output,
        other_bytes=other,
        context_train=header.context_length,
        n_embd=n_embd,
        n_ff=max(*header.per_layer("feed_forward_length"), *header.per_layer("expert_feed_forward_length"), 0),
        n_vocab=header.vocabulary_size or _rows(header, "token_embd.weight"),
        n_expert=experts,
        n_expert_used=used,
        parameters=sum(prod(tensor.shape) for tensor in header.tensors),
        active_bytes=sum(weights) + output - round(_expert_bytes(header) * (1 - share)),
        tied_bytes=0 if header.architecture in _LOADED_TWICE else tied,
        exact=header.architecture not in _ESTIMATED,
    )


def _weights(header: Header, alignment: int) -> tuple[list[int], int, int, int, int]:
    """Bytes by layer, of the embedding, of the output, of the copy in it, of the rest."""
    layers = [0] * header.layer_count
    embedding = output = other = 0
    trunk = header.layer_count - predicting_layers(header)
    for tensor in header.tensors:
        size = _pad(tensor.n_bytes, alignment)
        if match := _BLOCK.match(tensor.name):
            number = int(match[1])
            if number >= len(layers):
                raise ModelFileInvalid(f"tensor {tensor.name} belongs to a layer that the header does not have")
            # Layers that only draft further tokens are not loaded unless they are used for that.
            layers[number] += size if number < trunk else 0
        elif tensor.name.startswith(_FIRST_LAYER):
            layers[0] += size
        elif tensor.name.startswith(_INPUT):
            embedding += size
        elif tensor.name.startswith("rope_"):
            other += size
        else:
            output += size
    tied = 0
    if not any(tensor.name == "output.weight" for tensor in header.tensors) and header.architecture not in _NO_OUTPUT:
        tied = sum(_pad(t.n_bytes, alignment) for t in header.tensors if t.name == "token_embd.weight")
    return layers, embedding, output + tied, tied, other


def _expert_bytes(header: Header) -> int:
    return sum(tensor.n_bytes for tensor in header.tensors if "_exps" in tensor.name)


def _rows(header: Header, name: str) -> int:
    found: list[Tensor] = [tensor for tensor in header.tensors if tensor.name == name]
    return found[0].shape[-1] if found else 0


def _row_bytes(elements: int, cache_type: str) -> int:
    block, size = CACHE_TYPES[cache_type]
    return -(-elements // block) * size


def _pad(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
