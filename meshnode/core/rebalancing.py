"""When a node takes a model on unasked, and when it lets one go: standby nodes follow what the mesh asks for.

All nodes see the same needs and rank the same nodes for each (needs.py). A node acts when its turn comes:

    the need has lasted SETTLE_S, or HEAT_S for a hot model (a burst is no need)
    + TURN_S for each node that ranks before it    they act first, and what they load is seen long before this turn
    + up to JITTER_S by chance                     so that two that both think they are first rarely act at once

so a model that nobody serves has a host within a minute even when the first three nodes do not move (they do not take
part, or it does not fit after all), and only one moves. Should two have acted all the same, because their views
differed, the one with the greater number gives way while it still loads.

A node that serves something lets it go only for something else, that no free node took within BUSY_AFTER_S; only what
it took on unasked; and only when that is cold: not asked for at this node for COLD_S, or held for COLD_S and not
needed, as the other hosts would be used less than SPARE_USE without it. For a hot model, which has a host after all,
that takes HOT_TIMES_COLDER as long. Then the node is free, and its turn has come.

Against flapping: what stays or goes depends on times and uses that are far apart (HOT_USE and SPARE_USE); after each
change a node rests for REST_S, with jitter, except to take on what it made room for; after a model got another host
nobody calls it hot for HEAT_REST_S; what could not be loaded is not tried again for FAILED_REST_S, what a person
unloaded for PERSON_REST_S.

Rules of this file: pure; a node is asked every few seconds, and only its own past is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshnode.core.chance import jittered
from meshnode.core.needs import Known, Need, NodeView, Survey, ranking
from meshnode.core.randomness import Randomness

SETTLE_S = 6.0
HEAT_S = 20.0
TURN_S = 12.0
JITTER_S = 2.0
GAP_S = 15.0
"""A need that is not seen for so long is another one when it comes back."""
BUSY_AFTER_S = 45.0
COLD_S = 600.0
HOT_TIMES_COLDER = 3.0
SPARE_USE = 0.2
REST_S = 120.0
HEAT_REST_S = 120.0
FAILED_REST_S = 900.0
PERSON_REST_S = 3600.0
MOST_KNOWN = 256


@dataclass(frozen=True, slots=True)
class Holding:
    """A model that this node serves. `unasked`: this module chose it. `idle_s`: since the last request was answered."""

    name: str
    unasked: bool
    ready: bool
    idle_s: float
    held_s: float


@dataclass(frozen=True, slots=True)
class Own:
    """This node: the models on its disk, those it serves, and whether one fits, with `without` (or "") thought away.

    `may_fetch`: it may get weights from peers.
    """

    node: str
    disk: Sequence[Known]
    holdings: Sequence[Holding]
    fits: Callable[[Known, str], bool]
    may_fetch: bool = False


@dataclass(frozen=True, slots=True)
class Promote:
    """Take this model on."""

    model: Known
    on_disk: bool
    reason: str


@dataclass(frozen=True, slots=True)
class StepDown:
    """Let running answers end, and let this model go."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """No change."""

    reason: str


Decision = Promote | StepDown | Nothing


@dataclass(slots=True)
class _Watched:
    """A need over time. `turns`: this node's rank among the free (False) or the busy nodes (True), and from when on it
    counts. `free`: the free nodes that could answer it, and since when there is none that was not there before.
    """

    since: float
    seen_at: float
    jitter_s: float
    turns: dict[bool, tuple[int, float]]
    free: frozenset[str]
    free_at: float


class Rebalancer:
    """What one node decides. All times are monotonic seconds of this node."""

    def __init__(self, random: Randomness) -> None:
        self._random = random
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._seen: dict[str, Known] = {}
        self._hosts: dict[str, tuple[int, float]] = {}
        self._barred: dict[str, float] = {}
        self._rests_until = 0.0
        self._room_for = ""
        self._taken: tuple[str, frozenset[str]] = "", frozenset()

    def decide(self, view: Sequence[NodeView], own: Own, now: float) -> Decision:
        """What this node should do now. It counts as done: the next call sees its effect, or `failed` was called."""
        survey = Survey(view, self._known(view, own))
        if (yielded := self._yield(survey, own)) is not None:
            return self._changed(yielded, now)
        needs = self._lasting(survey, now)
        if any(not holding.unasked for holding in own.holdings):
            return Nothing("it serves what a person asked for")
        if any(not holding.ready for holding in own.holdings):
            return Nothing("a model is being loaded")
        reason = ""
        for need, watched in needs:
            decision = self._answer(need, watched, survey, own, now)
            if not isinstance(decision, Nothing):
                return self._changed(decision, now)
            reason = reason or f"{need.model.name}: {decision.reason}"
        return Nothing(reason or "nothing is lacking")

    def failed(self, name: str, now: float) -> None:
        """It could not be loaded: others may try."""
        self._barred[name] = now + jittered(self._random, FAILED_REST_S)
        self._rests_until = now

    def unloaded_by_person(self, name: str, now: float) -> None:
        """A person wants it gone from here."""
        self._barred[name] = now + PERSON_REST_S

    # --- promotion and stepping down ------------------------------------------------------------------------

    def _answer(self, need: Need, watched: _Watched, survey: Survey, own: Own, now: float) -> Decision:
        model = need.model
        on_disk = any(known.content_hash == model.content_hash for known in own.disk)
        if self._barred.get(model.name, now) > now:
            return Nothing("it could not be loaded here, or a person unloaded it")
        if not on_disk and not (own.may_fetch and survey.is_shared(model)):
            return Nothing("its weights are not here")
        free = ranking(need, survey)
        if not watched.free.issuperset(free):
            watched.free_at = now
        watched.free = frozenset(free)
        if not own.holdings:
            wait_s = self._turn(watched, free, own.node, now, busy=False)
            if wait_s is None:
                return Nothing("it is nothing for this node")
            if wait_s > 0:
                return Nothing(f"this node's turn comes in {wait_s:.0f} s")
            if now < self._rests_until and self._room_for != model.name:
                return Nothing("this node has changed a moment ago")
            if not own.fits(model, ""):
                return Nothing("it does not fit here")
            self._taken = model.name, frozenset(node for node, _ in survey.hosts(model.name))
            return Promote(model, on_disk, need.why)
        wait_s = self._turn(watched, ranking(need, survey, busy=True), own.node, now, busy=True)
        if wait_s is None or wait_s > 0 or now < self._rests_until:
            return Nothing("this node serves something else")
        for holding in sorted(own.holdings, key=lambda holding: (-holding.idle_s, holding.name)):
            if (why := self._cold(holding, need, survey, own)) and own.fits(model, holding.name):
                self._room_for = model.name
                return StepDown(holding.name, f"{why}, and {model.name} is wanted: {need.why}")
        return Nothing("what this node serves is still used")

    def _turn(self, watched: _Watched, ranks: Sequence[str], node: str, now: float, *, busy: bool) -> float | None:
        """Seconds until it is this node's turn; None when it is not among them."""
        if node not in ranks:
            watched.turns.pop(busy, None)
            return None
        rank = ranks.index(node)
        before, from_at = watched.turns.get(busy, (rank, now))
        if rank < before:
            # Who was first has gone, perhaps to act; and others moved up with this node.
            from_at = now + TURN_S
        watched.turns[busy] = rank, from_at
        settled_at = (max(watched.since, watched.free_at) + BUSY_AFTER_S) if busy else watched.since
        return max(settled_at + watched.jitter_s, from_at) + TURN_S * rank - now

    def _cold(self, holding: Holding, need: Need, survey: Survey, own: Own) -> str:
        """Why a model need not be held any longer; empty when it should."""
        cold_s = COLD_S * (HOT_TIMES_COLDER if need.kind == "hot" else 1.0)
        if min(holding.idle_s, holding.held_s) >= cold_s:
            return f"nobody has asked {holding.name} here for {holding.idle_s / 60:.0f} minutes"
        rest = survey.use_without(holding.name, own.node)
        if holding.held_s >= cold_s and rest is not None and rest < SPARE_USE:
            return f"other nodes serve {holding.name} as well"
        return ""

    def _yield(self, survey: Survey, own: Own) -> StepDown | None:
        """Two have taken on the same model: the one with the greater number gives way while it still loads."""
        name, before = self._taken
        if not any(holding.unasked and not holding.ready and holding.name == name for holding in own.holdings):
            return None
        for node, host in survey.hosts(name):
            if node != own.node and node not in before and (host.ready or node < own.node):
                return StepDown(name, "another node has taken it on at the same time")
        return None

    # --- memory ---------------------------------------------------------------------------------------------

    def _known(self, view: Sequence[NodeView], own: Own) -> list[Known]:
        """The models on this disk, and others that were seen at hosts."""
        for node in view:
            for host in node.hosted:
                if host.content_hash:
                    self._seen.pop(host.name, None)
                    self._seen[host.name] = Known(host.name, host.content_hash, host.size_bytes, host.names)
        while len(self._seen) > MOST_KNOWN:
            del self._seen[next(iter(self._seen))]
        here = {known.name: known for known in own.disk}
        hashes = {known.content_hash for known in own.disk}
        others = [known for known in self._seen.values() if known.content_hash not in hashes]
        return list(({known.name: known for known in others} | here).values())

    def _lasting(self, survey: Survey, now: float) -> list[tuple[Need, _Watched]]:
        """The needs that have lasted long enough to be acted on."""
        self._note_hosts(survey, now)
        found = []
        for need in survey.needs():
            name = need.model.name
            if need.kind == "hot" and now < self._hosts[name][1]:
                continue
            key = (name, need.kind)
            watched = self._watched.get(key)
            if watched is None:
                settle_s = SETTLE_S if need.kind == "unserved" else HEAT_S
                watched = _Watched(now + settle_s, now, self._random.random() * JITTER_S, {}, frozenset(), now)
                self._watched[key] = watched
            watched.seen_at = now
            found.append((need, watched))
        self._watched = {key: kept for key, kept in self._watched.items() if now - kept.seen_at <= GAP_S}
        return found

    def _note_hosts(self, survey: Survey, now: float) -> None:
        """After another host of a model is ready, its heat says nothing for a while."""
        counts = {}
        for model in survey.models:
            count = sum(host.ready for _, host in survey.hosts(model.name))
            before, until = self._hosts.get(model.name, (count, now))
            counts[model.name] = count, now + HEAT_REST_S if count > before else until
        self._hosts = counts

    def _changed(self, decision: Promote | StepDown, now: float) -> Decision:
        if isinstance(decision, Promote):
            self._room_for = ""
        self._rests_until = now + jittered(self._random, REST_S)
        return decision
