"""The table of members: the newest statements of each, and the tombstones of those that are gone.

Of one kind by one origin the greatest (incarnation, number) counts. A member that is dead or has left stays as a
tombstone for ten minutes: what it said up to that incarnation does not bring it back, and its addresses are kept, as it
may only have been cut off. It returns with a greater incarnation alone.

Rules of this file: pure; nothing enters that was not verified by the caller; statements and bytes are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshnode.core.effects import State
from meshnode.core.randomness import Randomness
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.registry import Role, StatementKind
from meshnode.wire.statements import SHORT_ID_BYTES, Demand, Dynamic, Identity, Statement

STATEMENTS_A_MEMBER = 6
"""Identity, dynamic, demand, leave, and two of kinds that only later versions know."""
GONE: frozenset[State] = frozenset(("dead", "left"))


@dataclass(slots=True)
class Record:
    """One member. `heard_at` is when something of it last arrived here, `demand_at` its demand."""

    node: bytes
    role: Role
    state: State
    incarnation: int
    since: float
    heard_at: float
    statements: tuple[Statement, ...] = ()
    demand_at: float = 0.0

    def statement(self, kind: int) -> Statement | None:
        """The newest of a kind."""
        for statement in self.statements:
            if statement.kind == kind:
                return statement
        return None

    @property
    def identity(self) -> Identity | None:
        """Who it says it is."""
        body: Identity | None = self._body(StatementKind.IDENTITY)
        return body

    @property
    def dynamic(self) -> Dynamic | None:
        """What it says it has."""
        body: Dynamic | None = self._body(StatementKind.DYNAMIC)
        return body

    @property
    def demand(self) -> Demand | None:
        """What is asked for at it."""
        body: Demand | None = self._body(StatementKind.DEMAND)
        return body

    @property
    def monitors(self) -> tuple[bytes, ...]:
        """Short ids of those it lets accuse it."""
        dynamic = self.dynamic
        return () if dynamic is None else dynamic.monitors

    @property
    def is_gone(self) -> bool:
        """Dead, or left."""
        return self.state in GONE

    def _body(self, kind: StatementKind) -> Any:
        statement = self.statement(kind)
        return None if statement is None else statement.body


class Shared:
    """Records that several tables of one process read and none changes; see Members."""

    def __init__(self, records: Mapping[bytes, Record]) -> None:
        self.records = records
        self.names = tuple(records)
        self.shorts = {node[:SHORT_ID_BYTES]: node for node in records}
        self.statements = sum(len(record.statements) for record in records.values())
        self.size_bytes = sum(len(each.signed) for record in records.values() for each in record.statements)


class Members:
    """All members but `node` itself, by their ids.

    What a table changes of `shared` records it copies first. Simulations of large meshes live on that; a node has none.
    """

    def __init__(self, node: bytes, options: MembershipOptions, shared: Shared | None = None) -> None:
        self._node = node
        self._options = options
        self._shared = shared or Shared({})
        self._own: dict[bytes, Record] = {}
        self._shorts: dict[bytes, bytes] = {}
        self._new: list[bytes] = []
        self._gone = 0
        self._statements = self._shared.statements
        self._bytes = self._shared.size_bytes

    # --- reading ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._shared.names) - (self._node in self._shared.records) + len(self._new)

    def __iter__(self) -> Iterator[Record]:
        for node, record in self._shared.records.items():
            if node not in self._own and node != self._node:
                yield record
        yield from self._own.values()

    def get(self, node: bytes) -> Record | None:
        """The record of a member, for reading."""
        record = self._own.get(node)
        if record is None and node != self._node:
            record = self._shared.records.get(node)
        return record

    def by_short(self, short: bytes) -> Record | None:
        """The member whose id begins with these 8 bytes."""
        node = self._shorts.get(short) or self._shared.shorts.get(short)
        return None if node is None else self.get(node)

    @property
    def present(self) -> int:
        """How many are neither dead nor have left."""
        return len(self) - self._gone

    def sample(self, random: Randomness, count: int) -> list[Record]:
        """At most `count` different members that are alive; fewer when chance hits others."""
        among = len(self._shared.names) + len(self._new)
        found: dict[bytes, Record] = {}
        for _ in range(2 * min(count, among)):
            at = int(random.random() * among)
            shared = len(self._shared.names)
            record = self.get(self._shared.names[at] if at < shared else self._new[at - shared])
            if record is not None and record.state == "alive" and len(found) < count:
                found[record.node] = record
        return list(found.values())

    @property
    def statement_count(self) -> int:
        """Statements in all records, tombstones included."""
        return self._statements

    @property
    def size_bytes(self) -> int:
        """Bytes of these statements."""
        return self._bytes

    def is_new(self, statement: Statement) -> bool:
        """Whether it would replace what is known: not older, not the same, and its origin not gone since."""
        record = self.get(statement.origin)
        if record is None:
            return True
        if statement.incarnation < record.incarnation and record.is_gone:
            return False
        known = record.statement(statement.kind)
        return known is None or statement.order > known.order

    # --- writing ----------------------------------------------------------------------------------------------------

    def edit(self, node: bytes) -> Record:
        """The record of a known member, for writing. Raises KeyError."""
        record = self._own.get(node)
        if record is None:
            record = self._own[node] = replace(self._shared.records[node])
        return record

    def admit(self, statement: Statement, role: Role, now: float) -> Record | None:
        """A new member, by its verified identity statement. None when there is no room."""
        if not self._has_room(statement):
            return None
        node = statement.origin
        record = Record(node, role, "alive", statement.incarnation, now, now, (statement,))
        self._own[node] = record
        self._shorts.setdefault(node[:SHORT_ID_BYTES], node)
        self._new.append(node)
        self._count(1, len(statement.signed))
        return record

    def put(self, statement: Statement, now: float) -> bool:
        """Replace the statement of that kind of a known member. False when there is no room."""
        record = self.get(statement.origin)
        if record is None:
            return False
        known = record.statement(statement.kind)
        if known is None and (len(record.statements) >= STATEMENTS_A_MEMBER or not self._has_room(statement)):
            return False
        record = self.edit(statement.origin)
        others = tuple(each for each in record.statements if each is not known)
        record.statements = (*others, statement)
        record.incarnation = max(record.incarnation, statement.incarnation)
        record.heard_at = now
        if statement.kind == StatementKind.DEMAND:
            record.demand_at = now
        self._count(known is None, len(statement.signed) - (0 if known is None else len(known.signed)))
        return True

    def change(self, node: bytes, state: State, now: float) -> None:
        """A member is now in another state. Of one that is gone only what may be needed again is kept."""
        record = self.edit(node)
        self._gone += (state in GONE) - record.is_gone
        record.state = state
        record.since = now
        if state in GONE:
            kept = (StatementKind.IDENTITY, StatementKind.LEAVE)
            dropped = [each for each in record.statements if each.kind not in kept]
            record.statements = tuple(each for each in record.statements if each.kind in kept)
            self._count(-len(dropped), -sum(len(each.signed) for each in dropped))

    def expire(self, now: float) -> list[bytes]:
        """Forget tombstones that are old enough. Returns whose."""
        ended = [record.node for record in self if record.is_gone and now - record.since >= self._options.tombstone_s]
        for node in ended:
            if node not in self._shared.records:
                record = self._own.pop(node)
                self._shorts.pop(node[:SHORT_ID_BYTES], None)
                self._new.remove(node)
                self._gone -= 1
                self._count(-len(record.statements), -sum(len(each.signed) for each in record.statements))
        return ended

    def _has_room(self, statement: Statement) -> bool:
        size_bytes = self._bytes + len(statement.signed)
        return self._statements < self._options.most_statements and size_bytes <= self._options.most_bytes

    def _count(self, statements: int, size_bytes: int) -> None:
        self._statements += statements
        self._bytes += size_bytes
