"""Whether a model would fit: on this machine, or over the memory that others of the mesh state. For lists of models.

`exact` reads the memory shape of a header and asks the planner that also serves the model; `about` knows no more than
the size of a file. Over several machines it is counted, not planned: the least cache, whole layers on each device, the
largest lenders first. The plan itself, with its speed and delays, is what core/splitting makes (`POST /api/plan`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from meshnode.core.effects import Member
from meshnode.core.memory import ENGINE_OVERHEAD_BYTES, GIB, MIB, compute_bytes
from meshnode.core.placement import Budget, Refusal, Wishes, plan_solo
from meshnode.engine.commands import Mode
from meshnode.models.shapes import ModelShape
from meshnode.planning import Speeds, describe_plan, predict
from meshnode.wire.registry import Role
from meshnode.wire.splits import understands

ABOUT = 1.05
"""Weights in memory over the size of a file that is only roughly known."""
ABOUT_SCRATCH_BYTES = 512 * MIB
"""Cache of the smallest context, and scratch memory, of a model whose header is not at hand."""
ABOUT_LAYERS = 64
"""Into so many pieces of equal size such a model is taken to come."""
LEAST_CONTEXT = 2048
"""Tokens of a conversation that nobody would go below."""
MAIN_MEMORY = "host"
"""What a machine calls its main memory among the devices that it states."""

Verdict = Literal["here", "split", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class FitFacts:
    """Whether a model fits, as people are told: the verdict, and a sentence that begins with it in words."""

    verdict: Verdict
    sentence: str

    def as_dict(self) -> dict[str, str]:
        """The FIT of `GET /api/models`."""
        return {"verdict": self.verdict, "sentence": self.sentence}


@dataclass(frozen=True, slots=True)
class Lender:
    """What another member of the mesh says it lends to splits: usable bytes of each of its devices."""

    node: str
    device_bytes: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        """All devices together."""
        return sum(self.device_bytes)


def lenders_of(members: Iterable[Member], here: bytes, rpc_version: int) -> tuple[Lender, ...]:
    """The members that could hold layers for this node: alive, reached, lending, and of the same RPC version.

    A member lends its GPUs, or its main memory where it has none, as the planner of splits counts it.
    """
    found = []
    for member in members:
        dynamic = member.dynamic
        if member.node == here or member.state != "alive" or not member.reachable or member.role is Role.CLIENT:
            continue
        if dynamic is None or not understands(rpc_version, dynamic.rpc):
            continue
        gpus = [device.free_bytes for device in dynamic.devices if device.name != MAIN_MEMORY]
        usable = gpus or [device.free_bytes for device in dynamic.devices]
        found.append(Lender(member.node.hex(), tuple(usable)))
    return tuple(found)


def exact(
    shape: ModelShape,
    mode: Mode,
    budget: Budget,
    wishes: Wishes,
    *,
    lenders: Sequence[Lender] = (),
    speeds: Speeds | None = None,
    extra_host_bytes: int = 0,
) -> FitFacts:
    """For a model whose header is known: the plan of this machine, else the count of machines.

    Only models that write text are split. `extra_host_bytes` is what comes along (a vision projector).
    """
    plan = plan_solo(shape, budget, wishes, extra_host_bytes=extra_host_bytes)
    if not isinstance(plan, Refusal):
        words = describe_plan("", shape, plan, predict(shape, plan, speeds or {}))
        return FitFacts("here", "fits here: " + words.partition("fits here: ")[2])
    context = wishes.context or min(shape.context_train or LEAST_CONTEXT, LEAST_CONTEXT)
    parallel, kv_type = wishes.parallel or 1, wishes.kv_type or "q8_0"
    layers = [
        layer.weights_bytes + layer.kv_bytes(context, sequences=parallel, cache_type=kv_type) for layer in shape.layers
    ]
    need = _Need(
        pieces_bytes=sum(layers) + shape.output_bytes,
        piece_bytes=max(1, *layers),
        host_bytes=shape.embedding_bytes + shape.other_bytes + extra_host_bytes + ENGINE_OVERHEAD_BYTES,
        scratch_bytes=compute_bytes(shape, context=context, parallel=parallel, with_output=True),
    )
    return _beyond(need, mode, budget, lenders, plan.reason, "")


def about(size_bytes: int, mode: Mode, budget: Budget, lenders: Sequence[Lender] = ()) -> FitFacts:
    """For a model of which only the size of its file is known, roughly."""
    weights = max(1, round(size_bytes * ABOUT))
    need = _Need(weights, max(1, weights // ABOUT_LAYERS), ENGINE_OVERHEAD_BYTES, ABOUT_SCRATCH_BYTES)
    takes = f"it takes about {_gib(need.total_bytes)}"
    if need.held_here(budget) >= need.pieces_bytes:
        return FitFacts("here", f"fits here: {takes} of {_gib(_room_bytes(budget))} that can be used")
    refusal = f"{takes}, and {_gib(_room_bytes(budget))} can be used here"
    return _beyond(need, mode, budget, lenders, refusal, "about ")


# --- over several machines ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Need:
    """What a model asks for at least, in bytes.

    `pieces_bytes` lie on any device, in pieces of `piece_bytes` (a layer with its cache); `host_bytes` on this machine
    in any case; `scratch_bytes` on each device that holds a piece.
    """

    pieces_bytes: int
    piece_bytes: int
    host_bytes: int
    scratch_bytes: int

    @property
    def total_bytes(self) -> int:
        """On one device."""
        return self.pieces_bytes + self.host_bytes + self.scratch_bytes

    def held(self, device_bytes: int) -> int:
        """Bytes of whole pieces that a device with so much room takes."""
        return max(0, device_bytes - self.scratch_bytes) // self.piece_bytes * self.piece_bytes

    def held_here(self, budget: Budget) -> int:
        """The same of all devices of this machine."""
        gpus = () if budget.unified else budget.devices
        return self.held(budget.host_bytes - self.host_bytes) + sum(self.held(gpu.usable_bytes) for gpu in gpus)


def _beyond(
    need: _Need, mode: Mode, budget: Budget, lenders: Sequence[Lender], refusal: str, about_or_not: str
) -> FitFacts:
    """For a model that this machine does not hold alone, because of `refusal`."""
    if mode != "chat":
        more = "; only models that write text are split over several nodes" if lenders else ""
        return FitFacts("no", f"does not fit: {refusal}{more}")
    count = _machines(need, budget, lenders)
    if count is not None:
        return FitFacts(
            "split",
            f"needs {count} nodes: it takes {about_or_not}{_gib(need.total_bytes)},"
            f" this one can hold {_gib(need.held_here(budget))} of it and the others the rest",
        )
    more = ""
    if lenders:
        others = "the other node lends" if len(lenders) == 1 else f"the {len(lenders)} other nodes lend"
        more = f"; what {others} ({_gib(sum(lender.total_bytes for lender in lenders))}) is not enough either"
    return FitFacts("no", f"does not fit: {refusal}{more}")


def _machines(need: _Need, budget: Budget, lenders: Sequence[Lender]) -> int | None:
    """How few machines hold it together, this one among them; None where all of them do not."""
    if budget.host_bytes < need.host_bytes:
        return None
    left = need.pieces_bytes - need.held_here(budget)
    shares = sorted((sum(map(need.held, lender.device_bytes)) for lender in lenders), reverse=True)
    for count, share in enumerate(shares, start=2):
        left -= share
        if left <= 0:
            return count
    return None


def _room_bytes(budget: Budget) -> int:
    return budget.host_bytes + (0 if budget.unified else sum(device.usable_bytes for device in budget.devices))


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
