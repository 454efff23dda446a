import random

from meshnode.core.randomness import Randomness


def drawn(source: Randomness, times: int) -> list[float]:
    return [source.random() for _ in range(times)]


def test_a_seeded_generator_of_the_standard_library_is_one() -> None:
    values = drawn(random.Random(7), 100)
    assert values == drawn(random.Random(7), 100)
    assert all(0 <= value < 1 for value in values)
