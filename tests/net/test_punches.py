import pytest

from meshnode.net.address import SocketAddress
from meshnode.net.detours import SIDE_PORT, new_name
from meshnode.net.punches import (
    ANSWER,
    ANSWERS_PER_S,
    MOST_ANSWERS_AT_ONCE,
    MOST_REFLEXIVE,
    MOST_TARGETS,
    PUNCH,
    PUNCH_BYTES,
    Attempt,
    is_ipv6_name,
    nonce_of,
)

NONCE = bytes(range(16))
HERE: SocketAddress = ("::ffff:11.7.1.2", 4000, 0, 0)
THERE: SocketAddress = ("::ffff:11.7.2.2", 5000, 0, 0)
ELSEWHERE: SocketAddress = ("::ffff:11.7.2.2", 6000, 0, 0)


def attempt(*targets: SocketAddress, opens: bool = True, nonce: bytes = NONCE, key: bytes = b"key") -> Attempt:
    return Attempt(nonce, key, targets, opens=opens, now=0.0)


def test_two_ends_confirm_each_other() -> None:
    one, other = attempt(THERE), attempt(HERE, opens=False, key=b"another")
    punch = one.punch(THERE)
    assert len(punch) == PUNCH_BYTES and punch[0] == PUNCH and nonce_of(punch) == NONCE
    assert other.concerns(punch) and not one.concerns(punch)
    reply = other.receive(punch, HERE, 0.1)
    assert len(reply.answers) == 1 and not reply.confirmed
    answer = reply.answers[0]
    assert answer[0] == ANSWER and len(answer) == PUNCH_BYTES, "no longer than what it answers"
    assert one.concerns(answer) and one.receive(answer, THERE, 0.2).confirmed


def test_an_answer_from_elsewhere_proves_nothing_but_shows_an_address() -> None:
    one, other = attempt(THERE), attempt(HERE, opens=False)
    answer = other.receive(one.punch(THERE), HERE, 0.0).answers[0]
    reply = one.receive(answer, ELSEWHERE, 0.0)
    assert not reply.confirmed and one.targets == (THERE, ELSEWHERE)
    assert reply.answers == (one.punch(ELSEWHERE),), "which is tried at once"
    again = other.receive(one.punch(ELSEWHERE), HERE, 0.0).answers[0]
    assert one.receive(again, ELSEWHERE, 0.0).confirmed


def test_a_punch_from_a_new_address_is_answered_and_the_address_tried() -> None:
    one, other = attempt(THERE), attempt(opens=False)
    reply = other.receive(one.punch(THERE), HERE, 0.0)
    assert [data[0] for data in reply.answers] == [ANSWER, PUNCH] and other.targets == (HERE,)
    assert [data[0] for data in other.receive(one.punch(THERE), HERE, 0.0).answers] == [ANSWER]


def test_what_does_not_concern_an_attempt() -> None:
    one, other = attempt(THERE), attempt(HERE, opens=False)
    good = other.punch(HERE)
    assert one.concerns(good)
    wrong = [
        one.punch(THERE),  # its own, from a mirror or from itself
        attempt(HERE, opens=False, nonce=bytes(16)).punch(HERE),
        good[:-1],
        good + b"x",
        good[:1],
        b"\x03" + good[1:],
        good[:17] + b"\x02" + good[18:],
    ]
    assert [one.concerns(data) for data in wrong] == [False] * len(wrong)


def test_a_tag_is_of_no_use_at_another_address_or_for_another_attempt() -> None:
    one = attempt(THERE, ELSEWHERE)
    tags = {one.punch(THERE)[-8:], one.punch(ELSEWHERE)[-8:], attempt(THERE, key=b"new").punch(THERE)[-8:]}
    assert len(tags) == 3 and one.punch(None)[-8:] == bytes(8)


def test_answers_are_bounded() -> None:
    one, other = attempt(THERE), attempt(HERE, opens=False)
    punch = one.punch(THERE)
    count = sum(len(other.receive(punch, HERE, 1.0).answers) for _ in range(1000))
    assert count == MOST_ANSWERS_AT_ONCE
    count = sum(len(other.receive(punch, HERE, 1.0 + step / 1000).answers) for step in range(1000))
    assert count <= ANSWERS_PER_S + 1


def test_targets_are_bounded() -> None:
    other = attempt(*[("10.0.0.1", port) for port in range(1, 100)], opens=False)
    assert len(other.targets) == MOST_TARGETS
    one = attempt(THERE)
    for port in range(1000, 2000):
        other.receive(one.punch(THERE), ("10.0.0.2", port), 0.0)
    assert len(other.targets) == MOST_TARGETS + MOST_REFLEXIVE


def test_ipv6_goes_first_and_nothing_goes_twice() -> None:
    sixth: SocketAddress = ("2001:db8::1", 5000, 0, 0)
    assert attempt(THERE, sixth, THERE).targets == (sixth, THERE)
    assert [is_ipv6_name(name) for name in (sixth, THERE, ("10.0.0.1", 1))] == [True, False, False]
    assert not is_ipv6_name(new_name(SIDE_PORT)), "a side socket is an IPv4 one"


@pytest.mark.parametrize("nonce", [b"", bytes(15), bytes(17)])
def test_a_nonce_of_another_length(nonce: bytes) -> None:
    with pytest.raises(ValueError):
        attempt(THERE, nonce=nonce)
