"""How fast a model really is here: tokens per second of answers that were given, as a moving mean.

What a plan predicted holds until the first answers are through. Short answers and short prompts say little about
speed and much about overhead, so they are passed over; so are prompts that were mostly in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT = 0.2
"""Share of the newest answer in the mean."""
LEAST_ANSWER_TOKENS = 16
LEAST_PROMPT_TOKENS = 256
LEAST_PROMPT_S = 0.05
MAX_MODELS = 256


@dataclass(slots=True)
class _Mean:
    value: float | None = None

    def add(self, sample: float) -> None:
        self.value = sample if self.value is None else self.value + WEIGHT * (sample - self.value)


class SpeedMeter:
    """Speeds by model. Bounded: a model that was not heard of for longest goes first."""

    def __init__(self) -> None:
        self._means: dict[str, tuple[_Mean, _Mean]] = {}

    def record(
        self, model: str, *, tokens_in: int, tokens_out: int, first_byte_s: float | None, total_s: float
    ) -> None:
        """Take one finished answer into account; times in seconds from the moment its slot was free."""
        if first_byte_s is None:
            return
        answering, reading = self._means.pop(model, (_Mean(), _Mean()))
        self._means[model] = answering, reading
        if len(self._means) > MAX_MODELS:
            del self._means[next(iter(self._means))]
        if tokens_out >= LEAST_ANSWER_TOKENS and total_s > first_byte_s:
            answering.add((tokens_out - 1) / (total_s - first_byte_s))
        if tokens_in >= LEAST_PROMPT_TOKENS and first_byte_s >= LEAST_PROMPT_S:
            reading.add(tokens_in / first_byte_s)

    def of(self, model: str) -> tuple[float | None, float | None]:
        """(answering, reading a prompt) in tokens per second; None where nothing was measured."""
        answering, reading = self._means.get(model, (_Mean(), _Mean()))
        return answering.value, reading.value
