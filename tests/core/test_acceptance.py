"""What is learned of guesses: from the counters of the pinned engine, from timings, and how it fades."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.acceptance import (
    HALF_LIFE_PASSES,
    LEAST_TIMED_PASSES,
    AcceptanceMeter,
    Tally,
    tally_of_metrics,
    tally_of_timings,
)
from meshnode.core.speculation import Acceptance

PRIOR = Acceptance.constant(0.5)
METRICS = """\
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:prompt_tokens_total 99
llamacpp:tokens_predicted_total 600
llamacpp:tokens_predicted_seconds_total 0.25
llamacpp:n_decode_total 321
llamacpp:spec_decode_num_draft_tokens_total 604
llamacpp:spec_decode_num_accepted_tokens_total 396
llamacpp:spec_decode_num_drafts_total 201
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 165
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 130
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="2"} 101
"""
# As the pinned llama-server ends an answer of /completion.
TIMINGS = (
    b'"timings":{"cache_n":0,"prompt_n":120,"prompt_ms":55.0,"predicted_n":200,"predicted_ms":231.5,'
    b'"predicted_per_second":864.0,"draft_n":198,"draft_n_accepted":132}}\n\n'
)


def planted(rates: tuple[float, ...], passes: int, seed: int = 1) -> Tally:
    """Counts of passes whose guesses are right with these rates."""
    rng = random.Random(seed)
    right = [0.0] * len(rates)
    for _ in range(passes):
        luck = rng.random()
        for position, rate in enumerate(rates):
            right[position] += luck < rate
    return Tally(passes + sum(right), passes * 0.02, passes, passes * len(rates), tuple(right))


def test_counters_of_an_engine() -> None:
    found = tally_of_metrics(METRICS)
    assert found == Tally(600, 0.25, 201, 604, (165, 130, 101))
    assert (found.taken, found.passes) == (396, 204)


def test_counters_are_read_as_differences() -> None:
    now = tally_of_metrics(METRICS)
    later = Tally(700, 0.5, 231, 694, (190, 150, 111, 3))
    assert later.since(now) == Tally(100, 0.25, 30, 90, (25, 20, 10, 3))
    # The engine was started again: everything is new.
    assert now.since(later) == now


@pytest.mark.parametrize("text", ["", "llamacpp:tokens_predicted_total many", "a\0b", METRICS.replace("llamacpp", "x")])
def test_what_is_no_counter_counts_nothing(text: str) -> None:
    assert tally_of_metrics(text) == Tally()


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    tally_of_metrics(text)
    tally_of_timings(text.encode("utf-8", "replace"), 3)


def test_a_position_without_end_is_not_kept() -> None:
    text = 'llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="9999"} 5\n'
    assert tally_of_metrics(text).accepted == ()


def test_timings_of_an_answer() -> None:
    found = tally_of_timings(TIMINGS, 3)
    assert found is not None
    assert (found.tokens, found.seconds, found.drafts, found.guessed) == (200, 0.2315, 66, 198)
    assert found.taken == pytest.approx(132)
    assert list(found.accepted) == sorted(found.accepted, reverse=True)
    assert found.accepted[0] <= found.drafts


def test_timings_of_an_answer_without_guesses() -> None:
    assert tally_of_timings(b'"predicted_n":20,"predicted_ms":10.0', 3) == Tally(20, 0.01)
    assert tally_of_timings(TIMINGS, 0) == Tally(200, 0.2315)
    assert tally_of_timings(b'{"usage":{"completion_tokens":3}}', 3) is None


def test_a_lie_about_guesses_is_passed_over() -> None:
    assert tally_of_timings(b'"predicted_n":20,"predicted_ms":1,"draft_n":3,"draft_n_accepted":19', 3) == Tally(
        20, 0.001
    )


# --- the meter ----------------------------------------------------------------------------------------------------


def test_planted_rates_are_learned() -> None:
    meter = AcceptanceMeter()
    meter.add(planted((0.9, 0.7, 0.4), 3000), 3)
    learned = meter.acceptance(PRIOR)
    assert learned.rates[:3] == pytest.approx((0.9, 0.7, 0.4), abs=0.03)
    assert meter.pass_s == pytest.approx(0.02)
    assert meter.share(0.5) == pytest.approx(1.0, abs=0.02)


def test_little_says_little() -> None:
    meter = AcceptanceMeter()
    assert meter.acceptance(PRIOR).rates == pytest.approx(PRIOR.rates)
    meter.add(planted((1.0, 1.0), 6), 2)
    assert 0.5 < meter.acceptance(PRIOR).at(0) < 0.6
    assert meter.pass_s is None


def test_what_was_not_tried_follows_what_was() -> None:
    meter = AcceptanceMeter()
    meter.add(planted((0.9,), 5000), 1)
    learned = meter.acceptance(PRIOR)
    assert learned.at(1) == pytest.approx(learned.at(0) * 0.5)


def test_positions_count_only_where_guesses_were_that_long() -> None:
    meter = AcceptanceMeter()
    meter.add(planted((0.8, 0.6, 0.5, 0.4), 2000), 4)
    meter.add(planted((0.8, 0.6), 2000), 2)
    assert meter.acceptance(PRIOR).at(3) == pytest.approx(0.4, abs=0.03)


def test_the_past_fades() -> None:
    meter = AcceptanceMeter()
    for seed in range(5):
        meter.add(planted((0.9,), 4000, seed), 1)
    for seed in range(5):
        meter.add(planted((0.3,), int(HALF_LIFE_PASSES), seed), 1)
    assert meter.acceptance(PRIOR).at(0) == pytest.approx(0.3, abs=0.04)


def test_times_are_those_of_one_length() -> None:
    meter = AcceptanceMeter()
    meter.add(Tally(tokens=100, seconds=10.0), 0)
    assert meter.pass_s == pytest.approx(0.1)
    meter.add(Tally(tokens=LEAST_TIMED_PASSES - 1, seconds=1.0, drafts=10, guessed=30), 3)
    assert meter.pass_s is None


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 8), st.floats(0, 1)), max_size=6))
def test_rates_never_rise_and_are_kept_whole(rounds: list[tuple[int, int, float]]) -> None:
    meter = AcceptanceMeter()
    for passes, length, chance in rounds:
        meter.add(planted(Acceptance.constant(chance, length).rates, passes), length)
    rates = meter.acceptance(PRIOR).rates
    assert list(rates) == sorted(rates, reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)
    again = AcceptanceMeter.from_dict(meter.as_dict())
    assert again.acceptance(PRIOR).rates == pytest.approx(rates, abs=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"tried": None},
        {"tried": [1.0]},
        {"length": -1},
        {"length": 1000},
        {"length": "3"},
        {"passes": -1},
        {"passes": float("nan")},
        {"passes": 1e300},
        {"timed_s": True},
        {"accepted": ["x", "y"], "tried": [1, 1]},
    ],
)
def test_what_cannot_be_a_meter_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        AcceptanceMeter.from_dict({**AcceptanceMeter().as_dict(), **change})
