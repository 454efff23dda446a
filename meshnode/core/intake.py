"""Statements that peers send: read, checked in the order of what it costs, stored, and passed on.

    1  known by its id?        a duplicate: nothing to do but to prune the tree
    2  readable?               a peer that passes on what nobody can read breaks the rules
    3  newer than what is known, of a known origin, not from the far future, not too often?
    4  signed by its origin?   every node checks before it passes on, so a forgery is the sender's own

Only what passes all is believed. Checks of signatures are the expensive part: at most 64 a call of the machine, the
rest waits for the next turn, so that a join with thousands of statements blocks nobody.

Rules of this file: nothing here raises for what a peer sent; every refusal is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from meshnode.core.broadcast import Broadcast
from meshnode.core.budget import Bucket, PeerBudget
from meshnode.core.context import Context
from meshnode.wire.registry import LIMIT_INCARNATION_JUMP, Close, Role, StatementKind
from meshnode.wire.signed import Verify
from meshnode.wire.statements import Statement, is_genuine, read, statement_id
from meshnode.wire.values import WireError

CHECKS_A_CALL = 64
TURN_S = 0.01
WAITING_STATEMENTS = 40_000
WAITING_BYTES = 32 << 20
IDENTITIES_A_SECOND = 0.1
OTHERS_A_SECOND = 1.0
ORIGIN_BURST = 5.0
ORIGINS = 4096

Admit = Callable[[Statement], Role | None]


class Judge(Protocol):
    """Who decides what statements mean for members; see judgement.py."""

    def about_me(self, statement: Statement, now: float) -> None:
        """A genuine statement of this very node that it does not know."""

    def accused(self, statement: Statement, source: bytes, now: float) -> None:
        """A genuine accusation by a member."""

    def expects(self, statement: Statement, now: float) -> bool:
        """Whether an accusation could matter, judged before its signature is."""

    def farewell(self, statement: Statement, source: bytes, now: float) -> None:
        """A genuine Leave."""

    def stored(self, statement: Statement, source: bytes, now: float) -> None:
        """A genuine statement was put into the table; its origin may have come back."""

    def overtaken(self, statement: Statement, source: bytes, now: float) -> None:
        """Something by a member that is gone, of an incarnation that is over."""


class Intake:
    """The way in. `punish(peer, code)` closes and bans."""

    def __init__(
        self,
        context: Context,
        broadcast: Broadcast,
        *,
        verify: Verify,
        admit: Admit,
        punish: Callable[[bytes, Close], None],
        budgets: Mapping[bytes, PeerBudget],
        decode: Callable[[bytes], Statement] = read,
    ) -> None:
        self._context = context
        self._broadcast = broadcast
        self._verify = verify
        self._admit = admit
        self._punish = punish
        self._budgets = budgets
        self._decode = decode
        self._waiting: deque[tuple[bytes, bytes, bytes]] = deque()
        self._waiting_bytes = 0
        self._checks = 0
        self._origins: dict[tuple[bytes, int], Bucket] = {}
        self._asked: dict[bytes, int] = {}
        self.judge: Judge
        self.strangers: set[bytes] = set()
        """Peers that sent statements of origins that are not known here: they know more."""

    # --- in -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new call of the machine."""
        self._checks = 0

    def asked_for(self, peer: bytes, count: int) -> None:
        """So many statements may come from a peer without counting as too frequent for their origins."""
        self._asked[peer] = max(self._asked.get(peer, 0), count)

    def receive(self, peer: bytes, signed: tuple[bytes, ...], now: float) -> None:
        """Statements of one message from a linked peer. What waits for its turn is bounded."""
        budget = self._budgets[peer]
        budget.resize(self._context.size)
        duplicates: list[bytes] = []
        for each in signed:
            name = statement_id(each)
            if self._broadcast.knows(name):
                duplicates.append(name)
            elif not budget.statement(len(each), now):
                self._context.out.count("statements_over_budget")
                if budget.is_flood(now):
                    self._punish(peer, Close.FLOOD)
                    return
            elif len(self._waiting) >= WAITING_STATEMENTS or self._waiting_bytes + len(each) > WAITING_BYTES:
                self._context.out.count("statements_without_room")
            else:
                self._waiting.append((peer, each, name))
                self._waiting_bytes += len(each)
        if len(duplicates) == len(signed):
            self._broadcast.duplicates(peer, duplicates)
        self.work(now)

    def work(self, now: float) -> None:
        """Take what waits, as far as the checks of this call go."""
        while self._waiting and self._checks < CHECKS_A_CALL:
            peer, signed, name = self._waiting.popleft()
            self._waiting_bytes -= len(signed)
            if peer in self._context.linked and not self._broadcast.knows(name):
                self._take(peer, signed, now)
        if self._waiting:
            self._context.deadlines.set_earlier("intake", now + TURN_S)

    def dropped(self, peer: bytes) -> None:
        """The link of a peer is gone."""
        self._asked.pop(peer, None)
        self.strangers.discard(peer)

    # --- one statement ------------------------------------------------------------------------------------------

    def _take(self, peer: bytes, signed: bytes, now: float) -> None:
        try:
            statement = self._decode(signed)
        except WireError as reason:
            self._context.out.count("statements_malformed")
            self._punish(peer, reason.code)
            return
        asked = self._asked.get(peer, 0)
        if asked:
            self._asked[peer] = asked - 1
        if statement.origin == self._context.node:
            self._of_this_node(peer, statement, now)
        elif statement.kind == StatementKind.ACCUSE:
            self._accusation(peer, statement, now)
        else:
            self._news(peer, statement, now, asked=bool(asked))

    def _of_this_node(self, peer: bytes, statement: Statement, now: float) -> None:
        self._broadcast.refuse(statement.id)
        if self._is_genuine(peer, statement):
            self.judge.about_me(statement, now)

    def _accusation(self, peer: bytes, statement: Statement, now: float) -> None:
        if self._context.members.get(statement.origin) is None:
            self._context.out.count("accusations_by_strangers")
        elif not self._budgets[peer].accusation(now):
            self._context.out.count("accusations_over_budget")
            if self._budgets[peer].is_flood(now):
                self._punish(peer, Close.FLOOD)
        elif self.judge.expects(statement, now) and self._is_genuine(peer, statement):
            self.judge.accused(statement, peer, now)
        elif self._context.members.get(statement.body.subject) is not None:
            self._broadcast.refuse(statement.id)

    def _news(self, peer: bytes, statement: Statement, now: float, *, asked: bool) -> None:
        members = self._context.members
        record = members.get(statement.origin)
        if record is None and statement.kind != StatementKind.IDENTITY:
            self._context.out.count("statements_of_strangers")
            self.strangers.add(peer)
            return
        if record is not None:
            if record.is_gone and statement.incarnation <= record.incarnation:
                self._broadcast.refuse(statement.id)
                self.judge.overtaken(statement, peer, now)
                return
            late = statement.kind == StatementKind.LEAVE and statement.incarnation < record.incarnation
            if late or not members.is_new(statement):
                self._broadcast.refuse(statement.id)
                return
            if statement.incarnation > record.incarnation + LIMIT_INCARNATION_JUMP:
                self._context.out.count("incarnations_from_the_future")
                return
        if not asked and not self._is_timely(statement, now):
            self._context.out.count("statements_too_frequent")
            return
        if not self._is_genuine(peer, statement):
            return
        if statement.kind == StatementKind.IDENTITY:
            self._checks += 1
            role = self._admit(statement)
            if role is not Role.MEMBER:
                self._context.out.count("identities_not_admitted")
                self._broadcast.refuse(statement.id)
                return
            if record is None:
                self._enter(peer, statement, role, now)
                return
        if statement.kind == StatementKind.LEAVE:
            self.judge.farewell(statement, peer, now)
        elif members.put(statement, now):
            self.judge.stored(statement, peer, now)
        else:
            self._context.out.count("table_full")

    def _enter(self, peer: bytes, statement: Statement, role: Role, now: float) -> None:
        if self._context.members.admit(statement, role, now) is None:
            self._context.out.count("table_full")
        else:
            self.judge.stored(statement, peer, now)

    def _is_genuine(self, peer: bytes, statement: Statement) -> bool:
        self._checks += 1
        if is_genuine(statement, self._verify):
            return True
        self._context.out.count("statements_forged")
        self._punish(peer, Close.PROTOCOL_ERROR)
        return False

    def _is_timely(self, statement: Statement, now: float) -> bool:
        """An origin may say something of a kind once a second, five times at once; who it is less often."""
        key = (statement.origin, statement.kind)
        bucket = self._origins.get(key)
        if bucket is None:
            if len(self._origins) >= ORIGINS:
                self._origins.clear()
            rate = IDENTITIES_A_SECOND if statement.kind == StatementKind.IDENTITY else OTHERS_A_SECOND
            bucket = self._origins[key] = Bucket(rate, ORIGIN_BURST, now)
        return bucket.take(1, now)
