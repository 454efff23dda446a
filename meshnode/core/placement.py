"""Where the layers of a model go and how much context fits: plans as plain functions of what is free.

Theory of operation. A plan is chosen among combinations of (context, parallel requests, KV number format), which
stand in the order in which they are wanted: a smaller KV format comes first, then fewer requests at once, then half
the context, down to `MIN_CONTEXT`. For each, the GPUs take as many of the last layers as they hold and main memory
keeps the rest. Of the combinations that fit, the one with the most layers on GPUs wins, because a layer in main
memory costs more speed than anything else costs comfort; among equals the most wanted. Contexts below
`MODEST_CONTEXT` are looked at only when nothing fits with more: they are too short to work with. Every plan carries
the bytes it counted on, and a refusal those of the combination that came nearest.

The formulas follow llama.cpp: layer assignment from `llama_model_base::load_tensors`, compute buffers as an upper
bound of `graph_reserve`; what a layer keeps of a conversation, the layer itself knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshnode.core.memory import (
    ENGINE_OVERHEAD_BYTES,
    GIB,
    HOST_SCRATCH_BYTES,
    MIB,
    LayerShape,
    ModelShape,
    compute_bytes,
)

WANTED_CONTEXT = 32768
"""Agents ask for tens of thousands of tokens; more costs memory that most conversations never use."""
MODEST_CONTEXT = 8192
"""The least that a tool-using conversation gets by with."""
MIN_CONTEXT = 2048
DEFAULT_PARALLEL = 4
PIPELINE_COPIES = 4
"""Several GPUs of one machine work at several batches at once, and keep the inputs of each (GGML_SCHED_MAX_COPIES)."""
GPU_OVERHEAD_BYTES = 450 * MIB
"""What a driver context and its kernels take beside buffers (CUDA 12-13: 300-500 MiB)."""
HOST_RESERVE_BYTES = GIB
"""Left to the rest of the machine, with a tenth of what is free."""
HOST = "host"
PROMPT_CACHE_MAX_BYTES = 2 * GIB
PROMPT_CACHE_MIN_BYTES = 64 * MIB


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

    def less(self, taken: Mapping[str, int]) -> Budget:
        """What is left once so many bytes are taken, by device (HOST: main memory); never below nothing."""
        shared = sum(taken.values()) if self.unified else taken.get(HOST, 0)
        return Budget(
            host_bytes=max(0, self.host_bytes - shared),
            devices=tuple(
                DeviceBudget(device.name, max(0, device.usable_bytes - taken.get(device.name, 0)))
                for device in self.devices
            ),
            unified=self.unified,
        )

    def room_bytes(self, device: str) -> int:
        """What one device may still take; 0 for one that is not there."""
        found = {each.name: each.usable_bytes for each in self.devices}
        if device == HOST or device not in found:
            return self.host_bytes if device == HOST else 0
        return min(found[device], self.host_bytes) if self.unified else found[device]


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


def usable_host_bytes(available_bytes: int) -> int:
    """What a model may take of the main memory that is available now."""
    return max(0, available_bytes - max(HOST_RESERVE_BYTES, available_bytes // 10))


def usable_device_bytes(free_bytes: int) -> int:
    """What a model may take of a GPU's free memory."""
    return max(0, free_bytes - GPU_OVERHEAD_BYTES)


def plan_solo(model: ModelShape, budget: Budget, wishes: Wishes, *, extra_host_bytes: int = 0) -> SoloPlan | Refusal:
    """The best way to serve `model` on this machine alone, or why there is none.

    `extra_host_bytes` is what comes along in main memory (a vision projector, a draft model that the processor runs);
    what comes along elsewhere is taken off the budget (`Budget.less`).
    """
    host = budget.host_bytes - extra_host_bytes - ENGINE_OVERHEAD_BYTES
    choices = _choices(model, wishes)
    floor = min(MODEST_CONTEXT, choices[0].context)
    tried: list[tuple[Share, ...]] = []
    for group in ([c for c in choices if c.context >= floor], [c for c in choices if c.context < floor]):
        placed = [(choice, _place(model, budget, host, choice)) for choice in group]
        fitting = [(choice, shares) for choice, shares in placed if _lack(shares) == 0]
        if fitting:
            # Of equals, max() takes the first, and the choices stand in the order in which they are wanted.
            choice, shares = max(fitting, key=lambda pair: sum(share.layers for share in pair[1][:-1]))
            return _plan(model, wishes, choice, shares)
        tried += [shares for _, shares in placed]
    least = min(tried, key=lambda shares: (_lack(shares), _total(shares)))
    available = max(0, host) + (0 if budget.unified else sum(device.usable_bytes for device in budget.devices))
    return Refusal(
        needed_bytes=_total(least) + extra_host_bytes + ENGINE_OVERHEAD_BYTES,
        available_bytes=available,
        reason=f"{model.name} needs {_gib(_total(least))} even with the smallest context, and {_gib(available)} can be"
        f" used here: {_gib(_lack(least))} short",
    )


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is chosen before layers are placed."""

    context: int
    parallel: int
    kv_type: str


def _choices(model: ModelShape, wishes: Wishes) -> list[_Choice]:
    """From the most to the least wanted."""
    wanted = wishes.context or min(model.context_train or WANTED_CONTEXT, WANTED_CONTEXT)
    contexts = [wanted]
    while not wishes.context and contexts[-1] // 2 >= MIN_CONTEXT:
        contexts.append(contexts[-1] // 2)
    counts = [wishes.parallel] if wishes.parallel else [DEFAULT_PARALLEL, 2, 1]
    types = [wishes.kv_type] if wishes.kv_type else ["f16", "q8_0"]
    return [_Choice(*values) for values in itertools.product(contexts, counts, types)]


def _kv(layer: LayerShape, choice: _Choice) -> int:
    return layer.kv_bytes(choice.context, sequences=choice.parallel, cache_type=choice.kv_type)


def _scratch(model: ModelShape, choice: _Choice, *, with_output: bool, copies: int) -> int:
    """Scratch memory of a GPU, whichever layers it gets."""
    return compute_bytes(
        model, context=choice.context, parallel=choice.parallel, with_output=with_output, copies=copies
    )


def _place(model: ModelShape, budget: Budget, host: int, choice: _Choice) -> tuple[Share, ...]:
    """Shares of the GPUs in order, as many layers as they hold, and then of the host, whether or not it fits there."""
    units = [layer.weights_bytes + _kv(layer, choice) for layer in model.layers]
    # The output counts as one more layer, the last; its scratch memory comes with it.
    copies = PIPELINE_COPIES if len(budget.devices) > 1 else 1
    scratch = _scratch(model, choice, with_output=False, copies=copies)
    logits = _scratch(model, choice, with_output=True, copies=copies) - scratch
    units.append(model.output_bytes + logits)
    remaining = len(units)
    counts: list[int] = []
    # llama.cpp takes the last layers for the GPUs, in device order; so the first layers stay with the host.
    for device in reversed(budget.devices):
        free = device.usable_bytes - scratch
        before = remaining
        while remaining and units[remaining - 1] <= free:
            remaining -= 1
            free -= units[remaining]
        counts.insert(0, before - remaining)
    shares: list[Share] = []
    start = remaining
    for device, count in zip(budget.devices, counts, strict=True):
        shares.append(_share(model, choice, device.name, start, count, limit_bytes=device.usable_bytes, copies=copies))
        start += count
    taken = sum(share.total_bytes for share in shares) if budget.unified else 0
    return (*shares, _share(model, choice, HOST, 0, remaining, limit_bytes=host - taken))


def _share(
    model: ModelShape, choice: _Choice, device: str, start: int, count: int, *, limit_bytes: int, copies: int = 1
) -> Share:
    """What `count` layers from `start` take. The host always keeps the embedding and some scratch memory."""
    layers = model.layers[start : start + count]
    with_output = count > 0 and start + count > len(model.layers)
    weights = sum(layer.weights_bytes for layer in layers) + (model.output_bytes if with_output else 0)
    main = device == HOST
    compute = compute_bytes(
        model,
        context=choice.context,
        parallel=choice.parallel,
        with_output=with_output,
        first=start,
        end=start + len(layers),
        main=main,
        copies=copies,
    )
    if main:
        weights += model.embedding_bytes + model.other_bytes
        compute = max(compute, HOST_SCRATCH_BYTES)
    kv = sum(_kv(layer, choice) for layer in layers)
    return Share(device, count, weights, kv, compute, limit_bytes)


def _total(shares: Sequence[Share]) -> int:
    return sum(share.total_bytes for share in shares)


def _lack(shares: Sequence[Share]) -> int:
    """The bytes that are missing on the devices that cannot hold their share."""
    return sum(max(0, share.total_bytes - share.limit_bytes) for share in shares)


def _plan(model: ModelShape, wishes: Wishes, choice: _Choice, shares: tuple[Share, ...]) -> SoloPlan:
    *gpus, kept = shares
    cache = min(PROMPT_CACHE_MAX_BYTES, (kept.limit_bytes - kept.total_bytes) // 4)
    counts = tuple(share.layers for share in gpus)
    reasons = []
    if not wishes.context and choice.context < min(model.context_train, WANTED_CONTEXT):
        reasons.append(f"context {choice.context} of the {model.context_train} it was trained for: memory")
    if gpus and kept.layers:
        reasons.append(f"{kept.layers} of {len(model.layers) + 1} layers stay in main memory and run slower")
    return SoloPlan(
        context=choice.context,
        parallel=choice.parallel,
        kv_type=choice.kv_type,
        gpu_layers=sum(counts),
        tensor_split=counts if len(counts) > 1 and any(counts) else (),
        shares=shares,
        prompt_cache_bytes=cache if cache >= PROMPT_CACHE_MIN_BYTES else 0,
        reason="; ".join(reasons),
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
