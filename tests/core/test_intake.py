import pytest

from meshnode.core.events import PeerUp, Received
from meshnode.core.intake import CHECKS_A_CALL
from meshnode.wire.messages import Statements
from meshnode.wire.registry import LIMIT_STATEMENTS_A_FRAME, Close
from meshnode.wire.statements import Accuse, Demand, Dynamic, Identity, Leave, Wish
from tests.core.alone import ME, Alone, identity, monitored_by, name, say


def test_what_is_genuine_is_believed_and_passed_on() -> None:
    alone = Alone()
    first, second, third = alone.meet(3)
    effects = alone.hear(first, say(second, Dynamic(), 7))
    assert alone.machine.snapshot().members[second].dynamic == Dynamic()
    assert {peer for peer, _ in alone.sent(Statements, effects)} == {second, third}


@pytest.mark.parametrize("number, incarnation", [(1, 1), (2, 1), (9, 0)])
def test_what_is_not_newer_changes_nothing(number: int, incarnation: int) -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    before = alone.machine.snapshot().members[peer].dynamic
    alone.hear(peer, say(peer, Dynamic(), number, incarnation))
    assert alone.machine.snapshot().members[peer].dynamic == before


def test_a_forgery_closes_the_link_and_bans() -> None:
    alone = Alone()
    first, second = alone.meet(2)
    alone.hear(first, say(second, Dynamic(), 9, signer=first))
    assert alone.closed() == {first: Close.PROTOCOL_ERROR}
    assert alone.counts["statements_forged"] == 1
    alone.give(PeerUp(first))
    assert alone.closed() == {first: Close.BANNED}
    alone.wait(601)
    alone.give(PeerUp(first))
    assert alone.closed() == {}


@pytest.mark.parametrize("junk", [b"x", b"\0" * 64 + b"\xc1", say(ME, Leave()).signed[:-1]])
def test_what_nobody_can_read_closes_the_link(junk: bytes) -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.give(Received(peer, Statements((junk,))))
    assert alone.closed() == {peer: Close.PROTOCOL_ERROR}
    assert alone.counts["statements_malformed"] == 1


def test_origins_must_be_known_first() -> None:
    alone = Alone()
    peer, stranger = alone.meet(1)[0], name(77)
    alone.hear(peer, say(stranger, Dynamic(), 5))
    alone.hear(peer, say(stranger, Accuse(peer, 1), 6))
    assert alone.state(stranger) is None
    assert alone.counts["statements_of_strangers"] == 1 and alone.counts["accusations_by_strangers"] == 1
    alone.hear(peer, say(stranger, identity(77), 1), say(stranger, Dynamic(), 5))
    assert alone.state(stranger) == "alive"


def test_who_is_not_admitted_does_not_enter() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.hear(peer, say(name(5), Identity(b"x" * 80)))
    assert alone.state(name(5)) is None
    assert alone.closed() == {} and alone.counts["identities_not_admitted"] == 1


@pytest.mark.parametrize("incarnation, believed", [(1001, True), (1002, False), ((1 << 63) - 1, False)])
def test_an_incarnation_does_not_jump(incarnation: int, believed: bool) -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.hear(peer, say(peer, Dynamic(), 1, incarnation))
    assert (alone.machine.snapshot().members[peer].incarnation == incarnation) is believed
    assert alone.counts.get("incarnations_from_the_future", 0) == (not believed)


def test_an_origin_that_says_too_much_is_not_passed_on() -> None:
    alone = Alone()
    peer, other = alone.meet(2)
    for number in range(10, 30):
        alone.hear(peer, say(other, Demand((Wish("m", number),)), number))
    assert alone.counts["statements_too_frequent"] == 15
    assert alone.closed() == {}


def test_a_flood_closes_the_link() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    for number in range(0, 48 * 60, 48):
        alone.hear(peer, *(say(peer, Dynamic(), 10 + number + at) for at in range(48)))
        if alone.closed():
            break
    assert alone.closed() == {peer: Close.FLOOD}
    assert alone.counts["statements_over_budget"] > 1000


def test_checks_of_one_call_are_bounded_and_the_rest_follows() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    everybody = [say(name(index), identity(index)) for index in range(100, 100 + 2 * LIMIT_STATEMENTS_A_FRAME)]
    checks = 0
    genuine = alone.machine._intake._verify

    def verify(key: bytes, given: bytes, message: bytes) -> bool:
        nonlocal checks
        checks += 1
        return genuine(key, given, message)

    alone.machine._intake._verify = verify
    for at in range(0, len(everybody), LIMIT_STATEMENTS_A_FRAME):
        checks = 0
        alone.hear(peer, *everybody[at : at + LIMIT_STATEMENTS_A_FRAME])
        assert checks <= CHECKS_A_CALL
    alone.wait(0.1)
    assert len(alone.machine.snapshot().members) == 2 + len(everybody)


def test_own_words_of_another_life_raise_the_incarnation() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.hear(peer, say(ME, monitored_by(peer), 500, incarnation=7))
    assert alone.machine.snapshot().members[ME].incarnation == 8
    alone.hear(peer, say(ME, monitored_by(peer), 1, incarnation=5000))
    assert alone.machine.snapshot().members[ME].incarnation == 8


def test_what_is_known_already_is_not_passed_on() -> None:
    alone = Alone()
    first, second = alone.meet(2)
    news = say(first, Dynamic(), 9)
    assert alone.sent(Statements, alone.hear(first, news))
    assert alone.sent(Statements, alone.hear(second, news)) == []
