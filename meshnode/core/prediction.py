"""How fast a plan answers: the one place with formulas for tokens per second, from measured speeds and delays.

Decoding one conversation is a chain: the stages compute one after the other, and what passes between them crosses the
network. A token of a split over k remote workers costs the time of every stage and k + 1 legs (host -> first worker ->
... -> last worker -> host); each leg costs half a round trip, the bytes of one activation, and software on both ends.

What guessing ahead makes of a token is in `speculation`.

Rules of this file: pure; times are seconds, sizes are bytes. Figures hold for the start of a conversation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshnode.core.memory import UBATCH, ModelShape
from meshnode.core.placement import HOST, SoloPlan

LEG_SOFTWARE_S = 0.65e-3
"""What a leg costs beside delay and bytes: wake-ups, copies and framing. Measured with prototypes of the tunnel over
emulated links of 5 and 20 ms with two to four workers on one machine: 0.4 to 0.9 ms."""
NEAR_S = 2e-3
"""Round trips below this are those of a local network."""
NEAR_RATE_BYTES_PER_S = 110e6
FAR_RATE_BYTES_PER_S = 12e6
"""Assumed rates of links, as nothing measures them beforehand: gigabit Ethernet and 100 Mbit/s."""


class ActiveShape(ModelShape, Protocol):
    """A model, and what of it is read for one token (of a mixture of experts only the chosen ones)."""

    @property
    def active_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Speed:
    """What a device does: bytes of weights it gets through in a second, and what a layer costs before any byte.

    `flops_per_s` is the arithmetic of prompt processing, None if it was not measured.
    """

    bandwidth_bytes_per_s: float
    layer_s: float
    flops_per_s: float | None = None

    def decode_s(self, layers: int, read_bytes: float) -> float:
        """Seconds for one token through `layers` layers that read `read_bytes` of weights and cache.

        Quantizations of fewer bits than Q8_0 come out somewhat slower than this on processors, which then wait for
        arithmetic.
        """
        return layers * self.layer_s + read_bytes / self.bandwidth_bytes_per_s

    def batch_s(self, layers: int, read_bytes: float, parameters: float, tokens: int) -> float:
        """Seconds for `tokens` tokens at once: as long as one token, or as the arithmetic takes if that is longer."""
        reading_s = self.decode_s(layers, read_bytes)
        return reading_s if self.flops_per_s is None else max(reading_s, self.prompt_s(parameters, tokens))

    def prompt_s(self, parameters: float, tokens: int) -> float:
        """Seconds for the arithmetic of a prompt: two operations per active weight and token. Needs `flops_per_s`."""
        if self.flops_per_s is None:
            return math.inf
        return 2.0 * parameters * tokens / self.flops_per_s


PROCESSOR = Speed(15e9, 40e-6)
"""Assumed of a processor that was never measured: two channels of DDR4, half used."""
GPU = Speed(300e9, 20e-6)
"""Assumed of a GPU that was never measured."""


def leg_s(rtt_s: float, passed_bytes: float) -> float:
    """Seconds until what one stage computed is at the next, `rtt_s` away."""
    rate = NEAR_RATE_BYTES_PER_S if rtt_s < NEAR_S else FAR_RATE_BYTES_PER_S
    return rtt_s / 2 + passed_bytes / rate + LEG_SOFTWARE_S


def activation_bytes(n_embd: int, *, tokens: int = 1, half: bool = False) -> int:
    """What passes from stage to stage for so many tokens: one value of four bytes, or two, for each dimension."""
    return n_embd * tokens * (2 if half else 4)


def token_s(compute_s: Sequence[float], legs_s: Sequence[float] = ()) -> float:
    """Seconds for one token: stages and legs one after another."""
    return math.fsum(compute_s) + math.fsum(legs_s)


def tokens_per_s(seconds: float) -> float | None:
    """The rate as people read it, None for nothing to compute."""
    return round(1 / seconds, 2 if seconds > 0.1 else 1) if seconds > 0 else None


def predict_solo(model: ActiveShape, plan: SoloPlan, speeds: Mapping[str, Speed]) -> float | None:
    """Tokens per second of one conversation at its start, None while a device of the plan was never measured.

    `speeds` are by the device names of the plan's shares. Each share costs its layers and its bytes on its own device,
    one after the other; the embedding is looked up and not read, and of a mixture of experts only the active part
    counts.
    """
    read = sum(layer.weights_bytes for layer in model.layers) + model.output_bytes
    active = min(1.0, model.active_bytes / read) if read else 1.0
    seconds: list[float] = []
    for share in plan.shares:
        weights = share.weights_bytes - (model.embedding_bytes + model.other_bytes if share.device == HOST else 0)
        if not share.layers or weights <= 0:
            continue
        if share.device not in speeds:
            return None
        seconds.append(speeds[share.device].decode_s(share.layers, weights * active))
    return tokens_per_s(token_s(seconds))


def prompt_s(stage_batch_s: Sequence[float], legs_s: Sequence[float], prompt_tokens: int) -> float:
    """Seconds until a prompt is processed by a pipeline, from the times of one full batch of `UBATCH` tokens.

    The first batch passes every stage and leg; the others follow as fast as the slowest of them lets them.
    """
    if prompt_tokens <= 0 or not stage_batch_s:
        return 0.0
    batches = -(-prompt_tokens // UBATCH)
    first = token_s(stage_batch_s, legs_s) * min(1.0, prompt_tokens / UBATCH)
    return first + (batches - 1) * max(stage_batch_s)
