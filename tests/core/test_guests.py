import random
from collections import deque

import pytest

from meshnode.core import guests as module
from meshnode.core.guests import SMALLEST_ANSWER, GuestLimits, Guests, Refused, Stranger, Visit, Window

LIMITS = GuestLimits(requests=3, tokens=1000, answer_tokens=200, at_once=2, prefix_share=2, near_share=4)


def stranger(number: int, prefix: str = "203.0.113.0/24", *, near: bool = False) -> Stranger:
    return Stranger(bytes([number]) * 32, prefix, near)


def entered(guests: Guests, who: Stranger, *, prompt: int = 10, wanted: int | None = None, now: float = 0.0) -> Visit:
    visit = guests.enter(who, prompt_tokens=prompt, wanted=wanted, now=now)
    assert isinstance(visit, Visit), visit
    return visit


def refused(guests: Guests, who: Stranger, *, prompt: int = 10, wanted: int | None = None, now: float = 0.0) -> Refused:
    found = guests.enter(who, prompt_tokens=prompt, wanted=wanted, now=now)
    assert isinstance(found, Refused), found
    return found


# --- windows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_no_span_ever_holds_more_than_the_bound(seed: int) -> None:
    chance, window, kept = random.Random(seed), Window(60.0), deque[tuple[float, int]]()
    now, refusals = 1000.0, 0
    for _ in range(3000):
        now += chance.expovariate(2.0)
        amount = chance.randrange(1, 5)
        if window.used(now) + amount > 50:
            refusals += 1
            continue
        window.add(amount, now)
        kept.append((now, amount))
        while kept[0][0] <= now - 60:
            kept.popleft()
        assert sum(amount for _, amount in kept) <= 50
    assert refusals > 100


def test_a_window_tells_when_there_is_room_again() -> None:
    window = Window(60.0)
    for second in range(10):
        window.add(1, 100.0 + second)
    assert window.used(110.0) == 10
    wait_s = window.wait_s(5, 110.0)
    assert window.used(110.0 + wait_s - 0.01) > 5 >= window.used(110.0 + wait_s)
    assert window.wait_s(10, 110.0) == 0
    assert window.used(1000.0) == 0
    assert len(window._cells) == 0


# --- one stranger ---------------------------------------------------------------------------------------------


def test_requests_a_minute_are_bounded_and_come_back() -> None:
    guests = Guests(LIMITS)
    assert [guests.knock(stranger(1), 0.0) for _ in range(3)] == [None] * 3
    no = guests.knock(stranger(1), 30.0)
    assert no is not None and no.reason == "requests" and "3 requests in a minute" in no.text
    assert guests.knock(stranger(1), 30.0 + no.retry_after_s) is None
    assert guests.facts()["reasons"] == {"requests": 1}


def test_an_answer_is_cut_to_what_strangers_get_and_to_what_is_asked_for() -> None:
    guests = Guests(LIMITS)
    assert entered(guests, stranger(1)).answer_tokens == 200
    assert entered(guests, stranger(1), wanted=100_000).answer_tokens == 200
    assert entered(guests, stranger(2), wanted=5).answer_tokens == 5
    assert entered(guests, stranger(2), wanted=0).answer_tokens == 0


def test_two_at_a_time_until_one_has_left() -> None:
    guests = Guests(LIMITS)
    visits = [entered(guests, stranger(1)) for _ in range(2)]
    no = refused(guests, stranger(1))
    assert (no.reason, "2 requests here at a time" in no.text) == ("concurrency", True)
    guests.leave(visits[0], tokens_in=10, tokens_out=20, served=True, now=1.0)
    entered(guests, stranger(1))
    facts = guests.facts()
    assert (facts["inside"], facts["served"], facts["tokens_in"], facts["tokens_out"]) == (2, 1, 10, 20)


def test_tokens_of_an_hour_are_promised_before_and_settled_after() -> None:
    guests = Guests(LIMITS)
    first = entered(guests, stranger(1), prompt=600)
    assert first.answer_tokens == 200
    second = entered(guests, stranger(1), prompt=100)
    assert second.answer_tokens == 100  # what is left besides what was promised
    guests.leave(first, tokens_in=600, tokens_out=10, served=True, now=10.0)
    guests.leave(second, tokens_in=100, tokens_out=100, served=True, now=10.0)
    last = entered(guests, stranger(1), prompt=100, now=20.0)
    assert last.answer_tokens == 90
    guests.leave(last, tokens_in=100, tokens_out=90, served=True, now=20.0)
    no = refused(guests, stranger(1), prompt=1, now=20.0)
    assert no.reason == "tokens" and f"needs {1 + SMALLEST_ANSWER} at least" in no.text
    assert 0 < no.retry_after_s <= 3600 + 60
    entered(guests, stranger(1), prompt=1, now=20.0 + no.retry_after_s)


def test_what_was_promised_and_not_used_is_given_back() -> None:
    guests = Guests(LIMITS)
    visit = entered(guests, stranger(1), prompt=800)
    no = refused(guests, stranger(1), prompt=1)
    assert no.reason == "tokens" and no.retry_after_s <= 60
    guests.leave(visit, tokens_in=0, tokens_out=0, served=False, now=1.0)
    assert entered(guests, stranger(1), prompt=700, now=2.0).answer_tokens == 200
    assert guests.facts()["served"] == 0


def test_a_prompt_that_no_hour_can_hold_is_refused_for_good() -> None:
    assert refused(Guests(LIMITS), stranger(1), prompt=5000).retry_after_s == 3600


# --- many -----------------------------------------------------------------------------------------------------


def test_ids_behind_one_prefix_share_what_a_few_strangers_may_have() -> None:
    guests = Guests(LIMITS)
    answers = [guests.knock(stranger(number), 0.0) for number in range(20)]
    assert [answer is None for answer in answers] == [True] * 6 + [False] * 14
    assert answers[6] is not None and "an address range" in answers[6].text
    assert guests.knock(stranger(99, "198.51.100.0/24"), 0.0) is None  # another prefix does not notice
    for number in range(4):
        entered(guests, stranger(number))
    assert refused(guests, stranger(9)).reason == "concurrency"


def test_tokens_of_a_prefix_are_bounded_too() -> None:
    guests = Guests(LIMITS)
    for number in range(2):
        visit = entered(guests, stranger(number), prompt=800)
        guests.leave(visit, tokens_in=800, tokens_out=200, served=True, now=0.0)
    assert refused(guests, stranger(3)).reason == "tokens"


def test_addresses_that_say_little_share_more() -> None:
    guests = Guests(LIMITS)
    answers = [guests.knock(stranger(number, "10.0.0.0/24", near=True), 0.0) for number in range(20)]
    assert [answer is None for answer in answers].count(True) == 12


def test_paused_refuses_whoever_comes_and_leaves_those_inside_alone() -> None:
    guests = Guests(LIMITS)
    visit = entered(guests, stranger(1))
    guests.paused = True
    no = guests.knock(stranger(2), 0.0)
    assert no is not None and no.reason == "paused"
    assert guests.facts()["inside"] == 1 and guests.facts()["paused"]
    guests.leave(visit, tokens_in=1, tokens_out=1, served=True, now=1.0)
    guests.paused = False
    assert guests.knock(stranger(2), 2.0) is None


def test_those_who_came_longest_ago_are_forgotten_but_none_that_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN", 4)
    guests = Guests(LIMITS)
    visit = entered(guests, stranger(0, "p0"))
    for number in range(1, 20):
        assert guests.knock(stranger(number, f"p{number}"), 0.0) is None
    assert guests.facts()["known"] == 4
    guests.leave(visit, tokens_in=900, tokens_out=100, served=True, now=1.0)
    assert refused(guests, stranger(0, "p0"), now=2.0).reason == "tokens"


def test_any_order_of_visits_keeps_the_books() -> None:
    chance, guests, inside = random.Random(7), Guests(LIMITS), list[Visit]()
    used: dict[bytes, deque[tuple[float, int]]] = {}
    now = 0.0
    for _ in range(4000):
        now += chance.expovariate(1 / 30)
        who = stranger(chance.randrange(4), f"p{chance.randrange(2)}")
        if inside and chance.random() < 0.5:
            visit = inside.pop(chance.randrange(len(inside)))
            tokens_out = chance.randrange(visit.answer_tokens + 1)
            guests.leave(visit, tokens_in=visit.prompt_tokens, tokens_out=tokens_out, served=True, now=now)
            used.setdefault(visit.stranger.node, deque()).append((now, visit.prompt_tokens + tokens_out))
        elif guests.knock(who, now) is None:
            visit_or_not = guests.enter(who, prompt_tokens=chance.randrange(300), wanted=None, now=now)
            if isinstance(visit_or_not, Visit):
                inside.append(visit_or_not)
        for node, spent in used.items():
            assert sum(tokens for at, tokens in spent if at > now - 3600) <= LIMITS.tokens, node
            assert sum(visit.stranger.node == node for visit in inside) <= LIMITS.at_once
    assert guests.facts()["inside"] == len(inside)
    assert {"requests", "tokens", "concurrency"} <= set(guests.facts()["reasons"])
