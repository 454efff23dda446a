"""What is remembered of one request, for the log, the metrics and the console. Never a prompt or an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

STATUS_CALLER_LEFT = 499
"""nginx's number for a caller that left; it appears in the log and the metrics only."""


@dataclass(slots=True)
class Record:
    """One request, from its head to its last byte.

    `node` tells who answered last, `here` whether that is this node, `peer` who asked where it was not a caller of
    ours. `radius` is the furthest one of all that answered, `reached` of all that were asked. `retries` counts
    hosts that failed before anything went out, `resumed` those that failed afterwards and were replaced;
    `resume_failed` says that the last of them could not be. `wanted` is the name that a caller asked for where no host
    answers to it: untrusted text, in no log and no label; `model` is empty then. `output_sha256` is the hash of the
    answer as a stranger gave it, or got it: of the bytes of its body; both ends of a request have the same.
    `cost_micros` is what it cost in micro-USDC, paid or earned by this node.
    """

    id: str
    endpoint: str
    started_at: float
    model: str = ""
    status: int = 0
    stream: bool = False
    error: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    queued_s: float = 0.0
    first_byte_s: float | None = None
    total_s: float = 0.0
    node: str = ""
    here: bool = True
    radius: str = ""
    reached: str = ""
    peer: str = ""
    retries: int = 0
    resumed: int = 0
    resume_failed: bool = False
    wanted: str = ""
    output_sha256: str = ""
    cost_micros: int = 0


_COUNT = re.compile(
    rb'"(prompt_tokens|input_tokens|cache_read_input_tokens|prompt_n|cache_n'
    rb'|completion_tokens|output_tokens|predicted_n)":\s*(\d{1,9})\b'
)


def token_counts(text: bytes) -> tuple[int, int]:
    """(in, out) as an answer reports them, in whichever dialect; 0 where it says nothing.

    Tokens that came from the prompt cache are counted: /v1/messages and llama-server's own timings list them apart.
    """
    last = {name: int(value) for name, value in _COUNT.findall(text)}

    def sum_of(*names: bytes) -> int:
        return sum(last.get(name, 0) for name in names)

    tokens_in = sum_of(b"prompt_tokens") or sum_of(b"input_tokens", b"cache_read_input_tokens")
    tokens_out = sum_of(b"completion_tokens") or sum_of(b"output_tokens") or sum_of(b"predicted_n")
    return tokens_in or sum_of(b"prompt_n", b"cache_n"), tokens_out
