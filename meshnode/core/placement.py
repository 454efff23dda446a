"""Where the layers of a model go and how much context fits: plans as plain functions of what is free.

Theory of operation. A plan is the first combination of (context, KV number format, parallel requests, layers on
GPUs) that fits, tried from the most to the least wanted: everything on the GPUs with the wanted context; then a
smaller KV format; then fewer requests at once; then less context, down to `MIN_CONTEXT`; then with the layers
that do not fit kept in main memory. Every plan carries the bytes it counted on, and a refusal carries the
smallest combination that was tried, so that a person can see what is missing.

The formulas follow llama.cpp: layer assignment from `llama_model_base::load_tensors`, KV cells padded to 256 and
sized per layer in `llama_kv_cache`, compute buffers as an upper bound of `graph_reserve`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

MIB = 1 << 20
GIB = 1 << 30

CELLS_PAD = 256
UBATCH = 512
WANTED_CONTEXT = 32768
"""Agents ask for tens of thousands of tokens; more costs memory that most conversations never use."""
MIN_CONTEXT = 2048
DEFAULT_PARALLEL = 4
GPU_OVERHEAD_BYTES = 450 * MIB
"""What a driver context and its kernels take beside buffers (CUDA 12-13: 300-500 MiB)."""
HOST_RESERVE_BYTES = GIB
"""Left to the rest of the machine, with a tenth of what is free."""
ENGINE_OVERHEAD_BYTES = 150 * MIB
PROMPT_CACHE_MAX_BYTES = 2 * GIB
PROMPT_CACHE_MIN_BYTES = 64 * MIB

KV_BYTES_PER_ELEMENT = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Block sizes of ggml-common.h: q8_0 is 34 bytes for 32 elements, q4_0 is 18."""


class LayerShape(Protocol):
    """What the planner reads of one layer; see meshnode.models.shapes for the values."""

    @property
    def weights_bytes(self) -> int: ...
    @property
    def k_elements(self) -> int: ...
    @property
    def v_elements(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def state_bytes(self) -> int: ...


class ModelShape(Protocol):
    """What the planner reads of a model."""

    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> Sequence[LayerShape]: ...
    @property
    def embedding_bytes(self) -> int: ...
    @property
    def output_bytes(self) -> int: ...
    @property
    def other_bytes(self) -> int: ...
    @property
    def context_train(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_ff(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """One GPU: what llama.cpp calls it and the bytes that a model may take there."""

    name: str
    usable_bytes: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory that a plan may use. `unified` devices share `host_bytes` with the processor."""

    host_bytes: int
    devices: tuple[DeviceBudget, ...] = ()
    unified: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person fixed; None leaves the choice to the planner. `context` is per conversation, in tokens."""

    context: int | None = None
    parallel: int | None = None
    kv_type: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What a plan puts on one device, in bytes."""

    device: str
    layers: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    limit_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True, slots=True)
class SoloPlan:
    """How one machine serves a model. `reason` says in words why it is not what was wanted, or is empty."""

    context: int
    parallel: int
    kv_type: str
    gpu_layers: int
    tensor_split: tuple[int, ...]
    shares: tuple[Share, ...]
    prompt_cache_bytes: int
    reason: str = ""

    @property
    def total_bytes(self) -> int:
        """Memory of all shares together."""
        return sum(share.total_bytes for share in self.shares)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model is not served here: the least it needs, the most there is, both in bytes."""

    needed_bytes: int
    available_bytes: int
    reason: str


def pad(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple."""
    return -(-value // multiple) * multiple


def kv_bytes(layer: LayerShape, *, context: int, parallel: int, kv_type: str) -> int:
    """Context memory of one layer for `parallel` conversations of `context` tokens.

    A sliding-window layer keeps its window and one batch; a recurrent layer keeps a state whose size does not
    depend on the context (llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp).
    """
    cells = pad(context, CELLS_PAD)
    if layer.window is not None:
        cells = min(cells, pad(layer.window + UBATCH, CELLS_PAD))
    elements = cells * (layer.k_elements + layer.v_elements)
    return parallel * (int(elements * KV_BYTES_PER_ELEMENT[kv_type]) + layer.state_bytes)


def compute_bytes(model: ModelShape, *, context: int, parallel: int, with_output: bool) -> int:
    """Upper bound of the scratch memory on one device: attention mask, activations of one batch, logits."""
    mask = 2 * pad(context, CELLS_PAD) * parallel * UBATCH
    activations = UBATCH * 4 * (3 * model.n_ff + 4 * model.n_embd)
    logits = UBATCH * model.n_vocab * 4 if with_output else 0
    return mask + activations + logits


def usable_host_bytes(available_bytes: int) -> int:
    """What a model may take of the main memory that is available now."""
    return max(0, available_bytes - max(HOST_RESERVE_BYTES, available_bytes // 10))


def usable_device_bytes(free_bytes: int) -> int:
    """What a model may take of a GPU's free memory."""
    return max(0, free_bytes - GPU_OVERHEAD_BYTES)


def plan_solo(model: ModelShape, budget: Budget, wishes: Wishes, *, extra_host_bytes: int = 0) -> SoloPlan | Refusal:
    """The best way to serve `model` on this machine alone, or why there is none.

    `extra_host_bytes` is what comes along in main memory (a draft model, a vision projector).
    """
    host = budget.host_bytes - extra_host_bytes - ENGINE_OVERHEAD_BYTES
    smallest: int | None = None
    for whole in (True, False) if budget.devices else (False,):
        for context, kv_type, parallel in _combinations(model, wishes):
            shares = _place(model, budget, host, context=context, kv_type=kv_type, parallel=parallel, whole=whole)
            if shares is None:
                continue
            if all(share.total_bytes <= share.limit_bytes for share in shares):
                return _plan(model, budget, shares, host, context=context, kv_type=kv_type, parallel=parallel)
            needed = sum(share.total_bytes for share in shares)
            smallest = needed if smallest is None else min(smallest, needed)
    available = max(0, host) + (0 if budget.unified else sum(device.usable_bytes for device in budget.devices))
    needed = smallest or _least(model, wishes)
    return Refusal(
        needed_bytes=needed + extra_host_bytes + ENGINE_OVERHEAD_BYTES,
        available_bytes=available,
        reason=f"{model.name} needs {_gib(needed)} with the smallest context, {_gib(available)} can be used here",
    )


def _combinations(model: ModelShape, wishes: Wishes) -> Iterator[tuple[int, str, int]]:
    """(context, kv_type, parallel) from the most to the least wanted."""
    wanted = wishes.context or min(model.context_train or WANTED_CONTEXT, WANTED_CONTEXT)
    contexts = [wanted]
    while not wishes.context and contexts[-1] // 2 >= MIN_CONTEXT:
        contexts.append(contexts[-1] // 2)
    types = [wishes.kv_type] if wishes.kv_type else ["f16", "q8_0"]
    counts = [wishes.parallel] if wishes.parallel else [DEFAULT_PARALLEL, 2, 1]
    for context in contexts:
        for kv_type in types:
            for parallel in counts:
                yield context, kv_type, parallel


def _place(
    model: ModelShape, budget: Budget, host: int, *, context: int, kv_type: str, parallel: int, whole: bool
) -> tuple[Share, ...] | None:
    """Shares of the GPUs in order and then of the host. With `whole`, every layer must be on a GPU."""
    sizes = [
        layer.weights_bytes + kv_bytes(layer, context=context, parallel=parallel, kv_type=kv_type)
        for layer in model.layers
    ]
    remaining = len(sizes) + 1  # the output counts as one more layer, the last
    counts: list[int] = []
    # llama.cpp takes the last layers for the GPUs, in device order; so the first layers stay with the host.
    room = [
        device.usable_bytes - compute_bytes(model, context=context, parallel=parallel, with_output=False)
        for device in budget.devices
    ]
    units = [*sizes, model.output_bytes + UBATCH * model.n_vocab * 4]
    for free in reversed(room):
        taken = 0
        while remaining and units[remaining - 1] <= free:
            free -= units[remaining - 1]
            remaining -= 1
            taken += 1
        counts.insert(0, taken)
    if whole and remaining:
        return None
    return _shares(model, budget, host, counts, remaining, context=context, kv_type=kv_type, parallel=parallel)


def _shares(
    model: ModelShape,
    budget: Budget,
    host: int,
    counts: Sequence[int],
    on_host: int,
    *,
    context: int,
    kv_type: str,
    parallel: int,
) -> tuple[Share, ...]:
    total_units = len(model.layers) + 1
    shares = []
    start = on_host
    for device, count in zip(budget.devices, counts, strict=True):
        layers = model.layers[start : min(start + count, total_units - 1)]
        last = count > 0 and start + count == total_units
        shares.append(
            Share(
                device=device.name,
                layers=count,
                weights_bytes=sum(layer.weights_bytes for layer in layers) + (model.output_bytes if last else 0),
                kv_bytes=sum(kv_bytes(x, context=context, parallel=parallel, kv_type=kv_type) for x in layers),
                compute_bytes=compute_bytes(model, context=context, parallel=parallel, with_output=last)
                if count
                else 0,
                limit_bytes=device.usable_bytes,
            )
        )
        start += count
    kept = model.layers[: min(on_host, total_units - 1)]
    with_output = on_host == total_units
    shares.append(
        Share(
            device="host",
            layers=on_host,
            weights_bytes=sum(layer.weights_bytes for layer in kept)
            + model.embedding_bytes
            + model.other_bytes
            + (model.output_bytes if with_output else 0),
            kv_bytes=sum(kv_bytes(x, context=context, parallel=parallel, kv_type=kv_type) for x in kept),
            compute_bytes=compute_bytes(model, context=context, parallel=parallel, with_output=with_output)
            if on_host
            else 16 * MIB,
            limit_bytes=host - (sum(share.total_bytes for share in shares) if budget.unified else 0),
        )
    )
    return tuple(shares)


def _plan(
    model: ModelShape,
    budget: Budget,
    shares: tuple[Share, ...],
    host: int,
    *,
    context: int,
    kv_type: str,
    parallel: int,
) -> SoloPlan:
    left = max(0, shares[-1].limit_bytes - shares[-1].total_bytes)
    cache = min(PROMPT_CACHE_MAX_BYTES, left // 4)
    counts = tuple(share.layers for share in shares[:-1])
    reasons = []
    if model.context_train > context and context < WANTED_CONTEXT:
        reasons.append(f"context {context} of the {model.context_train} it was trained for: memory")
    if counts and shares[-1].layers:
        reasons.append(f"{shares[-1].layers} of {len(model.layers) + 1} layers stay in main memory and run slower")
    return SoloPlan(
        context=context,
        parallel=parallel,
        kv_type=kv_type,
        gpu_layers=sum(counts),
        tensor_split=counts if len(counts) > 1 and any(counts) else (),
        shares=shares,
        prompt_cache_bytes=cache if cache >= PROMPT_CACHE_MIN_BYTES else 0,
        reason="; ".join(reasons),
    )


def _least(model: ModelShape, wishes: Wishes) -> int:
    *_, (context, kv_type, parallel) = _combinations(model, wishes)
    weights = sum(layer.weights_bytes for layer in model.layers)
    kv = sum(kv_bytes(layer, context=context, parallel=parallel, kv_type=kv_type) for layer in model.layers)
    scratch = compute_bytes(model, context=context, parallel=parallel, with_output=True)
    return weights + kv + scratch + model.embedding_bytes + model.output_bytes + model.other_bytes


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
