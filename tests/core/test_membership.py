import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.core.effects import Close, MemberChanged
from meshnode.core.events import (
    DialFailed,
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
from meshnode.core.membership import COORDINATE_EVERY
from meshnode.wire import messages
from meshnode.wire.messages import MESSAGES, Probe, ProbeAck, Statements
from meshnode.wire.registry import Close as Code
from meshnode.wire.registry import StatementKind
from meshnode.wire.statements import Accuse, Coordinate, Demand, Dynamic, Leave, Wish, read
from tests.core.alone import ME, Alone, identity, monitored_by, name, say


def test_the_snapshot_has_this_node_and_all_others() -> None:
    alone = Alone()
    alone.give(Publish(Demand((Wish("m", 5),))))
    names = alone.meet(3)
    alone.wait(1)
    snapshot = alone.machine.snapshot()
    assert set(snapshot.members) == {ME, *names} and snapshot.node == ME
    myself, other = snapshot.members[ME], snapshot.members[names[0]]
    assert myself.identity == identity() and myself.demand == Demand((Wish("m", 5),)) and myself.rtt_s == 0.0
    assert (other.state, other.linked, other.reachable, other.rtt_s) == ("alive", True, True, 0.02)
    assert other.identity == identity(0) and other.heard_at >= 100.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        other.state = "dead"  # type: ignore[misc]


def test_signed_statements_can_be_had() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    known = alone.machine.statement(peer, StatementKind.DYNAMIC)
    assert known is not None and read(known.signed).origin == peer
    assert alone.machine.statement(ME, StatementKind.IDENTITY) is not None
    assert alone.machine.statement(name(9), StatementKind.IDENTITY) is None


def test_probes_are_answered_some_with_the_coordinate() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    answers = []
    for number in range(1, 1 + COORDINATE_EVERY):
        alone.give(Received(peer, Probe(number)))
        ((to, answer),) = alone.sent(ProbeAck)
        assert to == peer and answer.number == number
        answers.append(answer.coordinate)
    assert sum(each is not None for each in answers) == 1


def test_distances_are_estimated_from_coordinates() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    place = Coordinate((50_000, 0, 0, 0), 1000, 100)
    alone.hear(peer, say(peer, Dynamic(monitors=monitored_by(ME).monitors, coordinate=place), 5))
    estimate_s = alone.machine.snapshot().members[peer].estimated_rtt_s
    assert estimate_s is not None and 0.09 < estimate_s < 0.12


def test_a_measured_round_trip_is_shown() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.give(RttMeasured(peer, 0.007))
    alone.give(RttMeasured(name(8), 0.007))
    assert alone.machine.snapshot().members[peer].rtt_s == 0.007


def test_a_new_peer_is_told_who_this_is() -> None:
    alone = Alone()
    alone.give(PeerUp(name(0), 0.02))
    (told,) = [message for _, message in alone.sent(Statements)]
    assert [read(each).kind for each in told.statements] == [StatementKind.IDENTITY]


def test_leaving_is_flooded_and_the_end() -> None:
    alone = Alone()
    names = alone.meet(3)
    effects = alone.give(LeaveAsked())
    sent = {to: read(message.statements[-1]).kind for to, message in alone.sent(Statements, effects)}
    assert sent == dict.fromkeys(names, StatementKind.LEAVE)
    assert alone.give(Received(names[0], Probe(1))) == []
    assert alone.machine.snapshot().members[ME].state == "left"


def test_there_is_one_timer_and_it_is_always_set() -> None:
    alone = Alone()
    alone.meet(3)
    for _ in range(300):
        assert alone.timer_at is not None
        alone.now, alone.timer_at = max(alone.now, alone.timer_at), None
        alone.give(TimerFired("membership"))


def test_a_lag_is_counted_once_however_often_it_is_noticed() -> None:
    alone = Alone()
    names = alone.meet(4)
    alone.wait(1)
    alone.now += 5
    alone.give(LoopLag(5.0))
    alone.give(LoopLag(5.0))
    alone.give(Received(names[0], ProbeAck(0)))
    assert alone.counts["loop_lags"] == 1


def test_messages_without_a_link_are_dropped() -> None:
    alone = Alone()
    alone.give(Received(name(3), Probe(1)))
    assert alone.sent(ProbeAck) == [] and alone.counts["messages_without_a_link"] == 1


def test_a_flood_of_messages_ends_the_link() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    for number in range(5000):
        if Close(peer, Code.FLOOD) in alone.give(Received(peer, Probe(number))):
            break
    assert number < 2500
    assert not alone.machine.snapshot().members[peer].linked


def test_changes_are_told() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    assert MemberChanged(peer, "alive") in alone.give(PeerSilent(peer, True))
    assert MemberChanged(peer, "left") in alone.hear(peer, say(peer, Leave(), 9))


SHAPES = [shape for shape in MESSAGES.values() if shape not in (messages.Hello, messages.Welcome)]
NAMES = st.integers(0, 5).map(name) | st.just(ME)
BODIES = st.one_of(
    st.builds(identity, st.integers(0, 5)),
    st.builds(monitored_by, NAMES, NAMES),
    st.just(Demand()),
    st.just(Leave()),
    st.builds(Accuse, NAMES, st.integers(0, 3)),
)
SAID = st.builds(say, NAMES, BODIES, st.integers(0, 9), st.integers(0, 3) | st.just((1 << 63) - 1), st.none() | NAMES)
IDS = st.lists(st.binary(min_size=10, max_size=10), min_size=1, max_size=4).map(tuple)
RECEIVED: st.SearchStrategy[Any] = st.one_of(
    st.lists(SAID.map(lambda each: each.signed) | st.binary(min_size=1, max_size=90), max_size=5).map(
        lambda each: Statements(tuple(each))
    ),
    st.builds(Probe, st.integers(0, 9)),
    st.builds(ProbeAck, st.integers(0, 9), st.none() | st.builds(Coordinate, st.just((1, -1)), st.just(0), st.just(0))),
    st.builds(messages.IHave, IDS),
    st.builds(messages.Graft, IDS),
    st.just(messages.Prune()),
    st.binary(min_size=2048, max_size=2048).map(messages.Digest),
    st.builds(messages.Bucket, st.binary(min_size=1, max_size=256), st.binary(max_size=60)),
    st.builds(messages.Want, IDS),
    st.builds(messages.NeighbourRequest, st.booleans(), st.booleans()),
    st.builds(messages.NeighbourReply, st.booleans()),
    st.just(messages.Part()),
    st.just(messages.Subscribe(1)),
    st.just(messages.View(())),
)
EVENTS = st.one_of(
    st.builds(Received, NAMES, RECEIVED),
    st.builds(Received, NAMES, RECEIVED),
    st.builds(PeerUp, NAMES, st.none() | st.just(0.05)),
    st.builds(PeerDown, NAMES),
    st.builds(DialFailed, NAMES),
    st.builds(PeerSilent, NAMES, st.booleans()),
    st.builds(LoopLag, st.floats(0, 9)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.01, 1.0, 7.0])), max_size=40))
def test_nothing_that_peers_do_raises_or_brings_back_the_dead(steps: list[tuple[Any, float]]) -> None:
    alone = Alone()
    alone.meet(3)
    buried: dict[bytes, int] = {}
    for event, pause_s in steps:
        alone.give(event)
        alone.wait(pause_s)
        for node, member in alone.machine.snapshot().members.items():
            if member.state in ("dead", "left"):
                buried[node] = member.incarnation
            elif node in buried:
                assert member.incarnation > buried.pop(node)
        assert alone.machine.snapshot().members[ME].incarnation <= 1 + len(steps) + 1000
