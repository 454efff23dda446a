"""The meter follows answers that say something about speed, and only those."""

from __future__ import annotations

import pytest

from meshnode.core.speed import LEAST_ANSWER_TOKENS, MAX_MODELS, WEIGHT, SpeedMeter


def test_nothing_is_known_at_first() -> None:
    assert SpeedMeter().of("demo") == (None, None)


def test_the_first_answer_counts_whole_and_later_ones_by_their_weight() -> None:
    meter = SpeedMeter()
    meter.record("demo", tokens_in=1000, tokens_out=101, first_byte_s=0.5, total_s=2.5)
    assert meter.of("demo") == (50, 2000)
    meter.record("demo", tokens_in=1000, tokens_out=101, first_byte_s=1.0, total_s=2.0)
    answering, reading = meter.of("demo")
    assert answering == pytest.approx(50 + WEIGHT * 50) and reading == pytest.approx(2000 - WEIGHT * 1000)


@pytest.mark.parametrize(
    ("tokens_in", "tokens_out", "first_byte_s", "total_s"),
    [
        (10, LEAST_ANSWER_TOKENS - 1, 0.5, 1.0),
        (10, 100, None, 1.0),
        (10, 100, 1.0, 1.0),
        (100_000, 1, 0.001, 0.002),
        (0, 0, 0.0, 0.0),
    ],
)
def test_what_says_little_is_passed_over(
    tokens_in: int, tokens_out: int, first_byte_s: float | None, total_s: float
) -> None:
    meter = SpeedMeter()
    meter.record("demo", tokens_in=tokens_in, tokens_out=tokens_out, first_byte_s=first_byte_s, total_s=total_s)
    assert meter.of("demo") == (None, None)


def test_the_model_that_was_not_heard_of_for_longest_is_forgotten() -> None:
    meter = SpeedMeter()
    for number in range(MAX_MODELS + 1):
        meter.record(f"m{number}", tokens_in=0, tokens_out=100, first_byte_s=0.0, total_s=1.0)
        meter.record("m0", tokens_in=0, tokens_out=100, first_byte_s=0.0, total_s=1.0)
    assert meter.of("m1") == (None, None)
    assert meter.of("m0")[0] is not None and meter.of(f"m{MAX_MODELS}")[0] is not None
