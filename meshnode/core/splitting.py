"""Where a model is served: on one machine if any holds it, else over several; and what became of every node.

Solo wins whenever it is possible: no network is as fast as none. Else every member that is here or has the weights is
a possible host, with workers that lend their memory and are near enough; `teams` finds the best plan of each. This
node is preferred as the host unless another one's plan predicts 15 % more.

A plan in force is kept while its nodes stay, and while no other predicts 15 % more: a change costs a reload. Workers
join within `MOST_RTT_S` of the host and leave beyond `LEAVING_RTT_S`, so that a delay that wavers about a limit does
not make plans waver. Memory of a plan in force is not judged again: its worker says itself when it must leave.

Rules of this file: pure and deterministic, the same input gives the same plan whatever its order. The values are those
of `split`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from meshnode.core import prediction
from meshnode.core.memory import ENGINE_OVERHEAD_BYTES, GIB
from meshnode.core.placement import HOST, Budget, DeviceBudget, Refusal, SoloPlan, Wishes, plan_solo
from meshnode.core.split import (
    Candidate,
    Decision,
    Delays,
    DeviceFacts,
    NodeFacts,
    SplitPlan,
    SplitWishes,
    Stage,
    Verdict,
    checked,
    checked_rtt_s,
    lent,
    main_speed,
    same,
    speed_of,
)
from meshnode.core.staging import Choice, Loads, SplitShape
from meshnode.core.teams import (
    Found,
    Rtts,
    Search,
    as_given,
    choices,
    counted,
    plan_of,
    search,
)

__all__ = [
    "Candidate", "Decision", "Delays", "DeviceFacts", "NodeFacts", "SplitPlan", "SplitWishes", "Stage", "decide",
    "same",
]  # fmt: skip

MOST_RTT_S = 0.080
LEAVING_RTT_S = 0.100
WORTH_A_CHANGE = 1.15


def decide(
    model: SplitShape,
    nodes: Iterable[NodeFacts],
    delays: Delays,
    wishes: SplitWishes,
    current: SplitPlan | None = None,
) -> Decision:
    """Where to serve `model`, and why not elsewhere. `current` is the split in force, if there is one."""
    members = checked(nodes)
    known = {node.node: node for node in members}
    rtts = _rtts(members, delays)
    hosts = sorted(
        (node for node in members if not node.why_not and (node.here or node.has_weights)), key=lambda n: not n.here
    )
    split_only = wishes.split or bool(wishes.tensor_split)
    solos = {node.node: _solo(model, node, wishes) for node in hosts}
    kept = _kept(model, known, rtts, wishes, current) if current else None
    alone = None if split_only else _best_solo(hosts, solos)
    if alone and not (kept and not _is_worth(solos[alone][1], kept.predicted_tokens_per_s)):
        solo = solos[alone][0]
        assert isinstance(solo, SoloPlan)
        return Decision((alone, solo), None, _after_solo(members, rtts, alone, solos, split_only), None)
    searches = {node.node: search(model, node, _pool(node, members, rtts), rtts, wishes) for node in hosts}
    best = _best_split(hosts, searches)
    plan = best.plan if best else None
    if kept and not (plan and _is_worth(plan.predicted_tokens_per_s, kept.predicted_tokens_per_s)):
        plan = kept
    if plan is None:
        refusal = _refusal(model, hosts, members, rtts, wishes, solos, split_only)
        return Decision(None, None, _candidates(members, rtts, None, solos, searches, split_only), refusal)
    reason = plan.reason or _why(model, known, plan, solos, split_only)
    plan = replace(plan, reason=reason)
    return Decision(None, plan, _candidates(members, rtts, plan, solos, searches, split_only), None)


# --- one machine ----------------------------------------------------------------------------------------------

_Solo = tuple[SoloPlan | Refusal, float | None]


def _solo(model: SplitShape, node: NodeFacts, wishes: SplitWishes) -> _Solo:
    """What a node can do alone, and its predicted tokens per second."""
    budget = Budget(
        node.host_bytes,
        tuple(DeviceBudget(device.name, device.usable_bytes) for device in node.gpus),
        unified=any(device.kind == "unified" for device in node.gpus),
    )
    plan = plan_solo(model, budget, Wishes(wishes.context, wishes.parallel, wishes.kv_type))
    if isinstance(plan, Refusal):
        return plan, None
    speeds = {device.name: speed_of(device) for device in node.gpus}
    speeds[HOST] = main_speed(node)
    return plan, prediction.predict_solo(
        model, plan, {name: speed for name, (speed, measured) in speeds.items() if measured}
    )


def _best_solo(hosts: Sequence[NodeFacts], solos: dict[str, _Solo]) -> str | None:
    """The node to serve alone: this one, unless another predicts 15 % more."""
    able = [node for node in hosts if isinstance(solos[node.node][0], SoloPlan)]
    best: NodeFacts | None = None
    for node in able:
        factor = WORTH_A_CHANGE if best and best.here else 1.0
        if best is None or _is_worth(solos[node.node][1], solos[best.node][1], factor):
            best = node
    return best.node if best else None


def _is_worth(new: float | None, old: float | None, factor: float = WORTH_A_CHANGE) -> bool:
    """Whether a new prediction is enough above an old one; what is unknown changes nothing."""
    return new is not None and old is not None and new > old * factor


# --- several machines -----------------------------------------------------------------------------------------


def _rtts(members: Sequence[NodeFacts], delays: Delays) -> Rtts:
    """Round trips of all pairs that have one."""
    found: dict[tuple[str, str], float] = {}
    for i, a in enumerate(members):
        for b in members[i + 1 :]:
            rtt_s = checked_rtt_s(delays, a.node, b.node)
            if rtt_s is not None:
                found[a.node, b.node] = found[b.node, a.node] = rtt_s
    return found


def _pool(host: NodeFacts, members: Sequence[NodeFacts], rtts: Rtts) -> list[NodeFacts]:
    return [node for node in members if node.node != host.node and not _hindrance(node, host, rtts)]


def _hindrance(node: NodeFacts, host: NodeFacts, rtts: Rtts) -> str:
    """Why a node cannot work for a host, or nothing."""
    if node.why_not:
        return node.why_not
    if not node.lends:
        return "does not lend"
    rtt_s = rtts.get((host.node, node.node))
    if rtt_s is None:
        return "nobody has measured how far away it is"
    limit_s = LEAVING_RTT_S if node.incumbent else MOST_RTT_S
    if rtt_s > limit_s:
        relayed = " over a relay" if node.path == "relay" else ""
        return f"{rtt_s * 1e3:.0f} ms away{relayed}, and more than {limit_s * 1e3:.0f} ms make every token wait"
    if not any(device.usable_bytes for _, device in lent(node)):
        return "has no memory left"
    return ""


def _best_split(hosts: Sequence[NodeFacts], searches: dict[str, Search]) -> Found | None:
    """The plan of this node, unless another host's is worth 15 % more; of others the best."""
    best: Found | None = None
    factor = 1.0
    for node in hosts:
        found = searches[node.node].best
        if found and (best is None or found.worth > best.worth * factor):
            best, factor = found, WORTH_A_CHANGE if node.here else 1.0
    return best


def _kept(
    model: SplitShape, known: dict[str, NodeFacts], rtts: Rtts, wishes: SplitWishes, current: SplitPlan
) -> SplitPlan | None:
    """The plan in force with what it predicts now, or None if it is no longer possible or no longer wished."""
    host = known.get(current.host)
    if host is None or host.why_not or not (host.here or host.has_weights):
        return None
    wished = (wishes.context, wishes.parallel, wishes.kv_type)
    if any(
        wish and wish != is_
        for wish, is_ in zip(wished, (current.context, current.parallel, current.kv_type), strict=True)
    ):
        return None
    if wishes.tensor_split and counted(len(model.layers), wishes.tensor_split) != _counts(current):
        return None
    workers = [known[name] for name in current.workers if name in known]
    if len(workers) < len(current.workers):
        return None
    workers = [replace(node, incumbent=True) for node in workers]
    if any(_hindrance(node, host, rtts) not in ("", "has no memory left") for node in workers):
        return None
    loads = Loads(model, Choice(current.context, current.parallel, current.kv_type))
    by_place = {(stage.node, stage.device_index): stage.layers for stage in current.stages}
    counts = [current.host_layers]
    counts += [by_place.pop((node.node, index), 0) for node in workers for index, _ in lent(node)]
    counts += [stage.layers for stage in current.local_devices]
    if by_place or len(host.gpus) != len(current.local_devices) or sum(counts) != loads.count:
        return None
    passed = prediction.activation_bytes(model.n_embd, half=wishes.half)
    made = plan_of(loads, as_given(host, workers, rtts, passed), wishes, counts)
    if made is None:
        return None
    return replace(current, predicted_tokens_per_s=made[0].predicted_tokens_per_s, reason=current.reason)


def _counts(plan: SplitPlan) -> tuple[int, ...]:
    return (plan.host_layers, *(stage.layers for stage in (*plan.stages, *plan.local_devices)))


# --- words ----------------------------------------------------------------------------------------------------


def _why(
    model: SplitShape, known: dict[str, NodeFacts], plan: SplitPlan, solos: dict[str, _Solo], split_only: bool
) -> str:
    """Why there is a split, and what was given up for it."""
    wanted = choices(model.context_train, SplitWishes())[0][1]
    largest = max((solo.needed_bytes for solo, _ in solos.values() if isinstance(solo, Refusal)), default=0)
    words = (
        ["a split was asked for"]
        if split_only
        else [f"no machine alone holds it ({_gib(largest)} with little context)"]
    )
    if plan.context < wanted.context:
        words.append(f"context {plan.context} of {model.context_train}")
    if plan.kv_type not in ("f16", "bf16", "f32"):
        words.append(f"cache as {plan.kv_type}")
    if not known[plan.host].here:
        words.append(f"{known[plan.host].name} is the better host")
    return "; ".join(words)


def _refusal(
    model: SplitShape,
    hosts: Sequence[NodeFacts],
    members: Sequence[NodeFacts],
    rtts: Rtts,
    wishes: SplitWishes,
    solos: dict[str, _Solo],
    split_only: bool,
) -> Refusal:
    """The least that a split needs, and the most there is at any host."""
    _, choice = choices(model.context_train, wishes)[-1]
    loads = Loads(model, choice)
    rest = model.embedding_bytes + model.output_bytes - model.tied_bytes + model.other_bytes
    needed = loads.both[-1] + rest + loads.scratch_bytes(0, loads.count, main=True, output=True) + ENGINE_OVERHEAD_BYTES
    pools = {node.node: _pool(node, members, rtts) for node in hosts}
    rooms = {
        node.node: node.memory_bytes + sum(d.usable_bytes for worker in pools[node.node] for _, d in lent(worker))
        for node in hosts
    }
    available = max(rooms.values(), default=0)
    workers = max((len(pool) for pool in pools.values()), default=0)
    if not hosts:
        reason = "no member that may host it has its weights"
    elif workers == 0:
        alone = (
            "a split was asked for, and"
            if split_only
            else f"{model.name} needs {_gib(needed)}, no machine alone has that, and"
        )
        reason = f"{alone} no other member can take layers"
    elif wishes.tensor_split:
        counts = ",".join(map(str, wishes.tensor_split))
        if counted(loads.count, wishes.tensor_split) is None:
            reason = f"--tensor-split {counts} places more layers than the {loads.count} that {model.name} has"
        else:
            reason = f"--tensor-split {counts} fits no machines here: not so many devices with room for so many layers"
    elif needed > available:
        reason = (
            f"{model.name} needs {_gib(needed)} even with the smallest context, and {workers + 1} machines together"
            f" have {_gib(available)}: {_gib(needed - available)} short"
        )
    else:
        reason = (
            f"{model.name} needs {_gib(needed)}, and of the {_gib(available)} on {workers + 1} machines too much is"
            " lost in parts that hold no whole layer"
        )
    return Refusal(needed, available, reason)


def _after_solo(
    members: Sequence[NodeFacts], rtts: Rtts, chosen: str, solos: dict[str, _Solo], split_only: bool
) -> tuple[Candidate, ...]:
    """What became of every node when one serves alone."""
    found = []
    for node in members:
        solo, predicted = solos.get(node.node, (None, None))
        verdict: Verdict = "rejected"
        if node.node == chosen:
            verdict, reason = "solo", "holds it alone"
        elif node.why_not:
            reason = node.why_not
        elif solo is None:
            verdict, reason = "spare", "not needed, and has no weights"
        elif isinstance(solo, Refusal):
            verdict, reason = "spare", f"not needed; alone {_gib(solo.needed_bytes - solo.available_bytes)} short"
        else:
            verdict, reason = "spare", "could hold it alone as well"
        found.append(_candidate(node, rtts.get((chosen, node.node)), predicted, verdict, reason))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Role:
    verdict: Verdict
    reason: str


def _candidates(
    members: Sequence[NodeFacts],
    rtts: Rtts,
    plan: SplitPlan | None,
    solos: dict[str, _Solo],
    searches: dict[str, Search],
    split_only: bool,
) -> tuple[Candidate, ...]:
    """What became of every node in a split, or where none was found."""
    here = next((node for node in members if node.here), None)
    host = next((node for node in members if plan and node.node == plan.host), here)
    found = []
    for node in members:
        rtt_s = rtts.get((host.node, node.node)) if host and node is not host else None
        predicted = None
        tried = searches[host.node].with_worker.get(node.node) if host and host.node in searches else None
        hindrance = _hindrance(node, host, rtts) if host and node is not host else node.why_not
        if plan and node is host:
            role = _Role("host", _host_words(plan))
            predicted = plan.predicted_tokens_per_s
        elif plan and node.node in plan.workers:
            role = _Role("worker", _worker_words(plan, node.node))
            predicted = plan.predicted_tokens_per_s
        elif hindrance:
            role = _Role("rejected", hindrance)
        elif tried:
            predicted = tried.plan.predicted_tokens_per_s
            role = _Role("spare", "the plan is no faster with it" if plan else "")
        elif plan:
            role = _Role("spare", "not needed")
        else:
            role = _Role("rejected", _lack_words(solos.get(node.node), split_only))
        found.append(_candidate(node, rtt_s, predicted, role.verdict, role.reason))
    return tuple(found)


def _candidate(
    node: NodeFacts, rtt_s: float | None, predicted: float | None, verdict: Verdict, reason: str
) -> Candidate:
    return Candidate(node.node, node.name, rtt_s, node.memory_bytes, predicted, verdict, reason)


def _host_words(plan: SplitPlan) -> str:
    local = sum(stage.layers for stage in plan.local_devices)
    held = [f"{plan.host_layers} layers in main memory"] if plan.host_layers else []
    held += [f"{local} layers on its GPU"] if local else []
    return ", ".join([*held, "output head"])


def _worker_words(plan: SplitPlan, node: str) -> str:
    stages = [stage for stage in plan.stages if stage.node == node]
    first, last = stages[0].first_layer, stages[-1].first_layer + stages[-1].layers - 1
    where = " and ".join(stage.device for stage in stages)
    return f"layers {first}-{last} on {where}"


def _lack_words(solo: _Solo | None, split_only: bool) -> str:
    if solo and isinstance(solo[0], Refusal):
        return f"alone {_gib(solo[0].needed_bytes - solo[0].available_bytes)} short"
    return "holds it alone, but a split was asked for" if solo and split_only else "together there is too little memory"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
