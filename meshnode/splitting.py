"""What the machines of the mesh can do with a model together: facts for the planner, and its decisions in words.

Connects what members say of themselves (devices, speeds, weights, round trips) with the pure planner in
core/splitting. What a peer says is taken as a claim: a lease that it then refuses is the proof.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from meshnode.config import Settings
from meshnode.core.coordinates import distance_s
from meshnode.core.effects import Member, MembershipSnapshot
from meshnode.core.split import Decision, DeviceFacts, DeviceKind, NodeFacts, SplitPlan, SplitWishes, Stage
from meshnode.core.splitting import decide
from meshnode.engine.installed import Engine
from meshnode.errors import EngineError
from meshnode.fitting import Selection
from meshnode.hardware import Inventory
from meshnode.models.shapes import ModelShape
from meshnode.planning import Speeds, budget_of, usable_accelerators
from meshnode.wire.registry import Role
from meshnode.wire.splits import understands, version_number
from meshnode.wire.statements import CONTENT_HASH_BYTES, SHORT_ID_BYTES, Coordinate

MEGABYTE = 1_000_000
MICROSECOND = 1e-6
PROCESSOR = "CPU"
HOST_DEVICE = "host"
"""What a machine calls its main memory among its devices."""


@dataclass(frozen=True, slots=True)
class MeasuredDelays:
    """Round trips by pairs of node ids (hex digits), in seconds, the lesser id first; what is missing is unknown."""

    rtts_s: dict[tuple[str, str], float]

    def rtt_s(self, a: str, b: str) -> float | None:
        """The round trip between two nodes; 0 of a node to itself."""
        return 0.0 if a == b else self.rtts_s.get((min(a, b), max(a, b)))


class Splitting:
    """Plans over the machines of the mesh. `members` gives the mesh as this node sees it now."""

    def __init__(
        self, *, settings: Settings, node: bytes, name: str, members: Callable[[], MembershipSnapshot]
    ) -> None:
        self._settings = settings
        self._node = node
        self._name = name
        self._members = members
        self._engine: Engine | None = None
        self._inventory: Inventory | None = None
        self._speeds: Speeds = {}

    def equip(self, engine: Engine, inventory: Inventory, speeds: Speeds) -> None:
        """The engine and the devices of this machine, and how fast they are."""
        self._engine, self._inventory, self._speeds = engine, inventory, speeds

    @property
    def rpc_version(self) -> int:
        """The version of llama.cpp's RPC that the engine of this node speaks, as statements carry it; 0 for none."""
        engine = self._engine
        return version_number(bytes(engine.rpc_version)) if engine and engine.rpc_version else 0

    def others(self) -> list[Member]:
        """The members that can be reached now, this node left out."""
        known = self._members().members.values()
        return [each for each in known if each.node != self._node and each.state == "alive" and each.reachable]

    async def decide(
        self,
        shape: ModelShape,
        content_hash: str,
        *,
        taken_bytes: int = 0,
        current: SplitPlan | None = None,
        ended: SplitPlan | None = None,
        without: Collection[str] = (),
        alone: bool = False,
        here: bool = False,
        whole: bool = False,
    ) -> Decision:
        """How a model is best served by this mesh now.

        `content_hash` are the hex digits of its weights, "" while unknown. `taken_bytes` is what other models of this
        node hold of main memory, `current` the plan in force, `ended` one that has just ended, `without` are nodes that
        must not take part. With `alone` anything that runs will do, also where a split was asked for; with `here` this
        node is the host, even where another one would be the better choice; with `whole` it is served by one machine or
        not at all. Raises EngineError before `equip`.
        """
        others = self.others()
        nodes = [self._this_node(taken_bytes, content_hash)]
        nodes += [self._node_facts(member, content_hash, current, ended, without) for member in others]
        if here:
            nodes = [dataclasses.replace(node, has_weights=node.here) for node in nodes]
        if whole:
            nodes = [dataclasses.replace(node, lends=False, why_not=node.why_not or _not_whole(node)) for node in nodes]
            alone = True
        settings = self._settings
        wishes = SplitWishes(
            context=settings.ctx_size,
            parallel=settings.parallel,
            kv_type=settings.kv_type,
            split=settings.split and not alone,
            tensor_split=() if alone else settings.tensor_split,
            half=settings.half_activations,
        )
        return await asyncio.to_thread(decide, shape, nodes, self._delays(others), wishes, current)

    def _this_node(self, taken_bytes: int, content_hash: str) -> NodeFacts:
        if self._inventory is None or self._engine is None:
            raise EngineError("the engine of this node is not ready yet", fix="try again in a moment")
        budget = budget_of(self._inventory, self._settings, taken_host_bytes=taken_bytes)
        kinds = {device.id: device.kind for device in usable_accelerators(self._inventory, self._settings)}
        devices = [
            self._device(
                device.name,
                device.usable_bytes,
                "unified" if kinds.get(device.name) == "unified" else "gpu",
            )
            for device in budget.devices
        ]
        devices.append(self._device(PROCESSOR, budget.host_bytes, "cpu"))
        lacks = "" if self._engine.rpc_server and self._engine.patched else "its engine is not the one meshnode builds"
        return NodeFacts(
            node=self._node.hex(),
            name=self._name,
            here=True,
            devices=tuple(devices),
            host_bytes=budget.host_bytes,
            has_weights=bool(content_hash),
            lends=False,
            why_not=lacks,
            path="direct",
            incumbent=False,
        )

    def _device(self, name: str, usable_bytes: int, kind: DeviceKind) -> DeviceFacts:
        speed = self._speeds.get(name)
        return DeviceFacts(
            name=name,
            usable_bytes=usable_bytes,
            bandwidth_bytes_per_s=speed.bandwidth_bytes_per_s if speed else None,
            layer_s=speed.layer_s if speed else None,
            kind=kind,
            flops_per_s=speed.flops_per_s if speed else None,
        )

    def _node_facts(
        self,
        member: Member,
        content_hash: str,
        current: SplitPlan | None,
        ended: SplitPlan | None,
        without: Collection[str],
    ) -> NodeFacts:
        node, dynamic = member.node.hex(), member.dynamic
        devices = dynamic.devices if dynamic else ()
        gpus = [device for device in devices if device.name != HOST_DEVICE]
        memory = next((device for device in devices if device.name == HOST_DEVICE), None)
        wanted = bytes.fromhex(content_hash)[:CONTENT_HASH_BYTES]
        stages = current.stages if current else ()
        held = {stage.device_index: stage for stage in stages if stage.node == node}
        # News of what a lease has taken or freed may be on their way still.
        stages = ended.stages if ended else ()
        freed = {stage.device_index: stage.limit_bytes for stage in stages if stage.node == node}
        found = tuple(
            DeviceFacts(
                name=device.name,
                usable_bytes=max(_with_lease(device.free_bytes, held.get(index)), freed.get(index, 0)),
                bandwidth_bytes_per_s=device.bandwidth * MEGABYTE or None,
                layer_s=device.layer_us * MICROSECOND or None,
                kind="gpu" if gpus else "cpu",
            )
            for index, device in enumerate(gpus or ([memory] if memory else []))
        )
        return NodeFacts(
            node=node,
            name=member.identity.name if member.identity else node[:10],
            here=False,
            devices=found,
            host_bytes=memory.free_bytes if memory else 0,
            has_weights=bool(wanted) and dynamic is not None and wanted in dynamic.weights,
            lends=bool(dynamic and dynamic.rpc),
            why_not=self._why_not(member, node in without),
            path="direct",
            incumbent=current is not None and any(stage.node == node for stage in current.stages),
        )

    def _why_not(self, member: Member, left_out: bool) -> str:
        dynamic = member.dynamic
        if member.role is Role.CLIENT:
            return "a client-only node"
        if left_out:
            return "it failed a moment ago"
        if dynamic is None or not dynamic.devices:
            return "it has not said what it has"
        if not dynamic.rpc:
            return "it lends nothing to splits"
        if self._engine and not understands(self.rpc_version, dynamic.rpc):
            return "its engine speaks another version of llama.cpp RPC"
        return ""

    def _delays(self, others: Iterable[Member]) -> MeasuredDelays:
        """Measured round trips where there are any, else the distance of coordinates."""
        found: dict[tuple[str, str], float] = {}
        own = self._node.hex()
        members = {member.node[:SHORT_ID_BYTES]: member for member in others}
        for member in members.values():
            here = member.rtt_s if member.rtt_s is not None else member.estimated_rtt_s
            if here is not None:
                found[_pair(own, member.node.hex())] = here
        for member in members.values():
            for near in member.dynamic.neighbours if member.dynamic else ():
                other = members.get(near.node)
                if other is not None:
                    pair = _pair(member.node.hex(), other.node.hex())
                    told = near.rtt_us * MICROSECOND
                    found[pair] = min(told, found.get(pair, told))
        for one in members.values():
            for other in members.values():
                pair = _pair(one.node.hex(), other.node.hex())
                if one is not other and pair not in found:
                    there, away = (each.dynamic.coordinate if each.dynamic else None for each in (one, other))
                    if there is not None and away is not None:
                        ways_s = [found.get(_pair(own, each.node.hex()), 0.0) for each in (one, other)]
                        found[pair] = _guessed_s(there, away, sum(ways_s) / 2)
        return MeasuredDelays(found)


def _not_whole(node: NodeFacts) -> str:
    return "" if node.here or node.has_weights else "only models that write text are split, and it has no weights"


def _with_lease(free_bytes: int, held: Stage | None) -> int:
    """What a plan may use of a device of which the plan in force holds something."""
    return max(free_bytes, min(free_bytes + held.lease_bytes, held.limit_bytes)) if held else free_bytes


def _guessed_s(one: Coordinate, other: Coordinate, between_s: float) -> float:
    """The distance of two coordinates, as far as they are sure of themselves; new ones all lie in one place. For the
    rest they are as far from each other as from this node, `between_s`.
    """
    near_s = distance_s(one, other)
    doubt = min(1.0, max(one.error_permille, other.error_permille) / 1000)
    return near_s + doubt * max(0.0, between_s - near_s)


def _pair(a: str, b: str) -> tuple[str, str]:
    return min(a, b), max(a, b)


def plan_facts(model: str, decision: Decision, here: str, selection: Selection | None = None) -> dict[str, Any]:
    """A decision as /api/plan answers it: `decision` in full, one sentence, and the quantisations that there are."""
    return {
        "model": model,
        "decision": dataclasses.asdict(decision),
        "sentence": sentence_of(model, decision, here),
        "variants": selection.facts() if selection is not None else [],
        "precision": selection.sentence if selection is not None else "",
    }


def sentence_of(model: str, decision: Decision, here: str) -> str:
    """A decision in words, for somebody at the node `here`."""
    names = {candidate.node: candidate.name for candidate in decision.candidates}
    if decision.split is not None:
        return describe_split(model, decision.split, names)
    if decision.solo is not None:
        node, plan = decision.solo
        text = f"{model}  on {names.get(node, node[:10])} alone, context {plan.context} x {plan.parallel}"
        return text if node == here else f"{text}; start it there: meshnode --model {model}"
    reason = decision.refusal.reason if decision.refusal else "no machine can take it"
    return f"{model} does not fit: {reason}"


def describe_split(model: str, plan: SplitPlan, names: dict[str, str]) -> str:
    """A split as one sentence: who holds how many layers, and what is expected of it."""
    parts = [f"{names.get(plan.host, plan.host[:10])} {plan.host_layers}"]
    parts += [f"{names.get(stage.node, stage.node[:10])} {stage.layers}" for stage in plan.stages]
    parts += [f"{stage.device} {stage.layers}" for stage in plan.local_devices]
    speed = f", about {plan.predicted_tokens_per_s:.1f} tokens/s" if plan.predicted_tokens_per_s else ""
    text = f"{model}  split: layers {' + '.join(parts)}, context {plan.context} x {plan.parallel} ({plan.kv_type})"
    return f"{text}{speed}" + (f"; {plan.reason}" if plan.reason else "")
