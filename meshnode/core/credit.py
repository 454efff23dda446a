"""The provider's side of a channel: what was delivered, what was vouched for, and whether the next token may go out.

Theory of operation. The channel has one highest voucher, whatever number of requests runs on it. A token goes out if
the charges of all requests that ended or run, with this token, are within that voucher, or within what may run unpaid
(C tokens). A prompt is read unpaid up to a bound; a longer one waits for a voucher. What was delivered is marked
before it goes out, so that a provider that crashed knows what it is owed.

A payer that left with a debt comes back with its channel: the debt is written off, because a payer that lost the
connection in good faith signs only what it received, and from then on nothing runs unpaid on that channel.

Rules of this file: pure; amounts are micros. Vouchers come here verified: `accept` changes nothing, and only what is
written may be `held`; marks are raised at once, which only ever lets fewer tokens out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from meshnode.core.pay_policy import Refused
from meshnode.core.prices import TOKENS_PER_PRICE, Price, charge, check_micros
from meshnode.core.windows import MOST_UNPAID_TOKENS

MOST_UNPAID_PROMPT_TOKENS = 2048
"""Of all requests of a channel together."""
CLEAN_HISTORY_MICROS = 100_000
"""A payer that has paid so much, and owes nothing, is trusted with MOST_UNPAID_TOKENS."""


@dataclass(frozen=True, slots=True)
class Meter:
    """One running request: what of it was delivered. `unpaid` is its C, the tokens that may run ahead of vouchers."""

    request: str
    price: Price
    tokens_in: int = 0
    tokens_out: int = 0
    unpaid: int = 0

    @property
    def charged_micros(self) -> int:
        """What that costs."""
        return charge(self.price, self.tokens_in, self.tokens_out)


@dataclass(frozen=True, slots=True)
class Opened:
    """A request begins, to be written: `written_off_micros` of the channel (all, ever) will not be paid any more."""

    meter: Meter
    settled_micros: int
    written_off_micros: int


@dataclass(frozen=True, slots=True)
class Charged:
    """A request has ended and cost so much, to be written; `settled_micros` is what all ended ones of the channel did.

    The receipt has the tokens from `meter`.
    """

    meter: Meter
    charged_micros: int
    settled_micros: int


class Credit:
    """One channel. Raises ValueError for amounts that cannot be."""

    def __init__(
        self,
        channel: bytes,
        *,
        balance_micros: int = 0,
        vouched_micros: int = 0,
        settled_micros: int = 0,
        claimed_micros: int = 0,
        written_off_micros: int = 0,
        meters: Iterable[Meter] = (),
    ) -> None:
        amounts = (balance_micros, vouched_micros, settled_micros, claimed_micros, written_off_micros)
        for micros in amounts:
            check_micros("an amount of a channel", micros)
        self.channel = channel
        self.balance_micros, self.vouched_micros, self.settled_micros, self.claimed_micros = amounts[:4]
        self.written_off_micros = written_off_micros
        self._meters = {meter.request: meter for meter in meters}

    # --- one request --------------------------------------------------------------------------------------------

    def open(self, request: str, price: Price, unpaid: int = 0) -> Opened:
        """A request begins; when it is alone, debts are written off. Raises ValueError for one that runs already."""
        if request in self._meters:
            raise ValueError(f"the request {request!r} runs already")
        if not self._meters and self.settled_micros > self.vouched_micros:
            self.written_off_micros += self.settled_micros - self.vouched_micros
            self.settled_micros = self.vouched_micros
        meter = self._meters[request] = Meter(request, price, unpaid=0 if self.written_off_micros else unpaid)
        return Opened(meter, self.settled_micros, self.written_off_micros)

    def stated(self, request: str) -> int:
        """What the quote for this request states as charged: exact when no other runs; otherwise all that is vouched.

        Another request may still use that up, and the payer would take what it is told is left for its own.
        """
        others = [meter for meter in self._meters.values() if meter.request != request]
        return self.vouched_micros if others else min(self.settled_micros, self.vouched_micros)

    def may_prefill(self, request: str, tokens_in: int) -> bool:
        """Whether the prompt may be read now: it is paid, or short enough to be read unpaid."""
        meter = self._meters[request]
        others = self._without(meter)
        if others + charge(meter.price, tokens_in, 0) <= self.vouched_micros:
            return True
        if self.written_off_micros:
            return False
        unpaid = sum(other.tokens_in for other in self._meters.values() if other is not meter)
        return tokens_in + (unpaid if others > self.vouched_micros else 0) <= MOST_UNPAID_PROMPT_TOKENS

    def prefilled(self, request: str, tokens_in: int) -> Meter:
        """The prompt is read, to be written. Raises ValueError where it may not be."""
        if not self.may_prefill(request, tokens_in):
            raise ValueError(f"a prompt of {tokens_in} tokens that nobody has paid for")
        return self._mark(request, tokens_in, 0)

    def may_emit(self, request: str, tokens_in: int, tokens_out: int) -> bool:
        """Whether the answer may go out up to `tokens_out`."""
        return self.owed(request, tokens_in, tokens_out) <= self.vouched_micros

    def owed(self, request: str, tokens_in: int, tokens_out: int) -> int:
        """The least cumulative voucher that lets the answer go out up to `tokens_out`."""
        meter = self._meters[request]
        total = self._without(meter) + charge(meter.price, tokens_in, tokens_out)
        return max(0, total - meter.unpaid * meter.price.tokens_out // TOKENS_PER_PRICE)

    def deliver(self, request: str, tokens_in: int, tokens_out: int) -> Meter:
        """The mark to write before these tokens go out; it never falls. Raises ValueError where they may not.

        Only the prompt may be shorter with the first token than when it was read: the engine has counted it since.
        """
        if not self.may_emit(request, tokens_in, tokens_out):
            raise ValueError(f"token {tokens_out} of the answer is not vouched for")
        if not self._meters[request].tokens_out:
            self._meters[request] = replace(self._meters[request], tokens_in=tokens_in)
        return self._mark(request, tokens_in, tokens_out)

    def ended(self, request: str, tokens_in: int | None = None, tokens_out: int | None = None) -> Charged:
        """A request is over: what its mark says is charged, or less if the final counts are lower; never more."""
        meter = self._meters.pop(request)
        fewer_in = meter.tokens_in if tokens_in is None else min(meter.tokens_in, tokens_in)
        fewer_out = meter.tokens_out if tokens_out is None else min(meter.tokens_out, tokens_out)
        meter = replace(meter, tokens_in=fewer_in, tokens_out=fewer_out)
        self.settled_micros += meter.charged_micros
        return Charged(meter, meter.charged_micros, self.settled_micros)

    def recover(self) -> tuple[Charged, ...]:
        """After a start: the requests of the process before this one are over, at their marks."""
        return tuple(self.ended(request) for request in list(self._meters))

    # --- the channel --------------------------------------------------------------------------------------------

    def accept(self, cumulative: int) -> bool:
        """Whether a verified voucher is news. False: it is not higher than the one held, and is passed over.

        Raises Refused (insufficient_balance) when the channel does not hold so much. Changes nothing.
        """
        if cumulative <= self.vouched_micros:
            return False
        if cumulative > self.balance_micros:
            raise Refused("insufficient_balance", {"balance": self.balance_micros, "wanted": cumulative})
        return True

    def held(self, cumulative: int) -> None:
        """A voucher is written: from now on it counts."""
        self.vouched_micros = max(self.vouched_micros, cumulative)

    def funded(self, balance_micros: int, claimed_micros: int) -> None:
        """What the chain says of the channel."""
        self.balance_micros, self.claimed_micros = balance_micros, claimed_micros

    @property
    def unpaid_tokens(self) -> int:
        """C for the next request: none for a stranger, some after a history without debts."""
        is_clean = not self.written_off_micros and self.vouched_micros >= self.settled_micros >= CLEAN_HISTORY_MICROS
        return MOST_UNPAID_TOKENS if is_clean else 0

    def meter(self, request: str) -> Meter | None:
        """One running request."""
        return self._meters.get(request)

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._meters)

    @property
    def charged_micros(self) -> int:
        """What all requests cost that ended or run."""
        return self.settled_micros + sum(meter.charged_micros for meter in self._meters.values())

    @property
    def earned_micros(self) -> int:
        """What may be claimed on the chain in all: what was delivered, as far as it was vouched for."""
        return min(self.charged_micros, self.vouched_micros)

    @property
    def claimable_micros(self) -> int:
        """What of that is not claimed yet."""
        return max(0, self.earned_micros - self.claimed_micros)

    def _without(self, meter: Meter) -> int:
        """The charges of all but this one."""
        return self.charged_micros - meter.charged_micros

    def _mark(self, request: str, tokens_in: int, tokens_out: int) -> Meter:
        meter = self._meters[request]
        meter = replace(meter, tokens_in=max(meter.tokens_in, tokens_in), tokens_out=max(meter.tokens_out, tokens_out))
        self._meters[request] = meter
        return meter
