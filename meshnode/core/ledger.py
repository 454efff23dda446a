"""The payer's ledger: what may be promised, what must be signed, and what was spent, for all channels and requests.

Theory of operation. A channel is paid with one signature over one growing sum, whatever number of requests runs on it:

    sum = what its ended requests cost + for each that runs, the charge for its prompt and for the answer received + W

Only when that passes the highest sum ever signed is there something to sign; the difference to it is spent, in the
month of signing, for good. What was signed ahead and not used is headroom, which the next request uses up first.

A request reserves what it costs at most before its provider hears of it. The reservation is nothing that is stored: it
is the most that can still be signed on its channel. So signing lowers it by what was signed, an end by what was not
needed, headroom makes it smaller from the start, and a month that begins in the middle takes it over as it is. So
`committed + reserved <= cap` holds, unless the cap was lowered, a forgotten signature turned up, or more of a voucher
was used than it seemed; for those cases each signature is checked against cap, ceiling and deposit once more.

When a request ends without a receipt, nobody here knows how much of what was signed its provider used for it: all of
the voucher, perhaps, but for what other requests have received. That is taken as used up, as far as the request could
cost, until a quote of the provider, which holds our last voucher, states a lower charge while nothing else runs. That
way both sides agree again after any crash, and nothing that was signed is ever counted as unspent.

Rules of this file: pure. A method that returns an entry has changed the ledger already: the entries are written in
order, and nothing is sent before that. When a write fails, this ledger is thrown away and made anew from the store: it
is only ever ahead in what it counts as spent. Months are given by the caller, "2026-11".
"""

from __future__ import annotations

from dataclasses import replace

from meshnode.core.ledger_entries import (
    Changed,
    Ended,
    Line,
    Proven,
    Reserved,
    Running,
    Signed,
    State,
    Why,
)
from meshnode.core.ledger_figures import Figures, check_month
from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.prices import MOST_MICROS, Price, charge, check_micros, tokens_out_within
from meshnode.core.windows import AHEAD_TOKENS, Window


class Ledger(Figures):
    """All channels that this node pays on. `policy` may be replaced at any time; the next call goes by the new one.

    Raises ValueError when `state` contradicts itself.
    """

    def __init__(self, policy: Policy, state: State | None = None) -> None:
        super().__init__(policy, state or State())
        self._shared: set[str] = set()

    # --- one request --------------------------------------------------------------------------------------------

    def reserve(
        self, request: str, channel: bytes, model: str, price: Price, most_in: int, most_out: int, month: str
    ) -> Reserved:
        """Promise what this request costs at most, before anyone is asked. `request` names this attempt, not another.

        Raises Refused (with all figures), and ValueError for a name that is in use or sizes that cannot be.
        """
        check_month(month)
        if request in self._running:
            raise ValueError(f"the request {request!r} runs already")
        if refused := self.policy.refusal(price, model):
            raise refused
        line = self._open_line(channel)
        running = Running(request, channel, model, price, most_in, most_out)
        prepaid = charge(price, most_in, min(AHEAD_TOKENS, most_out))
        if prepaid > self.policy.prepay_micros:
            raise Refused("prepay_too_large", {"prepay": self.policy.prepay_micros, "wanted": prepaid})
        promised = self.reserved(channel)
        ends_at = line.settled_micros + self._most(channel) + running.most_micros
        wanted = max(0, ends_at - line.signed_micros) - promised
        if ends_at > line.balance_micros:
            raise self._exhausted(line, ends_at, promised, wanted)
        if self.committed(month) + self.reserved() + wanted > self.policy.month_micros:
            raise self._cap_reached(month, wanted)
        if others := self.running_on(channel):
            self._shared |= {request, *(other.request for other in others)}
        self._running[request] = running
        return Reserved(running)

    def adopt(self, request: str, charged_micros: int, vouched_micros: int) -> Changed | None:
        """Take over what the provider states in its quote for this request: the charge of the whole channel, and the
        highest voucher that it holds. A lower charge than ours gives headroom back.

        All of the voucher stated as charged means no more than that: a request that we gave up may still be running
        over there. None when nothing follows: something else ran on the channel since the request was reserved, or our
        last voucher is still on its way. Raises Refused (cum_mismatch) for more than we can owe or have signed.
        """
        check_micros("charged_micros", charged_micros)
        running = self._known(request)
        line = self._lines[running.channel]
        is_alone = request not in self._shared and not running.covered_out
        is_exact = charged_micros < vouched_micros
        at_most = line.settled_micros + line.unsure_micros
        is_too_much = is_alone and is_exact and charged_micros > at_most
        if is_too_much or not charged_micros <= vouched_micros <= line.signed_micros:
            figures = {"stated": charged_micros, "settled": line.settled_micros, "signed": line.signed_micros}
            raise Refused("cum_mismatch", {**figures, "vouched": vouched_micros})
        if not is_alone or vouched_micros < line.signed_micros:
            return None
        settled = min(charged_micros, at_most)
        adopted = replace(line, settled_micros=settled, unsure_micros=0 if is_exact else at_most - settled)
        return self._change(adopted, "adopted") if adopted != line else None

    def due(
        self, request: str, tokens_in: int, tokens_out: int, window: Window, month: str, asked: bool = False
    ) -> Signed | None:
        """What to sign now that so much is there; None while what was signed is enough.

        `tokens_in` is the prompt as the provider counts it, 0 until it says so; `tokens_out` is our own count of the
        answer. `asked` when the provider waits: then a voucher does not wait for N more tokens. What is at risk stays
        within the policy's prepayment, by a narrower window if need be. Raises Refused.
        """
        check_month(month)
        running = self._known(request)
        if tokens_in > running.most_in:
            raise Refused("over_count", {"claimed": tokens_in, "most": running.most_in})
        tokens_in = max(tokens_in, running.tokens_in)
        received = max(min(tokens_out, running.most_out), running.received_out)
        ahead = self._ahead(running, tokens_in, received, window)
        every = min(window.every, max(1, ahead // 2))
        is_time = asked or not running.covered_out or running.covered_out - received <= ahead - every
        if not is_time and tokens_in == running.tokens_in:
            self._running[request] = replace(running, received_out=received)
            return None
        covered_out = max(running.covered_out, min(received + ahead, running.most_out))
        covered = replace(running, tokens_in=tokens_in, received_out=received, covered_out=covered_out)
        line = self._lines[running.channel]
        total = line.settled_micros + self._covered(running.channel)
        total += covered.covered_micros - running.covered_micros
        signed = self._sign(line, total, month, covered)
        self._running[request] = covered
        return signed

    def finished(self, request: str, charged_micros: int, month: str) -> tuple[Ended] | tuple[Ended, Signed]:
        """A receipt, checked against our own count, says what the request cost. The rest of its reservation is free.

        A charge above what was signed (tokens that ran unpaid) is signed now, if the policy still allows it. Raises
        Refused (over_count) for more than was reserved; such a request is to be released instead.
        """
        check_month(month)
        check_micros("charged_micros", charged_micros)
        running = self._known(request)
        if charged_micros > running.most_micros:
            raise Refused("over_count", {"claimed": charged_micros, "most": running.most_micros})
        self._forget(request)
        line = self._lines[running.channel]
        line = self._put(replace(line, settled_micros=line.settled_micros + charged_micros))
        ended = Ended(line, running, charged_micros)
        try:
            signed = self._sign(line, line.settled_micros + self._covered(line.channel), month, running)
        except Refused:
            signed = None  # The debt stays in what is settled, and goes along with the next voucher.
        return (ended, replace(signed, running=None)) if signed else (ended,)

    def release(self, request: str, unheard: bool = False) -> Ended:
        """The request is over without a receipt that holds: interrupted, cancelled, over-counted, or never sent.

        What was signed stays counted, and none of it is taken as left over that this request could have used; unless
        it was `unheard`: its provider certainly never heard of it.
        """
        running = self._known(request)
        self._forget(request)
        line = self._lines[running.channel]
        if unheard:
            return Ended(line, running, None)
        left = line.signed_micros - self._received(running.channel)
        at_most = line.settled_micros + running.most_micros
        settled = max(line.settled_micros, min(at_most, left))
        unsure = min(line.unsure_micros + at_most - settled, MOST_MICROS)
        return Ended(self._put(replace(line, settled_micros=settled, unsure_micros=unsure)), running, None)

    def recover(self) -> tuple[Ended, ...]:
        """After a start: all requests of the process before this one are over."""
        return tuple(self.release(request) for request in list(self._running))

    # --- one channel --------------------------------------------------------------------------------------------

    def opened(self, channel: bytes) -> Changed:
        """There is such a channel, or it is open again."""
        return self._change(replace(self._lines.get(channel) or Line(channel), is_open=True), "opened")

    def closed(self, channel: bytes) -> Changed:
        """Nothing more is signed on this channel."""
        return self._change(replace(self._line(channel), is_open=False), "closed")

    def proven(self, channel: bytes, cumulative: int, month: str) -> Proven | None:
        """Somebody holds a signature of ours, which the caller has verified, over so much. None when that is no news.

        It is a fact whatever the policy says: an old backup of this ledger must not spend the same money again.
        """
        check_month(month)
        check_micros("cumulative", cumulative)
        line = self._line(channel)
        delta = cumulative - line.signed_micros
        if delta <= 0:
            return None
        settled = max(line.settled_micros, cumulative - self._received(channel))
        unsure = min(line.unsure_micros + delta, MOST_MICROS)
        line = self._put(replace(line, signed_micros=cumulative, settled_micros=settled, unsure_micros=unsure))
        return Proven(line, month, self._spend(month, delta), delta)

    def funded(
        self, channel: bytes, balance_micros: int, claimed_micros: int, month: str
    ) -> tuple[Changed] | tuple[Changed, Proven]:
        """What the chain says of a channel. Nobody can claim what was not signed, so a claim is proof as well."""
        balance, claimed = min(balance_micros, MOST_MICROS), min(claimed_micros, MOST_MICROS)
        changed = self._change(replace(self._line(channel), balance_micros=balance, claimed_micros=claimed), "funded")
        proven = self.proven(channel, claimed, month)
        return (changed, proven) if proven else (changed,)

    def deposit(self, channel: bytes, micros: int, month: str, by_hand: bool = False) -> Changed:
        """Put money into a channel: counted as locked from now on. `by_hand` is somebody at the terminal, who may do
        so while paying is off; the bounds hold for everyone. Raises Refused.
        """
        check_month(month)
        check_micros("a deposit", micros)
        off = self.policy.switched_off()
        if off and (off.code == "no_pay" or not by_hand):
            raise off
        line = self._open_line(channel)
        if line.locked_micros + micros > self.policy.most_deposit_micros:
            figures = {"most": self.policy.most_deposit_micros, "locked": line.locked_micros, "wanted": micros}
            raise Refused("deposit_too_large", figures)
        if self.committed(month) + self.locked + micros > self.policy.month_micros:
            raise self._cap_reached(month, micros)
        return self._change(replace(line, depositing_micros=line.depositing_micros + micros), "depositing")

    def deposit_ended(self, channel: bytes, micros: int) -> Changed:
        """A deposit is final or has failed. What it brought is said by `funded`."""
        line = self._line(channel)
        left = max(0, line.depositing_micros - micros)
        return self._change(replace(line, depositing_micros=left), "deposit ended")

    def deposit_wanted(self, channel: bytes, month: str) -> int:
        """How much this node would put into this channel by itself: 0 when the policy leaves nothing."""
        line = self._lines.get(channel) or Line(channel)
        if self.policy.switched_off():
            return 0
        in_channel = self.policy.most_deposit_micros - line.locked_micros
        in_month = self.policy.month_micros - self.committed(month) - self.locked
        return max(0, min(self.policy.deposit_micros, in_channel, in_month))

    # --- inside -------------------------------------------------------------------------------------------------

    def _ahead(self, running: Running, tokens_in: int, received: int, window: Window) -> int:
        """The tokens to pay ahead: W, or fewer where W would put more at risk than the policy's prepayment."""
        delivered = charge(running.price, tokens_in, received) if received else 0
        within = tokens_out_within(running.price, tokens_in, delivered + self.policy.prepay_micros)
        if within is None:
            return window.ahead
        if within <= received < running.most_out:
            wanted = charge(running.price, tokens_in, received + 1) - delivered
            raise Refused("prepay_too_large", {"prepay": self.policy.prepay_micros, "wanted": wanted})
        return min(window.ahead, max(0, within - received))

    def _sign(self, line: Line, total: int, month: str, running: Running) -> Signed | None:
        """Count `total` as signed on this channel, unless it was already. Raises Refused, and then counts nothing."""
        delta = total - line.signed_micros
        if delta <= 0:
            return None
        if refused := self.policy.refusal(running.price, running.model):
            raise refused
        self._open_line(line.channel)
        if total > min(line.balance_micros, MOST_MICROS):
            raise self._exhausted(line, total, self.reserved(line.channel), delta)
        if self.committed(month) + delta > self.policy.month_micros:
            raise self._cap_reached(month, delta)
        line = self._put(replace(line, signed_micros=total))
        return Signed(line, month, self._spend(month, delta), delta, running)

    def _spend(self, month: str, micros: int) -> int:
        self._spent[month] = self._spent.get(month, 0) + micros
        return self._spent[month]

    def _cap_reached(self, month: str, wanted: int) -> Refused:
        figures = {"cap": self.policy.month_micros, "committed": self.committed(month), "reserved": self.reserved()}
        return Refused("monthly_cap_reached", {**figures, "locked": self.locked, "wanted": wanted})

    def _exhausted(self, line: Line, total: int, reserved: int, wanted: int) -> Refused:
        figures = {"balance": line.balance_micros, "signed": line.signed_micros, "reserved": reserved}
        return Refused("channel_exhausted", {**figures, "wanted": wanted, "short": total - line.balance_micros})

    def _known(self, request: str) -> Running:
        if request not in self._running:
            raise ValueError(f"no request {request!r} runs")
        return self._running[request]

    def _forget(self, request: str) -> None:
        del self._running[request]
        self._shared.discard(request)

    def _open_line(self, channel: bytes) -> Line:
        line = self._lines.get(channel)
        if line is None or not line.is_open:
            raise Refused("no_channel")
        return line

    def _put(self, line: Line) -> Line:
        self._lines[line.channel] = line
        return line

    def _change(self, line: Line, why: Why) -> Changed:
        return Changed(self._put(line), why)
