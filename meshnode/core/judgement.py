"""What becomes of members: missed, unreachable, dead, back again. The rules:

- A node accuses only those who declared it as their monitor, and only while it misses them itself. If its accusation is
  answered though it still hears nothing, the fault is on its side or between: it waits ever longer before the next.
- While more than half of the own neighbours are missed, this node may be the one that is cut off: it holds its
  accusations for at most ten seconds, then accuses with those who are left.
- A quorum makes a member unreachable; if no answer comes, it is dead 5.5 s later. A node that hears it itself waits,
  and passes the accusations on to it.
- A member all of whose monitors are gone would have found new ones, and all say something now and then: one that did
  not is unreachable, then dead, without a vote.
- Whoever sends something of a member that is gone is told so, with the evidence; what is told finds its way to the
  accused, who comes back with a greater incarnation. So a healed partition grows together again.

A member that is gone never returns in the same incarnation.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.core.broadcast import Broadcast
from meshnode.core.budget import Bucket
from meshnode.core.context import Context
from meshnode.core.members import Record
from meshnode.core.own import OwnStatements
from meshnode.core.probing import Probing
from meshnode.core.verdicts import Verdicts
from meshnode.wire.registry import LIMIT_INCARNATION_JUMP, StatementKind
from meshnode.wire.statements import SHORT_ID_BYTES, Statement

CLOSED_LINK_S = 0.9
"""How long a re-dial may take before a closed link counts like unanswered probes."""
POSTPONED_S = 2.0
EVALUATE_S = 1.0
ORPHANS_EVERY_S = 60.0
STALE_REFRESHES = 4
NAMES_MONITORS_S = 15.0
"""How soon a member that has just come names those who may accuse it."""
LONGEST_BACKOFF = 4
TELL_S = 2.0
TOLD_ACCUSATIONS = 3
REMEMBERED = 4096
HINTS_A_SECOND = 0.1
ANSWERS_A_SECOND = 1.0


class Judgement:
    """See the rules above. `answer` publishes a Dynamic of the new incarnation, `gone` hears of those that are gone."""

    def __init__(
        self,
        context: Context,
        own: OwnStatements,
        probing: Probing,
        broadcast: Broadcast,
        *,
        answer: Callable[[float], None],
        gone: Callable[[bytes, float], None],
        now: float,
    ) -> None:
        self._context = context
        self._own = own
        self._probing = probing
        self._broadcast = broadcast
        self._answer = answer
        self._gone = gone
        self.verdicts = Verdicts(context.node, context.options)
        self._held_since: float | None = None
        self._accused: dict[bytes, tuple[int, int]] = {}
        self._orphans: dict[bytes, float] = {}
        self._told: dict[bytes, float] = {}
        self._hinted: dict[bytes, int] = {}
        self._doubted: dict[bytes, int] = {}
        self._hints = Bucket(HINTS_A_SECOND, 3, now)
        self._answers = Bucket(ANSWERS_A_SECOND, 5, now)

    # --- missing and accusing -------------------------------------------------------------------------------------

    def missed(self, peer: bytes, now: float, *, closed: bool) -> None:
        """A neighbour is missed from now on."""
        self._context.changed(peer)
        self._context.deadlines.set(("accuse", peer), now + CLOSED_LINK_S if closed else now)
        self._context.deadlines.set_earlier("overlay", now + POSTPONED_S)

    def recovered(self, peer: bytes, now: float) -> None:
        """A neighbour is heard again. If the mesh thinks otherwise, it is told what to answer."""
        self._context.deadlines.cancel(("accuse", peer))
        self._context.changed(peer)
        record = self._context.members.get(peer)
        if record is not None and record.state != "alive":
            self._tell(peer, record, now)

    def accuse_due(self, peer: bytes, now: float) -> None:
        """The time to accuse has come, if there still is a reason."""
        record = self._context.members.get(peer)
        edge = self._probing.edges.get(peer)
        if edge is None or edge.missed_since is None or record is None or record.is_gone:
            return
        if self._context.short not in record.monitors:
            return
        wait_s = self._held(now)
        if wait_s > 0:
            self._context.deadlines.set(("accuse", peer), now + wait_s)
            return
        incarnation, answered = self._accused.get(peer, (-1, 0))
        if incarnation >= 0 and record.incarnation > incarnation and edge.missed_since < now - 1:
            answered = min(LONGEST_BACKOFF, answered + 1)
        self._remember_accused(peer, record.incarnation, answered)
        statement = self._own.accuse(peer, record.incarnation, now)
        self.verdicts.vote(statement, now)
        self._broadcast.spread(statement, None, urgent=True)
        self._context.out.count("accusations_made")
        again_s = self._context.options.vote_again_s * (1 << answered)
        self._context.deadlines.set(("accuse", peer), now + again_s)
        self._evaluate(peer, now)
        self._context.deadlines.set_earlier("evaluate", now + EVALUATE_S)

    def _remember_accused(self, peer: bytes, incarnation: int, answered: int) -> None:
        if len(self._accused) >= REMEMBERED:
            self._accused.clear()
        self._accused[peer] = (incarnation, answered)

    def _held(self, now: float) -> float:
        """How long accusations are to be held for now."""
        if not self._probing.is_isolated():
            self._held_since = None
            return 0.0
        if self._held_since is None:
            self._held_since = now
            self._context.out.count("accusations_held")
        return max(0.0, min(1.0, self._held_since + self._context.options.hold_s - now))

    # --- being told -----------------------------------------------------------------------------------------------

    def expects(self, statement: Statement, now: float) -> bool:
        """Whether an accusation could matter. Cheap: it is asked before the signature is checked."""
        subject, incarnation = statement.body.subject, statement.body.incarnation
        if self.verdicts.known(statement):
            return False
        if subject == self._context.node:
            return bool(incarnation == self._own.incarnation)
        record = self._context.members.get(subject)
        if record is None or record.is_gone or incarnation < record.incarnation:
            return False
        if incarnation > record.incarnation + LIMIT_INCARNATION_JUMP:
            self._context.out.count("incarnations_from_the_future")
            return False
        if statement.origin[:SHORT_ID_BYTES] in record.monitors:
            return True
        return self._hinted.get(subject, -1) < int(incarnation)

    def accused(self, statement: Statement, source: bytes, now: float) -> None:
        """A vote, if it is by a monitor. The first other one of an incarnation is passed on, a hint to the accused."""
        subject = statement.body.subject
        if subject == self._context.node:
            self._accused_me(statement, now)
            return
        record = self._context.members.get(subject)
        assert record is not None, "expects() was asked"
        if statement.origin[:SHORT_ID_BYTES] in record.monitors:
            if self.verdicts.vote(statement, now):
                self._broadcast.spread(statement, source, urgent=True)
                self._probing.ask_now(subject, now)
                self._evaluate(subject, now)
                self._context.deadlines.set_earlier("evaluate", now + EVALUATE_S)
            return
        self._context.out.count("accusations_by_others_than_monitors")
        if len(self._hinted) >= REMEMBERED:
            self._hinted.clear()
        self._hinted[subject] = statement.body.incarnation
        self._broadcast.spread(statement, source, urgent=True)

    def _accused_me(self, statement: Statement, now: float) -> None:
        self._broadcast.refuse(statement.id)
        if not self._own.may_accuse(statement.origin, now):
            if self._hints.take(1, now):
                self._refute(self._own.incarnation, now)
            return
        # Who accuses again did not hear an answer: it may hold this node for dead with votes that have lapsed here.
        again = self.verdicts.has_voted(statement.origin, self._context.node, self._own.incarnation)
        self.verdicts.vote(statement, now)
        must = self.verdicts.must_answer(self._own.incarnation, self._own.monitors, now)
        if (must and self._answers.take(1, now)) or (again and self._hints.take(1, now)):
            self._refute(self._own.incarnation, now)

    def _refute(self, beyond: int, now: float) -> None:
        self._own.raise_incarnation(beyond)
        self.verdicts.clear(self._context.node, self._own.incarnation)
        self._context.out.count("accusations_answered")
        self._answer(now)

    def about_me(self, statement: Statement, now: float) -> None:
        """Something of this node that it does not remember having said: another life of it went further."""
        if statement.incarnation > self._own.incarnation + LIMIT_INCARNATION_JUMP:
            self._context.out.count("incarnations_from_the_future")
            return
        said = self._own.statements.get(statement.kind)
        if said is not None and statement.order > said.order or statement.incarnation > self._own.incarnation:
            self._refute(statement.incarnation, now)

    # --- verdicts -------------------------------------------------------------------------------------------------

    def evaluate_due(self, now: float) -> None:
        """Votes have come: monitors that are accused themselves may have changed what others need."""
        for subject in self.verdicts.subjects:
            self._evaluate(subject, now)

    def _evaluate(self, subject: bytes, now: float) -> None:
        record = self._context.members.get(subject)
        if record is None or record.state != "alive":
            return
        if not self.verdicts.is_reached(record, self._context.members, now):
            return
        self._unreachable(subject, now)
        # With one monitor less, what was too little against others may now be enough.
        for other in self.verdicts.subjects:
            if other != subject:
                self._evaluate(other, now)

    def _unreachable(self, subject: bytes, now: float) -> None:
        record = self._context.members.edit(subject)
        self._doubted[subject] = record.incarnation
        self._context.members.change(subject, "unreachable", now)
        self._context.deadlines.set(("dead", subject), now + self._context.options.dead_after_s)
        self._context.deadlines.set_earlier("orphans", now + self._context.options.orphan_scan_s)
        self._context.changed(subject)
        if self._hears(subject, now):
            self._tell(subject, record, now)

    def dead_due(self, subject: bytes, now: float) -> None:
        """Nothing was heard of an unreachable member for long enough."""
        record = self._context.members.get(subject)
        if record is None or record.state != "unreachable":
            return
        if self._hears(subject, now):
            self._tell(subject, record, now)
            self._context.deadlines.set(("dead", subject), now + POSTPONED_S)
            return
        wait_s = self._held(now)
        if wait_s > 0:
            self._context.deadlines.set(("dead", subject), now + wait_s)
            return
        self._bury(subject, "dead", now)

    def _bury(self, subject: bytes, state: str, now: float) -> None:
        self._context.members.change(subject, "dead" if state == "dead" else "left", now)
        self._context.deadlines.cancel(("dead", subject))
        self._context.deadlines.cancel(("accuse", subject))
        if state == "dead":
            self._context.deadlines.set_earlier("orphans", now + self._context.options.orphan_scan_s)
        self._context.deadlines.set_earlier("tombstones", now + self._context.options.tombstone_s + 1)
        self._context.out.count(f"members_{state}")
        self._context.changed(subject)
        self._gone(subject, now)

    def _hears(self, subject: bytes, now: float) -> bool:
        edge = self._probing.edges.get(subject)
        if edge is None or not edge.linked or edge.missed_since is not None:
            return False
        return now - edge.heard_at < self._probing.period_s(subject) + POSTPONED_S

    def farewell(self, statement: Statement, source: bytes, now: float) -> None:
        """A member has left on purpose."""
        record = self._context.members.get(statement.origin)
        if record is not None and not record.is_gone and self._context.members.put(statement, now):
            self._broadcast.spread(statement, source, urgent=True)
            self._bury(statement.origin, "left", now)

    def stored(self, statement: Statement, source: bytes, now: float) -> None:
        """A member said something new. A greater incarnation brings it back from wherever it was."""
        record = self._context.members.get(statement.origin)
        assert record is not None, "it was stored"
        was = record.state
        self._orphans.pop(record.node, None)
        if not record.monitors:
            self._context.deadlines.set_earlier("orphans", now + NAMES_MONITORS_S)
        urgent = was != "alive" and statement.incarnation > self._doubted.get(record.node, -1)
        if urgent:
            self._doubted.pop(record.node, None)
            self._context.members.change(record.node, "alive", now)
            self._context.deadlines.cancel(("dead", record.node))
            self._context.out.count("members_back")
        elif was != "alive":
            self._tell(source, record, now)
        self.verdicts.clear(record.node, record.incarnation)
        self._context.changed(record.node)
        self._broadcast.spread(statement, source, urgent=urgent)

    def overtaken(self, statement: Statement, source: bytes, now: float) -> None:
        """Somebody does not know yet that a member is gone."""
        record = self._context.members.get(statement.origin)
        if record is not None:
            self._tell(source, record, now)

    def _tell(self, peer: bytes, record: Record, now: float) -> None:
        """Send a peer the evidence against a member that is not alive here, now and then at most."""
        if peer not in self._context.linked or now - self._told.get(record.node, -TELL_S) < TELL_S:
            return
        if len(self._told) >= REMEMBERED:
            self._told.clear()
        self._told[record.node] = now
        farewell = record.statement(StatementKind.LEAVE)
        if record.state == "left" and farewell is not None:
            self._broadcast.send(peer, [farewell])
            return
        evidence = self.verdicts.accusations(record.node, record.incarnation)[:TOLD_ACCUSATIONS]
        self._broadcast.send(peer, [*evidence, self._own.accuse(record.node, record.incarnation, now)])

    def met(self, peer: bytes, now: float) -> bool:
        """A peer is linked. True when it was not alive here, so that it was told, and may know of others like it."""
        record = self._context.members.get(peer)
        if record is None or record.state == "alive":
            return False
        self._told.pop(peer, None)
        self._tell(peer, record, now)
        return True

    # --- members that nobody can accuse -----------------------------------------------------------------------------

    def orphans_due(self, now: float) -> None:
        """Look for members all of whose monitors are gone, and for those who have said nothing for several refreshes.

        The latter are found by nobody else when most of a mesh went at once: the dead may be each other's monitors.
        """
        found: dict[bytes, float] = {}
        stale = now - STALE_REFRESHES * self._own.refresh_s
        for record in list(self._context.members):
            if record.state != "alive" or (record.heard_at >= stale and self._is_watched(record)):
                continue
            if self._hears(record.node, now):
                continue
            since = self._orphans.get(record.node, now)
            found[record.node] = since
            if now - since >= self._context.options.orphan_s and not self._held(now):
                del found[record.node]
                self._context.out.count("orphans")
                self._unreachable(record.node, now)
        self._orphans = found
        again_s = self._context.options.orphan_scan_s / 2 if found else ORPHANS_EVERY_S
        self._context.deadlines.set_earlier("orphans", now + again_s)

    def _is_watched(self, record: Record) -> bool:
        here, by_short = self._context.short, self._context.members.by_short
        for short in record.monitors:
            monitor = by_short(short)
            if short == here or (monitor is not None and monitor.state == "alive"):
                return True
        return False

    def tombstones_due(self, now: float) -> list[bytes]:
        """Forget those that are gone for long. Returns whom."""
        ended = self._context.members.expire(now)
        for node in ended:
            self.verdicts.forget(node)
            self._doubted.pop(node, None)
        left = [record.since for record in self._context.members if record.is_gone]
        if left:
            self._context.deadlines.set("tombstones", min(left) + self._context.options.tombstone_s + 1)
        return ended
