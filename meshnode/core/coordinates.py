"""Guesses of round trips between nodes that never measured each other: Vivaldi (Dabek et al., SIGCOMM 2004).

Each node has a place in a space of four dimensions and a height above it, the way through its own access line. Half a
round trip is the distance in the space plus both heights. With each measured round trip a node moves a little towards
or away from the other, the more so the less certain it is of its own place. As in Serf, a median of the last three
samples of each neighbour keeps single delays out, and a weak pull to the origin keeps the whole from drifting.
Neighbours should be some near and some far ones: with far ones alone the near are told apart badly.

The guess is right to about a quarter and only shortlists: what matters is measured.

Rules of this file: pure; places of peers are claims, so one sample moves this node by a bounded step, and a claimed
certainty counts only so far. Lengths are seconds inside, µs on the wire.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence

from meshnode.core.randomness import Randomness
from meshnode.wire.statements import Coordinate

DIMENSIONS = 4
ERROR_GAIN = 0.25
PLACE_GAIN = 0.35
"""0.25 in the paper; with it a mesh of 200 needs twice the samples to settle, with 0.5 it settles less well."""
FIRST_ERROR = 1.5
LEAST_ERROR = 0.02
"""Nobody is believed to know its place better than that."""
FIRST_HEIGHT_S = 2e-3
LEAST_HEIGHT_S = 10e-6
"""Heights grow and shrink in proportion, so they begin at a common value and not at the least."""
GRAVITY_S = 150.0
MOST_STEP_S = 0.05
LIMIT_S = 10.0
"""Farther out, and for longer round trips, there are no nodes on Earth."""
SHORTEST_S = 1e-6
SAMPLES = 3
NEIGHBOURS = 256
US = 1_000_000


class CoordinateSystem:
    """The place of this node, moved by measured round trips."""

    def __init__(self, random: Randomness) -> None:
        self._random = random
        self._axes = [0.0] * DIMENSIONS
        self._height_s = FIRST_HEIGHT_S
        self._error = FIRST_ERROR
        self._samples: OrderedDict[bytes, deque[float]] = OrderedDict()

    def update(self, remote: Coordinate, rtt_s: float, now: float, *, peer: bytes = b"") -> None:
        """A round trip of `rtt_s` to a node that says it is at `remote`.

        `peer` tells neighbours apart for the filter; without it the sample counts as it is. Round trips that cannot be
        are passed over. `now` is not needed so far.
        """
        if not SHORTEST_S <= rtt_s <= LIMIT_S:
            return
        half_s = self._filtered(peer, rtt_s) / 2
        axes, height_s = _place(remote)
        away = [mine - theirs for mine, theirs in zip(self._axes, axes, strict=True)]
        length_s = math.hypot(*away)
        distance_s = length_s + self._height_s + height_s
        theirs = max(LEAST_ERROR, remote.error_permille / 1000)
        weight = self._error / (self._error + theirs)
        sample_error = abs(distance_s - half_s) / half_s
        gain = ERROR_GAIN * weight
        self._error = min(FIRST_ERROR, max(LEAST_ERROR, sample_error * gain + self._error * (1 - gain)))
        step_s = max(-MOST_STEP_S, min(MOST_STEP_S, PLACE_GAIN * weight * (half_s - distance_s)))
        if length_s > 1e-6:
            self._height_s += (self._height_s + height_s) * step_s / length_s
            self._height_s = min(LIMIT_S, max(LEAST_HEIGHT_S, self._height_s))
            direction = [part / length_s for part in away]
        else:
            direction = self._any_direction()
        self._axes = [mine + step_s * part for mine, part in zip(self._axes, direction, strict=True)]
        self._fall_to_the_origin()

    def coordinate(self) -> Coordinate:
        """The place as it travels."""
        axes = tuple(round(axis * US) for axis in self._axes)
        return Coordinate(axes, round(self._height_s * US), min(0xFFFF, math.ceil(self._error * 1000)))

    def _filtered(self, peer: bytes, rtt_s: float) -> float:
        if not peer:
            return rtt_s
        samples = self._samples.get(peer)
        if samples is None:
            samples = self._samples[peer] = deque(maxlen=SAMPLES)
            if len(self._samples) > NEIGHBOURS:
                self._samples.popitem(last=False)
        self._samples.move_to_end(peer)
        samples.append(rtt_s)
        return sorted(samples)[len(samples) // 2]

    def _any_direction(self) -> list[float]:
        parts = [self._random.random() - 0.5 for _ in range(DIMENSIONS)]
        length = math.hypot(*parts) or 1.0
        return [part / length for part in parts]

    def _fall_to_the_origin(self) -> None:
        length_s = math.hypot(*self._axes)
        if length_s > 0:
            keep = max(0.0, min(LIMIT_S, length_s) - (length_s / GRAVITY_S) ** 2) / length_s
            self._axes = [axis * keep for axis in self._axes]


def distance_s(one: Coordinate, other: Coordinate) -> float:
    """How far apart two places are, as nodes feel it: the round trip that is to be expected, in seconds."""
    axes, height_s = _place(one)
    others, other_height_s = _place(other)
    return 2 * (math.dist(axes, others) + height_s + other_height_s)


def _place(coordinate: Coordinate) -> tuple[Sequence[float], float]:
    """Axes and height in seconds. A space of fewer dimensions lies within ours, further ones are passed over."""
    axes = [max(-LIMIT_S, min(LIMIT_S, axis / US)) for axis in coordinate.axes[:DIMENSIONS]]
    return axes + [0.0] * (DIMENSIONS - len(axes)), min(LIMIT_S, coordinate.height_us / US)
