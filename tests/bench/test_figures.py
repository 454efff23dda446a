"""The arithmetic against numbers worked out by other means."""

from __future__ import annotations

import statistics
from random import Random

import numpy as np
import pytest

from bench.figures import difference, growth, interval, quantile, ratio, shift


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_those_of_numpy(share: float) -> None:
    draw = Random(3)
    for count in (1, 2, 3, 10, 101):
        values = [draw.gauss(0, 1) for _ in range(count)]
        assert quantile(values, share) == pytest.approx(np.quantile(values, share))


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_no_quantile_of_nothing(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        quantile(values, share)


def test_a_difference_is_found_in_noise() -> None:
    draw = Random(4)
    theirs = [[draw.expovariate(1 / 5) + 3] for _ in range(400)]
    ours = [[draw.expovariate(1 / 5) + 4.5] for _ in range(400)]
    low, high = interval(lambda a, b: difference(a, b, 0.5), ours, theirs)
    assert low < 1.5 < high
    assert low > 0 and high < 3
    assert low < difference(ours, theirs, 0.5) < high


def test_the_interval_of_equal_sides_holds_zero() -> None:
    draw = Random(5)
    sides = [[[draw.gauss(10, 1) for _ in range(16)] for _ in range(30)] for _ in range(2)]
    low, high = interval(lambda a, b: difference(a, b, 0.5), *sides)
    assert low < 0 < high


def test_rounds_stay_paired() -> None:
    # Both sides swing together by far more than they differ.
    draw = Random(6)
    weather = [draw.uniform(50, 500) for _ in range(20)]
    ours, theirs = [[0.97 * speed] for speed in weather], [[speed] for speed in weather]
    low, high = interval(ratio, ours, theirs)
    assert low == pytest.approx(0.97) and high == pytest.approx(0.97)
    with pytest.raises(ValueError, match="cannot be paired"):
        interval(ratio, ours, theirs[1:])
    with pytest.raises(ValueError, match="cannot be paired"):
        interval(ratio, [], [])


def test_a_ratio_uses_the_middle_pair() -> None:
    assert ratio([[90], [10], [95]], [[100], [100], [100]]) == pytest.approx(0.9)


def test_a_shift_survives_drift() -> None:
    drift = [4000.0, 5000, 9000, 4500, 3000]
    assert shift([[base + 100] for base in drift], [[base] for base in drift]) == 100


def test_growth_of_a_line() -> None:
    points = [(float(x), 50 + x / 1000) for x in range(0, 20_001, 250)]
    assert growth(points, 2000, 20_000) == pytest.approx(18 / 52)


def test_growth_forgets_the_warm_up_and_outliers() -> None:
    points = [(float(x), 60.0 + (x % 3)) for x in range(0, 20_001, 250)]
    points[:8] = [(x, 20.0) for x, _ in points[:8]]
    points[40] = (points[40][0], 500.0)
    assert abs(growth(points, 2000, 20_000)) < 0.01
    assert statistics.fmean(y for _, y in points) > 60


def test_growth_of_nothing() -> None:
    with pytest.raises(ValueError, match="no two points"):
        growth([(1.0, 1.0), (1.0, 2.0)], 0, 10)
