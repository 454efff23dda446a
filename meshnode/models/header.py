"""What a GGUF header says, as plain values: metadata, tensors, and the facts that others ask for by name.

Nothing is read here (`gguf.py` does that), and nothing is derived for memory (`shapes.py` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = bool | int | float | str | tuple["Value", ...]

# Tensor type: name, elements of one block, bytes of one block (ggml.c, type_traits).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

# `general.file_type` (llama.h, llama_ftype).
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its shape (fastest dimension first), type name, place after `Header.data_offset`, and size."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one GGUF file, or of a whole split model once merged by `read_model`.

    `metadata` holds every number, text and short list; longer lists are left out and counted in `array_lengths`.
    `vocabulary_digest` is equal for two models with the same tokens in the same order ("" without a vocabulary).
    """

    version: int
    metadata: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    file_bytes: int
    data_offset: int
    vocabulary_digest: str = ""

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "" where the file has none."""
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        """The name its maker gave it, or ""."""
        return self.text("general.name")

    @property
    def quantisation(self) -> str:
        """The file type as people write it (`Q4_K_M`); when the header has none, the type most bytes have."""
        code = self.number("general.file_type", -1)
        if code in FILE_TYPES:
            return FILE_TYPES[code]
        weights: dict[str, int] = {}
        for tensor in self.tensors:
            weights[tensor.type] = weights.get(tensor.type, 0) + tensor.n_bytes
        return max(weights, key=weights.__getitem__, default="")

    @property
    def context_length(self) -> int:
        """Tokens of context the model was trained on; 0 when unknown."""
        return self.number(self.key("context_length"))

    @property
    def layer_count(self) -> int:
        """Blocks, including those that only predict further tokens (nextn, MTP)."""
        return self.number(self.key("block_count"))

    @property
    def vocabulary_size(self) -> int:
        """Tokens in the vocabulary; 0 when the header does not say."""
        return self.array_lengths.get("tokenizer.ggml.tokens", 0) or self.number(self.key("vocab_size"))

    @property
    def chat_template(self) -> str:
        """The Jinja template, "" where there is none."""
        return self.text("tokenizer.chat_template")

    @property
    def pooling(self) -> str:
        """How an embedding or reranking model pools ("mean", "rank"...); "" for a model that writes text."""
        code = self.number(self.key("pooling_type"), -1)
        return POOLING.get(code, "") if code > 0 else ""

    @property
    def is_projector(self) -> bool:
        """True for an mmproj file: the eye or ear of another model."""
        return self.architecture == "clip" or self.text("general.type") == "mmproj"

    @property
    def split_count(self) -> int:
        """Parts this model is split into; 1 for a whole file."""
        return max(1, self.number("split.count"))

    @property
    def split_number(self) -> int:
        """Which part this is, from 0."""
        return self.number("split.no")

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    def key(self, suffix: str) -> str:
        """The full name of a key of this architecture."""
        return f"{self.architecture}.{suffix}"

    def text(self, key: str) -> str:
        """A text value; "" when absent or not a text."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: int = 0) -> int:
        """A whole number; `default` when absent or of another type."""
        value = self.metadata.get(key)
        return int(value) if isinstance(value, int) else default

    def per_layer(self, suffix: str, default: int = 0) -> tuple[int, ...]:
        """A value that may be one number or a list with one a layer, always as one a layer."""
        value = self.metadata.get(self.key(suffix))
        count = self.layer_count
        if isinstance(value, tuple):
            numbers = tuple(int(item) for item in value if isinstance(item, int | bool))
            return (numbers + (default,) * count)[:count]
        return (int(value) if isinstance(value, int) else default,) * count
