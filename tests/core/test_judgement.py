import pytest

from meshnode.core.effects import Dial, SaveIncarnation
from meshnode.core.events import PeerDown, PeerSilent, PeerUp, Received
from meshnode.wire.messages import ProbeAck, Statements
from meshnode.wire.registry import StatementKind
from meshnode.wire.statements import Accuse, Dynamic, Leave, read
from tests.core.alone import ME, Alone, identity, monitored_by, name, say


def alive_but(alone: Alone, silent: set[bytes], for_s: float) -> None:
    """Let time pass while all linked peers but some give signs of life."""
    end = alone.now + for_s
    while alone.now < end:
        alone.wait(0.2)
        for peer in alone.machine._context.linked - silent:
            alone.give(Received(peer, ProbeAck(0)))


def accusations(alone: Alone, effects: list) -> list[bytes]:
    sent = [read(each) for _, message in alone.sent(Statements, effects) for each in message.statements]
    return [each.body.subject for each in sent if each.kind == StatementKind.ACCUSE and each.origin == ME]


def test_who_is_silent_is_missed_accused_unreachable_and_dead() -> None:
    alone = Alone()
    names = alone.meet(3, monitors=[0, 1, 2])
    alive_but(alone, {names[0]}, 2.5)
    member = alone.machine.snapshot().members[names[0]]
    assert not member.reachable
    assert alone.counts["accusations_made"] == 1
    assert member.state == "alive", "one of three is no quorum"
    alone.hear(names[1], say(names[1], Accuse(names[0], 1), 9))
    assert alone.state(names[0]) == "unreachable"
    alive_but(alone, {names[0]}, 5.0)
    assert alone.state(names[0]) == "unreachable"
    alive_but(alone, {names[0]}, 1.0)
    assert alone.state(names[0]) == "dead"


def test_a_mesh_of_two_needs_one_vote() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.wait(2.5)
    assert alone.state(peer) == "unreachable"
    alone.wait(6)
    assert alone.state(peer) == "dead"


def test_the_dead_return_with_a_greater_incarnation_only() -> None:
    alone = Alone()
    peer, other = alone.meet(2)
    alone.wait(25)
    assert alone.state(peer) == "dead"
    alone.give(PeerUp(other, 0.02))
    alone.hear(other, say(peer, Dynamic(), 99, incarnation=1))
    assert alone.state(peer) == "dead"
    told = [read(each) for _, message in alone.sent(Statements) for each in message.statements]
    assert [each.body.subject for each in told if each.kind == StatementKind.ACCUSE][-1] == peer
    alone.hear(other, say(peer, monitored_by(other), 1, incarnation=2))
    assert alone.state(peer) == "alive"


def test_an_answer_makes_the_unreachable_alive() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.wait(2.5)
    alone.hear(peer, say(peer, monitored_by(ME), 50, incarnation=1))
    assert alone.state(peer) == "unreachable", "the same incarnation is no answer"
    alone.hear(peer, say(peer, monitored_by(ME), 51, incarnation=2))
    assert alone.state(peer) == "alive"
    alive_but(alone, set(), 10)
    assert alone.state(peer) == "alive"


def test_only_monitors_count() -> None:
    alone = Alone()
    names = alone.meet(8, monitors=[0, 1, 2])
    for at, accuser in enumerate(names[4:8]):
        alone.hear(accuser, say(accuser, Accuse(names[0], 1), 9 + at))
    assert alone.state(names[0]) == "alive"
    assert alone.counts["accusations_by_others_than_monitors"] == 1, "one is passed on as a hint, no more"


def test_the_accused_answers_with_a_new_incarnation_that_is_saved_first() -> None:
    alone = Alone()
    names = alone.meet(5)
    alone.wait(0.6)
    monitors = alone.machine._own.monitors
    assert set(monitors) == {each[:8] for each in names}
    for at in (0, 1):
        effects = alone.hear(names[at], say(names[at], Accuse(ME, 1), 9))
    saved = effects.index(SaveIncarnation(2))
    assert all(
        alone.effects.index(each) > saved for each in effects if getattr(each, "message", None).__class__ is Statements
    )
    told = {peer for peer, _ in alone.sent(Statements)}
    assert told == set(names), "an answer is flooded"
    alone.hear(names[2], say(names[2], Accuse(ME, 1), 9))
    assert alone.machine.snapshot().members[ME].incarnation == 2, "the old incarnation needs no defence"


def test_who_misses_most_holds_its_accusations_but_not_for_ever() -> None:
    alone = Alone()
    names = alone.meet(6)
    silent = set(names[:5])
    alive_but(alone, silent, 8.0)
    assert alone.counts.get("accusations_made", 0) < 5
    assert alone.counts["accusations_held"] == 1
    alive_but(alone, silent, 8.0)
    assert alone.counts["accusations_made"] >= 5


def test_members_without_monitors_do_not_stay() -> None:
    alone = Alone()
    peer, far = alone.meet(1)[0], name(50)
    alone.hear(peer, say(far, identity(50)), say(far, monitored_by(name(90), name(91)), 2))
    silent = name(51)
    alone.hear(peer, say(silent, identity(51)))
    alive_but(alone, set(), 40)
    assert alone.state(far) == alone.state(silent) == "dead"
    assert alone.state(peer) == "alive"


def test_a_closed_link_is_no_proof() -> None:
    alone = Alone()
    names = alone.meet(3)
    effects = alone.give(PeerDown(names[0]))
    assert [each.peer for each in effects if isinstance(each, Dial)] == [names[0]]
    assert not alone.machine.snapshot().members[names[0]].reachable
    alone.give(PeerUp(names[0], 0.02))
    alone.wait(0.5)
    assert alone.machine.snapshot().members[names[0]].reachable
    assert "accusations_made" not in alone.counts


def test_the_transports_silence_is_a_local_miss() -> None:
    alone = Alone()
    names = alone.meet(3)
    alone.give(PeerSilent(names[0], True))
    assert not alone.machine.snapshot().members[names[0]].reachable
    alone.give(PeerSilent(names[0], False))
    assert alone.machine.snapshot().members[names[0]].reachable


def test_a_farewell_is_flooded_and_final() -> None:
    alone = Alone()
    names = alone.meet(4)
    alone.hear(names[0], say(names[0], Leave(), 30))
    assert alone.state(names[0]) == "left"
    assert {peer for peer, _ in alone.sent(Statements)} == set(names[1:])
    alone.hear(names[1], say(names[0], Dynamic(), 31))
    assert alone.state(names[0]) == "left"
    alone.hear(names[1], say(names[0], Dynamic(), 1, incarnation=2))
    assert alone.state(names[0]) == "alive"


def test_a_farewell_that_comes_late_does_not_end_the_next_life() -> None:
    alone = Alone()
    names = alone.meet(3)
    alone.hear(names[1], say(names[0], monitored_by(ME), 1, incarnation=2))
    alone.hear(names[1], say(names[0], Leave(), 30, incarnation=1))
    assert alone.state(names[0]) == "alive"


@pytest.mark.parametrize("lag_s", [3.0, 20.0])
def test_a_process_that_stood_still_accuses_nobody(lag_s: float) -> None:
    alone = Alone()
    names = alone.meet(5)
    alive_but(alone, set(), 2)
    alone.now += lag_s
    for peer in names:
        alone.give(Received(peer, ProbeAck(0)))
    alive_but(alone, set(), 3)
    assert "accusations_made" not in alone.counts
    assert alone.counts["loop_lags"] == 1


def test_tombstones_end() -> None:
    alone = Alone()
    names = alone.meet(2)
    alone.hear(names[0], say(names[0], Leave(), 30))
    alive_but(alone, set(), 5)
    alone.wait(620)
    assert alone.state(names[0]) is None
