"""The choice of how far to guess: against brute force, a simulated stream of passes, and its own thresholds."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.speculation import (
    KEEPS_WITHIN,
    MOST_GUESSES,
    RESUMES_FROM,
    STARTS_FROM,
    Acceptance,
    Costs,
    Guesser,
    Kind,
    choose,
)

NEAR = Costs(token_s=0.010, extra_s=0.0005, draft_s=0.001)
PROCESSOR = Costs(token_s=0.041, extra_s=0.0167, batch_s=0.033)
FAR = replace(PROCESSOR, delay_s=0.060)
GOOD = Acceptance.constant(0.8)

seconds = st.floats(1e-5, 1.0)
costs = st.builds(Costs, seconds, seconds, batch_s=seconds, draft_s=seconds, delay_s=seconds)
chances = st.floats(0.0, 1.0)
guessers = st.builds(
    Guesser,
    st.sampled_from(["draft", "ngram"]),
    chances.map(Acceptance.constant),
    costs,
    share=st.floats(0.01, 1.0),
    least=st.integers(1, 4),
    most=st.integers(4, MOST_GUESSES),
)


# --- acceptance ---------------------------------------------------------------------------------------------------


def test_rates_beyond_what_was_measured_fall_on() -> None:
    measured = Acceptance((0.8, 0.6, 0.3))
    assert measured.at(2) == 0.3
    assert measured.at(4) == pytest.approx(0.3 * 0.5**2)
    assert Acceptance((0.5,)).at(2) == pytest.approx(0.125)
    assert Acceptance(()).at(0) == 0.0
    assert Acceptance((0.5, 0.0)).at(9) == 0.0


@given(chances, st.integers(0, 32))
def test_what_a_pass_yields_on_average(chance: float, length: int) -> None:
    """Equation 1 of the paper: (1 - a^(n+1)) / (1 - a)."""
    expected = length + 1 if chance == 1 else (1 - chance ** (length + 1)) / (1 - chance)
    assert Acceptance.constant(chance).expected(length) == pytest.approx(expected, rel=1e-6)


@given(st.floats(0.01, 0.99), st.integers(1, 16))
def test_a_chance_is_found_again_from_the_mean(chance: float, length: int) -> None:
    mean = Acceptance.constant(chance).expected(length) - 1
    assert Acceptance.of_mean(mean, length).at(0) == pytest.approx(chance, abs=1e-6)


# --- costs --------------------------------------------------------------------------------------------------------


def test_the_delay_of_a_split_is_paid_once_a_pass() -> None:
    assert FAR.pass_s(0) == pytest.approx(0.101)
    assert FAR.pass_s(8) - FAR.pass_s(4) == pytest.approx(4 * 0.0167)
    assert FAR.pass_s(8) - PROCESSOR.pass_s(8) == pytest.approx(0.060)


@given(costs, st.integers(1, 16), st.floats(1.01, 5.0), st.floats(1.0, 9.0))
def test_calibrated_costs_give_what_was_measured(given_costs: Costs, length: int, slower: float, extra: float) -> None:
    plain_s = given_costs.pass_s(0) * slower
    drafted_s = plain_s + (length + 1) * given_costs.draft_s + extra
    found = given_costs.calibrated(plain_s=plain_s, length=length, drafted_s=drafted_s)
    assert found.pass_s(0) == pytest.approx(plain_s)
    assert found.pass_s(length) == pytest.approx(drafted_s)
    assert (found.delay_s, found.draft_s) == (given_costs.delay_s, given_costs.draft_s)


def test_a_measured_pass_faster_than_possible_makes_nothing_negative() -> None:
    found = NEAR.calibrated(plain_s=0.001, length=4, drafted_s=0.0001)
    assert min(found.token_s, found.extra_s, found.batch_s) >= 0


def test_the_promised_gain_is_what_a_stream_of_passes_gives() -> None:
    rng = random.Random(7)
    guesser = Guesser("draft", GOOD, NEAR, share=0.6)
    tokens = spent_s = 0.0
    for _ in range(20_000):
        guesses = rng.random() < guesser.share
        right = 0
        while guesses and right < 5 and rng.random() < 0.8:
            right += 1
        tokens += right + 1
        spent_s += NEAR.pass_s(5 if guesses else 0)
    assert tokens / spent_s * NEAR.pass_s(0) == pytest.approx(guesser.gain(5), rel=0.02)


# --- the choice ---------------------------------------------------------------------------------------------------


def test_guessing_pays_over_a_network_where_it_does_not_on_one_processor() -> None:
    draft_s = 0.004
    alone = choose([Guesser("draft", GOOD, replace(PROCESSOR, draft_s=draft_s))])
    far = choose([Guesser("draft", GOOD, replace(FAR, draft_s=draft_s))])
    farther = choose([Guesser("draft", GOOD, replace(FAR, draft_s=draft_s, delay_s=0.400))])
    assert (alone.kind, alone.length) == ("none", 0)
    assert far.kind == "draft" and far.gain > 1.2
    assert farther.length > far.length and farther.gain > far.gain
    assert "tokens guessed by the draft model" in far.reason


def test_without_anything_to_guess_with() -> None:
    assert choose([]).kind == "none"
    assert choose([Guesser("draft", Acceptance.constant(0.0), NEAR)]).kind == "none"


@given(st.lists(guessers, min_size=1, max_size=3))
def test_the_choice_is_the_best_there_is(given_guessers: list[Guesser]) -> None:
    best = max(g.gain(length) for g in given_guessers for length in range(g.least, g.most + 1))
    choice = choose(given_guessers)
    if best < STARTS_FROM:
        assert (choice.kind, choice.length, choice.gain) == ("none", 0, 1.0)
    else:
        assert choice.gain == best
        assert any(g.kind == choice.kind and g.gain(choice.length) == best for g in given_guessers)


@given(st.lists(guessers, min_size=1, max_size=2), st.sampled_from(["draft", "ngram"]), st.integers(1, MOST_GUESSES))
def test_a_choice_in_force_never_loses_and_is_left_only_for_much(
    given_guessers: list[Guesser], kind: Kind, length: int
) -> None:
    choice = choose(given_guessers, (kind, length))
    assert choice.gain >= 1.0
    kept = next((g for g in given_guessers if g.kind == kind and g.least <= length <= g.most), None)
    if kept is None or (choice.kind, choice.length) == (kind, length):
        return
    best = max(g.gain(n) for g in given_guessers for n in range(g.least, g.most + 1))
    first = next(g for g in given_guessers if g.kind == kind)
    if first is kept:
        assert kept.gain(length) < 1.0 or best > kept.gain(length) * KEEPS_WITHIN


def test_noise_about_a_threshold_changes_nothing() -> None:
    """The gain of a guesser swings by 3 % about each threshold: at most one change, whatever the start."""
    rng = random.Random(3)
    for bar in (STARTS_FROM, RESUMES_FROM, 1.0):
        chance = next(c / 1000 for c in range(1000) if _best(c / 1000) >= bar)
        for current in (("none", 0), ("draft", 3)):
            changes, last = 0, current
            for _ in range(200):
                noisy = min(1.0, chance * rng.uniform(0.985, 1.015))
                choice = choose([Guesser("draft", Acceptance.constant(noisy), NEAR)], last)  # type: ignore[arg-type]
                changes += (choice.kind == "none") != (last[0] == "none")
                last = (choice.kind, choice.length)
            assert changes <= 1, (bar, current)


def _best(chance: float) -> float:
    guesser = Guesser("draft", Acceptance.constant(chance), NEAR)
    return max(guesser.gain(length) for length in range(1, MOST_GUESSES + 1))
