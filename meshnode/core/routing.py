"""Which host answers a request: those within its radius, near ones before strangers, by the time to the first token.

    predicted = round trip + waiting for a slot + (prompt tokens - those the host still holds) / prompt speed

To that a busy host adds a little, as streams that share a host slow each other down to their end. The radius
(radius.py) comes before it:

    (beyond what the request allows: never, whatever else is the matter)
    local      first, while one of them has a free slot; when none has, together with the trusted ones
    trusted    next
    public     last, so only where the nearer ones cannot; those that cost something after those that cost nothing

Of hosts that want to be paid, the one comes first whose typical answer has the least product of time and price: twice
the price is worth half the time. Whether a price may be paid at all is decided before (api/paying.py).

The nearer ones cannot: when there is none; while all are cooling down after failures; when all have failed this very
request or refused it because their queue is full (they are asked before, and stand before in the order); when none is
ready or able; when the prompt seems too long for each. That they are slow or busy, so that a caller waits, is no such
reason.

Among hosts that come in one place this node is preferred unless another is clearly faster; of hosts that are about
equal, two are drawn and the less busy one goes first, so that many gateways which see the same gossip do not all run to
the same host (the power of two choices, Mitzenmacher 2001). Hosts that cannot take the request at all are listed with
the reason, so that the order can be printed and understood.

Rules of this file: pure, and nothing of it waits; a request is never left without a host because of a guess: when all
that could answer are cooling down, the least bad of the nearer ones is offered last, and when the prompt seems too long
for everyone, the host with the most room decides, a nearer one if there is any, as only it can count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from meshnode.core.affinity import Affinity
from meshnode.core.cooldown import Cooldowns
from meshnode.core.load import Load
from meshnode.core.prices import FREE, Price, charge, usd
from meshnode.core.radius import LOCAL, PUBLIC, TRUSTED, Radius, reaches
from meshnode.core.randomness import Randomness

READY = "ready"
CHAT = "chat"

ANSWER_TOKENS = 256
"""A typical answer, for the time until a slot comes free."""
ANSWER_ROOM_TOKENS = 64
"""What must be left of the context for an answer to be worth starting."""
UNKNOWN_TOKENS_PER_S = 20.0
LEAST_TOKENS_PER_S = 0.1
"""What can be said on the wire; it keeps predictions finite."""
PROMPT_TO_ANSWER_SPEED = 20.0
"""Reading is about so many times faster than writing, on processors and on graphics cards alike."""
UNKNOWN_RTT_S = 0.1

HERE_FREE_S, HERE_FREE_SHARE = 0.25, 0.5
"""With a free slot this node goes first unless another is faster by a quarter of a second and by half."""
HERE_BUSY_S, HERE_BUSY_SHARE = 0.02, 0.1
EQUAL_S, EQUAL_SHARE = 0.02, 0.1
"""Differences below the larger of these are within what the prediction can tell."""
COMPANY_S = 0.25
"""So much later may the first token come from an idle host than from one whose slots are all but taken."""

FAST_TOKENS_PER_S = 10.0
"""A little faster than people read."""
HERE_COUNTS = 4
"""In the choice of a model, one that runs here counts as if it were so many times larger."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for, and how far it may go. `prefix` holds the hashes of its leading messages, see
    affinity.py.
    """

    model: str
    needs: frozenset[str] = frozenset()
    prompt_tokens: int = 0
    prefix: tuple[int, ...] = ()
    radius: Radius = TRUSTED


@dataclass(frozen=True, slots=True)
class HostView:
    """One place where a model runs, as this node knows it.

    Times in seconds, speeds in tokens per second of one stream; None, 0 or nothing where it is not known (context,
    capabilities, size). `busy` and `waiting` are what the host last said of itself, and `price` what it asks for.
    """

    node: str
    here: bool = False
    rtt_s: float | None = None
    slots: int = 1
    busy: int = 0
    waiting: int = 0
    context_length: int = 0
    tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    capabilities: Collection[str] = ()
    state: str = READY
    radius: str = "local"
    size_bytes: int = 0
    price: Price = FREE


@dataclass(frozen=True, slots=True)
class Ranked:
    """A host in its place. `predicted_s` is None for one that is not offered; `reason` says why, for people."""

    node: str
    predicted_s: float | None
    reason: str


@dataclass(slots=True)
class _Candidate:
    """`cost` is in seconds; of a host that wants to be paid, in those of a typical answer times its price."""

    host: HostView
    predicted_s: float
    cost: float
    held_tokens: int
    fill: float
    free: bool
    reason: str


class Router:
    """Orders hosts, and remembers what became of the requests that were sent to them."""

    def __init__(self, random: Randomness) -> None:
        self._random = random
        self._affinity = Affinity()
        self._cooldowns = Cooldowns()
        self._load = Load()

    def rank(self, wanted: Wanted, hosts: Sequence[HostView], now: float) -> list[Ranked]:
        """All hosts: those that are offered, best first, then the others with the reason."""
        held = self._affinity.held(wanted.model, wanted.prefix, wanted.prompt_tokens, now)
        candidates: list[_Candidate] = []
        cooling: list[tuple[int, float, int, _Candidate]] = []
        short: list[HostView] = []
        skipped: list[Ranked] = []
        for host in hosts:
            if reason := beyond(host, wanted.radius) or unable(host, wanted.needs):
                skipped.append(Ranked(host.node, None, reason))
            elif not _has_room(host, wanted.prompt_tokens):
                short.append(host)
            else:
                candidate = self._predict(host, wanted, held.get(host.node, 0), now)
                pause = self._cooldowns.cooling(host.node, wanted.model, now)
                if pause is None:
                    candidates.append(candidate)
                else:
                    candidate.reason = str(pause)
                    cooling.append((_reluctance(host), pause.remaining_s, pause.failures, candidate))
        if short and not candidates and not cooling:
            roomy = max(short, key=lambda host: (-_reluctance(host), host.context_length))
            short.remove(roomy)
            candidates.append(self._predict(roomy, wanted, held.get(roomy.node, 0), now))
        self._sort(candidates)
        if cooling:
            cooling.sort(key=lambda entry: entry[:3])
            candidates.append(cooling[0][3])
            skipped += [Ranked(candidate.host.node, None, candidate.reason) for *_, candidate in cooling[1:]]
        too_long = f"about {wanted.prompt_tokens} tokens do not fit into its context of"
        skipped += [Ranked(host.node, None, f"{too_long} {host.context_length}") for host in short]
        return [Ranked(found.host.node, found.predicted_s, found.reason) for found in candidates] + skipped

    def started(self, node: str, model: str) -> None:
        """A request of this gateway was sent to a host."""
        self._load.started(node, model)
        self._cooldowns.started(node, model)

    def ended(self, node: str, model: str) -> None:
        """That request is over, whatever came of it. Raises ValueError when none was started."""
        self._load.ended(node, model)
        self._cooldowns.ended(node, model)

    def failed(self, node: str, model: str, now: float) -> None:
        """The host gave no answer, or broke one off."""
        self._cooldowns.failed(node, model, now)

    def succeeded(self, node: str, model: str, prefix: tuple[int, ...], now: float, *, prompt_tokens: int = 0) -> None:
        """The host answered, and so holds that prefix; `prompt_tokens` is its length where it is known."""
        self._cooldowns.succeeded(node, model)
        self._affinity.remember(model, prefix, node, now, prompt_tokens=prompt_tokens)

    def _predict(self, host: HostView, wanted: Wanted, held_tokens: int, now: float) -> _Candidate:
        rtt_s = 0.0 if host.here else UNKNOWN_RTT_S if host.rtt_s is None else host.rtt_s
        speed = max(LEAST_TOKENS_PER_S, host.tokens_per_s or UNKNOWN_TOKENS_PER_S)
        prompt_speed = max(LEAST_TOKENS_PER_S, host.prompt_tokens_per_s or speed * PROMPT_TO_ANSWER_SPEED)
        slots = host.slots or 1
        load = host.busy + host.waiting
        if host.here:  # exact but for the requests that are on their way from here to its queue
            load = max(load, self._load.ours(host.node, wanted.model))
        else:
            load = self._load.present(host.node, wanted.model, load, now)
        # Slots come free one by one: with n of them, every n-th part of an answer's time.
        wait_s = max(0, load + 1 - slots) / slots * ANSWER_TOKENS / speed
        predicted_s = rtt_s + wait_s + (wanted.prompt_tokens - held_tokens) / prompt_speed
        reason = "here" if host.here else f"{rtt_s * 1000:.0f} ms away"
        cost = predicted_s + COMPANY_S * min(1.0, load / slots)
        if host.here:
            least_s, share = (HERE_BUSY_S, HERE_BUSY_SHARE) if wait_s else (HERE_FREE_S, HERE_FREE_SHARE)
            cost -= max(least_s, share * predicted_s)
        if wait_s:
            reason += f", a slot in about {wait_s:.1f} s"
        if held_tokens:
            reason += f", holds {held_tokens} of {wanted.prompt_tokens} tokens"
        if not host.price.is_free:
            micros = charge(host.price, wanted.prompt_tokens, ANSWER_TOKENS)
            cost = (cost + ANSWER_TOKENS / speed) * micros
            reason += f", {usd(micros)} for a typical answer"
        return _Candidate(host, predicted_s, cost, held_tokens, load / slots, load < slots, reason)

    def _sort(self, candidates: list[_Candidate]) -> None:
        turns: dict[str, int] = {LOCAL: 0, TRUSTED: 1, PUBLIC: 2}
        if not any(found.free for found in candidates if found.host.radius == LOCAL):
            turns[LOCAL] = turns[TRUSTED]
        candidates.sort(key=lambda found: (turns[found.host.radius], not found.host.price.is_free, found.cost))
        if len(candidates) < 2 or candidates[0].host.here:
            return
        first = candidates[0]
        is_free = first.host.price.is_free
        limit = first.cost + max(EQUAL_S if is_free else 0.0, EQUAL_SHARE * first.cost)
        equals = [
            found
            for found in candidates
            if found.cost <= limit
            and found.host.radius == first.host.radius
            and found.host.price.is_free == is_free
            and not found.host.here
        ]
        # A conversation stays where it was, however little that saves; only strangers to it are drawn.
        most = max(found.held_tokens for found in equals)
        equals = [found for found in equals if found.held_tokens == most]
        chosen = equals[0] if len(equals) == 1 else self._less_busy_of_two(equals)
        if chosen is not first:
            candidates.remove(chosen)
            candidates.insert(0, chosen)

    def _less_busy_of_two(self, equals: list[_Candidate]) -> _Candidate:
        one = int(self._random.random() * len(equals))
        other = (one + 1 + int(self._random.random() * (len(equals) - 1))) % len(equals)
        return min(equals[one], equals[other], key=lambda found: found.fill)


def _reluctance(host: HostView) -> int:
    """The more, the later: strangers after others, those that want to be paid last."""
    return (host.radius == PUBLIC) + (not host.price.is_free)


def beyond(host: HostView, allowed: str) -> str:
    """Why a request may not go to a host, whatever that one can; empty when it may."""
    return "" if reaches(allowed, host.radius) else f"{host.radius}, and the request may go no further than {allowed}"


def unable(host: HostView, needs: Collection[str]) -> str:
    """Why a host cannot take such a request now; empty when it can. Unknown capabilities count as all."""
    if host.state != READY:
        return host.state
    if host.capabilities:
        missing = [need for need in needs if need not in host.capabilities]
        if missing:
            return f"cannot do {', '.join(sorted(missing))}"
    return ""


def _has_room(host: HostView, prompt_tokens: int) -> bool:
    return not host.context_length or prompt_tokens + ANSWER_ROOM_TOKENS <= host.context_length


def choose_model(candidates: Mapping[str, Sequence[HostView]], wanted: Wanted) -> str:
    """The model that `auto` means for this request, of models by id with their hosts; hosts beyond its radius do not
    count.

    First come those that can take it: ready, with what it needs, with room for the prompt, made for conversation; then
    those of trusted nodes before those of strangers, and free ones before those that cost something; then those that
    write faster than people read. Of what is left,
    the largest, where one that runs here counts as four times its size: a small model at hand is worth more than the
    wait, but not more than a far better one. Of slow models the fastest, in steps of two. Equal ones go by name.
    Nothing counts that changes from second to second (load, round trips), so that the choice stays.
    Raises ValueError for no models.
    """
    if not candidates:
        raise ValueError("no model to choose from")
    return min(candidates, key=lambda model: (*_merit(candidates[model], wanted), model))


def _merit(hosts: Sequence[HostView], wanted: Wanted) -> tuple[float, ...]:
    """The least is the best. By the host that suits the request best."""
    within = [host for host in hosts if reaches(wanted.radius, host.radius)]
    return min((_merit_of_host(host, wanted) for host in within), default=(2.0,) * 7 + (0.0,))


def _merit_of_host(host: HostView, wanted: Wanted) -> tuple[float, ...]:
    speed = host.tokens_per_s or UNKNOWN_TOKENS_PER_S
    slow = speed < FAST_TOKENS_PER_S
    return (
        bool(unable(host, wanted.needs)),
        not _has_room(host, wanted.prompt_tokens),
        bool(host.capabilities) and CHAT not in host.capabilities,
        host.radius == PUBLIC,
        not host.price.is_free,
        slow,
        -int(speed).bit_length() if slow else 0,
        -host.size_bytes * (HERE_COUNTS if host.here else 1),
    )
