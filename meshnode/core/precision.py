"""How many bits a weight should have: what each quantisation costs, and which of those at hand the hardware holds best.

What a quantisation costs is a rule of thumb, and called so wherever it is shown: the rise in perplexity of one model
(Llama 3 8B) as llama-quantize's help states it (tools/quantize/quantize.cpp in the pinned source). Smaller models lose
more, larger ones less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

# Bits of a weight (from the GiB that are given for 8.03e9 weights, where bits are not) and the rise in perplexity; None
# where none is stated.
QUALITY: dict[str, tuple[float, float | None]] = {
    "F32": (32.0, 0.0), "BF16": (16.0, 0.0), "F16": (16.0, 0.0), "Q8_0": (8.51, 0.0026), "Q6_K": (6.57, 0.0217),
    "Q5_1": (6.04, 0.1062), "Q5_K_M": (5.70, 0.0569), "Q5_K_S": (5.57, 0.1049), "Q5_0": (5.57, 0.1316),
    "Q4_1": (5.11, 0.4511), "Q4_K_M": (4.90, 0.1754), "Q4_K_S": (4.67, 0.2689), "Q4_0": (4.64, 0.4685),
    "IQ4_NL": (4.50, None), "Q3_K_L": (4.31, 0.5562), "IQ4_XS": (4.25, None), "Q3_K_M": (4.00, 0.6569),
    "IQ3_M": (3.66, None), "Q3_K_S": (3.65, 1.6321), "IQ3_S": (3.44, None), "IQ3_XS": (3.3, None),
    "Q2_K": (3.17, 3.5199), "Q2_K_S": (3.17, 3.1836), "IQ3_XXS": (3.06, None), "IQ2_M": (2.7, None),
    "IQ2_S": (2.5, None), "IQ2_XS": (2.31, None), "IQ2_XXS": (2.06, None), "IQ1_M": (1.75, None),
    "IQ1_S": (1.56, None),
}  # fmt: skip
ENOUGH_BITS = 5.6
"""From here on (Q5_K_M) another bit costs speed and hardly shows: under 0.06 of perplexity by the same table."""

HEAVY_LOSS = 1.0
HEAVY_BITS = 3.5
"""From such a rise in perplexity on, or where none is stated below so many bits, a model is taken only if no other is
held at all."""


class Holding(IntEnum):
    """How well hardware holds a model, the better the higher."""

    NOT = 0
    BARELY = 1
    """With a loss of precision that is heavy."""
    TOGETHER = 2
    """Over several machines."""
    PARTLY = 3
    """On this one, some of it in main memory and some on GPUs."""
    WHOLE = 4
    """Wholly on GPUs, or in main memory where there are none."""
    WELL = 5
    """Wholly on GPUs, with all the context that was wanted."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One quantisation of a model: its name as in a file name (`UD-Q4_K_XL`), and the bytes of its files.

    `bits` is what its header or the table says, 0 where neither does.
    """

    name: str
    size_bytes: int
    bits: float = 0.0


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """The candidate taken, None when none is held; and why, in words that name what it costs."""

    candidate: Candidate | None
    sentence: str


def choose_precision(candidates: Sequence[Candidate], held: Callable[[Candidate], int]) -> PrecisionChoice:
    """The quantisation to serve.

    `held` ranks how well the hardware holds a candidate: 0 not at all, and the more the better (all on GPUs before main
    memory before several machines). Of those held best, the fewest bits that are enough, else the most bits.
    """
    ranks = {candidate: held(candidate) for candidate in candidates}
    best = max(ranks.values(), default=0)
    if best <= 0:
        if not candidates:
            return PrecisionChoice(None, "there is no quantisation to choose from")
        smallest = min(candidates, key=lambda candidate: candidate.size_bytes)
        return PrecisionChoice(None, f"not even {smallest.name} ({_size(smallest.size_bytes)}) is held here")
    well = sorted((c for c in candidates if ranks[c] == best), key=lambda c: (bits_of(c), c.size_bytes))
    enough = [candidate for candidate in well if bits_of(candidate) >= ENOUGH_BITS]
    taken = enough[0] if enough else well[-1]
    others = [candidate for candidate in candidates if bits_of(candidate) > bits_of(taken)]
    return PrecisionChoice(taken, _sentence(taken, others, ranks, best))


def choose_beside(
    usual: Candidate, candidates: Sequence[Candidate], held: Callable[[Candidate], Holding]
) -> PrecisionChoice:
    """The quantisation to serve where `usual` is what the name stands for: another one only for a reason.

    Fewer bits where the usual ones are not held at all, more where these are held well. Where the usual candidate is
    taken the sentence is empty.
    """
    ranks = {candidate: held(candidate) for candidate in dict.fromkeys((usual, *candidates))}
    kept = [
        candidate
        for candidate, rank in ranks.items()
        if candidate == usual
        or (ranks[usual] == Holding.NOT if bits_of(candidate) < bits_of(usual) else rank >= Holding.WELL)
    ]
    for candidate in kept:
        if candidate != usual and _loses_heavily(candidate):
            ranks[candidate] = min(ranks[candidate], Holding.BARELY)
    choice = choose_precision(kept, lambda candidate: int(ranks[candidate]))
    return PrecisionChoice(usual, "") if choice.candidate == usual else choice


def _loses_heavily(candidate: Candidate) -> bool:
    loss = QUALITY.get(_plain(candidate.name), (0.0, None))[1]
    return loss >= HEAVY_LOSS if loss is not None else bits_of(candidate) < HEAVY_BITS


def bits_of(candidate: Candidate) -> float:
    """Bits of a weight; where nothing tells, the size stands for them, as a fraction of a bit."""
    return candidate.bits or bits_named(candidate.name) or candidate.size_bytes / 1e15


def bits_named(name: str) -> float:
    """Bits of a weight under a quantisation of this name, 0 when unknown; `UD-` and `_XL` are variations."""
    plain = _plain(name)
    for known in (plain, plain.rpartition("_")[0], plain.rpartition("_")[0] + "_M"):
        if known in QUALITY:
            return QUALITY[known][0]
    return {"MXFP4": 4.25, "MXFP4_MOE": 4.25, "NVFP4": 4.5}.get(plain, 0.0)


def _plain(name: str) -> str:
    return name.upper().removeprefix("UD-")


def describe_loss(loss: float | None) -> str:
    """What a rise in perplexity means, as a rule of thumb; "" where nothing is known."""
    if loss is None:
        return ""
    if loss < 0.01:
        return "no loss that shows"
    how = "hardly any loss" if loss < 0.06 else "a small loss" if loss < 0.3 else "a loss that shows"
    how = how if loss < 1.0 else "a heavy loss"
    return f"{how} (rule of thumb: perplexity +{loss:.2g} with Llama 3 8B, more with smaller models)"


def _sentence(taken: Candidate, others: Sequence[Candidate], ranks: dict[Candidate, int], best: int) -> str:
    known = QUALITY.get(_plain(taken.name))
    bits = taken.bits or bits_named(taken.name)
    parts = [f"{taken.name}, {_size(taken.size_bytes)}" + (f", {bits:.1f} bits a weight" if bits else "")]
    if loss := describe_loss(known[1] if known else None):
        parts.append(loss)
    worse = [candidate for candidate in others if ranks[candidate] < best]
    if worse:
        nearest = min(worse, key=bits_of)
        why = "is not held here" if ranks[nearest] <= 0 else "would be held less well"
        parts.append(f"{nearest.name} ({_size(nearest.size_bytes)}) {why}")
    elif others:
        parts.append("more bits would only be slower")
    return "; ".join(parts)


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
