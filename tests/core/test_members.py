import random

import pytest

from meshnode.core.members import Members, Record, Shared
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.registry import Role, StatementKind
from meshnode.wire.statements import Demand, Dynamic, Leave
from tests.core.alone import ME, identity, name, say


def table(count: int = 0, options: MembershipOptions | None = None) -> Members:
    members = Members(ME, options or MembershipOptions())
    for index in range(count):
        assert members.admit(say(name(index), identity(index)), Role.MEMBER, 1.0)
    return members


def test_the_greater_order_counts() -> None:
    members = table(1)
    assert members.put(say(name(0), Dynamic(), 5), 2.0)
    assert not members.is_new(say(name(0), Dynamic(), 5))
    assert not members.is_new(say(name(0), Dynamic(), 4))
    assert members.is_new(say(name(0), Dynamic(), 1, incarnation=2))
    assert members.is_new(say(name(0), Demand(), 1))
    assert members.is_new(say(name(9), identity(9)))


def test_a_statement_replaces_the_one_of_its_kind() -> None:
    members = table(1)
    for number in range(2, 20):
        assert members.put(say(name(0), Dynamic(), number), float(number))
    record = members.get(name(0))
    assert record is not None and len(record.statements) == 2
    assert (record.heard_at, record.demand_at) == (19.0, 0.0)
    assert members.put(say(name(0), Demand(), 30, incarnation=3), 20.0)
    assert (record.incarnation, record.demand_at, record.demand) == (3, 20.0, Demand())
    assert members.statement_count == 3
    assert members.size_bytes == sum(len(each.signed) for each in record.statements)


def test_a_tombstone_keeps_what_is_needed_and_ends() -> None:
    members = table(2)
    members.put(say(name(0), Dynamic(), 5), 2.0)
    members.put(say(name(0), Leave(), 6), 2.0)
    members.change(name(0), "left", 3.0)
    record = members.get(name(0))
    assert record is not None and record.identity is not None and record.dynamic is None
    assert record.statement(StatementKind.LEAVE) is not None
    assert members.present == 1 and len(members) == 2
    assert not members.is_new(say(name(0), Dynamic(), 9, incarnation=0))
    assert members.expire(602.0) == []
    assert members.expire(603.0) == [name(0)]
    assert members.get(name(0)) is None and members.present == len(members) == 1
    assert members.by_short(name(0)[:8]) is None
    assert members.statement_count == 1


def test_who_returns_is_counted_again() -> None:
    members = table(2)
    members.change(name(0), "dead", 3.0)
    members.change(name(0), "alive", 4.0)
    members.change(name(0), "unreachable", 5.0)
    assert members.present == 2
    assert members.expire(10_000.0) == []


@pytest.mark.parametrize("options", [MembershipOptions(most_statements=3), MembershipOptions(most_bytes=900)])
def test_the_table_is_bounded(options: MembershipOptions) -> None:
    members = Members(ME, options)
    entered = [members.admit(say(name(index), identity(index)), Role.MEMBER, 1.0) for index in range(10)]
    assert 1 < sum(record is not None for record in entered) <= 4
    assert members.size_bytes <= 900 or members.statement_count <= 3
    full = members.statement_count
    members.put(say(name(0), Dynamic(), 2), 1.0)
    assert members.statement_count <= max(full, 3)


def test_a_member_cannot_say_arbitrarily_many_kinds() -> None:
    members = table(1)
    import dataclasses

    odd = say(name(0), Dynamic(), 2)
    stored = [members.put(dataclasses.replace(odd, kind=kind, body=None), 1.0) for kind in range(101, 131, 2)]
    assert sum(stored) == 5


def test_samples_are_of_the_living() -> None:
    members = table(20)
    for index in range(10):
        members.change(name(index), "dead", 1.0)
    chance = random.Random(1)
    seen = {record.node for _ in range(50) for record in members.sample(chance, 3)}
    assert seen == {name(index) for index in range(10, 20)}
    assert members.sample(chance, 0) == []
    assert table().sample(chance, 5) == []


def test_shared_records_are_copied_before_they_change() -> None:
    records = {
        name(index): Record(name(index), Role.MEMBER, "alive", 1, 0.0, 0.0, (say(name(index), identity(index)),))
        for index in range(3)
    }
    shared = Shared({**records, ME: Record(ME, Role.MEMBER, "alive", 1, 0.0, 0.0)})
    one, other = (Members(ME, MembershipOptions(), shared) for _ in range(2))
    assert len(one) == 3 and one.get(ME) is None and ME not in {record.node for record in one}
    one.change(name(0), "dead", 5.0)
    one.put(say(name(1), Dynamic(), 2), 5.0)
    assert other.get(name(0)) is records[name(0)] and records[name(0)].state == "alive"
    assert (one.present, other.present) == (2, 3)
    assert len(records[name(1)].statements) == 1
