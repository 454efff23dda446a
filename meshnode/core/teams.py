"""The best split for one host: which workers, in which order, with how much context.

Every combination of context, parallel requests and number format has a *comfort*, 1.0 for the most wanted; a plan is
worth its predicted tokens per second times its comfort. Half the context costs a tenth, half the requests at once a
twentieth; a smaller number format for the cache costs a third, because llama-server then sends rotation matrices of
64-131 kB to every stage for each token: so memory is found by a shorter context first, by q8_0 last. Contexts below
`MODEST_CONTEXT` are too short to work with and cost half each. An added worker adds its leg of the network to every
token, and is one more that can fail, which counts as `WORKER_COMFORT`: so there are as few as hold the model, unless
more are faster all the same.

With few workers at hand, all sets of them are tried; with many, the best few sets grow by one worker at a time. A set
is passed in the order of the shortest way from the host through all of it and back: all orders are tried for up to
`PERMUTED` workers, beyond that the nearest is next.

Rules of this file: pure and deterministic; times are seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from meshnode.core import prediction
from meshnode.core.memory import ENGINE_OVERHEAD_BYTES
from meshnode.core.placement import DEFAULT_PARALLEL, MIN_CONTEXT, MODEST_CONTEXT, WANTED_CONTEXT
from meshnode.core.split import (
    MOST_DEVICES,
    NodeFacts,
    SplitPlan,
    SplitWishes,
    Stage,
    lent,
    main_speed,
    speed_of,
)
from meshnode.core.staging import Choice, Loads, Part, Slot, SplitShape, place, place_exactly

ALL_SETS = 6
"""Up to so many workers all sets are tried: 63 of them."""
PERMUTED = 5
GROWN = 3
"""Sets that are kept of each size where not all are tried."""
SHORTLIST = 24
CONTEXT_COMFORT = 0.9
PARALLEL_COMFORT = 0.95
FORMAT_COMFORT = 0.67
SHORT_COMFORT = 0.5
WORKER_COMFORT = 0.85
CLEARLY = 1.0 + 1e-9
UNKNOWN_RTT_S = 0.2
"""Between two workers that never measured each other, when the way over the host is not known either."""

Rtts = Mapping[tuple[str, str], float]
"""Round trips by pair of nodes, both ways round."""


@dataclass(frozen=True, slots=True)
class Team:
    """A host and its workers in the order in which a token passes them, with the legs of its way (host to host)."""

    host: NodeFacts
    workers: tuple[NodeFacts, ...]
    legs_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A plan and what it is worth: comfortable tokens per second, by assumed speeds where none are known."""

    plan: SplitPlan
    worth: float


@dataclass(slots=True)
class Search:
    """All that the search for one host found: the best plan, and for each worker the best one with it."""

    best: Found | None = None
    with_worker: dict[str, Found] = field(default_factory=dict)

    def offer(self, found: Found) -> None:
        """Keep a plan where it is clearly better than what there was."""
        if self.best is None or found.worth > self.best.worth * CLEARLY:
            self.best = found
        for worker in found.plan.workers:
            if worker not in self.with_worker or found.worth > self.with_worker[worker].worth * CLEARLY:
                self.with_worker[worker] = found


def choices(context_train: int, wishes: SplitWishes) -> list[tuple[float, Choice]]:
    """The combinations with their comfort, the most comfortable first."""
    wanted = wishes.context or min(context_train or WANTED_CONTEXT, WANTED_CONTEXT)
    contexts = [(1.0, wanted)]
    while not wishes.context and contexts[-1][1] // 2 >= MIN_CONTEXT:
        comfort, context = contexts[-1]
        factor = CONTEXT_COMFORT if context // 2 >= MODEST_CONTEXT else SHORT_COMFORT
        contexts.append((comfort * factor, context // 2))
    counts = [(1.0, wishes.parallel)] if wishes.parallel else [
        (PARALLEL_COMFORT**i, count) for i, count in enumerate((DEFAULT_PARALLEL, DEFAULT_PARALLEL // 2, 1))
    ]  # fmt: skip
    kinds = [(1.0, wishes.kv_type)] if wishes.kv_type else [(1.0, "f16"), (FORMAT_COMFORT, "q8_0")]
    made = [
        (a * b * c, Choice(context, count, kind))
        for (a, context), (b, count), (c, kind) in itertools.product(contexts, counts, kinds)
    ]
    return sorted(made, key=lambda pair: -pair[0])


def search(model: SplitShape, host: NodeFacts, pool: Sequence[NodeFacts], rtts: Rtts, wishes: SplitWishes) -> Search:
    """The best plans of `host` with workers of `pool`, all of which know their round trip to it."""
    found = Search()
    teams = _Teams(host, pool, rtts, model.n_embd, wishes.half)
    for comfort, choice in choices(model.context_train, wishes):
        loads = Loads(model, choice)
        quickest_s = _quickest_s(loads, teams)

        def is_hopeless(team: Team, comfort: float = comfort, quickest_s: float = quickest_s) -> bool:
            """Whether a team, and any larger one that begins with it, is worth less than what was found."""
            most = _comfort(comfort, len(team.workers)) / (quickest_s + math.fsum(team.legs_s))
            return found.best is not None and most <= found.best.worth

        if all(is_hopeless(teams.of([node])) for node in teams.pool):
            # What follows is less comfortable still.
            break
        tried = _all_sets if len(pool) <= ALL_SETS else _grown_sets
        for plan, worth in tried(loads, teams, wishes, comfort, is_hopeless):
            found.offer(Found(plan, worth))
    if found.best:
        _try_the_others(model, teams, found.best, wishes, found)
    return found


def _try_the_others(model: SplitShape, teams: _Teams, best: Found, wishes: SplitWishes, found: Search) -> None:
    """What the best plan would be with each worker that was left out unseen, so that its people can be told."""
    plan = best.plan
    loads = Loads(model, Choice(plan.context, plan.parallel, plan.kv_type))
    members = [node for node in teams.pool if node.node in plan.workers]
    for node in teams.pool:
        if node.node not in found.with_worker and (made := _tried(loads, teams.of([*members, node]), wishes)):
            found.offer(Found(made[0], min(best.worth, made[1])))


def plan_of(
    loads: Loads, team: Team, wishes: SplitWishes, counts: Sequence[int] = ()
) -> tuple[SplitPlan, float] | None:
    """The plan of a team and its tokens per second (assumed where unknown), None if the team does not hold the model.

    `counts` fixes the layers of main memory, of every remote and of every local device, and whether they fit is then
    not looked at.
    """
    best: tuple[SplitPlan, float] | None = None
    # The head on the host's last GPU, else in its main memory.
    for output_on_last in (True, False) if team.host.gpus else (False,):
        line = _line(loads, team, output_on_last=output_on_last)
        if len(line) - 1 > MOST_DEVICES:
            return None
        if counts:
            parts: list[Part] | None = place_exactly(loads, line, counts, output_on_last=output_on_last)
        else:
            parts = place(loads, line, output_on_last=output_on_last)
        if parts is None:
            continue
        made = _assembled(loads, team, parts, wishes.half, output_on_last=output_on_last)
        if best is None or made[1] > best[1] * CLEARLY:
            best = made
    return best


class _Teams:
    """Makes teams of one host, the order of each set found once."""

    def __init__(self, host: NodeFacts, pool: Sequence[NodeFacts], rtts: Rtts, n_embd: int, half: bool) -> None:
        self.host = host
        self.pool = sorted(pool, key=lambda node: (rtts[host.node, node.node], node.node))
        self._rtts = rtts
        self._passed_bytes = prediction.activation_bytes(n_embd, half=half)
        self._made: dict[frozenset[str], Team] = {}

    def of(self, workers: Sequence[NodeFacts]) -> Team:
        """The team of a set of workers."""
        key = frozenset(node.node for node in workers)
        if key not in self._made:
            self._made[key] = in_order(self.host, workers, self._rtts, self._passed_bytes)
        return self._made[key]


def in_order(host: NodeFacts, workers: Sequence[NodeFacts], rtts: Rtts, passed_bytes: int) -> Team:
    """The team that passes `workers` by the shortest way."""
    if len(workers) <= PERMUTED:
        orders: Iterator[tuple[NodeFacts, ...]] = itertools.permutations(workers)
        best = min(orders, key=lambda order: (_way_s(host, order, rtts), [node.node for node in order]))
        return as_given(host, best, rtts, passed_bytes)
    left = list(workers)
    order: list[NodeFacts] = []
    while left:
        at = order[-1] if order else host
        order.append(min(left, key=lambda node: (rtt_between(at.node, node.node, host.node, rtts), node.node)))
        left.remove(order[-1])
    return as_given(host, order, rtts, passed_bytes)


def as_given(host: NodeFacts, workers: Sequence[NodeFacts], rtts: Rtts, passed_bytes: int) -> Team:
    """The team that passes `workers` as they stand."""
    stops = [host.node, *(node.node for node in workers), host.node]
    legs = (prediction.leg_s(rtt_between(a, b, host.node, rtts), passed_bytes) for a, b in itertools.pairwise(stops))
    return Team(host, tuple(workers), tuple(legs))


def rtt_between(a: str, b: str, host: str, rtts: Rtts) -> float:
    """The round trip between two nodes; where nobody measured it, that of the way over the host."""
    if (a, b) in rtts:
        return rtts[a, b]
    over_host = rtts.get((a, host), UNKNOWN_RTT_S) + rtts.get((host, b), UNKNOWN_RTT_S)
    return min(over_host, 2 * UNKNOWN_RTT_S)


def _way_s(host: NodeFacts, order: Sequence[NodeFacts], rtts: Rtts) -> float:
    stops = [host.node, *(node.node for node in order), host.node]
    return math.fsum(rtt_between(a, b, host.node, rtts) for a, b in itertools.pairwise(stops))


# --- sets of workers ------------------------------------------------------------------------------------------

_Tried = Iterator[tuple[SplitPlan, float]]
_IsHopeless = Callable[[Team], bool]


def _comfort(comfort: float, workers: int) -> float:
    return comfort * WORKER_COMFORT ** (workers - 1)


def _all_sets(loads: Loads, teams: _Teams, wishes: SplitWishes, comfort: float, is_hopeless: _IsHopeless) -> _Tried:
    for size in range(1, len(teams.pool) + 1):
        for workers in itertools.combinations(teams.pool, size):
            team = teams.of(workers)
            if not is_hopeless(team) and (made := _tried(loads, team, wishes)):
                yield made[0], made[1] * _comfort(comfort, size)


def _grown_sets(loads: Loads, teams: _Teams, wishes: SplitWishes, comfort: float, is_hopeless: _IsHopeless) -> _Tried:
    """Sets that grow by one worker at a time; those that do not hold the model yet are judged by their memory for the
    time of their way."""
    pool = sorted(teams.pool, key=lambda node: (-_promise(loads, teams.of([node])), node.node))[:SHORTLIST]
    sets: list[tuple[NodeFacts, ...]] = [()]
    without_gain = 0
    best = 0.0
    while sets and without_gain < 2:
        larger = {
            frozenset(node.node for node in (*workers, node)): (*workers, node)
            for workers in sets
            for node in pool
            if node not in workers and len(workers) < MOST_DEVICES
        }
        judged: list[tuple[float, float, tuple[NodeFacts, ...]]] = []
        gained = best
        for workers in larger.values():
            team = teams.of(workers)
            if is_hopeless(team):
                continue
            worth = 0.0
            if made := _tried(loads, team, wishes):
                worth = made[1] * _comfort(comfort, len(workers))
                gained = max(gained, worth)
                yield made[0], worth
            judged.append((worth, _promise(loads, team), workers))
        judged.sort(key=lambda item: (-item[0], -item[1], sorted(node.node for node in item[2])))
        sets = [workers for _, _, workers in judged[:GROWN]]
        without_gain = without_gain + 1 if best and gained <= best * CLEARLY else 0
        best = gained


def _promise(loads: Loads, team: Team) -> float:
    """The share of the model that a team holds, for the time of its way."""
    room = sum(device.usable_bytes for node in team.workers for device in node.devices)
    return min(1.0, room / max(1, loads.both[-1])) / math.fsum(team.legs_s)


def _tried(loads: Loads, team: Team, wishes: SplitWishes) -> tuple[SplitPlan, float] | None:
    """The plan of a team, or None. A wish for counts is met by the teams that have as many devices."""
    if wishes.tensor_split:
        remote = sum(len(lent(node)) for node in team.workers)
        counts = counted(loads.count, wishes.tensor_split)
        if counts is None or len(counts) != 1 + remote + len(team.host.gpus) or 0 in counts[1 : 1 + remote]:
            return None
        made = plan_of(loads, team, wishes, counts)
        return made if made and not overfull(made[0], team.host) else None
    room = team.host.memory_bytes + sum(device.usable_bytes for node in team.workers for _, device in lent(node))
    return plan_of(loads, team, wishes) if room >= loads.both[-1] else None


def counted(layers: int, tensor_split: Sequence[int]) -> tuple[int, ...] | None:
    """Layers of main memory and of each device, from --tensor-split; None if that asks for more than there are."""
    counts = list(tensor_split)
    if sum(counts) == layers + 1 and counts[-1] > 0:
        counts[-1] -= 1
    return (layers - sum(counts), *counts) if sum(counts) <= layers else None


def overfull(plan: SplitPlan, host: NodeFacts) -> bool:
    """Whether a device of a plan holds more than it may."""
    stages = (*plan.stages, *plan.local_devices)
    return plan.host_bytes > host.host_bytes or any(stage.total_bytes > stage.limit_bytes for stage in stages)


def _quickest_s(loads: Loads, teams: _Teams) -> float:
    """Seconds of computing for a token that no team can do with less: everything on the fastest device."""
    read = (loads.weights[-1] + loads.model.output_bytes) * loads.active
    speeds = [speed_of(device)[0] for node in (teams.host, *teams.pool) for device in node.devices]
    return min(speed.decode_s(loads.count, read) for speed in (*speeds, main_speed(teams.host)[0]))


# --- the plan of a team ---------------------------------------------------------------------------------------


def _line(loads: Loads, team: Team, *, output_on_last: bool) -> list[Slot]:
    """Main memory, remote devices, local GPUs. A further device of one worker may stay empty, the first may not."""
    host = team.host
    shared = any(device.kind == "unified" for device in host.gpus)
    main = Slot(
        host.node, "", 0, host.host_bytes - ENGINE_OVERHEAD_BYTES, *main_speed(host), most=0 if shared else 1 << 20
    )
    line = [main]
    for worker in team.workers:
        for order, (index, device) in enumerate(lent(worker)):
            least = 1 if order == 0 else 0
            line.append(Slot(worker.node, device.name, index, device.usable_bytes, *speed_of(device), least=least))
    kept = loads.part(main, 0, 0, main=True, output=not output_on_last).total_bytes if shared else 0
    for index, device in enumerate(host.devices):
        if device.kind != "cpu":
            limit = (
                min(device.usable_bytes, main.limit_bytes - kept) if device.kind == "unified" else device.usable_bytes
            )
            line.append(Slot(host.node, device.name, index, limit, *speed_of(device)))
    return line


def _assembled(
    loads: Loads, team: Team, parts: Sequence[Part], half: bool, *, output_on_last: bool
) -> tuple[SplitPlan, float]:
    """The plan and its tokens per second, from what each slot got."""
    main, *others = parts
    remote = [part for part in others if part.slot.node != team.host.node and part.layers]
    local = [part for part in others if part.slot.node == team.host.node]
    passed = prediction.activation_bytes(loads.model.n_embd, half=half)
    first_leg = dict(zip((node.node for node in team.workers), team.legs_s, strict=False))
    delays_s: list[float] = []
    for i, part in enumerate(remote):
        if i and remote[i - 1].slot.node == part.slot.node:
            # Two devices of one server: llama.cpp copies between them at the host's command and waits for it.
            rtt_s = 2 * min(team.legs_s[0], team.legs_s[-1])
            delays_s.append(rtt_s)
        else:
            delays_s.append(first_leg[part.slot.node])
    # The residual of main memory's last layer crosses beside its output.
    doubled = prediction.leg_s(0.0, passed) - prediction.leg_s(0.0, 0) if main.layers else 0.0
    seconds = prediction.token_s([part.compute_s for part in parts], [*delays_s, team.legs_s[-1], doubled])
    known = all(part.slot.is_measured for part in parts if part.compute_s)
    counts = [part.layers for part in (*remote, *local)]
    last = len(counts) - 1 if output_on_last else max(i for i, count in enumerate(counts) if count)
    counts[last] += 1
    plan = SplitPlan(
        host=team.host.node,
        host_layers=main.layers,
        host_bytes=main.total_bytes + ENGINE_OVERHEAD_BYTES,
        local_devices=tuple(_stage(part, 0.0) for part in local),
        stages=tuple(_stage(part, delay_s) for part, delay_s in zip(remote, delays_s, strict=True)),
        context=loads.choice.context,
        parallel=loads.choice.parallel,
        kv_type=loads.choice.kv_type,
        gpu_layers=sum(counts),
        tensor_split=tuple(counts),
        output_on_host=not output_on_last,
        predicted_tokens_per_s=prediction.tokens_per_s(seconds) if known else None,
    )
    return plan, 1 / seconds


def _stage(part: Part, delay_s: float) -> Stage:
    slot = part.slot
    return Stage(
        node=slot.node,
        device=slot.device,
        device_index=slot.device_index,
        first_layer=part.first_layer,
        layers=part.layers,
        weights_bytes=part.weights_bytes,
        kv_bytes=part.kv_bytes,
        compute_bytes=part.compute_bytes,
        limit_bytes=slot.limit_bytes,
        compute_s=part.compute_s,
        delay_s=delay_s,
    )
