import random

import pytest

from meshnode.core.chance import jittered, pick, sample


def test_pick_reaches_everything_and_nothing_of_nothing() -> None:
    chance = random.Random(1)
    assert {pick(chance, "abc") for _ in range(100)} == set("abc")
    with pytest.raises(IndexError):
        pick(chance, [])


def test_a_sample_has_no_twins_and_is_no_longer_than_there_are() -> None:
    chance = random.Random(2)
    items = list(range(20))
    for count in (0, 1, 7, 20, 50):
        chosen = sample(chance, items, count)
        assert len(chosen) == len(set(chosen)) == min(count, 20)
        assert set(chosen) <= set(items)
    assert items == list(range(20)), "what was given is left alone"


def test_samples_are_fair() -> None:
    chance = random.Random(3)
    seen = [0] * 5
    for _ in range(5000):
        for item in sample(chance, range(5), 2):
            seen[item] += 1
    assert all(1800 < times < 2200 for times in seen)


def test_jitter_stays_in_its_share() -> None:
    chance = random.Random(4)
    values = [jittered(chance, 10.0) for _ in range(1000)]
    assert 7.5 <= min(values) < 8 and 12 < max(values) <= 12.5
