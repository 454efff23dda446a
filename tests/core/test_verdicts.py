import pytest

from meshnode.core.members import Members
from meshnode.core.tuning import MembershipOptions
from meshnode.core.verdicts import VOTES_A_MEMBER, Verdicts, quorum
from meshnode.wire.registry import Role
from meshnode.wire.statements import Accuse
from tests.core.alone import ME, identity, monitored_by, name, say

OPTIONS = MembershipOptions()


@pytest.mark.parametrize("monitors, needed", [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (16, 3)])
def test_quorum(monitors: int, needed: int) -> None:
    assert quorum(monitors) == needed


def mesh(monitors: int) -> tuple[Members, Verdicts]:
    """The member 0 is watched by the members 1 to `monitors`."""
    members = Members(ME, OPTIONS)
    for index in range(monitors + 1):
        members.admit(say(name(index), identity(index)), Role.MEMBER, 0.0)
    members.put(say(name(0), monitored_by(*(name(index) for index in range(1, monitors + 1))), 2), 0.0)
    return members, Verdicts(ME, OPTIONS)


def reached(members: Members, verdicts: Verdicts, now: float) -> bool:
    record = members.get(name(0))
    assert record is not None
    return verdicts.is_reached(record, members, now)


def test_a_quorum_of_monitors() -> None:
    members, verdicts = mesh(6)
    for index in (1, 2, 3):
        assert not reached(members, verdicts, 1.0)
        assert verdicts.vote(say(name(index), Accuse(name(0), 1), 5), 1.0)
    assert reached(members, verdicts, 1.0)
    assert reached(members, verdicts, 1.0 + OPTIONS.vote_s)
    assert not reached(members, verdicts, 1.1 + OPTIONS.vote_s), "votes lapse"


def test_the_same_one_votes_once() -> None:
    members, verdicts = mesh(6)
    vote = say(name(1), Accuse(name(0), 1), 5)
    assert verdicts.vote(vote, 1.0) and verdicts.known(vote)
    assert not verdicts.vote(vote, 1.0)
    for number in (6, 7):
        assert verdicts.vote(say(name(1), Accuse(name(0), 1), number), 1.0)
    assert not reached(members, verdicts, 1.0)


def test_others_than_monitors_have_no_vote() -> None:
    members, verdicts = mesh(6)
    for index in (10, 11, 12, 13):
        verdicts.vote(say(name(index), Accuse(name(0), 1), 5), 1.0)
    assert not reached(members, verdicts, 1.0)


def test_fewer_are_needed_when_monitors_are_gone() -> None:
    members, verdicts = mesh(6)
    verdicts.vote(say(name(1), Accuse(name(0), 1), 5), 1.0)
    for index in (2, 3, 4):
        members.change(name(index), "dead", 1.0)
    assert not reached(members, verdicts, 1.0), "three are left: two must agree"
    members.change(name(5), "unreachable", 1.0)
    assert reached(members, verdicts, 1.0)


def test_votes_are_for_one_incarnation() -> None:
    members, verdicts = mesh(2)
    verdicts.vote(say(name(1), Accuse(name(0), 1), 5), 1.0)
    members.put(say(name(0), monitored_by(name(1)), 1, incarnation=2), 1.0)
    assert not reached(members, verdicts, 1.0)
    assert verdicts.accusations(name(0), 2) == []
    verdicts.clear(name(0), 2)
    assert verdicts.subjects == []


def test_the_accused_answers_one_vote_before_the_quorum() -> None:
    verdicts = Verdicts(ME, OPTIONS)
    monitors = tuple(name(index)[:8] for index in range(6))
    assert not verdicts.must_answer(1, monitors, 1.0)
    verdicts.vote(say(name(1), Accuse(ME, 1), 5), 1.0)
    assert not verdicts.must_answer(1, monitors, 1.0)
    verdicts.vote(say(name(2), Accuse(ME, 1), 5), 1.0)
    assert verdicts.must_answer(1, monitors, 1.0)
    assert not verdicts.must_answer(2, monitors, 1.0)
    assert not verdicts.must_answer(1, monitors, 100.0)


def test_votes_are_bounded() -> None:
    verdicts = Verdicts(ME, OPTIONS)
    counted = sum(verdicts.vote(say(name(index), Accuse(ME, 1), 5), 1.0) for index in range(100))
    assert counted == VOTES_A_MEMBER == len(verdicts.accusations(ME, 0))
    verdicts.forget(ME)
    assert verdicts.subjects == []
