import pytest

from meshnode.core.effects import Dial
from meshnode.core.events import DialFailed, Learned, PeerDown, PeerUp, Received
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.address import Address
from meshnode.wire.messages import NeighbourReply, NeighbourRequest, Part, PeerEntry, ProbeAck
from meshnode.wire.statements import Coordinate, Dynamic
from tests.core.alone import Alone, identity, monitored_by, name, say

SMALL = MembershipOptions(full_mesh=4, back_to_full_mesh=3, random_neighbours=3, near_neighbours=1, most_neighbours=8)


def introduce(alone: Alone, peer: bytes, indexes: range) -> None:
    """A peer tells of members that watch each other."""
    watched = monitored_by(*(name(index) for index in indexes[:5]))
    for index in indexes:
        place = Coordinate((index * 1000, 0, 0, 0), 1000, 100)
        dynamic = Dynamic(monitors=watched.monitors, coordinate=place)
        alone.hear(peer, say(name(index), identity(index)), say(name(index), dynamic, 2))


def dialled(effects: list) -> list[bytes]:
    return [each.peer for each in effects if isinstance(each, Dial)]


def keep_alive(alone: Alone, for_s: float) -> list:
    found, end = [], alone.now + for_s
    while alone.now < end:
        found += alone.wait(0.3)
        for peer in list(alone.machine._context.linked):
            found += alone.give(Received(peer, ProbeAck(0)))
    return found


def test_in_a_small_mesh_everybody_is_dialled_and_a_neighbour() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    introduce(alone, peer, range(1, 6))
    effects = keep_alive(alone, 8)
    assert set(dialled(effects)) == {name(index) for index in range(1, 6)}
    for index in range(1, 6):
        alone.give(PeerUp(name(index), 0.01))
    assert alone.machine.snapshot().neighbours == {name(index) for index in range(6)}


def test_a_failed_dial_is_tried_again_with_growing_pauses() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    introduce(alone, peer, range(1, 2))
    times = []
    for _ in range(600):
        for target in dialled(keep_alive(alone, 0.3)):
            times.append(alone.now)
            alone.give(DialFailed(target))
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert pauses[0] < 3 and 15 < max(pauses) < 90


def test_a_lost_neighbour_is_dialled_at_once() -> None:
    alone = Alone()
    first, second = alone.meet(2)
    assert dialled(alone.give(PeerDown(first))) == [first]


def test_in_a_large_mesh_a_few_are_asked() -> None:
    alone = Alone(options=SMALL)
    peer = alone.meet(1)[0]
    introduce(alone, peer, range(1, 40))
    asked: set[bytes] = set()
    for _ in range(40):
        effects = keep_alive(alone, 0.5)
        for target in dialled(effects):
            effects += alone.give(PeerUp(target, 0.02))
        for target, _ in alone.sent(NeighbourRequest, effects):
            asked.add(target)
            alone.give(Received(target, NeighbourReply(True)))
    assert not alone.machine._overlay.is_full_mesh
    assert 4 <= len(alone.machine.snapshot().neighbours) <= 8
    assert len(asked) <= 12, "who has enough asks nobody"


def test_a_refusal_is_no_neighbour() -> None:
    alone = Alone(options=SMALL)
    names = alone.meet(6)
    for _ in range(20):
        for target, _ in alone.sent(NeighbourRequest, keep_alive(alone, 0.5)):
            alone.give(Received(target, NeighbourReply(target != names[5])))
    assert names[5] not in alone.machine.snapshot().neighbours


def test_answers_that_were_not_asked_for_change_nothing() -> None:
    alone = Alone(options=SMALL)
    alone.meet(8)
    keep_alive(alone, 20)
    stranger = name(50)
    alone.give(PeerUp(stranger, 0.02))
    assert not alone.machine._overlay.is_full_mesh
    alone.give(Received(stranger, NeighbourReply(True)))
    assert stranger not in alone.machine.snapshot().neighbours


def test_there_is_a_most_and_the_urgent_take_a_place() -> None:
    alone = Alone(options=SMALL)
    alone.meet(4)
    for index in range(4, 8):
        alone.give(PeerUp(name(index), 0.02))
    introduce(alone, name(0), range(4, 30))
    keep_alive(alone, 3)
    for index in range(10, 20):
        alone.give(PeerUp(name(index), 0.02))
        alone.give(Received(name(index), NeighbourRequest(False)))
    assert len(alone.machine.snapshot().neighbours) <= 8
    alone.give(PeerUp(name(25), 0.02))
    effects = alone.give(Received(name(25), NeighbourRequest(True)))
    assert alone.sent(NeighbourReply, effects) == [(name(25), NeighbourReply(True))]
    assert name(25) in alone.machine.snapshot().neighbours and len(alone.machine.snapshot().neighbours) <= 9


def test_who_parts_is_no_neighbour_but_linked() -> None:
    alone = Alone()
    first, second = alone.meet(2)
    alone.give(Received(first, Part()))
    assert alone.machine.snapshot().neighbours == {second}
    assert alone.machine.snapshot().members[first].linked


@pytest.mark.parametrize("minutes", [1, 8])
def test_the_dead_are_dialled_now_and_then(minutes: int) -> None:
    alone = Alone()
    alone.meet(2)
    alone.wait(25)
    assert alone.state(name(0)) == "dead"
    for index in range(2):
        alone.give(PeerDown(name(index)))
    alone.wait(60 * (minutes - 1))
    tried = 0
    for _ in range(120):
        for target in dialled(alone.wait(1.0)):
            tried += 1
            alone.give(DialFailed(target))
    assert 2 <= tried <= 60


def test_the_address_book_serves_who_has_nobody() -> None:
    alone = Alone()
    entries = tuple(PeerEntry(name(index), (Address("192.0.2.9", 1 + index),)) for index in range(5))
    alone.give(Learned(entries))
    found = alone.wait(10)
    assert set(dialled(found)) <= {entry.node for entry in entries} and dialled(found)
