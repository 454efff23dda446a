"""Who holds the memory of this machine: a bar for each device, whose parts always add up to the whole.

Theory of operation. A probe looks before this node takes anything; what was not free then belongs to other programs.
What a plan puts on a device counts from then on as held, whether or not the engine has touched it yet, because the
planner counts it so as well. Between what was free and what plans may take lies the reserve. What is left is free.

Figures come from different sources and moments and need not agree: a driver rounds, a plan is an upper bound. So the
parts are cut to the total in a fixed order, in which a certain figure gives way to none that is less so: what is held
stands, then come other programs, then the reserve, and what is free is only ever the rest.

Rules of this file: pure; sizes are bytes; devices go by the engine's names, main memory by HOST.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from meshnode.core.placement import HOST, SoloPlan
from meshnode.core.split import SplitPlan
from meshnode.core.staging import SplitShape

PartKind = Literal["weights", "kv", "compute", "lent", "other", "reserved", "free"]
ORDER: tuple[PartKind, ...] = ("weights", "kv", "compute", "lent", "other", "reserved", "free")
"""How the parts of a bar follow one another."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One memory. `free_bytes` was free before this node took anything, `usable_bytes` of that may be planned with;
    None where nothing was reported. The devices in `also` share these bytes (main memory with a unified GPU).
    """

    device: str
    name: str
    kind: Literal["gpu", "memory"]
    total_bytes: int | None
    free_bytes: int | None
    usable_bytes: int | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes that this node has given away on a device. `model` is "" where they are no single model's."""

    device: str
    kind: PartKind
    size_bytes: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a bar."""

    kind: PartKind
    size_bytes: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A memory and its parts in ORDER, none of them empty; their sizes add up to `total_bytes`."""

    memory: DeviceMemory
    total_bytes: int
    parts: tuple[Part, ...]


def bars(memories: Sequence[DeviceMemory], holdings: Iterable[Holding]) -> tuple[Bar, ...]:
    """A bar for each memory, in their order. Holdings on a device that is not among them are passed over."""
    known = tuple(holdings)
    return tuple(_bar(memory, known) for memory in memories)


def holdings_of(model: str, plan: SoloPlan | SplitPlan, shape: SplitShape | None = None) -> Iterator[Holding]:
    """What a served model holds on this machine by its plan; workers of a split tell of their own.

    A split's plan has one figure for the host's main memory; with the `shape` of the model it is told apart.
    """
    shares = plan.local_devices if isinstance(plan, SplitPlan) else plan.shares
    for share in shares:
        yield Holding(share.device, "weights", share.weights_bytes, model)
        yield Holding(share.device, "kv", share.kv_bytes, model)
        yield Holding(share.device, "compute", share.compute_bytes, model)
    if isinstance(plan, SplitPlan):
        yield from _in_main_memory(model, plan, shape)


def _in_main_memory(model: str, plan: SplitPlan, shape: SplitShape | None) -> Iterator[Holding]:
    """The host's part of a split: weights and cache by the shape, the rest is what the engine works with."""
    weights = plan.host_bytes
    kv = 0
    if shape is not None:
        layers = shape.layers[: plan.host_layers]
        output = shape.output_bytes - shape.tied_bytes if plan.output_on_host else 0
        counted = shape.embedding_bytes + shape.other_bytes + sum(layer.weights_bytes for layer in layers) + output
        weights = min(plan.host_bytes, counted)
        cache = sum(layer.kv_bytes(plan.context, sequences=plan.parallel, cache_type=plan.kv_type) for layer in layers)
        kv = min(plan.host_bytes - weights, cache)
    yield Holding(HOST, "weights", weights, model)
    yield Holding(HOST, "kv", kv, model)
    yield Holding(HOST, "compute", plan.host_bytes - weights - kv, model)


def _bar(memory: DeviceMemory, holdings: Sequence[Holding]) -> Bar:
    names = {memory.device, *memory.also}
    held: dict[tuple[PartKind, str], int] = {}
    for holding in holdings:
        if holding.device in names and holding.size_bytes > 0:
            key = (holding.kind, holding.model)
            held[key] = held.get(key, 0) + holding.size_bytes
    # Where nothing reports a total, the least that there must be stands for it.
    total = memory.total_bytes if memory.total_bytes is not None else max(memory.free_bytes or 0, sum(held.values()))
    total = max(0, total)
    free = total if memory.free_bytes is None else min(max(0, memory.free_bytes), total)
    usable = free if memory.usable_bytes is None else min(max(0, memory.usable_bytes), free)
    wanted = [Part(kind, size, model) for (kind, model), size in held.items()]
    wanted.sort(key=lambda part: ORDER.index(part.kind))
    wanted += [Part("other", total - free), Part("reserved", free - usable), Part("free", total)]
    parts: list[Part] = []
    left = total
    for part in wanted:
        size = min(part.size_bytes, left)
        if size:
            parts.append(Part(part.kind, size, part.model))
            left -= size
    return Bar(memory, total, tuple(parts))
