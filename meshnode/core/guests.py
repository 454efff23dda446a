"""What a stranger may have of this node: requests a minute, tokens an hour, how many at once, how long an answer.

Whoever comes is counted twice: by its node id, and by the prefix of its address (/24 of IPv4, /56 of IPv6), as ids cost
nothing and addresses do. A prefix has the share of a few strangers, however many ids it shows. Tokens are promised
before an answer begins (the prompt by its size, the answer by its limit) and settled when it has ended, so that answers
which run at the same time cannot pass the bound together.

Rules of this file: pure; what is refused changes no window; every visit that was let in is ended once by `leave`, and
only then are its tokens known. Times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Any, TypeVar

Key = TypeVar("Key", bytes, str)

KNOWN = 4096
"""Strangers, and prefixes, whose windows are remembered; of more than that the ones that came longest ago are
forgotten, but none that is inside."""
SMALLEST_ANSWER = 64
"""Tokens that must be left of an hour for an answer to be worth its begin, unless it asks for fewer."""
SETTLES_S = 5.0
"""In about that time answers end, and take less than was promised to them."""
STEPS = 60


@dataclass(frozen=True, slots=True)
class Stranger:
    """Who asks: the 32-byte id of its node, and the prefix of the address that it comes from ("": not known). `near`:
    the address is not global (this machine, a private network, a way through a relay), so it says little of who it is.
    """

    node: bytes
    prefix: str = ""
    near: bool = True


@dataclass(frozen=True, slots=True)
class GuestLimits:
    """What one stranger may have; see the settings `public_*`. A prefix may have `prefix_share` times as much, or
    `near_share` times where it is not global.
    """

    requests: int = 30
    tokens: int = 100_000
    answer_tokens: int = 4096
    at_once: int = 2
    prefix_share: int = 4
    near_share: int = 32


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a stranger gets nothing now: one word to count by, a sentence, and when it is worth asking again."""

    reason: str
    text: str
    retry_after_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """A request that was let in. `answer_tokens` is the longest answer that it may get."""

    stranger: Stranger
    prompt_tokens: int
    answer_tokens: int


class Window:
    """How much fell into the last `span_s` seconds, counted in steps of a sixtieth of it.

    A step counts until all of it is past, so what `used` tells is never less than the truth: of a bound that is kept
    by it no span of that length ever holds more.
    """

    __slots__ = ("_cells", "_step_s", "_sum")

    def __init__(self, span_s: float) -> None:
        self._step_s = span_s / STEPS
        self._cells: deque[list[int]] = deque()
        self._sum = 0

    def add(self, amount: int, now: float) -> None:
        """So much happens now."""
        step = math.floor(now / self._step_s)
        if self._cells and self._cells[-1][0] == step:
            self._cells[-1][1] += amount
        else:
            self._cells.append([step, amount])
        self._sum += amount

    def used(self, now: float) -> int:
        """The sum of the last span."""
        oldest = math.floor(now / self._step_s) - STEPS
        while self._cells and self._cells[0][0] < oldest:
            self._sum -= self._cells.popleft()[1]
        return self._sum

    def wait_s(self, spare: int, now: float) -> float:
        """How long until no more than `spare` of it is left."""
        left = self.used(now)
        for step, amount in self._cells:
            if left <= spare:
                break
            left -= amount
            if left <= spare:
                return max(0.0, (step + STEPS + 1) * self._step_s - now)
        return 0.0


class _Account:
    """The windows of one stranger or prefix, and what is promised to those of it that are inside."""

    __slots__ = ("inside", "limits", "promised", "requests", "share", "tokens")

    def __init__(self, limits: GuestLimits, share: int) -> None:
        self.limits = limits
        self.share = share
        self.requests = Window(60.0)
        self.tokens = Window(3600.0)
        self.inside = 0
        self.promised = 0

    def refuses_request(self, now: float) -> float | None:
        """Seconds until one more request may come; None when it may now."""
        most = self.limits.requests * self.share
        return self.requests.wait_s(most - 1, now) if self.requests.used(now) >= most else None

    def tokens_left(self, now: float) -> int:
        return self.limits.tokens * self.share - self.tokens.used(now) - self.promised

    def tokens_again_s(self, wanted: int, now: float) -> float:
        """Seconds until so many tokens are left if all that is promised is used; an hour if there never are."""
        spare = self.limits.tokens * self.share - wanted
        if spare < 0:
            return 3600.0
        return max(SETTLES_S, self.tokens.wait_s(spare - self.promised, now))


class Guests:
    """All strangers of a node. `paused` refuses whoever comes and leaves those inside alone."""

    def __init__(self, limits: GuestLimits) -> None:
        self.limits = limits
        self.paused = False
        self._strangers: OrderedDict[bytes, _Account] = OrderedDict()
        self._prefixes: OrderedDict[str, _Account] = OrderedDict()
        self._refusals: Counter[str] = Counter()
        self._inside = 0
        self._served = 0
        self._tokens_in = 0
        self._tokens_out = 0

    def knock(self, stranger: Stranger, now: float) -> Refused | None:
        """One more request of a stranger, before it is read. None: it may be read, and is counted."""
        if self.paused:
            return self._no("paused", "the owner has paused it", 60.0)
        accounts = self._accounts(stranger)
        for account, who in zip(accounts, ("a stranger", "an address range"), strict=True):
            if (wait_s := account.refuses_request(now)) is not None:
                most = account.limits.requests * account.share
                return self._no("requests", f"{who} may make {most} requests in a minute here", wait_s)
        for account in accounts:
            account.requests.add(1, now)
        return None

    def enter(self, stranger: Stranger, *, prompt_tokens: int, wanted: int | None, now: float) -> Visit | Refused:
        """Let a request in whose prompt has about that many tokens; `wanted` are those it asks for (None: all it may
        have, 0: an answer without tokens).
        """
        accounts = self._accounts(stranger)
        for account, who in zip(accounts, ("a stranger", "an address range"), strict=True):
            most = account.limits.at_once * account.share
            if account.inside >= most:
                return self._no("concurrency", f"{who} may have {most} requests here at a time", 2.0)
        longest = self.limits.answer_tokens if wanted is None else min(wanted, self.limits.answer_tokens)
        needed = prompt_tokens + min(longest, SMALLEST_ANSWER)
        for account, who in zip(accounts, ("a stranger", "an address range"), strict=True):
            if account.tokens_left(now) < needed:
                most = account.limits.tokens * account.share
                text = f"{who} may have {most} tokens in an hour here, and this request needs {needed} at least"
                return self._no("tokens", text, account.tokens_again_s(needed, now))
            longest = min(longest, account.tokens_left(now) - prompt_tokens)
        visit = Visit(stranger, prompt_tokens, longest)
        for account in accounts:
            account.inside += 1
            account.promised += prompt_tokens + longest
        self._inside += 1
        return visit

    def leave(self, visit: Visit, *, tokens_in: int, tokens_out: int, served: bool, now: float) -> None:
        """A visit is over; `served` says whether anything was done for it."""
        for account in self._accounts(visit.stranger):
            account.inside -= 1
            account.promised -= visit.prompt_tokens + visit.answer_tokens
            if tokens_in or tokens_out:
                account.tokens.add(tokens_in + tokens_out, now)
        self._inside -= 1
        self._served += served
        self._tokens_in += tokens_in
        self._tokens_out += tokens_out

    def refused(self, reason: str) -> None:
        """Count a refusal that was decided elsewhere. `reason` is one of a few words."""
        self._refusals[reason] += 1

    def facts(self) -> dict[str, Any]:
        """What a status shows; the sums are since the start of the node."""
        return {
            "paused": self.paused,
            "inside": self._inside,
            "served": self._served,
            "refused": self._refusals.total(),
            "tokens_in": self._tokens_in,
            "tokens_out": self._tokens_out,
            "known": len(self._strangers),
            "reasons": dict(sorted(self._refusals.items())),
        }

    def _no(self, reason: str, text: str, retry_after_s: float) -> Refused:
        self.refused(reason)
        return Refused(reason, text, retry_after_s)

    def _accounts(self, stranger: Stranger) -> tuple[_Account, _Account]:
        share = self.limits.near_share if stranger.near else self.limits.prefix_share
        return (
            self._account(self._strangers, stranger.node, 1),
            self._account(self._prefixes, stranger.prefix, share),
        )

    def _account(self, table: OrderedDict[Key, _Account], key: Key, share: int) -> _Account:
        account = table.get(key)
        if account is not None:
            table.move_to_end(key)
            return account
        if len(table) >= KNOWN:
            oldest = next((known for known, found in table.items() if not found.inside), None)
            if oldest is not None:
                del table[oldest]
        account = table[key] = _Account(self.limits, share)
        return account
