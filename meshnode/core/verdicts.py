"""From accusations to verdicts: a quorum of the monitors that a member has declared makes it unreachable for all.

As in Rapid (Suresh et al., USENIX ATC 2018) one observer is not believed: its own link may be the one that fails. How
many are needed shrinks with the monitors that are left, so that half of a mesh can die at once:

    monitors that are alive   0, 1   2   3   4   5 and more
    votes needed              1      1   2   2   3

A vote counts for twenty seconds and for one incarnation. The accused answers before the quorum is reached, with a
greater incarnation, which makes all votes void.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.core.members import Members, Record
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.statements import SHORT_ID_BYTES, Statement

MOST_NEEDED = 3
ACCUSERS_OF_A_MONITOR = 2
VOTES_A_MEMBER = 32
"""More than any member has monitors; votes of others are not kept."""


def quorum(monitors: int) -> int:
    """How many of so many monitors must agree."""
    return max(1, min(MOST_NEEDED, -(-monitors // 2)))


@dataclass(frozen=True, slots=True)
class Vote:
    """One accusation, and when it came."""

    statement: Statement
    at: float


class Verdicts:
    """The votes on every member, this node included."""

    def __init__(self, node: bytes, options: MembershipOptions) -> None:
        self._node = node
        self._options = options
        self._votes: dict[bytes, dict[bytes, Vote]] = {}

    @property
    def subjects(self) -> list[bytes]:
        """Those on whom there are votes."""
        return list(self._votes)

    def vote(self, statement: Statement, now: float) -> bool:
        """Count an accusation by a monitor. False when it was counted before, or there are too many."""
        votes = self._votes.setdefault(statement.body.subject, {})
        known = votes.get(statement.origin)
        if known is not None and known.statement.order >= statement.order:
            return False
        if known is None and len(votes) >= VOTES_A_MEMBER:
            return False
        votes[statement.origin] = Vote(statement, now)
        return True

    def known(self, statement: Statement) -> bool:
        """Whether this accusation, or a later one of the same two, was counted."""
        vote = self._votes.get(statement.body.subject, {}).get(statement.origin)
        return vote is not None and vote.statement.order >= statement.order

    def has_voted(self, accuser: bytes, subject: bytes, incarnation: int) -> bool:
        """Whether this one has accused that incarnation before, lately or not."""
        vote = self._votes.get(subject, {}).get(accuser)
        return vote is not None and vote.statement.body.incarnation >= incarnation

    def accusations(self, subject: bytes, incarnation: int) -> list[Statement]:
        """The evidence against an incarnation, old votes included."""
        votes = self._votes.get(subject, {}).values()
        return [vote.statement for vote in votes if vote.statement.body.incarnation >= incarnation]

    def clear(self, subject: bytes, incarnation: int) -> None:
        """Votes on earlier incarnations are void."""
        votes = self._votes.get(subject)
        if votes is None:
            return
        left = {who: vote for who, vote in votes.items() if vote.statement.body.incarnation >= incarnation}
        if left:
            self._votes[subject] = left
        else:
            del self._votes[subject]

    def forget(self, subject: bytes) -> None:
        """The tombstone is gone as well."""
        self._votes.pop(subject, None)

    def is_reached(self, record: Record, members: Members, now: float) -> bool:
        """Whether enough monitors of a member miss it."""
        votes = self._votes.get(record.node)
        if not votes:
            return False
        counted = {
            who[:SHORT_ID_BYTES]
            for who, vote in votes.items()
            if now - vote.at <= self._options.vote_s and vote.statement.body.incarnation >= record.incarnation
        }
        declared = record.monitors
        counted &= set(declared)
        standing = sum(short in counted or self._stands(short, members, now) for short in declared)
        return len(counted) >= quorum(standing)

    def must_answer(self, incarnation: int, monitors: tuple[bytes, ...], now: float) -> bool:
        """Whether this node is accused by so many that one more, or one that it has not heard of, makes a quorum."""
        votes = self._votes.get(self._node, {})
        counted = [
            who
            for who, vote in votes.items()
            if now - vote.at <= self._options.vote_s and vote.statement.body.incarnation >= incarnation
        ]
        return len(counted) >= max(1, quorum(len(monitors)) - 1)

    def _stands(self, short: bytes, members: Members, now: float) -> bool:
        """Whether a monitor may still vote. One that is itself accused, by two or by this node, is not waited for.

        When most of a mesh is gone, the dead are each other's monitors: nobody would ever have a quorum.
        """
        if short == self._node[:SHORT_ID_BYTES]:
            return True
        record = members.by_short(short)
        if record is None or record.state != "alive":
            return False
        votes = self._votes.get(record.node, {})
        since = now - self._options.vote_s
        live = [
            who
            for who, vote in votes.items()
            if vote.at >= since and vote.statement.body.incarnation >= record.incarnation
        ]
        return len(live) < ACCUSERS_OF_A_MONITOR and self._node not in live
