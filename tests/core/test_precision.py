"""Which quantisation is taken of those there are, and what is said of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.precision import (
    ENOUGH_BITS,
    QUALITY,
    Candidate,
    Holding,
    bits_named,
    bits_of,
    choose_beside,
    choose_precision,
    describe_loss,
)

PARAMETERS = 8e9
ALL = [
    Candidate(name, int(PARAMETERS * bits_named(name) / 8))
    for name in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
]


def fits(limit_bytes: float) -> object:
    return lambda candidate: int(candidate.size_bytes <= limit_bytes)


@pytest.mark.parametrize(
    ("limit_gb", "name"), [(3.5, "Q2_K"), (4.1, "Q3_K_M"), (5.2, "Q4_K_M"), (6.0, "Q5_K_M"), (100.0, "Q5_K_M")]
)
def test_what_the_hardware_holds(limit_gb: float, name: str) -> None:
    choice = choose_precision(ALL, fits(limit_gb * 1e9))  # type: ignore[arg-type]
    assert choice.candidate is not None and choice.candidate.name == name
    assert name in choice.sentence and "rule of thumb" in choice.sentence


def test_the_sentence_names_what_was_not_taken() -> None:
    tight = choose_precision(ALL, fits(5.2e9))  # type: ignore[arg-type]
    assert "Q5_K_M (5.7 GB) is not held here" in tight.sentence
    roomy = choose_precision(ALL, fits(1e12))  # type: ignore[arg-type]
    assert "only be slower" in roomy.sentence
    ranked = choose_precision(ALL, lambda candidate: 2 if candidate.size_bytes < 5e9 else 1)
    assert ranked.candidate is not None and ranked.candidate.name == "Q4_K_M"
    assert "Q5_K_M (5.7 GB) would be held less well" in ranked.sentence


def test_where_nothing_is_held() -> None:
    choice = choose_precision(ALL, lambda _: 0)
    assert choice.candidate is None and "not even Q2_K (3.2 GB)" in choice.sentence
    assert choose_precision([], lambda _: 1).candidate is None


def test_only_a_file_of_many_bits() -> None:
    choice = choose_precision([ALL[-1]], lambda _: 1)
    assert choice.candidate == ALL[-1] and "no loss that shows" in choice.sentence


@given(st.lists(st.sampled_from(ALL), min_size=1, unique=True), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_never_one_that_is_held_less_well(candidates: list[Candidate], ranks: list[int]) -> None:
    rank = {candidate: ranks[ALL.index(candidate)] for candidate in candidates}
    choice = choose_precision(candidates, rank.__getitem__)
    best = max(rank.values())
    if best == 0:
        assert choice.candidate is None
        return
    assert choice.candidate is not None and rank[choice.candidate] == best
    for other in candidates:
        if rank[other] == best and bits_of(other) > bits_of(choice.candidate):
            assert bits_of(choice.candidate) >= ENOUGH_BITS


@pytest.mark.parametrize(
    ("name", "bits"),
    [("UD-Q4_K_XL", 4.90), ("q4_k_m", 4.90), ("Q8_0", 8.51), ("Q5_K_L", 5.70), ("MXFP4", 4.25), ("X", 0)],
)
def test_bits_of_a_name(name: str, bits: float) -> None:
    assert bits_named(name) == bits


def test_an_unknown_name_is_told_by_its_size() -> None:
    assert bits_of(Candidate("new", 7)) < bits_of(Candidate("newer", 9)) < min(bits for bits, _ in QUALITY.values())
    assert bits_of(Candidate("new", 7, bits=3.3)) == 3.3


def test_words_for_a_loss_grow_with_it() -> None:
    words = [describe_loss(loss) for loss in (0.0, 0.03, 0.2, 0.6, 3.5)]
    assert len({text.partition(" (")[0] for text in words}) == 5
    assert describe_loss(None) == ""


# --- beside what a name stands for --------------------------------------------------------------------------------

USUAL = next(candidate for candidate in ALL if candidate.name == "Q4_K_M")


def beside(ranks: dict[str, Holding], usual: Candidate = USUAL) -> str:
    choice = choose_beside(usual, ALL, lambda candidate: ranks.get(candidate.name, Holding.NOT))
    assert bool(choice.sentence) is (choice.candidate != usual)
    return choice.candidate.name if choice.candidate else ""


@pytest.mark.parametrize("held", [Holding.TOGETHER, Holding.PARTLY, Holding.WHOLE, Holding.WELL])
def test_what_a_name_stands_for_stays_where_it_is_held(held: Holding) -> None:
    assert beside({candidate.name: min(held, Holding.WHOLE) for candidate in ALL}) == "Q4_K_M"
    assert beside({"Q4_K_M": held, "Q3_K_M": Holding.WELL, "Q2_K": Holding.WELL}) == "Q4_K_M"


def test_more_bits_only_where_they_are_held_well() -> None:
    assert beside(dict.fromkeys((candidate.name for candidate in ALL), Holding.WELL)) == "Q5_K_M"
    assert beside({"Q4_K_M": Holding.WELL, "Q8_0": Holding.WELL, "Q5_K_M": Holding.WHOLE}) == "Q8_0"


def test_fewer_bits_where_the_usual_ones_do_not_fit() -> None:
    assert beside({"Q3_K_M": Holding.PARTLY, "Q2_K": Holding.WHOLE}) == "Q3_K_M"
    f16 = ALL[-1]
    assert beside({"Q4_K_M": Holding.TOGETHER, "Q3_K_M": Holding.WHOLE, "Q2_K": Holding.WHOLE}, f16) == "Q3_K_M"


def test_a_heavy_loss_only_where_nothing_else_is_held() -> None:
    assert beside({"Q4_K_M": Holding.TOGETHER, "Q2_K": Holding.WELL}, ALL[-1]) == "Q4_K_M"
    assert beside({"Q2_K": Holding.WHOLE}) == "Q2_K"
    assert beside({}) == ""


def test_a_usual_one_that_is_not_among_the_others_is_one_of_them() -> None:
    usual = Candidate("Q4_0", int(4.6e9))
    assert beside({"Q4_0": Holding.WHOLE}, usual) == "Q4_0"
