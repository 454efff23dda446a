import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshnode.core.ledger import Ledger
from meshnode.core.ledger_entries import Changed, Ended, Entry, Proven, Reserved, Signed, State
from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.prices import FREE, MOST_MICROS, Price, charge
from meshnode.core.windows import Window
from tests.core.ledger_samples import (
    ALPHA,
    BETA,
    DEAR,
    DECEMBER,
    NOVEMBER,
    OCTOBER,
    POLICY,
    PRICE,
    WINDOW,
    ledger_with,
    line,
    receive,
    refusal,
    reserve,
)

# --- one request --------------------------------------------------------------------------------------------------


def test_a_request_from_reservation_to_receipt() -> None:
    ledger = ledger_with()
    assert reserve(ledger).running.most_micros == 140
    assert ledger.reserved() == 140 and ledger.committed(NOVEMBER) == 0
    assert ledger.adopt("r", 0, 0) is None
    first = ledger.due("r", 0, 0, WINDOW, NOVEMBER)
    assert first and (first.line.signed_micros, first.delta_micros, first.month_micros) == (39, 39, 39)
    assert first.running == ledger.running("r")
    assert receive(ledger, "r", range(1, 101)) == [(1, 49), (33, 69), (65, 70)]
    assert ledger.reserved() == 70  # the prompt might still be longer
    ended = ledger.finished("r", 70, NOVEMBER)
    assert ended == (Ended(line(ledger), ended[0].running, 70),)
    assert (line(ledger).settled_micros, ledger.headroom(ALPHA)) == (70, 0)
    assert ledger.committed(NOVEMBER) == 70 and ledger.reserved() == 0


def test_an_answer_that_ends_early_leaves_headroom_for_the_next() -> None:
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(1, 41))
    ledger.finished("r", 34, NOVEMBER)
    assert (line(ledger).signed_micros, ledger.headroom(ALPHA)) == (69, 35)
    reserve(ledger, "next")
    assert ledger.reserved() == 140 - 35
    assert ledger.adopt("next", 34, 69) is None  # the provider agrees
    assert receive(ledger, "next", range(1)) == [(0, 34 + 49)]
    short = ledger_with()
    reserve(short)
    receive(short, "r", range(1, 41))
    short.finished("r", 34, NOVEMBER)
    reserve(short, "next", most_out=20)
    assert receive(short, "next", range(21)) == []  # 22 more in all, 35 were signed
    assert short.finished("next", 22, NOVEMBER)[0].line.settled_micros == 56
    assert short.committed(NOVEMBER) == 69


def test_two_requests_of_one_channel_share_one_voucher() -> None:
    ledger = ledger_with()
    reserve(ledger, "a")
    reserve(ledger, "b")
    assert ledger.reserved() == 280
    assert receive(ledger, "a", range(1)) == [(0, 49)]
    assert receive(ledger, "b", range(1)) == [(0, 98)]
    assert receive(ledger, "a", range(32, 33)) == [(32, 49 + 68)]
    ledger.finished("b", 10, NOVEMBER)
    assert ledger.headroom(ALPHA) == 39
    assert receive(ledger, "a", range(64, 65)) == []  # b left enough behind
    assert ledger.finished("a", 70, NOVEMBER)[0].line.settled_micros == 80
    assert ledger.committed(NOVEMBER) == line(ledger).signed_micros == 117


def test_a_provider_that_waits_is_paid_before_the_next_n_tokens() -> None:
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(1))
    assert ledger.due("r", 50, 10, WINDOW, NOVEMBER) is None
    signed = ledger.due("r", 50, 10, WINDOW, NOVEMBER, asked=True)
    assert signed and signed.line.signed_micros == charge(PRICE, 50, 74)
    assert ledger.due("r", 50, 10, WINDOW, NOVEMBER, asked=True) is None  # asking again changes nothing


def test_what_ran_unpaid_is_signed_at_the_end() -> None:
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(1))
    ended, signed = ledger.finished("r", 60, NOVEMBER)  # type: ignore[misc]
    assert isinstance(ended, Ended) and isinstance(signed, Signed)
    assert (signed.line.signed_micros, signed.delta_micros, signed.running) == (60, 11, None)
    reserve(ledger, "next")
    ledger.policy = replace(POLICY, no_pay=True)
    assert len(ledger.finished("next", 140, NOVEMBER)) == 1  # not signed: a debt, that the cap still counts as promised
    assert ledger.reserved() == 140


def test_claims_that_cannot_be_are_refused_and_change_nothing() -> None:
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(1))
    before = ledger.state()
    over = refusal(lambda: ledger.due("r", 401, 10, WINDOW, NOVEMBER))
    assert over == ("over_count", {"claimed": 401, "most": 400})
    assert refusal(lambda: ledger.finished("r", 141, NOVEMBER)) == ("over_count", {"claimed": 141, "most": 140})
    assert ledger.state() == before
    signed = ledger.due("r", 50, 10**9, WINDOW, NOVEMBER)
    assert signed and signed.line.signed_micros == 70  # never more than was asked for


def test_the_window_is_narrower_where_tokens_are_dear() -> None:
    ledger = ledger_with(replace(POLICY, prepay_micros=1000, month_micros=10**6))
    ledger.reserve("r", ALPHA, "m", DEAR, 10, 1000, NOVEMBER)
    at_risk = []
    for token in range(300):
        ledger.due("r", 10, token, Window(32, 256), NOVEMBER)
        at_risk.append(line(ledger).signed_micros - (charge(DEAR, 10, token) if token else 0))
    assert max(at_risk) <= 1000
    assert min(at_risk) >= 15  # and it never waits for a token


def test_a_request_costs_nothing_where_nothing_is_charged() -> None:
    ledger = ledger_with(Policy())
    ledger.reserve("r", ALPHA, "m", FREE, 400, 100, NOVEMBER)
    assert ledger.due("r", 50, 64, WINDOW, NOVEMBER) is None
    assert ledger.finished("r", 0, NOVEMBER)[0].charged_micros == 0


# --- refusals -----------------------------------------------------------------------------------------------------


def test_every_bound_refuses_with_its_figures() -> None:
    ledger = ledger_with(replace(POLICY, month_micros=200), balance=500)
    reserve(ledger)
    cap = {"cap": 200, "committed": 0, "reserved": 140, "locked": 1000, "wanted": 140}
    assert refusal(lambda: reserve(ledger, "s")) == ("monthly_cap_reached", cap)
    receive(ledger, "r", range(1))
    cap |= {"committed": 49, "reserved": 91, "locked": 951}
    assert refusal(lambda: reserve(ledger, "s", BETA)) == ("monthly_cap_reached", cap)
    assert refusal(lambda: reserve(ledger, "s", bytes(32))) == ("no_channel", {})
    ledger.policy = replace(POLICY, month_micros=10_000)
    short = {"balance": 500, "signed": 49, "reserved": 91, "wanted": 620, "short": 260}
    assert refusal(lambda: reserve(ledger, "s", most_out=900)) == ("channel_exhausted", short)
    ledger.policy = replace(POLICY, prepay_micros=100)
    prepay = {"prepay": 100, "wanted": 119}
    assert refusal(lambda: reserve(ledger, "s", most_in=400)) == ("prepay_too_large", prepay)
    ledger.policy = replace(POLICY, ceiling=Price(200_000, 599_999))
    assert refusal(lambda: reserve(ledger, "s"))[0] == "price_above_ceiling"
    ledger.policy = Policy()
    assert refusal(lambda: reserve(ledger, "s"))[0] == "pay_off"
    assert list(ledger.state().running) == ["r"]


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (Policy(), "pay_off"),
        (replace(POLICY, no_pay=True), "no_pay"),
        (replace(POLICY, ceiling=Price(200_000, 599_999)), "price_above_ceiling"),
        (replace(POLICY, month_micros=50), "monthly_cap_reached"),
        (replace(POLICY, prepay_micros=0), "prepay_too_large"),
    ],
)
def test_a_policy_that_became_stricter_holds_in_mid_answer(policy: Policy, code: str) -> None:
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(1))
    ledger.policy = policy
    before = ledger.state()
    assert refusal(lambda: ledger.due("r", 50, 40, WINDOW, NOVEMBER))[0] == code
    assert ledger.state() == before
    assert ledger.release("r").line.signed_micros == 49


def test_no_voucher_is_above_the_deposit_or_on_a_closed_channel() -> None:
    ledger = ledger_with(balance=150)
    reserve(ledger)
    ledger.funded(ALPHA, 60, 0, NOVEMBER)  # the chain has thought better of it
    receive(ledger, "r", range(1))
    gone = {"balance": 60, "signed": 49, "reserved": 91, "wanted": 19, "short": 8}
    assert refusal(lambda: ledger.due("r", 50, 32, WINDOW, NOVEMBER)) == ("channel_exhausted", gone)
    ledger.funded(ALPHA, 150, 0, NOVEMBER)
    ledger.closed(ALPHA)
    assert refusal(lambda: ledger.due("r", 50, 32, WINDOW, NOVEMBER)) == ("no_channel", {})
    ledger.opened(ALPHA)
    assert ledger.due("r", 50, 32, WINDOW, NOVEMBER)


# --- months -------------------------------------------------------------------------------------------------------


def test_a_month_may_begin_in_the_middle_of_an_answer() -> None:
    ledger = ledger_with(replace(POLICY, month_micros=150))
    reserve(ledger)
    receive(ledger, "r", range(1))
    assert refusal(lambda: ledger.reserve("s", BETA, "m", PRICE, 0, 100, DECEMBER))[1]["reserved"] == 91
    assert receive(ledger, "r", range(32, 101), DECEMBER) == [(32, 68), (64, 70)]
    assert ledger.finished("r", 70, DECEMBER)
    assert ledger.state().spent == {NOVEMBER: 49, DECEMBER: 21}
    assert ledger.committed(DECEMBER) == 21
    assert ledger.standing(DECEMBER).months == {NOVEMBER: 49, DECEMBER: 21}


# --- interruptions, restarts, backups -----------------------------------------------------------------------------


def test_a_resumed_answer_is_two_requests_and_both_count() -> None:
    ledger = ledger_with(replace(POLICY, month_micros=210))
    reserve(ledger, "r")
    receive(ledger, "r", range(41))
    ended = ledger.release("r")
    assert ended.charged_micros is None and ended.running.received_out == 40
    assert (ended.line.signed_micros, ended.line.settled_micros, ledger.reserved()) == (68, 68, 0)
    ledger.reserve("r.2", BETA, "m", PRICE, 440, 60, NOVEMBER)
    signed = ledger.due("r.2", 90, 0, WINDOW, NOVEMBER)
    assert signed and signed.line.signed_micros == charge(PRICE, 90, 60)
    ledger.finished("r.2", 54, NOVEMBER)
    assert ledger.committed(NOVEMBER) == 68 + 54


def test_after_an_interruption_the_next_quote_gives_the_rest_back() -> None:
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(41))
    ledger.release("r")
    assert line(ledger).unsure_micros == 140 - 68
    reserve(ledger, "next")
    assert ledger.adopt("next", 34, 49) is None  # our last voucher is not there yet: it may be used for more
    adopted = ledger.adopt("next", 34, 68)
    assert adopted and adopted.why == "adopted"
    assert (adopted.line.settled_micros, adopted.line.unsure_micros) == (34, 0)
    assert ledger.headroom(ALPHA) == 34 and ledger.committed(NOVEMBER) == 68


def test_a_request_that_was_never_sent_leaves_no_doubt() -> None:
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(41))
    before = ledger.finished("r", 34, NOVEMBER)[0].line
    reserve(ledger, "next")
    assert ledger.release("next", unheard=True).line == before
    assert ledger.reserved() == 0
    for number in range(3):
        ledger.reserve(str(number), ALPHA, "m", PRICE, 0, 200, NOVEMBER)
        ledger.release(str(number))
    assert (line(ledger).settled_micros, line(ledger).unsure_micros) == (68, 3 * 120 - 34)


def test_doubt_is_used_up_by_a_provider_that_states_more() -> None:
    """Whoever always states that all of its voucher is used gains no more than one interrupted request could cost."""
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(2))
    ledger.release("r")
    assert (line(ledger).settled_micros, line(ledger).unsure_micros) == (49, 91)
    for number in range(10):
        reserve(ledger, str(number), most_in=50)
        ledger.adopt(str(number), line(ledger).signed_micros, line(ledger).signed_micros)
        receive(ledger, str(number), range(41))
        ledger.finished(str(number), 34, NOVEMBER)
    assert (line(ledger).settled_micros, line(ledger).unsure_micros) == (140 + 10 * 34, 0)
    reserve(ledger, "last", most_in=50)
    more, signed = line(ledger).settled_micros + 1, line(ledger).signed_micros
    assert refusal(lambda: ledger.adopt("last", more, signed))[0] == "cum_mismatch"


def test_a_provider_cannot_state_more_than_was_agreed() -> None:
    ledger = ledger_with()
    reserve(ledger)
    receive(ledger, "r", range(41))
    ledger.finished("r", 34, NOVEMBER)
    reserve(ledger, "next")
    figures = {"stated": 35, "settled": 34, "signed": 68, "vouched": 68}
    assert refusal(lambda: ledger.adopt("next", 35, 68)) == ("cum_mismatch", figures)
    assert refusal(lambda: ledger.adopt("next", 34, 69))[0] == "cum_mismatch"  # a voucher that we do not know of
    ledger.release("next")
    reserve(ledger, "third")
    assert refusal(lambda: ledger.adopt("third", 69, 68))[0] == "cum_mismatch"  # uncertain, but above all signatures
    assert ledger.adopt("third", 68, 68) is None  # as was assumed
    assert (line(ledger).settled_micros, line(ledger).unsure_micros) == (68, 106)


def test_a_quote_says_nothing_once_another_request_has_begun() -> None:
    ledger = ledger_with()
    reserve(ledger, "a")
    reserve(ledger, "b")
    receive(ledger, "b", range(41))
    ledger.finished("b", 34, NOVEMBER)
    assert ledger.adopt("a", 0, 68) is None  # made before b, heard after it
    assert line(ledger).settled_micros == 34
    reserve(ledger, "c", BETA)
    receive(ledger, "c", range(41))
    assert ledger.adopt("c", 0, 68) is None  # a quote again, in the middle


def test_an_interruption_beside_another_request_takes_all_but_what_that_has_received() -> None:
    ledger = ledger_with()
    reserve(ledger, "a")
    reserve(ledger, "b")
    receive(ledger, "a", range(11))
    receive(ledger, "b", range(11))
    assert line(ledger).signed_micros == 98
    assert ledger.release("b").line.settled_micros == 98 - charge(PRICE, 50, 10)
    assert ledger.committed(NOVEMBER) + ledger.reserved() <= 280


def test_a_restart_ends_what_ran() -> None:
    ledger = ledger_with()
    reserve(ledger, "a")
    reserve(ledger, "b")
    reserve(ledger, "c", BETA)
    receive(ledger, "a", range(40))
    again = Ledger(POLICY, ledger.state())
    assert [ended.running.request for ended in again.recover()] == ["a", "b", "c"]
    assert again.reserved() == 0 and again.committed(NOVEMBER) == 68
    assert line(again).settled_micros == line(again).signed_micros == 68
    assert line(again, BETA).settled_micros == 0
    assert again.recover() == ()


def test_an_old_backup_learns_what_it_signed_since() -> None:
    ledger = ledger_with(replace(POLICY, month_micros=500))
    proven = ledger.proven(ALPHA, 450, NOVEMBER)
    assert proven == Proven(line(ledger), NOVEMBER, 450, 450)
    assert line(ledger).settled_micros == 450
    assert ledger.proven(ALPHA, 450, NOVEMBER) is None
    assert ledger.proven(ALPHA, 12, NOVEMBER) is None  # an older one of ours
    assert refusal(lambda: reserve(ledger))[1]["committed"] == 450
    ledger.policy = Policy()
    assert ledger.proven(BETA, 10**9, NOVEMBER)  # a fact, whatever the policy says
    assert ledger.committed(NOVEMBER) == 10**9 + 450


def test_a_claim_on_the_chain_is_proof_as_well() -> None:
    ledger = ledger_with()
    changed, proven = ledger.funded(ALPHA, 900, 300, NOVEMBER)  # type: ignore[misc]
    assert isinstance(changed, Changed) and changed.line.claimed_micros == 300
    assert isinstance(proven, Proven) and proven.line == line(ledger)
    assert (proven.line.balance_micros, proven.line.signed_micros, proven.month_micros) == (900, 300, 300)
    assert len(ledger.funded(ALPHA, 2**128, 300, NOVEMBER)) == 1
    assert line(ledger).balance_micros == MOST_MICROS


def test_our_own_mistakes_are_not_taken_for_refusals() -> None:
    ledger = ledger_with()
    reserve(ledger)
    with pytest.raises(ValueError, match="runs already"):
        reserve(ledger)
    with pytest.raises(ValueError, match="no request"):
        ledger.release("other")
    with pytest.raises(ValueError, match="no channel"):
        ledger.closed(bytes(32))


# --- deposits -----------------------------------------------------------------------------------------------------


def test_what_lies_in_channels_is_within_what_is_left_of_the_month() -> None:
    ledger = ledger_with(replace(POLICY, month_micros=1_000_000, most_deposit_micros=600_000), balance=0)
    ledger.proven(BETA, 100_000, NOVEMBER)
    assert ledger.deposit_wanted(ALPHA, NOVEMBER) == 500_000
    assert ledger.deposit(ALPHA, 500_000, NOVEMBER).line.depositing_micros == 500_000
    assert ledger.locked == 500_000
    large = {"most": 600_000, "locked": 500_000, "wanted": 100_001}
    assert refusal(lambda: ledger.deposit(ALPHA, 100_001, NOVEMBER)) == ("deposit_too_large", large)
    assert ledger.deposit_wanted(BETA, NOVEMBER) == 400_000
    cap = {"cap": 1_000_000, "committed": 100_000, "reserved": 0, "locked": 500_000, "wanted": 400_001}
    assert refusal(lambda: ledger.deposit(BETA, 400_001, NOVEMBER)) == ("monthly_cap_reached", cap)
    ledger.funded(ALPHA, 500_000, 0, NOVEMBER)
    assert ledger.deposit_ended(ALPHA, 500_000).line.depositing_micros == 0
    assert ledger.locked == 500_000
    reserve(ledger)
    receive(ledger, "r", range(1))
    assert ledger.locked == 500_000 - 49  # what is signed is spent, and no longer locked


def test_funding_needs_a_policy_or_a_person() -> None:
    ledger = ledger_with(replace(POLICY, mode="off", month_micros=1_000_000), balance=0)
    assert ledger.deposit_wanted(ALPHA, NOVEMBER) == 0
    assert refusal(lambda: ledger.deposit(ALPHA, 10, NOVEMBER)) == ("pay_off", {})
    assert ledger.deposit(ALPHA, 10, NOVEMBER, by_hand=True)
    ledger.policy = replace(ledger.policy, no_pay=True)
    assert refusal(lambda: ledger.deposit(ALPHA, 10, NOVEMBER, by_hand=True)) == ("no_pay", {})
    assert refusal(lambda: ledger_with().deposit(bytes(32), 10, NOVEMBER)) == ("no_channel", {})


# --- properties ---------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.integers(0, 300),
    st.integers(1, 600),
    st.lists(st.integers(0, 90), max_size=30),
    st.integers(1, 64),
    st.integers(64, 256),
)
def test_any_way_to_pay_a_request_gives_one_total(
    price_in: int, price_out: int, tokens_in: int, most_out: int, parts: list[int], every: int, ahead: int
) -> None:
    price, window = Price(price_in, price_out), Window(every, ahead)
    ledger = ledger_with(Policy("auto", price, month_micros=MOST_MICROS, prepay_micros=MOST_MICROS), MOST_MICROS)
    ledger.reserve("r", ALPHA, "m", price, 300, most_out, NOVEMBER)
    received = 0
    for part in parts:
        received = min(received + part, most_out)
        ledger.due("r", tokens_in, received, window, NOVEMBER)
        assert line(ledger).signed_micros <= charge(price, tokens_in, min(received + ahead, most_out))
        assert line(ledger).signed_micros >= charge(price, tokens_in, received)
    total = charge(price, tokens_in, received)
    ledger.finished("r", total, NOVEMBER)
    assert line(ledger).settled_micros == total
    assert ledger.committed(NOVEMBER) == line(ledger).signed_micros >= total


def test_the_cap_holds_under_64_interleaved_requests() -> None:
    """64 callers of 70 micros each against a cap of 1000: exactly 14 are served at a time, to the micro."""
    generator = random.Random(64)
    one = Price(0, 1_000_000)
    ledger = ledger_with(Policy("auto", one, month_micros=1000))
    granted = []
    for number in range(64):
        try:
            ledger.reserve(str(number), generator.choice((ALPHA, BETA)), "m", one, 0, 70, NOVEMBER)
            granted.append(str(number))
        except Refused as refused:
            assert refused.figures == {"cap": 1000, "committed": 0, "reserved": 980, "locked": 2 * 10**6, "wanted": 70}
    assert len(granted) == 14
    received = dict.fromkeys(granted, 0)
    while granted:
        request = generator.choice(granted)
        received[request] = min(70, received[request] + generator.randrange(20))
        ledger.due(request, 0, received[request], WINDOW, NOVEMBER)
        assert ledger.committed(NOVEMBER) + ledger.reserved() <= 980
        if received[request] == 70:
            ledger.finished(request, 70, NOVEMBER)
            granted.remove(request)
    assert ledger.committed(NOVEMBER) == 980 == line(ledger).settled_micros + line(ledger, BETA).settled_micros
    assert refusal(lambda: ledger.reserve("last", ALPHA, "m", one, 0, 21, NOVEMBER))[1]["wanted"] == 21


class Spending(RuleBasedStateMachine):
    """Any order of calls, with hostile figures, against what may be signed at most and what was counted."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ledger_with(replace(POLICY, month_micros=700), balance=600)
        self.months = [OCTOBER, NOVEMBER, DECEMBER]
        self.received: dict[str, int] = {}
        self.number = 0
        self.rows: dict[Any, Any] = {}
        self.write(*(Changed(line(self.ledger, channel), "opened") for channel in (ALPHA, BETA)))

    def write(self, *entries: Entry | None) -> None:
        """What a store does: rows are replaced by what the entry says."""
        for entry in entries:
            if isinstance(entry, Reserved | Signed) and entry.running:
                self.rows["running", entry.running.request] = entry.running
            if isinstance(entry, Ended):
                del self.rows["running", entry.running.request]
            if isinstance(entry, Signed | Proven):
                self.rows["month", entry.month] = entry.month_micros
            if entry and not isinstance(entry, Reserved):
                self.rows["line", entry.line.channel] = entry.line

    def stored(self, kind: str) -> dict[Any, Any]:
        return {key[1]: row for key, row in self.rows.items() if key[0] == kind}

    @rule(
        channel=st.sampled_from([ALPHA, BETA]),
        most_in=st.integers(0, 300),
        most_out=st.integers(1, 300),
        data=st.data(),
    )
    def reserve(self, channel: bytes, most_in: int, most_out: int, data: Any) -> None:
        self.number += 1
        month = data.draw(st.sampled_from(self.months))
        before = self.ledger.state()
        room = self.ledger.room(channel, month)
        try:
            self.write(self.ledger.reserve(str(self.number), channel, "m", PRICE, most_in, most_out, month))
            self.received[str(self.number)] = 0
            assert charge(PRICE, most_in, most_out) <= room
            assert self.ledger.committed(month) + self.ledger.reserved() <= 700
        except Refused:
            assert self.ledger.state() == before and charge(PRICE, most_in, most_out) > room

    @precondition(lambda self: self.received)
    @rule(tokens_in=st.integers(0, 301), tokens=st.integers(0, 80), asked=st.booleans(), data=st.data())
    def due(self, tokens_in: int, tokens: int, asked: bool, data: Any) -> None:
        request = data.draw(st.sampled_from(sorted(self.received)))
        running = self.ledger.running(request)
        month = data.draw(st.sampled_from(self.months))
        assert running
        channel, total = running.channel, self.received[request] + tokens
        signed_before = line(self.ledger, channel).signed_micros
        committed = self.ledger.committed(month)
        window = data.draw(st.sampled_from([WINDOW, Window(1, 1), Window(32, 256)]))
        try:
            entry = self.ledger.due(request, tokens_in, total, window, month, asked)
        except Refused as refused:
            assert refused.code != "over_count" or tokens_in > running.most_in
            assert line(self.ledger, channel).signed_micros == signed_before
            return
        self.write(entry)
        self.received[request] = min(total, running.most_out)
        if entry:
            bound = line(self.ledger, channel).settled_micros
            for each in self.ledger.running_on(channel):
                ahead = min(self.received[each.request] + 256, each.most_out)
                bound += charge(PRICE, each.tokens_in, ahead)
            assert entry.delta_micros == entry.line.signed_micros - signed_before > 0
            assert signed_before < entry.line.signed_micros <= bound
            assert committed + entry.delta_micros == self.ledger.committed(month) <= 700

    @precondition(lambda self: self.received)
    @rule(part=st.floats(0, 1), data=st.data())
    def finish(self, part: float, data: Any) -> None:
        request = data.draw(st.sampled_from(sorted(self.received)))
        running = self.ledger.running(request)
        assert running
        self.write(
            *self.ledger.finished(request, int(running.most_micros * part), data.draw(st.sampled_from(self.months)))
        )
        del self.received[request]

    @precondition(lambda self: self.received)
    @rule(data=st.data())
    def interrupt(self, data: Any) -> None:
        request = data.draw(st.sampled_from(sorted(self.received)))
        promised = self.ledger.reserved()
        self.write(self.ledger.release(request))
        assert self.ledger.reserved() <= promised
        del self.received[request]

    @precondition(lambda self: self.received)
    @rule(charged=st.integers(0, 800), vouched=st.integers(0, 800), data=st.data())
    def quote(self, charged: int, vouched: int, data: Any) -> None:
        request = data.draw(st.sampled_from(sorted(self.received)))
        running = self.ledger.running(request)
        assert running
        before = line(self.ledger, running.channel)
        try:
            adopted = self.ledger.adopt(request, charged, vouched)
        except Refused as refused:
            assert refused.code == "cum_mismatch"
            return
        self.write(adopted)
        after = line(self.ledger, running.channel)
        assert charged <= vouched <= before.signed_micros == after.signed_micros
        assert after.settled_micros + after.unsure_micros <= before.settled_micros + before.unsure_micros

    @rule()
    def restart(self) -> None:
        """From what is stored, which may be older than what the dead process knew, but not in what was signed."""
        lines, months = self.stored("line"), self.stored("month")
        assert lines == dict(self.ledger.state().lines) and months == dict(self.ledger.state().spent)
        self.ledger = Ledger(self.ledger.policy, State(lines, self.stored("running"), months))
        self.write(*self.ledger.recover())
        self.received.clear()
        assert not self.ledger.state().running
        for each in self.ledger.state().lines.values():
            assert self.ledger.reserved(each.channel) == max(0, each.settled_micros - each.signed_micros)

    @invariant()
    def what_is_signed_is_counted_once(self) -> None:
        state = self.ledger.state()
        assert sum(state.spent.values()) == sum(each.signed_micros for each in state.lines.values())
        assert max([0, *state.spent.values()]) <= 700

    @invariant()
    def nothing_is_signed_beyond_the_deposit(self) -> None:
        assert all(each.signed_micros <= 600 for each in self.ledger.state().lines.values())


Spending.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestSpending = Spending.TestCase
