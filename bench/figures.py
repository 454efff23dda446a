"""The arithmetic of the benchmarks: quantiles, paired differences with their uncertainty, growth.

Intervals are percentile bootstraps (Efron 1979): what the figure would be in 95 of 100 repetitions of the run. Rounds
are drawn with replacement, never single requests of one round, because the requests of a round share its luck.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from random import Random

Sample = Sequence[float]
Rounds = Sequence[Sample]

REPETITIONS = 400


def quantile(values: Sample, share: float) -> float:
    """The value below which `share` of the values lie, with linear interpolation (type 7 of Hyndman and Fan)."""
    ordered = sorted(values)
    if not ordered or not 0 <= share <= 1:
        raise ValueError(f"no quantile {share} of {len(ordered)} values")
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def difference(ours: Rounds, theirs: Rounds, share: float) -> float:
    """Quantile of all our values minus the same quantile of all of theirs."""
    return quantile(_flat(ours), share) - quantile(_flat(theirs), share)


def shift(ours: Rounds, theirs: Rounds) -> float:
    """Median over the pairs of rounds of (median of ours - median of theirs)."""
    return statistics.median(
        statistics.median(mine) - statistics.median(other) for mine, other in zip(ours, theirs, strict=True)
    )


def ratio(ours: Rounds, theirs: Rounds) -> float:
    """Median over the pairs of rounds of (mean of ours / mean of theirs)."""
    return statistics.median(
        statistics.fmean(mine) / statistics.fmean(other) for mine, other in zip(ours, theirs, strict=True)
    )


def interval(figure: Callable[[Rounds, Rounds], float], ours: Rounds, theirs: Rounds) -> tuple[float, float]:
    """The 95 % interval of `figure(ours, theirs)`; pairs of rounds stay together."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} rounds cannot be paired with {len(theirs)}")
    draw = Random(1)
    found = []
    for _ in range(REPETITIONS):
        chosen = [draw.randrange(len(ours)) for _ in ours]
        found.append(figure([ours[i] for i in chosen], [theirs[i] for i in chosen]))
    return quantile(found, 0.025), quantile(found, 0.975)


def growth(points: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """How much the fitted line through `(x, y)` rises from x = `begin` to `end`, as a share of its value there.

    Only points in between count. The slope is Theil and Sen's (median of all pairwise slopes), which one sample that
    stands out does not bend. Raises ValueError for fewer than two different x.
    """
    inside = [(x, y) for x, y in points if begin <= x <= end]
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(inside) for x2, y2 in inside[i + 1 :] if x2 != x1]
    if not slopes:
        raise ValueError(f"no two points between {begin} and {end}")
    slope = statistics.median(slopes)
    start = statistics.median(y - slope * (x - begin) for x, y in inside)
    return slope * (end - begin) / start


def _flat(rounds: Rounds) -> list[float]:
    return [value for values in rounds for value in values]
