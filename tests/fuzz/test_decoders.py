"""The kept inputs, and some thousand mutations of them that are the same in every run."""

import random

import pytest

from tests.fuzz.corpus import FOLDER, kept
from tests.fuzz.targets import TARGETS, run

MUTATIONS = {"membership": 200}
USUAL_MUTATIONS = 1500
TELLING = b"\x00\x01\x7f\x80\x81\x90\x91\xc0\xc1\xc4\xc6\xca\xcb\xcc\xcf\xd0\xd9\xdc\xdd\xde\xdf\xe0\xff"


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to four changes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(changed) + 1), chance.randint(1, 8)
        match chance.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(changed):
                changed[at] = chance.choice(TELLING)
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = chance.randbytes(size)
            case 4:
                changed[at:at] = changed[at : at + size] * chance.randint(1, 3)
            case 5:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                changed[at : at + size] = other[start : start + size]
            case 6:
                del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    """Valid ones are among them, so that a target that refuses everything is noticed."""
    answers = {run(name, data) for data in kept(name)}
    assert answers == {True, False}


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    corpus = kept(name)
    chance = random.Random(f"mutations of {name}")
    for number in range(MUTATIONS.get(name, USUAL_MUTATIONS)):
        data = mutated(chance.choice(corpus), corpus, chance)
        try:
            run(name, data)
        except Exception as finding:
            finding.add_note(f"mutation {number} of {name}: {data.hex()}")
            raise


def test_the_corpus_is_small_and_in_order() -> None:
    files = list(FOLDER.iterdir())
    assert {path.name for path in files} == {f"{name}.hex" for name in TARGETS}
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for name in TARGETS:
        inputs = kept(name)
        assert inputs == sorted(set(inputs), key=lambda data: (len(data), data))
