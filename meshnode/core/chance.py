"""Choices from a source of randomness that is handed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from meshnode.core.randomness import Randomness

T = TypeVar("T")


def pick(random: Randomness, items: Sequence[T]) -> T:
    """One of the items, all alike. Raises IndexError when there are none."""
    return items[int(random.random() * len(items))]


def sample(random: Randomness, items: Sequence[T], count: int) -> list[T]:
    """At most `count` different ones, in random order (the first steps of a Fisher-Yates shuffle)."""
    left = list(items)
    chosen: list[T] = []
    while left and len(chosen) < count:
        at = int(random.random() * len(left))
        chosen.append(left[at])
        left[at] = left[-1]
        left.pop()
    return chosen


def jittered(random: Randomness, seconds: float, share: float = 0.25) -> float:
    """`seconds`, up to `share` of it more or less, so that nodes do not fall into step."""
    return seconds * (1.0 + share * (2.0 * random.random() - 1.0))
