"""Which node hosts a split of a model: claims in the mesh's own records, and one rule that all nodes apply to them.

Theory of operation. A node that wants to host says so in its dynamic statement, with a term above every one that it
has seen for this model, and waits: long enough for the claim to reach everyone, and for the claims of others to come
back. Of two live claims the one with the greater term is better, of equal terms that of the smaller NodeId; whoever
sees a better one withdraws, at any time. So one claim is left wherever messages get through, whatever happened before:

    idle ──want──> settling ──time, no better claim──> hosting
                    ^    │                               │
                    │    └────── a better claim ─────────┤
     nobody claims, │                                    v
     a random pause └──────────────────────────────── yielded

Two hosts can exist only for as long as they have not heard of each other. Within one part of a mesh that gossip crosses
in less than `settle_s` that never happens (tests/core/test_election.py plays it through, with partitions).

Pure: `handle(event, now)` gives effects, timers among them. Nothing that a peer claims raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from meshnode.core.effects import CancelTimer, SetTimer
from meshnode.core.events import TimerFired
from meshnode.core.randomness import Randomness
from meshnode.wire.registry import LIMIT_CLAIMS
from meshnode.wire.schema import MAX_U32
from meshnode.wire.splits import PLAN_BYTES
from meshnode.wire.statements import ClaimState, PlanClaim

NO_PLAN = bytes(PLAN_BYTES)
"""The plan of a claim that has none yet."""


@dataclass(frozen=True, slots=True)
class ElectionOptions:
    """`settle_s`: how long a claim waits for better ones. `patience_s`: how much longer it waits for worse ones to be
    withdrawn, at most. `pause_s`: the greatest random pause before a model that lost its host is claimed. `models`: so
    many are remembered that this node does not want.
    """

    settle_s: float = 2.0
    patience_s: float = 6.0
    pause_s: float = 2.0
    models: int = 256


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Want:
    """This node wants to host a split of this model; MayHost follows, if it is elected."""

    model: bytes


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It does not want to any more, and has stopped hosting."""

    model: bytes


@dataclass(frozen=True, slots=True)
class Advance:
    """How far the host is: the plan in force, its state and its workers (short ids, in order)."""

    model: bytes
    state: int
    plan: bytes
    workers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ClaimsSeen:
    """The claims of all other members that are alive or unreachable, by NodeId. What is not among them is void."""

    claims: Mapping[bytes, tuple[PlanClaim, ...]]


# --- effects ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClaimsChanged:
    """`claims()` is another: publish it."""


@dataclass(frozen=True, slots=True)
class MayHost:
    """This node is the host of the model from now on, in this term."""

    model: bytes
    term: int


@dataclass(frozen=True, slots=True)
class MustStop:
    """Another node's claim is better: stop hosting now. The claim has been withdrawn."""

    model: bytes
    host: bytes


ElectionEvent = Want | GiveUp | Advance | ClaimsSeen | TimerFired
ElectionEffect = ClaimsChanged | MayHost | MustStop | SetTimer | CancelTimer
Phase = Literal["idle", "yielded", "settling", "hosting"]


class _Race:
    """The election about one model, as this node sees it."""

    __slots__ = ("claimed_at", "highest", "mine", "others", "paused", "phase")

    def __init__(self) -> None:
        self.phase: Phase = "idle"
        self.highest = 0
        self.mine: PlanClaim | None = None
        self.others: dict[bytes, PlanClaim] = {}
        self.claimed_at = 0.0
        self.paused = False
        """A timer runs until this node may claim."""


class Elections:
    """All elections of one node; the key of a model is its content hash, the first 16 bytes."""

    def __init__(self, node: bytes, *, random: Randomness, options: ElectionOptions | None = None) -> None:
        self._node = node
        self._random = random
        self._options = options or ElectionOptions()
        self._races: dict[bytes, _Race] = {}
        self._out: list[ElectionEffect] = []

    # --- what is known ------------------------------------------------------------------------------------------

    def claims(self) -> tuple[PlanClaim, ...]:
        """This node's claims, for its dynamic statement."""
        return tuple(race.mine for race in self._races.values() if race.mine is not None)

    def host(self, model: bytes) -> bytes | None:
        """The node with the best live claim on a model, be it this one; None when nobody claims it."""
        race = self._races.get(model)
        if race is None:
            return None
        ranks = [(rank(claim, node), node) for node, claim in race.others.items()]
        if race.mine is not None:
            ranks.append((rank(race.mine, self._node), self._node))
        return max(ranks)[1] if ranks else None

    def is_host(self, model: bytes) -> bool:
        """Whether this node was elected and has not been told to stop."""
        race = self._races.get(model)
        return race is not None and race.phase == "hosting"

    # --- the machine --------------------------------------------------------------------------------------------

    def handle(self, event: ElectionEvent, now: float) -> list[ElectionEffect]:
        """What is to be done about an event; `now` is monotonic seconds."""
        match event:
            case Want(model):
                self._want(model, now)
            case GiveUp(model):
                self._give_up(model)
            case Advance():
                self._advance(event)
            case ClaimsSeen(claims):
                self._see(claims, now)
            case TimerFired(("election", bytes() as model)):
                self._time(model, now)
        effects, self._out = self._out, []
        return effects

    def _want(self, model: bytes, now: float) -> None:
        race = self._races.setdefault(model, _Race())
        if race.phase == "idle":
            race.phase = "yielded"
            if not race.others:
                self._claim(model, race, now)

    def _give_up(self, model: bytes) -> None:
        race = self._races.get(model)
        if race is None or race.phase == "idle":
            return
        race.phase = "idle"
        self._withdraw(model, race)

    def _advance(self, event: Advance) -> None:
        race = self._races.get(event.model)
        if race is None or race.mine is None or race.phase != "hosting":
            return
        claim = PlanClaim(event.plan, event.model, race.mine.term, event.state, event.workers)
        if claim != race.mine:
            race.mine = claim
            self._out.append(ClaimsChanged())

    def _see(self, claims: Mapping[bytes, tuple[PlanClaim, ...]], now: float) -> None:
        found: dict[bytes, dict[bytes, PlanClaim]] = {}
        for node, said in claims.items():
            if node == self._node:
                continue
            for claim in said:
                here = found.setdefault(claim.content_hash, {})
                if node not in here or claim.term > here[node].term:
                    here[node] = claim
        for model in found:
            self._races.setdefault(model, _Race())
        for model, race in self._races.items():
            race.others = found.get(model, {})
            race.highest = max([race.highest, *(claim.term for claim in race.others.values())])
            self._judge(model, race, now)
        self._forget(found)

    def _judge(self, model: bytes, race: _Race, now: float) -> None:
        """Withdraw before a better claim; claim what nobody claims any more, after a pause."""
        if race.mine is not None:
            host = self.host(model)
            if host is not None and host != self._node:
                hosting = race.phase == "hosting"
                race.phase = "yielded"
                self._withdraw(model, race)
                if hosting:
                    self._out.append(MustStop(model, host))
        elif race.phase == "yielded":
            if race.others and race.paused:
                race.paused = False
                self._out.append(CancelTimer(("election", model)))
            elif not race.others and not race.paused:
                race.paused = True
                pause_s = self._options.pause_s * self._random.random()
                self._out.append(SetTimer(("election", model), now + pause_s))

    def _time(self, model: bytes, now: float) -> None:
        race = self._races.get(model)
        if race is None:
            return
        if race.phase == "settling" and race.mine is not None:
            self._settle(model, race, now)
        elif race.phase == "yielded" and race.paused:
            race.paused = False
            if not race.others:
                self._claim(model, race, now)

    def _claim(self, model: bytes, race: _Race, now: float) -> None:
        if len(self.claims()) >= LIMIT_CLAIMS:
            # More than a statement has room for; one of them may be given up meanwhile.
            race.paused = True
            self._out.append(SetTimer(("election", model), now + self._options.settle_s))
            return
        race.highest = min(race.highest + 1, MAX_U32)
        race.mine = PlanClaim(NO_PLAN, model, race.highest, ClaimState.CLAIMING)
        race.phase, race.claimed_at = "settling", now
        self._out += [ClaimsChanged(), SetTimer(("election", model), now + self._options.settle_s)]

    def _settle(self, model: bytes, race: _Race, now: float) -> None:
        """The wait is over: host, unless another node has yet to hear that it lost, and may do so soon."""
        assert race.mine is not None
        options = self._options
        if race.others and now < race.claimed_at + options.settle_s + options.patience_s:
            self._out.append(SetTimer(("election", model), now + options.settle_s / 4))
            return
        race.phase = "hosting"
        self._out.append(MayHost(model, race.mine.term))

    def _withdraw(self, model: bytes, race: _Race) -> None:
        race.paused = False
        self._out.append(CancelTimer(("election", model)))
        if race.mine is not None:
            race.mine = None
            self._out.append(ClaimsChanged())

    def _forget(self, claimed: Mapping[bytes, object]) -> None:
        """Terms of models that nobody claims or wants are kept for a while: the newest of them."""
        idle = [model for model, race in self._races.items() if race.phase == "idle" and model not in claimed]
        for model in idle[: max(0, len(self._races) - self._options.models)]:
            del self._races[model]


def rank(claim: PlanClaim, node: bytes) -> tuple[int, bytes]:
    """The greater one is better: the greater term, then the smaller NodeId."""
    return claim.term, bytes(255 - byte for byte in node)
