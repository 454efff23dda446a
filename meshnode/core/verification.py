"""Whether a stranger answers with the weights that it claims: evidence from tokens that somebody else scores again.

A second node with the same weights says, at random places of an answer, how likely each next token was. That is held
against another way to come by the token: half of the time from these weights, and half of the time from weights that
are less sure of the same alternatives, and choose at times what these would not even name. The ratio of the two
likelihoods has a mean of at most 1 where the tokens really were drawn from these weights. Its logarithms add up over
places and answers, above a floor, until the sum passes a bound (Page 1954): an honest node is then called bad no more
often than once in e^(BAD - FLOOR), about 54,000 places, on average (Lorden 1971), however often it is looked at. How
soon a dishonest one is caught depends on how far its weights are off: see bench/verify.py.

Rules of this file: pure; a verdict of one kind of weights says nothing of another; nothing that the checked node says
counts, only its tokens and what the second node says of them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from meshnode.core.randomness import Randomness

Verdict = Literal["unknown", "good", "bad"]

BAD = math.log(1000)
GOOD = -2.0
FLOOR = -4.0
"""So much honesty is kept in mind and no more: a node that changes its weights later is still found out."""
OTHER_SHARE = 0.5
"""How often other weights would decide for themselves."""
FLATTER = 0.5
"""Their opinion of the alternatives: probabilities to this power, so less sure."""
OTHER_UNTOLD = 0.15
"""How often they would choose a token that is not among those told."""
LEAST_UNTOLD = 0.003
"""How often an honest node does, at least: rounding, other hardware, a text that falls into other tokens."""
MOST = 3.0
"""What one place may count: no single one decides."""
TIE = 0.15
"""Nats: of two tokens that are so close either may be the most likely one on other hardware."""
GREEDY_HONEST, GREEDY_OTHER = 0.995, 0.90
"""How often a greedy token is the most likely one: of the same weights, and at most of others."""

PLACES = 8
"""Of one answer."""
SHORTEST = 4
"""Tokens of an answer that is worth a look."""
NEW, ALWAYS = 4, 1.0
LATER = 0.125
"""The first answers of a node are all looked at, then one of eight."""
KNOWN_NODES = 4096
WEIGHTS_OF_A_NODE = 64
"""Kinds of weights that are kept apart for one node, which may claim as many as it likes."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One place as the second node sees it: log-probabilities (nats, at temperature 1) of the alternatives that it
    told, the best first, and which of them begin the text that came; none where the text is not among them."""

    told: tuple[float, ...]
    came: tuple[int, ...]


@dataclass(slots=True)
class Evidence:
    """What is known of one node with one kind of weights. `ratio` is the sum of log-likelihood ratios."""

    ratio: float = 0.0
    answers: int = 0
    places: int = 0
    verdict: Verdict = "unknown"


def evidence_of(scored: Scored, temperature: float) -> float:
    """The log-likelihood ratio of "other weights" to "these weights" of one place.

    `temperature` is the one the answer was drawn with; 0 for the most likely token each time. A place about which the
    second node said nothing counts nothing.
    """
    if not scored.told:
        return 0.0
    if temperature <= 0:
        return _greedy(scored)
    shares = _shares([(logprob - scored.told[0]) / temperature for logprob in scored.told])
    others = _shares([FLATTER * (logprob - scored.told[0]) / temperature for logprob in scored.told])
    untold = max(LEAST_UNTOLD, 1.0 - sum(map(math.exp, scored.told)))
    here = (1 - untold) * sum(shares[index] for index in scored.came) if scored.came else untold
    there = (1 - OTHER_UNTOLD) * sum(others[index] for index in scored.came) if scored.came else OTHER_UNTOLD
    # A token of a told alternative that has underflowed is as good as untold.
    ratio = 1 - OTHER_SHARE + OTHER_SHARE * there / max(here, 1e-9)
    return min(MOST, math.log(ratio))


def _shares(logarithms: Sequence[float]) -> list[float]:
    weights = [math.exp(value) for value in logarithms]
    total = sum(weights)
    return [weight / total for weight in weights]


def _greedy(scored: Scored) -> float:
    best = max((scored.told[index] for index in scored.came), default=-math.inf)
    if best >= scored.told[0] - TIE:
        return math.log(GREEDY_OTHER / GREEDY_HONEST)
    return min(MOST, math.log((1 - GREEDY_OTHER) / (1 - GREEDY_HONEST)))


def places_of(pieces: int, random: Randomness, most: int = PLACES) -> list[int]:
    """Which pieces of an answer to score again, in their order: without pattern, so that nobody can prepare for it."""
    left = list(range(pieces))
    chosen: list[int] = []
    while left and len(chosen) < most:
        chosen.append(left.pop(int(random.random() * len(left))))
    return sorted(chosen)


class Reputations:
    """What is known of each stranger and kind of weights; the longest unseen are forgotten, bad ones last."""

    def __init__(self, random: Randomness, *, most: int = KNOWN_NODES) -> None:
        self._random = random
        self._most = most
        self._known: OrderedDict[str, OrderedDict[str, Evidence]] = OrderedDict()
        self.found_out: set[str] = set()
        """The nodes whose verdict is "bad"."""

    def wants(self, node: str, weights: str) -> bool:
        """Whether an answer of this node should be looked at. `weights` is the content hash it claims."""
        evidence = self.evidence(node, weights)
        share = ALWAYS if evidence is None or evidence.answers < NEW else LATER
        return self._random.random() < share

    def add(self, node: str, weights: str, scored: Sequence[Scored], temperature: float) -> Verdict:
        """Count what a second node said of one answer; the verdict on these weights from now on."""
        evidence = self._of(node, weights)
        counted = [place for place in scored if place.told]
        if counted:
            evidence.answers += 1
            evidence.places += len(counted)
            evidence.ratio = max(FLOOR, evidence.ratio + sum(evidence_of(place, temperature) for place in counted))
        if evidence.ratio >= BAD or evidence.verdict == "bad":
            evidence.verdict = "bad"
            self.found_out.add(node)
        else:
            evidence.verdict = "good" if evidence.ratio <= GOOD else "unknown"
        return evidence.verdict

    def verdict(self, node: str) -> Verdict:
        """The worst that is known of a node."""
        if node in self.found_out:
            return "bad"
        return "good" if any(each.verdict == "good" for each in self._known.get(node, {}).values()) else "unknown"

    def evidence(self, node: str, weights: str) -> Evidence | None:
        """What is known of a node with these weights."""
        kinds = self._known.get(node)
        return None if kinds is None else kinds.get(weights)

    def forgive(self, node: str) -> None:
        """Forget all of a node: its owner, or ours, has mended something."""
        self._known.pop(node, None)
        self.found_out.discard(node)

    def remembered(self) -> list[tuple[str, str]]:
        """(node, weights) of those that were found out, to be kept beyond the life of this process."""
        return [
            (node, weights)
            for node in self._known
            if node in self.found_out
            for weights, evidence in self._known[node].items()
            if evidence.verdict == "bad"
        ]

    def recall(self, found: Sequence[tuple[str, str]]) -> None:
        """Take in what `remembered` gave."""
        for node, weights in found[: self._most]:
            evidence = self._of(node, weights)
            evidence.ratio, evidence.verdict = BAD, "bad"
            self.found_out.add(node)

    def _of(self, node: str, weights: str) -> Evidence:
        """The evidence of a node with these weights, the last to be forgotten."""
        kinds = self._known.setdefault(node, OrderedDict())
        self._known.move_to_end(node)
        evidence = kinds.setdefault(weights, Evidence())
        kinds.move_to_end(weights)
        while len(kinds) > WEIGHTS_OF_A_NODE:
            del kinds[next((each for each in kinds if kinds[each].verdict != "bad"), next(iter(kinds)))]
        while len(self._known) > self._most:
            spare = (each for each in self._known if each not in self.found_out and each != node)
            self.forgive(next(spare, next(iter(self._known))))
        return evidence
