"""How often guesses of speculative decoding were right, learned from what llama-server counts, and slowly forgotten.

Two sources. `GET /metrics` has totals since the engine's start, by position, of all endpoints: the better one.
`timings`, in the last event of a stream and in plain answers (not those of /v1/messages), has `draft_n` and
`draft_n_accepted` of one answer; they are there only if something was guessed.

Sources in llama.cpp: server_slot_stats::to_json (server-common.cpp), server_task_result_metrics::to_prometheus
(server-task.cpp), common_speculative_impl_draft_simple (speculative.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshnode.core.speculation import Acceptance

HALF_LIFE_PASSES = 4000.0
"""After this many passes with a guess, what was learned before counts half: some dozen long answers."""
PRIOR_PASSES = 60.0
"""What was assumed before anything was measured weighs as much as this many passes."""
LEAST_TIMED_PASSES = 50.0
MOST_POSITIONS = 64
MOST_COUNT = 1e15

_TIMING = re.compile(rb'"(predicted_n|predicted_ms|draft_n|draft_n_accepted)":\s*(\d{1,12}(?:\.\d{1,9})?)')
_METRIC = re.compile(
    r"^llamacpp:(tokens_predicted_total|tokens_predicted_seconds_total|spec_decode_num_[a-z_]+?_total)"
    r'(?:\{position="(\d{1,4})"\})? (\d{1,15}(?:\.\d{1,15})?(?:e[+-]?\d{1,2})?)$',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of some answers: tokens written and the seconds that took, passes with a guess, guesses in them, and how
    many were taken at each position."""

    tokens: float = 0.0
    seconds: float = 0.0
    drafts: float = 0.0
    guessed: float = 0.0
    accepted: tuple[float, ...] = ()

    @property
    def taken(self) -> float:
        """Guesses that were right."""
        return sum(self.accepted)

    @property
    def passes(self) -> float:
        """Passes of the model, with and without a guess: each yields one token beside the guesses taken."""
        return max(0.0, self.tokens - self.taken)

    def since(self, earlier: Tally) -> Tally:
        """What came after `earlier`; all of it where the counters began anew (another start of the engine)."""
        if earlier.tokens > self.tokens or earlier.drafts > self.drafts or earlier.seconds > self.seconds:
            return self
        before = earlier.accepted + (0.0,) * (len(self.accepted) - len(earlier.accepted))
        return Tally(
            self.tokens - earlier.tokens,
            self.seconds - earlier.seconds,
            self.drafts - earlier.drafts,
            max(0.0, self.guessed - earlier.guessed),
            tuple(max(0.0, now - then) for now, then in zip(self.accepted, before, strict=False)),
        )


def tally_of_metrics(text: str) -> Tally:
    """The totals of an engine, from the body of its `GET /metrics`; zeros where it says nothing."""
    totals: dict[str, float] = {}
    positions: dict[int, float] = {}
    for name, position, number in _METRIC.findall(text):
        if position and name == "spec_decode_num_accepted_tokens_per_pos_total" and int(position) < MOST_POSITIONS:
            positions[int(position)] = float(number)
        elif not position:
            totals[name] = float(number)
    accepted = tuple(positions.get(index, 0.0) for index in range(max(positions, default=-1) + 1))
    return Tally(
        tokens=totals.get("tokens_predicted_total", 0.0),
        seconds=totals.get("tokens_predicted_seconds_total", 0.0),
        drafts=totals.get("spec_decode_num_drafts_total", 0.0),
        guessed=totals.get("spec_decode_num_draft_tokens_total", 0.0),
        accepted=accepted,
    )


def tally_of_timings(text: bytes, length: int) -> Tally | None:
    """One answer, from the `timings` in its last bytes; None where it has none. `length` is the guesses of a pass.

    The engine does not say at which positions it guessed right: a constant chance is fitted to their number.
    """
    last = {name: float(number) for name, number in _TIMING.findall(text)}
    if b"predicted_n" not in last:
        return None
    guessed, taken = last.get(b"draft_n", 0.0), last.get(b"draft_n_accepted", 0.0)
    tokens, seconds = last[b"predicted_n"], last.get(b"predicted_ms", 0.0) / 1000
    drafts = min(guessed / length, max(0.0, tokens - taken)) if length > 0 else 0.0
    if drafts <= 0 or taken > guessed:
        return Tally(tokens, seconds)
    shape = Acceptance.of_mean(taken / drafts, length).rates
    scale = taken / sum(shape) if sum(shape) > 0 else 0.0
    return Tally(tokens, seconds, drafts, guessed, tuple(rate * scale for rate in shape))


@dataclass(slots=True)
class AcceptanceMeter:
    """What is known of one model with one way to guess. Sums fade; `length` is that of the timed passes.

    `tried[i]` counts passes that could have a guess at position i, `accepted[i]` those in which it was right.
    """

    passes: float = 0.0
    tried: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    length: int = 0
    timed_passes: float = 0.0
    timed_s: float = 0.0

    def add(self, tally: Tally, length: int) -> None:
        """Take in what was counted while `length` tokens were guessed at once (0: none)."""
        length = min(length, MOST_POSITIONS)
        if length != self.length:
            self.length, self.timed_passes, self.timed_s = length, 0.0, 0.0
        self.fade(0.5 ** ((tally.drafts if length else tally.passes) / HALF_LIFE_PASSES))
        self.passes += tally.passes
        self.timed_passes += tally.passes
        self.timed_s += tally.seconds
        missing = length - len(self.tried)
        self.tried += [0.0] * missing
        self.accepted += [0.0] * missing
        for position in range(length):
            right = tally.accepted[position] if position < len(tally.accepted) else 0.0
            self.tried[position] += tally.drafts
            self.accepted[position] += min(right, tally.drafts)

    def fade(self, factor: float) -> None:
        """Forget a part: what stays weighs `factor` of what it did."""
        self.passes *= factor
        self.timed_passes *= factor
        self.timed_s *= factor
        self.tried = [count * factor for count in self.tried]
        self.accepted = [count * factor for count in self.accepted]

    def acceptance(self, prior: Acceptance) -> Acceptance:
        """The measured rates, mixed with what is assumed as long as little was measured.

        Where a position was not tried, it follows the one before it as it is assumed to.
        """
        rates: list[float] = []
        for position in range(max(len(self.tried), len(prior.rates))):
            before = rates[-1] if rates else 1.0
            assumed_before = prior.at(position - 1) if position else 1.0
            follows = before * prior.at(position) / assumed_before if assumed_before > 0 else 0.0
            tried = self.tried[position] if position < len(self.tried) else 0.0
            right = self.accepted[position] if position < len(self.accepted) else 0.0
            rates.append(min(before, (follows * PRIOR_PASSES + right) / (PRIOR_PASSES + tried)))
        return Acceptance(tuple(rates))

    def share(self, prior: float) -> float:
        """The share of passes that had a guess; mixed with what is assumed as above."""
        drafts = self.tried[0] if self.tried else 0.0
        return (prior * PRIOR_PASSES + drafts) / (PRIOR_PASSES + max(self.passes, drafts))

    @property
    def pass_s(self) -> float | None:
        """Seconds of a pass, those without a guess included; None while too few were timed."""
        return self.timed_s / self.timed_passes if self.timed_passes >= LEAST_TIMED_PASSES else None

    def as_dict(self) -> dict[str, object]:
        """The form in which it is kept."""
        return {
            "passes": round(self.passes, 3),
            "tried": [round(count, 3) for count in self.tried],
            "accepted": [round(count, 3) for count in self.accepted],
            "length": self.length,
            "timed_passes": round(self.timed_passes, 3),
            "timed_s": round(self.timed_s, 6),
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, object]) -> AcceptanceMeter:
        """The meter of `as_dict`; raises ValueError for what cannot be one."""
        tried, accepted, length = kept.get("tried"), kept.get("accepted"), kept.get("length")
        if not isinstance(tried, list) or not isinstance(accepted, list) or not isinstance(length, int):
            raise ValueError("not a meter")
        if len(tried) != len(accepted) or max(length, len(tried)) > MOST_POSITIONS or length < 0:
            raise ValueError("positions that cannot be")
        return cls(
            _count(kept.get("passes")),
            [_count(count) for count in tried],
            [_count(count) for count in accepted],
            length,
            _count(kept.get("timed_passes")),
            _count(kept.get("timed_s")),
        )


def _count(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MOST_COUNT:
        raise ValueError("not a count")
    return float(value)
