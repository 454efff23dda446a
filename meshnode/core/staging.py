"""How many layers each device of a split gets, when host, workers and their order are given.

Layers pass the devices in llama.cpp's order: the first ones stay in the host's main memory, then come the remote
devices, then the host's own GPUs. Devices of the same speed share layers in proportion to their memory; faster ones
are filled before slower ones, because a conversation waits for the sum of all stages. Whatever that asks for, a device
gets no more than it holds, a remote one at least one layer, and every layer lies somewhere exactly once.

The output head counts as one more layer behind the last one (llama-model.cpp, `load_tensors`): on the host's last GPU
if one takes part and has room, else its tensors are kept back in main memory although the count stays with the last
device.

Rules of this file: pure; sizes are bytes, times seconds.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from meshnode.core.memory import compute_bytes
from meshnode.core.prediction import ActiveShape, Speed

SAME_SPEED = 1.1
"""Devices whose time for a layer differs by less than this factor share layers by memory."""


class SplitShape(ActiveShape, Protocol):
    """What a split reads of a model. `tied_bytes`: the part of the output that copies the embedding, not there a second
    time where both lie in main memory."""

    @property
    def tied_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """What is chosen before layers are placed. `context` is per conversation."""

    context: int
    parallel: int
    kv_type: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A device in line. `least` is the number of layers it must get to take part, `most` what it may get.

    `speed` is assumed where `is_measured` is false: good enough to choose by, not to promise by.
    """

    node: str
    device: str
    device_index: int
    limit_bytes: int
    speed: Speed
    is_measured: bool
    least: int = 0
    most: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """What a slot got: `layers` from `first_layer` on, and the bytes they take there."""

    slot: Slot
    first_layer: int
    layers: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    compute_s: float
    holds_output: bool = False

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


class Loads:
    """Running sums over the layers of a model for one choice, so that any stretch of layers is weighed at once."""

    def __init__(self, model: SplitShape, choice: Choice) -> None:
        self.model = model
        self.choice = choice
        self.count = len(model.layers)
        kv = [
            layer.kv_bytes(choice.context, sequences=choice.parallel, cache_type=choice.kv_type)
            for layer in model.layers
        ]
        weights = [layer.weights_bytes for layer in model.layers]
        self.weights = list(itertools.accumulate(weights, initial=0))
        self.kv = list(itertools.accumulate(kv, initial=0))
        self.both = [a + b for a, b in zip(self.weights, self.kv, strict=True)]
        self._scratches: dict[tuple[int, int, bool, bool], int] = {}
        read = self.weights[-1] + model.output_bytes
        self.active = min(1.0, model.active_bytes / read) if read > 0 else 1.0

    def scratch_bytes(self, first: int, end: int, *, main: bool, output: bool) -> int:
        """Scratch memory of a stretch of layers; see `memory.compute_bytes`."""
        key = (first, end, main, output)
        if key not in self._scratches:
            choice = self.choice
            self._scratches[key] = compute_bytes(
                self.model,
                context=choice.context,
                parallel=choice.parallel,
                with_output=output,
                first=first,
                end=end,
                main=main,
            )
        return self._scratches[key]

    def part(self, slot: Slot, first: int, layers: int, *, main: bool, output: bool) -> Part:
        """What the layers `first` to `first + layers` take on a slot; `main` is the host's main memory."""
        model, end = self.model, first + layers
        weights = self.weights[end] - self.weights[first]
        read = weights * self.active
        compute = self.scratch_bytes(first, end, main=main, output=output)
        if layers or main:
            weights += model.other_bytes
        if main:
            weights += model.embedding_bytes
        if output:
            weights += model.output_bytes - (model.tied_bytes if main else 0)
            read += model.output_bytes * self.active
        seconds = slot.speed.decode_s(layers, read) if read else 0.0
        kv = self.kv[end] - self.kv[first]
        return Part(slot, first, layers, weights, kv, compute, seconds, output)

    def room(self, slot: Slot, *, main: bool, output: bool) -> int:
        """Bytes left on a slot for layers, after all that comes along with the first of them; may be negative."""
        kept = self.model.other_bytes + self.scratch_bytes(0, self.count, main=main, output=output)
        if main:
            kept += self.model.embedding_bytes
        if output:
            kept += self.model.output_bytes - (self.model.tied_bytes if main else 0)
        return slot.limit_bytes - kept

    def most(self, room: int, first: int) -> int:
        """How many layers from `first` on fit into `room` bytes."""
        return max(0, bisect.bisect_right(self.both, self.both[first] + room, lo=first) - 1 - first)

    def most_before(self, room: int, end: int) -> int:
        """How many layers before `end` fit into `room` bytes."""
        return max(0, end - bisect.bisect_left(self.both, self.both[end] - room, hi=end + 1))


def place(loads: Loads, line: Sequence[Slot], *, output_on_last: bool) -> list[Part] | None:
    """Layers for each slot of `line`, whose first is the host's main memory; None if the line does not hold the model.

    `output_on_last` puts the output head on the last slot instead of in main memory.
    """
    rooms = [
        loads.room(slot, main=i == 0, output=(i == len(line) - 1) if output_on_last else i == 0)
        for i, slot in enumerate(line)
    ]
    # Main memory always keeps the embedding, the last slot the head it was given: with or without layers.
    if output_on_last and rooms[-1] < 0:
        return None
    bare = loads.part(line[0], 0, 0, main=True, output=not output_on_last)
    if bare.total_bytes > line[0].limit_bytes:
        return None
    needed = _latest_starts(loads, line, rooms)
    if needed is None:
        return None
    targets = _targets(loads, line, rooms)
    parts: list[Part] = []
    first = 0
    for i, (slot, room) in enumerate(zip(line, rooms, strict=True)):
        owed = sum(later.least for later in line[i + 1 :])
        low = max(slot.least, needed[i + 1] - first)
        high = min(loads.most(room, first), slot.most, loads.count - first - owed)
        if low > high:
            return None
        count = min(max(targets[i], low), high)
        output = (i == len(line) - 1) if output_on_last else i == 0
        parts.append(loads.part(slot, first, count, main=i == 0, output=output))
        first += count
    return parts


def place_exactly(loads: Loads, line: Sequence[Slot], counts: Sequence[int], *, output_on_last: bool) -> list[Part]:
    """As `place` with the number of layers of each slot given; whether they fit is not looked at."""
    starts = itertools.accumulate(counts, initial=0)
    last = len(line) - 1
    return [
        loads.part(slot, start, count, main=i == 0, output=(i == last) if output_on_last else i == 0)
        for i, (slot, start, count) in enumerate(zip(line, starts, counts, strict=False))
    ]


def _latest_starts(loads: Loads, line: Sequence[Slot], rooms: Sequence[int]) -> list[int] | None:
    """For each slot the first layer at which the slots from it on may begin so that they hold all the rest.

    None if a slot cannot even hold the layers that it must.
    """
    starts = [loads.count]
    owed = sum(slot.least for slot in line)
    for slot, room in zip(reversed(line), reversed(rooms), strict=True):
        owed -= slot.least
        fit = min(loads.most_before(room, starts[0]), slot.most, starts[0] - owed)
        if fit < slot.least:
            return None
        starts.insert(0, starts[0] - fit)
    return starts if starts[0] == 0 else None


def _targets(loads: Loads, line: Sequence[Slot], rooms: Sequence[int]) -> list[int]:
    """How many layers each slot should have: the fastest are filled first, equals share in proportion to their room."""
    mean = max(1.0, loads.both[-1] / loads.count)
    capacities = [min(slot.most, max(0, int(room / mean))) for slot, room in zip(line, rooms, strict=True)]
    targets = [0] * len(line)
    left = loads.count - sum(slot.least for slot in line)
    for group in _classes(loads, line):
        spare = [max(0, capacities[i] - line[i].least) for i in group]
        shares = _proportional(min(left, sum(spare)), [capacities[i] for i in group], spare)
        for i, share in zip(group, shares, strict=True):
            targets[i] = share
            left -= share
    return [target + slot.least for target, slot in zip(targets, line, strict=True)]


def _classes(loads: Loads, line: Sequence[Slot]) -> list[list[int]]:
    """Positions in line by speed, the fastest class first."""
    read = loads.weights[-1] * loads.active / loads.count
    times = [slot.speed.decode_s(1, read) for slot in line]
    order = sorted(range(len(line)), key=lambda i: (times[i], i))
    classes: list[list[int]] = []
    for i in order:
        if classes and times[i] <= SAME_SPEED * times[classes[-1][0]]:
            classes[-1].append(i)
        else:
            classes.append([i])
    return classes


def _proportional(total: int, weights: Sequence[int], limits: Sequence[int]) -> list[int]:
    """`total` in whole parts proportional to `weights`, none above its limit (largest remainder). Needs total <= sum of
    limits.
    """
    parts = [0] * len(weights)
    while (left := total - sum(parts)) > 0:
        open_ones = [i for i, limit in enumerate(limits) if parts[i] < limit]
        weight = sum(max(1, weights[i]) for i in open_ones)
        wanted = {i: left * max(1, weights[i]) / weight for i in open_ones}
        given = {i: min(int(wanted[i]), limits[i] - parts[i]) for i in open_ones}
        rest = left - sum(given.values())
        for i in sorted(open_ones, key=lambda i: (int(wanted[i]) - wanted[i], i)):
            if rest and given[i] < limits[i] - parts[i]:
                given[i] += 1
                rest -= 1
        for i, more in given.items():
            parts[i] += more
    return parts
