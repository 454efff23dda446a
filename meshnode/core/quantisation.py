"""Fewer bits for the weights of a model: which type each tensor gets, what that makes of its size, what it costs.

Theory of operation. A *mix* (`Q4_K_M`, ...) gives most tensors one type and those that matter more a better one. The
rules are those of llama-quantize (src/llama-quant.cpp, as of the pinned source), spelled here so that every size is
known from the header alone, to the byte of every tensor. A plan may give each layer a mix of its own: fewer bits where
a layer lands on a small machine, more where there is room. The engine is then told the type of every tensor by name,
so that the file is what was planned, whatever a later engine's own rules are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from meshnode.core.precision import QUALITY

ALIGNMENT = 32
EIGHT_EXPERTS = 8
"""Mixtures of eight experts share small attention tensors, which get more bits."""
# Elements of one block and its bytes (ggml-common.h).
TYPES: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q6_K": (256, 210), "Q5_K": (256, 176),
    "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_K": (256, 144), "Q4_0": (32, 18), "Q3_K": (256, 110), "Q2_K": (256, 84),
}  # fmt: skip
# For rows that a type's blocks do not divide (tensor_type_fallback).
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
PLAIN = ("F32", "F16", "BF16")
# The type of most tensors, best mix first. F16 and BF16 are only ever asked for by name.
MIXES: dict[str, str] = {
    "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K",
    "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "Q2_K": "Q2_K", "BF16": "BF16", "F16": "F16",
}  # fmt: skip
LADDER = tuple(name for name in MIXES if name not in PLAIN)
_ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}
# Never quantised, whatever is asked (tensor_allows_quantization).
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
    "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_KEPT_WHOLE = ("position_embd.weight", "token_types.weight")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_BLOCK = re.compile(r"blk\.(\d{1,4})\.")


class SourceTensor(Protocol):
    """What is read of a tensor in a header: its shape has the fastest dimension first."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> str: ...
    @property
    def n_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the rules ask of a model. `heads_kv` is that of the first layer, `header_bytes` all that is no tensor."""

    architecture: str
    layers: int
    heads: int
    heads_kv: int
    experts: int
    header_bytes: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor: the type it has and gets, its bytes then and elements; `layer` is None outside of the layers."""

    name: str
    source: str
    target: str
    source_bytes: int
    n_bytes: int
    elements: int
    layer: int | None

    @property
    def changed(self) -> bool:
        """Whether it is converted at all."""
        return self.source != self.target


@dataclass(frozen=True, slots=True)
class QuantisationPlan:
    """A whole file. `base` is the mix that the file is called by, `layers` the mixes of layers that differ from it."""

    base: str
    layers: Mapping[int, str]
    tensors: tuple[TensorPlan, ...]
    header_bytes: int

    @property
    def file_bytes(self) -> int:
        """Size of the file; what its header says changes by some dozen bytes."""
        return self.header_bytes + sum(_padded(tensor.n_bytes) for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean over all tensors."""
        return 8 * sum(tensor.n_bytes for tensor in self.tensors) / max(1, sum(t.elements for t in self.tensors))

    @property
    def requantises(self) -> bool:
        """Whether something is converted that was quantised before: the losses add up."""
        return any(tensor.changed and tensor.source not in PLAIN for tensor in self.tensors)

    @property
    def nominal(self) -> str:
        """The mix to name to llama-quantize. TRAP: for a plain one it heeds no type that is given for a tensor."""
        return "Q8_0" if self.base in PLAIN and self.layers else self.base

    @property
    def loss(self) -> float:
        """Rule of thumb: the rise in perplexity, as a mean of the mixes' figures over the weights that they cover."""
        weights, lost = 0, 0.0
        for tensor in self.tensors:
            mix = self.base if tensor.layer is None else self.layers.get(tensor.layer, self.base)
            weights += tensor.elements
            lost += 0.0 if tensor.target in PLAIN else (QUALITY[mix][1] or 0.0) * tensor.elements
        return lost / weights if weights else 0.0

    def layer_bytes(self, first: int, count: int) -> int:
        """Weights of `count` layers from `first` on."""
        return sum(
            _padded(tensor.n_bytes)
            for tensor in self.tensors
            if tensor.layer is not None and first <= tensor.layer < first + count
        )

    def overrides(self) -> tuple[str, ...]:
        """`PATTERN=TYPE` for every tensor that may be converted, in the form of llama-quantize's `--tensor-type-file`.

        Patterns are regular expressions that llama-quantize lowers the case of; a capital in a name becomes a dot.
        """
        return tuple(f"^{_pattern(t.name)}$={t.target.lower()}" for t in self.tensors if t.target in TYPES)


def mix_named(text: str) -> str:
    """The mix that a person means (`q4_k` is Q4_K_M, as llama-quantize has it). Raises ValueError."""
    name = _ALIASES.get(text.upper(), text.upper())
    if name not in MIXES:
        raise ValueError(f"{text!r} is not a type to quantise to; there are {', '.join(MIXES)}")
    return name


def plan_types(
    tensors: Sequence[SourceTensor], facts: ModelFacts, base: str, layers: Mapping[int, str] | None = None
) -> QuantisationPlan:
    """Every tensor's type under the mix `base`, and under other mixes in some `layers`.

    Raises ValueError for a mix or a layer that is not there.
    """
    given = {int(number): mix_named(mix) for number, mix in (layers or {}).items()}
    base = mix_named(base)
    if wrong := [number for number in given if not 0 <= number < facts.layers]:
        raise ValueError(f"there is no layer {wrong[0]}: the model has {facts.layers}, from 0")
    rules = _Rules(tensors, facts)
    plans = []
    for tensor in sorted(tensors, key=lambda tensor: (_layer_order(tensor.name), tensor.name)):
        layer = _layer(tensor.name)
        target = rules.target(tensor, given.get(layer, base) if layer is not None else base)
        elements = prod(tensor.shape)
        n_bytes = tensor.n_bytes if target == tensor.type else _bytes(elements, target)
        plans.append(TensorPlan(tensor.name, tensor.type, target, tensor.n_bytes, n_bytes, elements, layer))
    differing = {number: mix for number, mix in sorted(given.items()) if mix != base}
    return QuantisationPlan(base, differing, tuple(plans), facts.header_bytes)


def plan_to_fit(tensors: Sequence[SourceTensor], facts: ModelFacts, limit_bytes: int) -> QuantisationPlan | None:
    """The best file of at most `limit_bytes`; None when even the smallest is larger.

    The best mix that fits whole, and the next better one for as many layers as there is room for: from both ends of the
    model inwards, where the mixes themselves spend their better types.
    """
    better = ""
    for mix in LADDER:
        plan = plan_types(tensors, facts, mix)
        if plan.file_bytes > limit_bytes:
            better = mix
            continue
        if not better:
            return plan
        order = [n // 2 if n % 2 == 0 else facts.layers - 1 - n // 2 for n in range(facts.layers)]
        low, high = 0, facts.layers
        while low < high:
            middle = (low + high + 1) // 2
            raised = plan_types(tensors, facts, mix, dict.fromkeys(order[:middle], better))
            low, high = (middle, high) if raised.file_bytes <= limit_bytes else (low, middle - 1)
        return plan_types(tensors, facts, mix, dict.fromkeys(order[:low], better))
    return None


@dataclass(frozen=True, slots=True)
class StageLimit:
    """Layers that lie on one machine, and the bytes that their weights may take there."""

    first: int
    layers: int
    limit_bytes: int


def plan_for_stages(
    tensors: Sequence[SourceTensor], facts: ModelFacts, stages: Sequence[StageLimit], *, best: str = "Q8_0"
) -> QuantisationPlan | None:
    """For each stage the best mix that its machine holds, never better than `best`; None when one holds not even the
    smallest. What is in no stage (embedding, output, layers of the host) gets `best`."""
    best = mix_named(best)
    ladder = LADDER[LADDER.index(best) :] if best in LADDER else (best, *LADDER)
    whole = {mix: plan_types(tensors, facts, mix) for mix in ladder}
    layers: dict[int, str] = {}
    for stage in stages:
        fitting = (mix for mix in ladder if whole[mix].layer_bytes(stage.first, stage.layers) <= stage.limit_bytes)
        mix = next(fitting, None)
        if mix is None:
            return None
        layers.update(dict.fromkeys(range(stage.first, stage.first + stage.layers), mix))
    return plan_types(tensors, facts, best, layers)


class _Rules:
    """Which type a tensor gets under a mix: its role, and where among its like it stands."""

    def __init__(self, tensors: Sequence[SourceTensor], facts: ModelFacts) -> None:
        self._facts = facts
        names = sorted((t.name for t in tensors), key=lambda name: (_layer_order(name), name))
        values = [name for name in names if _role(name) == "v"]
        self._values = {name: index for index, name in enumerate(values)}
        # Of a mixture the layer itself counts, as experts may stand apart.
        downs = [t.name for t in tensors if _role(t.name) == "down" and _is_quantised(t, facts.architecture)]
        downs.sort(key=lambda name: (_layer_order(name), name))
        self._downs = {name: (_layer(name) or 0) if facts.experts > 1 else index for index, name in enumerate(downs)}
        self._tied = "output.weight" not in names
        self._grouped = facts.heads // facts.heads_kv if facts.heads_kv else 0

    def target(self, tensor: SourceTensor, mix: str) -> str:
        """The type of this tensor in the new file."""
        if not _is_quantised(tensor, self._facts.architecture):
            return tensor.type
        default = MIXES[mix]
        if default in PLAIN:
            return default
        return _fitting(self._wanted(tensor, mix, default), tensor.shape[0])

    def _wanted(self, tensor: SourceTensor, mix: str, default: str) -> str:
        role, facts = _role(tensor.name), self._facts
        eight = facts.experts == EIGHT_EXPERTS
        if role == "output" or (role == "embedding" and self._tied):
            if facts.architecture == "falcon" or tensor.shape[0] % TYPES[default][0]:
                return "Q8_0"
            return default if default == "Q8_0" else "Q6_K"
        if role == "v":
            return "Q8_0" if eight else self._value(tensor.name, mix, default)
        if role == "k" and eight:
            return "Q8_0"
        if role == "down":
            return self._down(tensor.name, mix, default)
        if role == "attn_output" and facts.architecture != "falcon":
            if eight:
                return "Q5_K" if default in ("Q2_K", "Q3_K", "Q4_K") else default
            return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(mix, default)
        return default

    def _value(self, name: str, mix: str, default: str) -> str:
        index, count = self._values[name], len(self._values)
        found = default
        if mix == "Q2_K":
            found = "Q4_K" if self._grouped >= 4 else "Q3_K"
        elif mix == "Q3_K_M":
            found = "Q5_K" if index < 2 else "Q4_K"
        elif mix in ("Q4_K_M", "Q5_K_M"):
            found = "Q6_K" if _gets_more(index, count) else default
        elif mix == "Q4_K_S":
            found = "Q5_K" if index < 4 else default
        facts = self._facts
        seventy = facts.architecture == "llama" and facts.layers == 80 and facts.heads != facts.heads_kv
        return "Q5_K" if seventy and found in ("Q3_K", "Q4_K") else found

    def _down(self, name: str, mix: str, default: str) -> str:
        index, count, falcon = self._downs[name], self._facts.layers, self._facts.architecture == "falcon"
        more = _gets_more(index, count)
        if mix == "Q2_K":
            return "Q3_K"
        if mix == "Q3_K_M":
            return "Q5_K" if index < count // 16 else "Q4_K" if not falcon or more else "Q3_K"
        if mix == "Q4_K_M" and falcon:
            return "Q6_K" if index < count // 16 else "Q5_K" if more else "Q4_K"
        if mix in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if more else default
        if mix == "Q4_K_S" and not falcon and index < count // 8:
            return "Q5_K"
        return default


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "embedding"
    for part, role in _ROLES:
        if part in name:
            return role
    return ""


# In the order in which llama-quantize asks.
_ROLES = (
    ("attn_qkv.weight", "v"), ("attn_kv_b.weight", "v"), ("attn_v.weight", "v"), ("attn_k.weight", "k"),
    ("attn_q.weight", "q"), ("attn_output.weight", "attn_output"), ("ffn_up", "up"), ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)  # fmt: skip
_KEPT_BY_ARCHITECTURE = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight",
        "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
    ),
}  # fmt: skip


def _is_quantised(tensor: SourceTensor, architecture: str) -> bool:
    """Whether llama-quantize would convert it at all: matrices of weights, but for small and sensitive ones."""
    dimensions = max((index + 1 for index, size in enumerate(tensor.shape) if size > 1), default=1)
    kept = _KEPT + _KEPT_BY_ARCHITECTURE.get(architecture, ())
    return (
        dimensions >= 2
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_WHOLE
        and not any(part in tensor.name for part in kept)
    )


def _fitting(target: str, columns: int) -> str:
    if columns % TYPES[target][0]:
        target = _FALLBACK.get(target, target)
    return "F16" if columns % TYPES[target][0] else target


def _gets_more(index: int, count: int) -> bool:
    """The first and last eighth, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _layer(name: str) -> int | None:
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def _layer_order(name: str) -> int:
    layer = _layer(name)
    return -1 if layer is None else layer


def _bytes(elements: int, kind: str) -> int:
    block, size = TYPES[kind]
    return elements // block * size


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pattern(name: str) -> str:
    return "".join(
        letter if letter.islower() or letter.isdigit() or letter == "_" else r"\." if letter == "." else "."
        for letter in name
    )
