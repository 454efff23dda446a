"""Speculative decoding: how many tokens to guess ahead, so that answers come fastest; none where guessing loses.

Theory of operation. A pass guesses n tokens, with a small draft model or from text that was seen before, and the model
verifies all of them at once. It yields the right ones up to the first wrong one, and one token of the model's own
(Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023). What a pass costs has parts that
follow different laws: weights are read once however many tokens are verified, arithmetic grows with their number, the
draft model runs once for each guess and once more over what was verified, and the delays of a split are paid once. So
guessing pays where a token is dear beside its arithmetic: on GPUs, and above all over a network.

How likely guesses are right is measured, position by position (acceptance.py). What changes only by noise is left as
it is: every threshold here has another one on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

STARTS_FROM = 1.05
"""Guessing begins where it promises at least this many times the speed without it."""
RESUMES_FROM = 1.12
"""The same once it was found not to pay."""
KEEPS_WITHIN = 1.08
"""A choice in force stays while no other is this many times faster."""
MOST_GUESSES = 32

Kind = Literal["draft", "ngram", "none"]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """`rates[i]`: the chance that the guess at position i is right, and all before it too. Never rises with i."""

    rates: tuple[float, ...]

    @classmethod
    def constant(cls, chance: float, positions: int = 8) -> Acceptance:
        """Every guess is right with the same chance if those before it were."""
        return cls(tuple(chance ** (i + 1) for i in range(positions)))

    @classmethod
    def of_mean(cls, mean: float, length: int) -> Acceptance:
        """The constant chance with which, of `length` guesses, `mean` are taken a pass."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if _sum_of_powers(middle, length) < mean else (low, middle)
        return cls.constant((low + high) / 2, max(1, length))

    def at(self, position: int) -> float:
        """The rate at a position; beyond what was measured it falls on as it fell last."""
        if not self.rates:
            return 0.0
        last = len(self.rates) - 1
        if position <= last:
            return self.rates[position]
        before = self.rates[last - 1] if last else 1.0
        ratio = self.rates[last] / before if before > 0 else 0.0
        return self.rates[last] * min(1.0, ratio) ** (position - last)

    def expected(self, length: int) -> float:
        """Tokens that a pass with `length` guesses yields on average."""
        return 1.0 + sum(self.at(position) for position in range(length))


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one pass, by what causes them.

    `token_s`: the model reads its weights for one token. `batch_s`: once more as soon as there are several (processors
    have a faster way for a single one). `extra_s`: each further token. `draft_s`: one token of the draft model.
    `delay_s`: the network, however many tokens.
    """

    token_s: float
    extra_s: float
    batch_s: float = 0.0
    draft_s: float = 0.0
    delay_s: float = 0.0

    def pass_s(self, length: int) -> float:
        """A pass that verifies `length` guesses; 0 is plain decoding."""
        plain = self.token_s + self.delay_s
        return plain if length == 0 else plain + self.batch_s + length * self.extra_s + (length + 1) * self.draft_s

    def calibrated(self, *, plain_s: float | None = None, length: int = 0, drafted_s: float | None = None) -> Costs:
        """These costs corrected by measured passes: a plain one, and one of `length` guesses.

        The difference is laid to verification, the part that is hardest to predict.
        """
        found = self
        if plain_s is not None:
            factor = max(0.0, plain_s - self.delay_s) / self.token_s if self.token_s > 0 else 1.0
            found = replace(self, token_s=self.token_s * factor, extra_s=self.extra_s * factor)
            found = replace(found, batch_s=self.batch_s * factor)
        if drafted_s is not None and length > 0:
            verifying_s = drafted_s - found.pass_s(0) - (length + 1) * found.draft_s
            planned_s = found.batch_s + length * found.extra_s
            factor = max(0.0, verifying_s) / planned_s if planned_s > 0 else 0.0
            found = replace(found, batch_s=found.batch_s * factor, extra_s=found.extra_s * factor)
        return found


@dataclass(frozen=True, slots=True)
class Guesser:
    """One way to guess. `share` of the passes have a guess at all; `least` and `most` bound its length."""

    kind: Kind
    acceptance: Acceptance
    costs: Costs
    share: float = 1.0
    least: int = 1
    most: int = MOST_GUESSES

    def gain(self, length: int) -> float:
        """How many times faster answers come with guesses of this length than without."""
        plain_s = self.costs.pass_s(0)
        tokens = self.share * self.acceptance.expected(length) + (1 - self.share)
        seconds = self.share * self.costs.pass_s(length) + (1 - self.share) * plain_s
        return tokens * plain_s / seconds if seconds > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do. `length` is how many tokens to guess (0: none), `gain` how much faster that is promised to be."""

    kind: Kind
    length: int
    gain: float
    reason: str


def choose(guessers: Sequence[Guesser], current: tuple[Kind, int] | None = None) -> Choice:
    """The fastest of the ways to guess, or not to. `current` is what was chosen last; of equals the first is taken."""
    promised = [
        (guesser.gain(length), guesser, length)
        for guesser in guessers
        for length in range(guesser.least, guesser.most + 1)
    ]
    if not promised:
        return Choice("none", 0, 1.0, "there is nothing to guess with")
    gain, guesser, length = max(promised, key=lambda item: item[0])
    bar = RESUMES_FROM if current is not None and current[1] == 0 else STARTS_FROM
    if current is not None and current[1] > 0:
        kept = next((other for other in guessers if other.kind == current[0]), None)
        if kept is not None and kept.least <= current[1] <= kept.most:
            own = kept.gain(current[1])
            if own >= 1.0 and own * KEEPS_WITHIN >= gain:
                return Choice(kept.kind, current[1], own, _words(kept, current[1], own))
    if gain < bar:
        return Choice("none", 0, 1.0, f"guessing ahead would not pay: {gain:.2f} times the speed at best")
    return Choice(guesser.kind, length, gain, _words(guesser, length, gain))


def _words(guesser: Guesser, length: int, gain: float) -> str:
    by = "by the draft model" if guesser.kind == "draft" else "from text seen before"
    taken = guesser.acceptance.expected(length)
    return f"{length} tokens guessed {by}, {taken:.1f} tokens a pass, about {gain:.1f} times the speed"


def _sum_of_powers(chance: float, length: int) -> float:
    return sum(chance ** (i + 1) for i in range(length))
