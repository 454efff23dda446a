"""Honest nodes keep their name however often they are looked at; others lose it, sooner the further they are off."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from meshnode.core.verification import BAD, FLOOR, PLACES, Reputations, Scored, evidence_of, places_of


def told(shares: Sequence[float]) -> tuple[float, ...]:
    return tuple(math.log(share) for share in sorted(shares, reverse=True))


def distribution(chance: random.Random, words: int = 20) -> list[float]:
    """Shares of tokens as a model gives them: a few likely ones, a long tail."""
    weights = [math.exp(-chance.expovariate(0.4)) for _ in range(words)]
    return sorted((weight / sum(weights) for weight in weights), reverse=True)


def drawn(chance: random.Random, shares: Sequence[float], temperature: float) -> int:
    if temperature == 0:
        return max(range(len(shares)), key=lambda index: shares[index])
    return chance.choices(range(len(shares)), [share ** (1 / temperature) for share in shares])[0]


def answer(chance: random.Random, temperature: float, mixed: float, noise: float = 0.0) -> list[Scored]:
    """Places of one answer. With a chance of `mixed` a token comes of other weights; `noise` blurs the second node."""
    places = []
    for _ in range(PLACES):
        shares = distribution(chance)
        other = shares.copy()
        chance.shuffle(other)
        came = drawn(chance, other if chance.random() < mixed else shares, temperature)
        blurred = [math.log(share) + chance.gauss(0, noise) for share in shares]
        order = sorted(range(len(shares)), key=lambda index: -blurred[index])
        places.append(Scored(tuple(blurred[index] for index in order), (order.index(came),)))
    return places


# --- one place ------------------------------------------------------------------------------------------------


def test_a_place_of_which_nothing_was_told_counts_nothing() -> None:
    assert evidence_of(Scored((), ()), 0.8) == evidence_of(Scored((), ()), 0.0) == 0.0


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
def test_a_likely_token_speaks_for_a_node_and_an_unlikely_one_against_it(temperature: float) -> None:
    shares = told([0.9, 0.05, 0.03, 0.02])
    assert evidence_of(Scored(shares, (0,)), temperature) < 0 < evidence_of(Scored(shares, ()), temperature)
    assert evidence_of(Scored(shares, ()), temperature) >= evidence_of(Scored(shares, (3,)), temperature)


def test_one_place_alone_decides_nothing() -> None:
    for shares in ([1.0 - 1e-9, 1e-9], [0.5, 0.5], [0.05] * 20):
        for came in ((), (0,), (1,)):
            for temperature in (0.0, 1e-6, 1.0, 1e6):
                assert -1.0 <= evidence_of(Scored(told(shares), came), temperature) <= 3.0


def test_of_two_tokens_that_are_about_equal_either_may_come() -> None:
    assert evidence_of(Scored(told([0.5, 0.49, 0.01]), (1,)), 0.0) < 0


def test_tokens_that_begin_the_same_text_count_together() -> None:
    shares = told([0.97, 0.01, 0.01, 0.01])
    assert evidence_of(Scored(shares, (0, 1)), 1.0) != evidence_of(Scored(shares, (0,)), 1.0)
    assert evidence_of(Scored(shares, (1, 2)), 1.0) == pytest.approx(evidence_of(Scored(shares, (3,)), 1.0))


# --- many places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_an_honest_node_is_not_called_bad(temperature: float) -> None:
    chance = random.Random(7)
    book = Reputations(chance)
    for node in range(100):
        for _ in range(25):
            verdict = book.add(str(node), "w", answer(chance, temperature, 0.0, noise=0.02), temperature)
            assert verdict != "bad"
    good = sum(book.verdict(str(node)) == "good" for node in range(100))
    assert good > 75


@pytest.mark.parametrize(
    ("temperature", "mixed", "most"), [(0.0, 1.0, 2), (0.0, 0.3, 5), (1.0, 1.0, 3), (1.0, 0.3, 40)]
)
def test_a_node_with_other_weights_is_found_out(temperature: float, mixed: float, most: int) -> None:
    chance = random.Random(11)
    taken = []
    for node in range(50):
        book = Reputations(chance)
        count = 1
        while book.add(str(node), "w", answer(chance, temperature, mixed), temperature) != "bad":
            count += 1
            assert count < 200
        taken.append(count)
    assert sorted(taken)[45] <= most


def test_past_honesty_does_not_protect_for_long() -> None:
    chance = random.Random(3)
    book = Reputations(chance)
    for _ in range(1000):
        book.add("a", "w", answer(chance, 1.0, 0.0), 1.0)
    evidence = book.evidence("a", "w")
    assert evidence is not None and evidence.ratio >= FLOOR and evidence.answers == 1000
    assert any(book.add("a", "w", answer(chance, 1.0, 1.0), 1.0) == "bad" for _ in range(5))
    assert book.add("a", "w", answer(chance, 1.0, 0.0), 1.0) == "bad", "once found out, it stays so"
    book.forgive("a")
    assert book.verdict("a") == "unknown"


def test_weights_are_judged_apart_and_the_node_by_the_worst() -> None:
    chance = random.Random(5)
    book = Reputations(chance)
    for _ in range(20):
        book.add("a", "one", answer(chance, 1.0, 0.0), 1.0)
        book.add("a", "two", answer(chance, 1.0, 1.0), 1.0)
    one = book.evidence("a", "one")
    assert one is not None and one.verdict == "good"
    assert book.verdict("a") == "bad" and book.verdict("b") == "unknown"
    assert book.remembered() == [("a", "two")]
    later = Reputations(chance)
    later.recall(book.remembered())
    assert later.verdict("a") == "bad"
    found = later.evidence("a", "two")
    assert found is not None and found.ratio == BAD


# --- which answers, which places, how many nodes ---------------------------------------------------------------


def test_new_nodes_are_looked_at_always_and_known_ones_at_times() -> None:
    chance = random.Random(9)
    book = Reputations(chance)
    for _ in range(4):
        assert book.wants("a", "w")
        book.add("a", "w", answer(chance, 1.0, 0.0), 1.0)
    looked = sum(book.wants("a", "w") for _ in range(4000))
    assert 400 < looked < 600


def test_places_are_anywhere_in_order_and_not_more_than_there_are() -> None:
    chance = random.Random(1)
    assert places_of(3, chance) == [0, 1, 2] and places_of(0, chance) == []
    seen: set[int] = set()
    for _ in range(200):
        places = places_of(40, chance)
        assert len(places) == len(set(places)) == PLACES and places == sorted(places)
        seen.update(places)
    assert seen == set(range(40))


def test_a_crowd_of_names_does_not_push_out_those_that_were_found_out() -> None:
    chance = random.Random(2)
    book = Reputations(chance, most=10)
    book.recall([("bad", "w")])
    for number in range(100):
        book.add(str(number), "w", answer(chance, 1.0, 0.0), 1.0)
    assert book.verdict("bad") == "bad"
    assert sum(book.evidence(str(number), "w") is not None for number in range(100)) == 9


def test_a_node_that_claims_ever_more_weights_is_kept_within_bounds_and_stays_found_out() -> None:
    chance = random.Random(6)
    book = Reputations(chance)
    book.recall([("a", "first")])
    for number in range(500):
        book.add("a", str(number), answer(chance, 1.0, 0.0), 1.0)
    assert sum(book.evidence("a", str(number)) is not None for number in range(500)) < 64
    assert book.verdict("a") == "bad" and book.remembered() == [("a", "first")] and book.found_out == {"a"}
    book.forgive("a")
    assert book.verdict("a") == "unknown" and book.found_out == set()


def test_where_all_that_is_known_was_found_out_a_new_node_is_judged_all_the_same() -> None:
    chance = random.Random(8)
    book = Reputations(chance, most=3)
    book.recall([(name, "w") for name in "abc"])
    book.add("new", "w", answer(chance, 1.0, 0.0), 1.0)
    assert book.evidence("new", "w") is not None and book.found_out == {"b", "c"}
