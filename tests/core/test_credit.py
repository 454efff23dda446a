import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from meshnode.core.credit import Charged, Credit, Meter, Opened
from meshnode.core.ledger import Ledger
from meshnode.core.ledger_entries import Line
from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.prices import Price, charge
from meshnode.core.windows import Window

PRICE = Price(200_000, 600_000)
CHANNEL = bytes(32)
MONTH = "2026-11"
WINDOW = Window()


def credit_with(vouched: int = 0, **amounts: int) -> Credit:
    return Credit(CHANNEL, balance_micros=10**6, vouched_micros=vouched, **amounts)


def test_tokens_go_out_as_far_as_they_are_vouched_for() -> None:
    credit = credit_with()
    assert credit.open("r", PRICE) == Opened(Meter("r", PRICE), 0, 0)
    assert not credit.may_emit("r", 50, 1)
    assert credit.owed("r", 50, 1) == 11
    assert credit.accept(49)
    assert not credit.may_emit("r", 50, 1)  # accepted, but not yet written
    credit.held(49)
    assert credit.may_emit("r", 50, 65) and not credit.may_emit("r", 50, 66)
    assert credit.deliver("r", 50, 65) == Meter("r", PRICE, 50, 65)
    with pytest.raises(ValueError, match="token 66"):
        credit.deliver("r", 50, 66)
    assert credit.charged_micros == credit.earned_micros == credit.claimable_micros == 49


def test_a_mark_never_falls_and_is_charged_at_the_end() -> None:
    credit = credit_with(100)
    credit.open("r", PRICE)
    credit.deliver("r", 50, 40)
    assert credit.deliver("r", 10, 5) == Meter("r", PRICE, 50, 40)
    assert credit.ended("r") == Charged(Meter("r", PRICE, 50, 40), 34, 34)
    assert credit.running == 0 and credit.meter("r") is None


def test_a_prompt_has_the_length_that_the_engine_counted() -> None:
    """Also after a crash: an estimate by bytes is not charged."""
    credit = credit_with(100)
    credit.open("r", PRICE)
    assert credit.prefilled("r", 44).tokens_in == 44
    assert credit.deliver("r", 17, 1) == Meter("r", PRICE, 17, 1)
    (charged,) = credit.recover()
    assert charged.charged_micros == 4


def test_final_counts_may_be_lower_but_not_higher() -> None:
    credit = credit_with(200)
    for request, final, micros in (("a", (50, 39), 34), ("b", (500, 500), 34), ("c", (49, 1), 11)):
        credit.open(request, PRICE)
        credit.deliver(request, 50, 40)
        assert credit.ended(request, *final).charged_micros == micros
    assert credit.settled_micros == 79


def test_requests_of_one_channel_share_its_voucher() -> None:
    credit = credit_with(98)
    credit.open("a", PRICE)
    credit.open("b", PRICE)
    credit.deliver("a", 50, 65)
    assert credit.may_emit("b", 50, 65) and not credit.may_emit("b", 50, 66)
    credit.deliver("b", 50, 30)
    assert credit.owed("a", 50, 66) == 28 + 50
    credit.ended("b")
    assert credit.settled_micros == 28 and credit.charged_micros == 28 + 49


def test_stale_vouchers_are_passed_over_and_uncovered_ones_refused() -> None:
    credit = Credit(CHANNEL, balance_micros=100, vouched_micros=50)
    assert not credit.accept(50) and not credit.accept(0)
    assert credit.accept(100)
    with pytest.raises(Refused) as refused:
        credit.accept(101)
    assert refused.value.figures == {"balance": 100, "wanted": 101}
    credit.held(100)
    credit.held(70)  # written later, lower: two at once
    assert credit.vouched_micros == 100
    credit.funded(150, 60)
    assert credit.accept(101) and credit.claimed_micros == 60


def test_a_trusted_payer_may_be_late() -> None:
    credit = credit_with()
    credit.open("r", PRICE, unpaid=64)
    assert credit.may_emit("r", 0, 63) and not credit.may_emit("r", 0, 65)  # 38.4 micros, rounded down
    credit.deliver("r", 0, 63)
    assert credit.earned_micros == 0 and credit.charged_micros == 38


def test_short_prompts_are_read_unpaid_long_ones_are_not() -> None:
    credit = credit_with()
    credit.open("a", PRICE)
    credit.open("b", PRICE)
    assert credit.may_prefill("a", 2048) and not credit.may_prefill("a", 2049)
    assert credit.prefilled("a", 2000).charged_micros == 400
    assert credit.may_prefill("b", 48) and not credit.may_prefill("b", 49)  # of one channel together
    with pytest.raises(ValueError, match="nobody has paid"):
        credit.prefilled("b", 49)
    credit.held(400)
    assert credit.may_prefill("b", 2048)  # the first is paid
    credit.held(410)
    assert credit.may_prefill("b", 2048)
    credit.held(400 + charge(PRICE, 9000, 0))
    assert credit.may_prefill("b", 9000) and not credit.may_prefill("b", 9001)


def test_who_left_a_debt_pays_ahead_from_then_on() -> None:
    credit = credit_with(100)
    credit.open("r", PRICE, unpaid=64)
    credit.prefilled("r", 1000)
    assert credit.recover() == (Charged(Meter("r", PRICE, 1000, 0, 64), 200, 200),)
    opened = credit.open("s", PRICE, unpaid=64)
    assert opened == Opened(Meter("s", PRICE), settled_micros=100, written_off_micros=100)
    assert not credit.may_prefill("s", 1) and not credit.may_emit("s", 0, 1)
    credit.held(101)
    assert credit.may_prefill("s", 1)
    credit.ended("s")
    assert credit.open("t", PRICE).written_off_micros == 100


def test_trust_is_earned_by_paying() -> None:
    assert credit_with(99_999, settled_micros=99_999).unpaid_tokens == 0
    assert credit_with(100_000, settled_micros=100_000).unpaid_tokens == 64
    assert credit_with(100_000, settled_micros=100_001).unpaid_tokens == 0
    assert credit_with(200_000, settled_micros=150_000, written_off_micros=1).unpaid_tokens == 0


def test_a_quote_states_what_is_certain() -> None:
    credit = credit_with(100, settled_micros=40)
    credit.open("a", PRICE)
    assert credit.stated("a") == 40
    credit.open("b", PRICE)
    assert credit.stated("b") == 100  # the other may still use it
    credit.ended("a")
    assert credit.stated("b") == 40


def test_what_cannot_be_is_our_own_fault() -> None:
    credit = credit_with()
    credit.open("r", PRICE)
    with pytest.raises(ValueError, match="runs already"):
        credit.open("r", PRICE)
    with pytest.raises(ValueError, match="whole number"):
        credit_with(-1)


@dataclass
class Call:
    """One request between the two, and how far each side is."""

    most_in: int
    most_out: int
    is_linked: bool = True
    is_heard: bool = False
    """By the provider."""
    quote: tuple[int, int] | None = None
    is_quoted: bool = False
    receipt: Charged | None = None
    received: int = 0


class Trade:
    """A payer and a provider that are both honest, over links that break, with vouchers that come late or never, and
    crashes of either, in any order.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ledger = Ledger(Policy("auto", PRICE, month_micros=10**9))
        self.ledger.opened(CHANNEL)
        self.ledger.funded(CHANNEL, 10**6, 0, MONTH)
        self.credit = credit_with()
        self.calls: dict[str, Call] = {}
        self.ended: list[Call] = []
        self.vouchers: list[int] = []
        self.number = 0
        self.taken_twice = 0
        self.steps: dict[Callable[[], None], int] = {
            self.ask: 3,
            self.hear: 6,
            self.accept_quote: 6,
            self.prefill: 4,
            self.emit: 8,
            self.receive: 8,
            self.voucher: 10,
            self.finish: 2,
            self.accept_receipt: 2,
            self.break_link: 1,
            self.notice: 1,
            self.crash_of_the_payer: 1,
            self.crash_of_the_provider: 1,
        }

    def run(self, steps: int) -> None:
        """So many steps, then peace."""
        for step in self.random.choices(list(self.steps), list(self.steps.values()), k=steps):
            step()
            self.check()
        for name in list(self.calls):
            if self.calls[name].is_linked:
                self.lose_link(name)
            if self.credit.meter(name):
                self.credit.ended(name)
        self.calls.clear()
        self.quiet_day()

    @property
    def line(self) -> Line:
        found = self.ledger.line(CHANNEL)
        assert found
        return found

    def some(self, wanted: Callable[[str, Call], object]) -> tuple[str, Call] | None:
        found = [(name, call) for name, call in self.calls.items() if wanted(name, call)]
        return self.random.choice(found) if found else None

    def streaming(self) -> tuple[str, Call] | None:
        return self.some(lambda name, call: call.is_linked and call.is_quoted and self.credit.meter(name))

    def pay(self, name: str, tokens_in: int, tokens_out: int, asked: bool = False) -> None:
        if entry := self.ledger.due(name, tokens_in, tokens_out, WINDOW, MONTH, asked):
            self.vouchers.append(entry.line.signed_micros)

    def arrive(self, cumulative: int) -> None:
        if self.credit.accept(cumulative):
            self.credit.held(cumulative)

    def over(self, name: str) -> None:
        self.ended.append(self.calls.pop(name))

    # --- steps ----------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        if len(self.calls) >= 3:
            return
        self.number += 1
        call = self.calls[str(self.number)] = Call(self.random.randrange(300), self.random.randrange(1, 200))
        self.ledger.reserve(str(self.number), CHANNEL, "m", PRICE, call.most_in, call.most_out, MONTH)

    def hear(self) -> None:
        if found := self.some(lambda _, call: call.is_linked and not call.is_heard):
            name, call = found
            self.credit.open(name, PRICE, self.random.choice((0, 0, 8)))
            call.is_heard, call.quote = True, (self.credit.stated(name), self.credit.vouched_micros)

    def accept_quote(self) -> None:
        if found := self.some(lambda _, call: call.is_linked and call.quote and not call.is_quoted):
            name, call = found
            assert call.quote
            self.ledger.adopt(name, *call.quote)  # which refuses no honest provider
            call.is_quoted = True
            self.vouchers.append(self.line.signed_micros)
            self.pay(name, 0, 0)

    def prefill(self) -> None:
        if found := self.some(lambda name, _: self.credit.meter(name)):
            name, call = found
            tokens_in = self.random.randint(0, call.most_in)
            if self.credit.may_prefill(name, tokens_in):
                self.credit.prefilled(name, tokens_in)

    def emit(self) -> None:
        """Also when the payer has gone: the provider need not know yet."""
        if found := self.some(lambda name, _: self.credit.meter(name)):
            name, call = found
            for _ in range(self.random.randrange(100)):
                meter = self.credit.meter(name)
                assert meter
                tokens_out = meter.tokens_out + 1
                if tokens_out > call.most_out or not self.credit.may_emit(name, meter.tokens_in, tokens_out):
                    break
                self.credit.deliver(name, meter.tokens_in, tokens_out)

    def receive(self) -> None:
        if found := self.streaming():
            name, call = found
            meter = self.credit.meter(name)
            assert meter
            call.received = self.random.randint(call.received, meter.tokens_out)
            self.pay(name, meter.tokens_in, call.received, asked=self.random.random() < 0.5)

    def voucher(self) -> None:
        if self.vouchers:
            cumulative = self.vouchers.pop(self.random.randrange(len(self.vouchers)))
            if self.random.random() < 0.8:
                self.arrive(cumulative)

    def finish(self) -> None:
        if found := self.streaming():
            found[1].receipt = self.credit.ended(found[0])

    def accept_receipt(self) -> None:
        if found := self.some(lambda _, call: call.is_linked and call.receipt):
            name, call = found
            assert call.receipt
            call.received = call.receipt.meter.tokens_out  # a receipt comes behind all of the answer
            for entry in self.ledger.finished(name, call.receipt.charged_micros, MONTH)[1:]:
                self.vouchers.append(entry.line.signed_micros)
            self.over(name)

    def break_link(self) -> None:
        if found := self.some(lambda _, call: call.is_linked):
            self.lose_link(found[0])

    def lose_link(self, name: str) -> None:
        """The payer notices at once, the provider some time later."""
        self.calls[name].is_linked = False
        others = [each for each in self.ledger.running_on(CHANNEL) if each.request != name]
        self.taken_twice += sum(each.covered_micros - each.received_micros for each in others)
        self.ledger.release(name)
        if not self.credit.meter(name):
            self.over(name)

    def notice(self) -> None:
        if found := self.some(lambda name, call: not call.is_linked and self.credit.meter(name)):
            self.credit.ended(found[0])
            self.over(found[0])

    def crash_of_the_payer(self) -> None:
        state = self.ledger.state()
        self.ledger = Ledger(self.ledger.policy, state)
        assert len(self.ledger.recover()) == len(state.running)
        for name in [name for name, call in self.calls.items() if call.is_linked]:
            self.calls[name].is_linked = False
            if not self.credit.meter(name):
                self.over(name)

    def crash_of_the_provider(self) -> None:
        for charged in self.credit.recover():
            name = charged.meter.request
            if self.calls[name].is_linked:
                self.lose_link(name)
            else:
                self.over(name)

    def quiet_day(self) -> None:
        """The provider gets the last voucher. Then in a whole request that nothing disturbs no token waits, and after
        it both sides have the same figures.
        """
        self.arrive(self.line.signed_micros)
        self.number += 1
        name, tokens_in, most_out = str(self.number), self.random.randrange(300), self.random.randrange(1, 200)
        self.ledger.reserve(name, CHANNEL, "m", PRICE, 300, most_out, MONTH)
        self.credit.open(name, PRICE)
        self.ledger.adopt(name, self.credit.stated(name), self.credit.vouched_micros)
        self.pay(name, tokens_in, 0)
        for token in range(1, most_out + 1):
            self.arrive(self.line.signed_micros)
            self.credit.deliver(name, tokens_in, token)
            self.pay(name, tokens_in, token)
        assert len(self.ledger.finished(name, self.credit.ended(name).charged_micros, MONTH)) == 1
        assert self.line.settled_micros == self.credit.settled_micros
        assert self.line.signed_micros == self.credit.vouched_micros
        assert self.ledger.reserved() == 0

    def check(self) -> None:
        """What holds at every moment."""
        assert self.credit.vouched_micros <= self.line.signed_micros == self.ledger.committed(MONTH)
        unpaid = self.credit.charged_micros - self.credit.vouched_micros
        assert unpaid <= charge(PRICE, 2048, 0) + charge(PRICE, 0, 8)
        calls = [*self.ended, *self.calls.values()]
        ahead = sum(charge(PRICE, call.most_in, min(call.received + 64, call.most_out)) for call in calls)
        assert self.line.signed_micros <= ahead + self.taken_twice


@pytest.mark.parametrize("seed", range(8))
def test_both_sides_agree_again_whatever_happened(seed: int) -> None:
    """Nobody honest is ever taken for a cheat, the provider has nothing unpaid beyond its bounds, the payer has signed
    nothing beyond its windows, and a request that is alone and undisturbed makes both agree again.
    """
    for number in range(60):
        Trade(1000 * seed + number).run(steps=120)
