"""Values of splits: what is known of nodes and devices, what was wished, and the plan that came of it.

Facts about other machines are their own claims: `checked` makes numbers of them that a plan can be made with.
A worker that claims more than it has only costs a refused or broken lease.

Rules of this file: pure; sizes are bytes, times seconds, node ids hexadecimal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from meshnode.core import prediction
from meshnode.core.placement import Refusal, SoloPlan
from meshnode.core.prediction import Speed

DeviceKind = Literal["gpu", "unified", "cpu"]
Verdict = Literal["solo", "host", "worker", "spare", "rejected"]

MOST_DEVICES = 15
"""llama-server takes no more values of --tensor-split, and the scheduler no more backends beside the processor."""
MOST_MEMORY_BYTES = 1 << 50
SLOWEST_BYTES_PER_S = 1e6
FASTEST_BYTES_PER_S = 1e15
LONGEST_LAYER_S = 1.0
LONGEST_RTT_S = 10.0
LEASE_ROOM = 1.05
SPARE_BYTES = 16 << 20
"""A worker is asked for this much more than what is counted, for what no formula counts."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device: the bytes a plan may take there, and its measured speed (None: never measured).

    `usable_bytes` counts what a plan in force holds there as free. `bandwidth_bytes_per_s` is of weights in decoding,
    `layer_s` what a layer costs before any byte, `flops_per_s` the arithmetic of prompts.
    """

    name: str
    usable_bytes: int
    bandwidth_bytes_per_s: float | None
    layer_s: float | None
    kind: DeviceKind
    flops_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One member. Its `devices` are what it lends: GPUs, or the processor when it has none; a processor listed beside
    GPUs counts as the speed of the main memory. `host_bytes` is main memory for the host's part.

    `why_not` says why it cannot take part, or is empty; `incumbent`: it works in the plan in force.
    """

    node: str
    name: str
    here: bool
    devices: tuple[DeviceFacts, ...]
    host_bytes: int
    has_weights: bool
    lends: bool
    why_not: str = ""
    path: str = "direct"
    incumbent: bool = False

    @property
    def gpus(self) -> tuple[DeviceFacts, ...]:
        """The devices that are not the processor."""
        return tuple(device for device in self.devices if device.kind != "cpu")

    @property
    def memory_bytes(self) -> int:
        """All memory that a model may take there; a memory that is shared counts once."""
        own = sum(device.usable_bytes for device in self.devices if device.kind == "gpu")
        shared = [device.usable_bytes for device in self.devices if device.kind != "gpu"]
        return own + max([self.host_bytes, *shared])


class Delays(Protocol):
    """Round trips between members."""

    def rtt_s(self, a: str, b: str) -> float | None:
        """Seconds from `a` to `b` and back, None if nobody knows."""
        ...


@dataclass(frozen=True, slots=True)
class SplitWishes:
    """What a person fixed; None or empty leaves the choice to the planner.

    `split`: never solo. `tensor_split`: layers of each device in the plan's order, the host's main memory keeps the
    rest (the output head may be counted with the last). `half`: activations cross the network in two bytes.
    """

    context: int | None = None
    parallel: int | None = None
    kv_type: str | None = None
    split: bool = False
    tensor_split: tuple[int, ...] = ()
    half: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers on one device of a plan. `compute_s` and `delay_s` (to reach it) are of one token; on a device that was
    never measured `compute_s` is assumed."""

    node: str
    device: str
    device_index: int
    first_layer: int
    layers: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    limit_bytes: int
    compute_s: float
    delay_s: float

    @property
    def total_bytes(self) -> int:
        """All that it holds."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes

    @property
    def lease_bytes(self) -> int:
        """What its node is asked for: somewhat more, but not more than the plan has found there."""
        return max(self.total_bytes, min(round(self.total_bytes * LEASE_ROOM) + SPARE_BYTES, self.limit_bytes))


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """A model over several machines.

    The first `host_layers` are in the host's main memory (`host_bytes` with all that a host holds), then come the
    remote `stages` in order, then the host's GPUs (`local_devices`, all of them, some perhaps with no layers).
    `gpu_layers` and `tensor_split` are llama-server's -ngl and -ts: the output head counts with the last device, and
    with `output_on_host` its tensors stay in main memory all the same. `context` is per conversation.
    """

    host: str
    host_layers: int
    host_bytes: int
    local_devices: tuple[Stage, ...]
    stages: tuple[Stage, ...]
    context: int
    parallel: int
    kv_type: str
    gpu_layers: int
    tensor_split: tuple[int, ...]
    output_on_host: bool
    predicted_tokens_per_s: float | None
    reason: str = ""

    @property
    def workers(self) -> tuple[str, ...]:
        """The remote nodes in the order in which a token passes them."""
        return tuple(dict.fromkeys(stage.node for stage in self.stages))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What became of one node. `rtt_s` is to the host; the prediction is of the best plan with it, if one was made."""

    node: str
    name: str
    rtt_s: float | None
    memory_bytes: int
    predicted_tokens_per_s: float | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One of `solo` (node and plan), `split` and `refusal`, and what became of every node."""

    solo: tuple[str, SoloPlan] | None
    split: SplitPlan | None
    candidates: tuple[Candidate, ...]
    refusal: Refusal | None


def same(a: SplitPlan, b: SplitPlan) -> bool:
    """Whether going from one plan to the other needs no restart: predictions, limits and words do not count."""

    def layout(plan: SplitPlan) -> object:
        stages = [
            (x.node, x.device, x.device_index, x.first_layer, x.layers) for x in (*plan.stages, *plan.local_devices)
        ]
        shape = (plan.host, plan.host_layers, plan.gpu_layers, plan.tensor_split, plan.output_on_host)
        return stages, shape, plan.context, plan.parallel, plan.kv_type

    return layout(a) == layout(b)


def checked(nodes: Iterable[NodeFacts]) -> list[NodeFacts]:
    """The nodes by id, each once, with absurd claims put right: no memory where it is negative or beyond any machine,
    no speed where it cannot be."""
    kept: dict[str, NodeFacts] = {}
    for node in nodes:
        devices = tuple(_checked_device(device) for device in node.devices[:MOST_DEVICES])
        kept.setdefault(node.node, replace(node, devices=devices, host_bytes=_checked_memory(node.host_bytes)))
    return [kept[name] for name in sorted(kept)]


def _checked_device(device: DeviceFacts) -> DeviceFacts:
    bandwidth, layer_s = device.bandwidth_bytes_per_s, device.layer_s
    plausible = (
        bandwidth is not None
        and layer_s is not None
        and SLOWEST_BYTES_PER_S <= bandwidth <= FASTEST_BYTES_PER_S
        and 0 <= layer_s <= LONGEST_LAYER_S
    )
    flops = device.flops_per_s
    return replace(
        device,
        usable_bytes=_checked_memory(device.usable_bytes),
        bandwidth_bytes_per_s=bandwidth if plausible else None,
        layer_s=layer_s if plausible else None,
        flops_per_s=flops if flops is not None and math.isfinite(flops) and flops > 0 else None,
    )


def _checked_memory(size_bytes: int) -> int:
    return size_bytes if 0 <= size_bytes <= MOST_MEMORY_BYTES else 0


def checked_rtt_s(delays: Delays, a: str, b: str) -> float | None:
    """The round trip between two nodes, either way round; None where it is not known or cannot be."""
    for one, other in ((a, b), (b, a)):
        rtt_s = delays.rtt_s(one, other)
        if rtt_s is not None and 0 <= rtt_s <= LONGEST_RTT_S:
            return rtt_s
    return None


def speed_of(device: DeviceFacts) -> tuple[Speed, bool]:
    """The speed of a device, and whether it was measured."""
    if device.bandwidth_bytes_per_s is None or device.layer_s is None:
        return prediction.PROCESSOR if device.kind == "cpu" else prediction.GPU, False
    return Speed(device.bandwidth_bytes_per_s, device.layer_s, device.flops_per_s), True


def main_speed(host: NodeFacts) -> tuple[Speed, bool]:
    """The speed of a host's main memory; beside a measured GPU an assumed one is good enough."""
    for device in host.devices:
        if device.kind == "cpu":
            return speed_of(device)
    return prediction.PROCESSOR, any(speed_of(device)[1] for device in host.gpus)


def lent(node: NodeFacts) -> tuple[tuple[int, DeviceFacts], ...]:
    """The devices that a worker lends, with their position: its GPUs, or the processor when it has none."""
    gpus = [(i, device) for i, device in enumerate(node.devices) if device.kind != "cpu"]
    return tuple(gpus or enumerate(node.devices[:1]))
