"""The membership machine: who is in the mesh, who answers, and what everybody has. Events in, effects out.

    events.py      what can happen                      overlay.py     whom this node is linked with
    effects.py     what is to be done                   probing.py     signs of life of the neighbours
    intake.py      statements that arrive               verdicts.py    votes and quorum
    own.py         statements of this node              judgement.py   missed, unreachable, dead, back again
    members.py     the table of all statements          broadcast.py   spreading news (Plumtree)
    reconcile.py   finding what was missed              budget.py      how much a peer may send

`handle(event, now)` never raises for what a peer sent: that is dropped and counted, and where it cannot be an accident
the link is closed and the peer banned for ten minutes. `now` is monotonic seconds. There is one timer, TIMER; when it
or any event comes late, the process stood still, and every deadline moves by that lag: what was not heard meanwhile is
no evidence. The protocol is that of protocol/04-membership.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from meshnode.core import reconcile
from meshnode.core.broadcast import Broadcast
from meshnode.core.budget import PeerBudget
from meshnode.core.context import Context
from meshnode.core.coordinates import CoordinateSystem, distance_s
from meshnode.core.effects import Close as CloseEffect
from meshnode.core.effects import Effect, Member, MembershipSnapshot, SetTimer
from meshnode.core.events import (
    DialFailed,
    Event,
    Learned,
    LeaveAsked,
    LoopLag,
    PeerDown,
    PeerSilent,
    PeerUp,
    Publish,
    Received,
    RttMeasured,
    TimerFired,
)
from meshnode.core.intake import Intake
from meshnode.core.judgement import Judgement
from meshnode.core.members import Members, Record, Shared
from meshnode.core.overlay import Overlay
from meshnode.core.own import OwnStatements
from meshnode.core.probing import Probing
from meshnode.core.randomness import Randomness
from meshnode.core.sync import Sync
from meshnode.core.tuning import MembershipOptions
from meshnode.wire import messages
from meshnode.wire.registry import Close, Role, StatementKind
from meshnode.wire.signed import Sign, Verify
from meshnode.wire.statements import STATEMENT_ID_BYTES, Statement, read

__all__ = ["TIMER", "Membership", "MembershipOptions"]

TIMER = "membership"
BANS = 1024
COORDINATE_EVERY = 4
"""One answer in so many carries the coordinate: it moves slowly."""


class Membership:
    """One node's part in the mesh `node` belongs to.

    `incarnation` is greater than that of any earlier life of the node, and saved. `admit` judges an identity statement
    (its certificate, keys that were replaced) and names the role, or None for one that is no member. `shared` and
    `decode` are for simulations: records and statements that several machines of one process have in common.
    """

    def __init__(
        self,
        *,
        node: bytes,
        incarnation: int,
        sign: Sign,
        verify: Verify,
        admit: Callable[[Statement], Role | None],
        random: Randomness,
        now: float,
        options: MembershipOptions | None = None,
        shared: Shared | None = None,
        decode: Callable[[bytes], Statement] = read,
    ) -> None:
        options = options or MembershipOptions()
        self._options = options
        self._context = Context(node, options, random, Members(node, options, shared))
        self._now = now
        self._timer_at: float | None = None
        self._lag_until = now
        self._left = False
        self._since = now
        self._coordinates = CoordinateSystem(random)
        self._probing = Probing(node, options, random, self._context.out, self._context.deadlines, self._is_monitor_of)
        self._broadcast = Broadcast(self._context)
        self._own = OwnStatements(self._context, incarnation=incarnation, sign=sign, now=now)
        self._overlay = Overlay(self._context, self._probing, self._broadcast, now)
        self._judgement = Judgement(
            self._context,
            self._own,
            self._probing,
            self._broadcast,
            answer=self._answer,
            gone=self._overlay.gone,
            now=now,
        )
        self._budgets: dict[bytes, PeerBudget] = {}
        self._intake = Intake(
            self._context,
            self._broadcast,
            verify=verify,
            admit=admit,
            punish=self._punish,
            budgets=self._budgets,
            decode=decode,
        )
        self._intake.judge = self._judgement
        self._sync = Sync(self._context, self._broadcast, self._shared)
        self._banned: dict[bytes, float] = {}
        self._silent: set[bytes] = set()
        self._context.deadlines.set("sync", now + random.random() * options.reconcile_s)

    # --- events -------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What follows from an event at the monotonic time `now`, to be carried out in order."""
        if self._left:
            return self._context.out.take()
        self._notice_lag(now)
        self._now = max(now, self._now)
        self._broadcast.clock(self._now)
        self._intake.begin()
        if isinstance(event, TimerFired):
            self._timer_at = None
        else:
            self._react(event, self._now)
        self._work(self._now)
        self._broadcast.flush()
        self._set_timer()
        return self._context.out.take()

    def _react(self, event: Event, now: float) -> None:
        match event:
            case Received(peer, message):
                self._receive(peer, message, now)
            case PeerUp(peer, rtt_s):
                self._peer_up(peer, rtt_s, now)
            case PeerDown(peer):
                self._peer_down(peer, now)
            case DialFailed(peer):
                self._dial_failed(peer, now)
            case PeerSilent(peer, silent):
                self._peer_silent(peer, silent, now)
            case RttMeasured(peer, rtt_s):
                self._probing.measured(peer, rtt_s)
            case Publish(body):
                self._spread_own(self._own.want(body, now))
            case Learned(entries):
                self._overlay.learn(entries, now)
            case LoopLag(lag_s):
                self._lagged(lag_s, now)
            case LeaveAsked():
                self._leave(now)

    def _peer_up(self, peer: bytes, rtt_s: float | None, now: float) -> None:
        if peer == self._context.node:
            return
        if now < self._banned.get(peer, now):
            self._context.out.add(CloseEffect(peer, Close.BANNED))
            return
        self._context.linked.add(peer)
        self._silent.discard(peer)
        budget = self._budgets.setdefault(peer, PeerBudget(now))
        budget.resize(self._context.size)
        was_gone = self._judgement.met(peer, now)
        self._overlay.up(peer, rtt_s, now, was_gone=was_gone)
        self._hear(peer, now)
        self._broadcast.send(peer, self._own_shared())
        self._sync.met(peer, budget, now, was_gone=was_gone)
        self._own.hurry(now)
        self._context.changed(peer)

    def _peer_down(self, peer: bytes, now: float) -> None:
        if peer not in self._context.linked:
            return
        self._context.linked.discard(peer)
        self._silent.discard(peer)
        self._budgets.pop(peer, None)
        self._intake.dropped(peer)
        self._sync.dropped(peer)
        self._overlay.down(peer, now)
        if self._probing.unlinked(peer, now):
            self._judgement.missed(peer, now, closed=True)
        self._own.hurry(now)
        self._context.changed(peer)

    def _dial_failed(self, peer: bytes, now: float) -> None:
        self._overlay.failed(peer, now)
        if peer in self._probing.edges and peer not in self._context.linked:
            self._context.deadlines.set_earlier(("accuse", peer), now)

    def _peer_silent(self, peer: bytes, silent: bool, now: float) -> None:
        if not silent:
            self._silent.discard(peer)
            self._hear(peer, now)
            return
        self._silent.add(peer)
        if self._probing.miss(peer, now):
            self._judgement.missed(peer, now, closed=False)
        self._context.changed(peer)

    def _leave(self, now: float) -> None:
        self._broadcast.spread(self._own.leave(now), None, urgent=True)
        for peer in self._context.linked - set(self._probing.edges):
            self._broadcast.send(peer, [self._own.statements[StatementKind.LEAVE]])
        self._left = True

    # --- messages -----------------------------------------------------------------------------------------------

    def _receive(self, peer: bytes, message: Any, now: float) -> None:
        budget = self._budgets.get(peer)
        if budget is None:
            self._context.out.count("messages_without_a_link")
            return
        self._hear(peer, now)
        if not budget.message(now):
            self._context.out.count("messages_over_budget")
            if budget.is_flood(now):
                self._punish(peer, Close.FLOOD)
            return
        edge = self._probing.edges.get(peer)
        rtt_s = None if edge is None else edge.rtt_s
        match message:
            case messages.Probe(number):
                coordinate = None if number % COORDINATE_EVERY else self._coordinates.coordinate()
                reply = messages.ProbeAck(number, coordinate)
                self._context.out.send(peer, reply, reliable=False)
            case messages.ProbeAck(number, coordinate):
                sample_s = self._probing.acknowledged(peer, number, now)
                if sample_s is not None and coordinate is not None:
                    self._coordinates.update(coordinate, sample_s, now, peer=peer)
            case messages.Statements(statements):
                self._intake.receive(peer, statements, now)
                self._follow_strangers(now)
            case messages.IHave(ids):
                self._broadcast.announced(peer, ids, rtt_s, now)
            case messages.Graft(ids):
                self._broadcast.grafted(peer, ids)
            case messages.Prune():
                self._broadcast.pruned(peer)
            case messages.Digest():
                self._sync.digest(peer, message, budget, now)
            case messages.Bucket():
                if len(message.ids) % STATEMENT_ID_BYTES:
                    self._punish(peer, Close.PROTOCOL_ERROR)
                else:
                    self._intake.asked_for(peer, self._sync.bucket(peer, message, budget, now))
            case messages.Want(ids):
                self._sync.want(peer, ids, now)
            case messages.NeighbourRequest():
                self._overlay.asked(peer, message, rtt_s, now)
            case messages.NeighbourReply(accepted):
                self._overlay.answered(peer, accepted, rtt_s, now)
            case messages.Part():
                self._overlay.parted(peer, now)
            case _:
                self._context.out.count("messages_not_understood")

    def _hear(self, peer: bytes, now: float) -> None:
        if peer in self._context.linked and self._probing.heard(peer, now):
            self._judgement.recovered(peer, now)
            self._own.hurry(now)

    def _follow_strangers(self, now: float) -> None:
        """Who speaks of origins that are not known here knows more: ask."""
        while self._intake.strangers:
            self._sync.soon(self._intake.strangers.pop(), now)

    def _punish(self, peer: bytes, code: Close) -> None:
        self._context.out.count("peers_banned")
        self._context.out.add(CloseEffect(peer, code))
        self._banned = {who: until for who, until in self._banned.items() if until > self._now}
        if len(self._banned) < BANS:
            self._banned[peer] = self._now + self._options.ban_s
        self._peer_down(peer, self._now)
        self._overlay.avoid(peer, self._now + self._options.ban_s)

    # --- deadlines ----------------------------------------------------------------------------------------------

    def _work(self, now: float) -> None:
        deadlines = self._context.deadlines
        while not self._left and (key := deadlines.take(now)) is not None:
            match key:
                case ("edge", peer):
                    if self._probing.due(peer, now):
                        self._judgement.missed(peer, now, closed=False)
                        self._own.hurry(now)
                case ("accuse", peer):
                    self._judgement.accuse_due(peer, now)
                case ("dead", peer):
                    self._judgement.dead_due(peer, now)
                case "ihave":
                    self._broadcast.announce()
                case "graft":
                    self._broadcast.graft_due(now)
                case "intake":
                    self._intake.work(now)
                case "publish":
                    said = self._own.due(self._overlay.healthy(), self._coordinates.coordinate(), now)
                    self._spread_own(said)
                case "overlay":
                    self._overlay.tidy(now, self._coordinates.coordinate())
                case "redial":
                    peer = self._overlay.redial(now)
                    if peer is not None and self._judgement.met(peer, now):
                        self._sync.met(peer, self._budgets[peer], now, was_gone=True)
                case "evaluate":
                    self._judgement.evaluate_due(now)
                case "orphans":
                    self._judgement.orphans_due(now)
                case "tombstones":
                    self._judgement.tombstones_due(now)
                case "sync":
                    self._sync.periodic(self._overlay.healthy(), self._budgets, now)
                case "transfer":
                    self._sync.transfer(now)

    def _set_timer(self) -> None:
        at = None if self._left else self._context.deadlines.next_at()
        if at is not None and (self._timer_at is None or at < self._timer_at):
            self._timer_at = at
            self._context.out.add(SetTimer(TIMER, at))

    def _notice_lag(self, now: float) -> None:
        due_at = self._context.deadlines.next_at()
        if due_at is not None and now - due_at > self._options.lag_s:
            self._lagged(now - due_at, now)

    def _lagged(self, lag_s: float, now: float) -> None:
        """Deadlines move by a lag once, however many notice it."""
        lag_s = min(lag_s, now - self._lag_until)
        if lag_s > self._options.lag_s:
            self._lag_until = now
            self._context.deadlines.shift(lag_s)
            self._context.out.count("loop_lags")

    # --- what this node says --------------------------------------------------------------------------------------

    def _spread_own(self, said: Iterable[Statement], *, urgent: bool = False) -> None:
        for statement in said:
            self._broadcast.spread(statement, None, urgent=urgent)

    def _answer(self, now: float) -> None:
        """Say with the new incarnation that this node lives."""
        said = self._own.answer(self._overlay.healthy(), self._coordinates.coordinate(), now)
        self._spread_own([] if said is None else [said], urgent=True)

    def _own_shared(self) -> list[Statement]:
        own = self._own.statements.values()
        return [each for each in own if each.kind not in reconcile.NOT_SHARED]

    def _is_monitor_of(self, peer: bytes) -> bool:
        record = self._context.members.get(peer)
        return record is not None and self._context.short in record.monitors

    def _shared(self) -> Iterator[Statement]:
        return reconcile.shared(self._context.members, self._own_shared())

    # --- what is known --------------------------------------------------------------------------------------------

    def snapshot(self) -> MembershipSnapshot:
        """All members as they are seen from here, this node among them."""
        here = self._coordinates.coordinate()
        members = {record.node: self._member(record, here) for record in self._context.members}
        members[self._context.node] = self._myself()
        return MembershipSnapshot(self._context.node, members, self._overlay.neighbours)

    def statement(self, node: bytes, kind: int) -> Statement | None:
        """The newest statement of a kind by a node, as it was signed."""
        if node == self._context.node:
            return self._own.statements.get(kind)
        record = self._context.members.get(node)
        return None if record is None else record.statement(kind)

    def _member(self, record: Record, here: Any) -> Member:
        edge = self._probing.edges.get(record.node)
        dynamic = record.dynamic
        there = None if dynamic is None else dynamic.coordinate
        missed = edge is not None and edge.missed_since is not None
        return Member(
            node=record.node,
            state=record.state,
            incarnation=record.incarnation,
            role=record.role,
            identity=record.identity,
            dynamic=dynamic,
            demand=record.demand,
            linked=record.node in self._context.linked,
            reachable=record.state == "alive" and not missed and record.node not in self._silent,
            rtt_s=None if edge is None else edge.rtt_s,
            estimated_rtt_s=None if there is None else distance_s(here, there),
            since=record.since,
            heard_at=record.heard_at if edge is None else max(edge.heard_at, record.heard_at),
            demand_at=record.demand_at,
        )

    def _myself(self) -> Member:
        said = self._own.statements
        bodies = {kind: statement.body for kind, statement in said.items()}
        return Member(
            node=self._context.node,
            state="left" if self._left else "alive",
            incarnation=self._own.incarnation,
            role=Role.MEMBER,
            identity=bodies.get(StatementKind.IDENTITY),
            dynamic=bodies.get(StatementKind.DYNAMIC),
            demand=bodies.get(StatementKind.DEMAND),
            linked=True,
            reachable=True,
            rtt_s=0.0,
            estimated_rtt_s=0.0,
            since=self._since,
            heard_at=self._now,
            demand_at=self._own.changed_at.get(StatementKind.DEMAND, 0.0),
        )
