"""How often each model is asked for: measured where callers ask, gossiped, and summed by whoever wants to know.

A node writes only its own rates, so that nothing is counted twice however often a record is passed on. A rate is an
exponentially weighted average with a half-life of a minute, and fades at the reader by the reader's own clock from the
moment the record arrived: clocks need not agree, and the demand of a node that fell silent goes to zero by itself.

Rules of this file: pure; names come from callers and rates from peers, so both are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from meshnode.wire.registry import LIMIT_DEMANDS, LIMIT_MODEL_NAME_CHARS
from meshnode.wire.schema import MAX_U32, can_be_shown
from meshnode.wire.statements import Demand, Wish

HALF_LIFE_S = 60.0
REFRESH_S = 60.0
CHANGE_SHARE = 0.2
MODELS = 4 * LIMIT_DEMANDS
"""How many are measured; the most wanted of them are published."""
LEAST_PER_MINUTE = 0.01
"""What is asked for less often is not mentioned: one request fades to this in about six half-lives."""
MOST_PER_MINUTE = 6000.0
"""What one node is believed, for one model: more than any gateway serves, and a bound on what one liar can claim."""
PER_MINUTE = 1000
"""Rates travel in thousandths of a request per minute."""


class DemandMeter:
    """The rates at which callers of this node ask for models."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._rates: dict[str, tuple[float, float]] = {}
        self._published: dict[str, float] = {}
        self._published_at = -math.inf

    def record(self, model: str, now: float) -> None:
        """A caller asks for a model. Names that cannot travel are passed over."""
        if not 0 < len(model) <= LIMIT_MODEL_NAME_CHARS or not can_be_shown(model):
            return
        # A steady rate r gives r: each request adds the integral of the weight that it still has later on.
        one = 60 * math.log(2) / self._half_life_s
        self._rates[model] = (self._per_minute(model, now) + one, now)
        if len(self._rates) > MODELS:
            del self._rates[min(self._rates, key=lambda name: (self._per_minute(name, now), name))]

    def wishes(self, now: float) -> tuple[Wish, ...]:
        """The present rates, the greatest first, at most LIMIT_DEMANDS."""
        rates = sorted((-self._per_minute(model, now), model) for model in self._rates)
        return tuple(
            Wish(model, min(MAX_U32, round(-rate * PER_MINUTE)))
            for rate, model in rates[:LIMIT_DEMANDS]
            if -rate >= LEAST_PER_MINUTE
        )

    def to_publish(self, now: float) -> tuple[Wish, ...] | None:
        """The rates when it is time to tell them, then taken as told; None while what was told last is good enough.

        That is when a rate differs by a fifth from what readers make of the last record, or after a minute. What fades
        alone needs no words, so a node that nobody asks anything becomes silent.
        """
        wishes = self.wishes(now)
        rates = {wish.model: wish.rate / PER_MINUTE for wish in wishes}
        age_s = now - self._published_at
        if age_s < REFRESH_S:
            if not any(self._differs(model, rates, age_s) for model in rates.keys() | self._published.keys()):
                return None
        elif not rates and not self._published:
            return None
        self._published, self._published_at = rates, now
        return wishes

    def _differs(self, model: str, rates: dict[str, float], age_s: float) -> bool:
        told = _faded(self._published.get(model, 0.0), age_s, self._half_life_s)
        return abs(rates.get(model, 0.0) - told) > max(CHANGE_SHARE * told, LEAST_PER_MINUTE)

    def _per_minute(self, model: str, now: float) -> float:
        rate, at = self._rates.get(model, (0.0, now))
        return _faded(rate, now - at, self._half_life_s)


def total(demands: Iterable[tuple[Demand, float]], now: float, *, half_life_s: float = HALF_LIFE_S) -> dict[str, float]:
    """Requests per minute by model over all nodes, the greatest first.

    `demands` are the records of the living nodes, one of each, with the time of their arrival (monotonic, seconds).
    """
    sums: dict[str, float] = {}
    for demand, received_at in demands:
        for model, rate in {wish.model: wish.rate for wish in demand.wishes}.items():
            faded = _faded(min(MOST_PER_MINUTE, rate / PER_MINUTE), now - received_at, half_life_s)
            sums[model] = sums.get(model, 0.0) + faded
    kept = [(model, rate) for model, rate in sums.items() if rate >= LEAST_PER_MINUTE]
    return dict(sorted(kept, key=lambda entry: (-entry[1], entry[0])))


def _faded(rate: float, age_s: float, half_life_s: float) -> float:
    return rate * math.exp2(-max(0.0, age_s) / half_life_s)
