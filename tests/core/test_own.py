import random
from dataclasses import replace

import pytest

from meshnode.core.context import Context
from meshnode.core.effects import Counted, SaveIncarnation
from meshnode.core.members import Members
from meshnode.core.own import FORMER_MONITOR_S, OwnStatements
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.registry import LIMIT_STATEMENT_BYTES, Role, StatementKind
from meshnode.wire.statements import (
    ClaimState,
    Coordinate,
    Demand,
    Device,
    Dynamic,
    Offer,
    PlanClaim,
    Wish,
    is_genuine,
    read,
)
from tests.core.alone import ME, identity, name, say, sign_as

HERE = Coordinate((1, 2, 3, 4), 5, 6)


def own(members: int = 1) -> OwnStatements:
    options = MembershipOptions()
    table = Members(ME, options)
    for index in range(members - 1):
        table.admit(say(name(index), identity(index)), Role.MEMBER, 0.0)
    context = Context(ME, options, random.Random(1), table)
    return OwnStatements(context, incarnation=3, sign=lambda message: sign_as(ME, message), now=0.0)


def edges(*indexes: int) -> dict[bytes, float | None]:
    return {name(index): 0.01 * (index + 1) for index in indexes}


def test_statements_are_signed_and_numbers_grow() -> None:
    mine = own()
    first, second = mine.say(Dynamic(), 0.0), mine.accuse(name(1), 7, 0.0)
    assert first is not None and is_genuine(read(first.signed), lambda *given: given[1] == sign_as(given[0], given[2]))
    assert (3, 1) == first.order < second.order == (3, 2)
    assert StatementKind.ACCUSE not in mine.statements


def test_a_new_incarnation_is_saved_before_it_is_used() -> None:
    mine = own()
    mine.raise_incarnation(3)
    assert mine._context.out.take() == [SaveIncarnation(4)]
    mine.raise_incarnation(9)
    assert mine.incarnation == 10
    answer = mine.answer(edges(1), HERE, 0.0)
    assert answer is not None and answer.incarnation == 10


def test_who_it_is_is_said_at_once_and_once() -> None:
    mine = own()
    assert len(mine.want(identity(), 0.0)) == 1
    assert mine.want(identity(), 1.0) == []
    assert len(mine.want(identity(5), 2.0)) == 1


def test_load_waits_a_moment_and_carries_what_the_machine_knows() -> None:
    mine = own()
    load = Dynamic((Device("gpu", 9, 8),), (), (b"forged00",))
    assert mine.want(load, 0.0) == []
    assert mine._context.deadlines.next_at() == pytest.approx(MembershipOptions().settle_s)
    (said,) = mine.due(edges(2, 1), HERE, 0.5)
    assert said.body.devices == load.devices
    assert set(said.body.monitors) == {name(1)[:8], name(2)[:8]}
    assert said.body.coordinate == HERE
    assert [each.rtt_us for each in said.body.neighbours] == [20_000, 30_000]


def test_the_mesh_shares_its_rate() -> None:
    mine = own(members=120)
    said = 0
    for second in range(600):
        mine.want(Dynamic((Device("gpu", 9, second % 7),)), float(second))
        said += len(mine.due(edges(1, 2, 3), HERE, second + 0.5))
    assert 600 / 20 <= said <= 600 / 15


def test_what_is_not_new_is_repeated_seldom() -> None:
    mine = own()
    mine.want(Dynamic(), 0.0)
    said = [at for at in range(100) if mine.due(edges(1), HERE, float(at))]
    assert said == [0, 30, 60, 90]


def test_demand_is_said_when_it_changes() -> None:
    mine = own()
    mine.due(edges(1), HERE, 0.0)
    mine.want(Demand((Wish("m", 5),)), 1.0)
    (said,) = mine.due(edges(1), HERE, 2.0)
    assert said.body == Demand((Wish("m", 5),))
    assert all(each.kind != StatementKind.DEMAND for at in range(3, 80) for each in mine.due(edges(1), HERE, float(at)))


def test_monitors_stay_while_they_can() -> None:
    mine = own()
    mine.due(edges(*range(12)), HERE, 0.0)
    first = set(mine.monitors)
    assert len(first) == 8
    mine.due(edges(*range(1, 12)), HERE, 100.0)
    assert len(set(mine.monitors) & first) == 7 and name(0)[:8] not in mine.monitors
    assert mine.may_accuse(name(0), 100.0 + FORMER_MONITOR_S / 2)
    assert not mine.may_accuse(name(0), 101.0 + FORMER_MONITOR_S)
    assert not mine.may_accuse(name(50), 100.0)


def test_without_monitors_it_does_not_wait_for_its_turn() -> None:
    mine = own(members=1000)
    for second in range(5):
        mine.want(Dynamic((Device("gpu", 9, second),)), 0.0)
        mine.due(edges(1, 2, 3), HERE, 0.0)
    assert mine.due(edges(1, 2, 3, 4), HERE, 0.1) == []
    (said,) = mine.due(edges(7, 8, 9), HERE, 0.2)
    assert name(7)[:8] in said.body.monitors


def test_a_claim_is_news_and_outlasts_what_matters_less() -> None:
    mine = own()
    claim = PlanClaim(bytes(16), b"c" * 16, 3, ClaimState.CLAIMING, (name(1)[:8],) * 16)
    offers = tuple(Offer(f"m{at}" + "x" * 60, bytes(16), 1, 1, 1, names=("a" * 60,) * 4) for at in range(16))
    mine.want(Dynamic((), offers), 0.0)
    mine.due(edges(1), HERE, 0.0)
    mine.want(Dynamic((), offers, claims=(claim,), weights=(b"w" * 16,) * 16, rpc=7 << 16), 1.0)
    (said,) = mine.due(edges(1), HERE, 2.0)
    assert said.body.claims == (replace(claim, workers=()),) and said.body.rpc == 7 << 16
    assert said.body.weights == () and len(said.body.models) >= 5
    mine.want(Dynamic((), offers[:7], claims=(claim,), weights=(b"w" * 16,) * 16), 3.0)
    (said,) = mine.due(edges(1), HERE, 4.0)
    assert said.body.claims == (claim,) and len(said.body.weights) == 4


def test_too_large_a_load_is_cut_until_it_fits() -> None:
    mine = own()
    offers = tuple(Offer(f"m{at}" + "x" * 60, bytes(16), 1, 1, 1, names=("a" * 60,) * 4) for at in range(16))
    mine.want(Dynamic((), offers), 0.0)
    (said,) = mine.due(edges(*range(8)), HERE, 0.0)
    assert len(said.signed) <= LIMIT_STATEMENT_BYTES
    assert len(said.body.models) >= 5 and said.body.monitors
    assert Counted("statements_shortened") in mine._context.out.take()
