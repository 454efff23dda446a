import random
from dataclasses import replace

import pytest

from meshnode.core.ledger import Ledger
from meshnode.core.ledger_entries import Line, Running, State
from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.prices import Price
from tests.core.ledger_samples import (
    ALPHA,
    BETA,
    DECEMBER,
    NOVEMBER,
    POLICY,
    PRICE,
    ledger_with,
    receive,
    refusal,
    reserve,
)


def test_room_is_what_reserve_would_grant() -> None:
    generator = random.Random(7)
    for _ in range(200):
        ledger = ledger_with(replace(POLICY, month_micros=generator.randrange(400)), generator.randrange(400))
        for number in range(3):
            try:
                reserve(ledger, str(number), generator.choice((ALPHA, BETA)), 0, generator.randrange(1, 200))
                receive(ledger, str(number), range(generator.randrange(50)))
                if generator.random() < 0.5:
                    ledger.finished(str(number), 0, NOVEMBER)
            except Refused:
                pass
        room = ledger.room(ALPHA, NOVEMBER)
        one = Price(0, 1_000_000)  # a token is a micro
        with pytest.raises(Refused):
            ledger.reserve("no", ALPHA, "m", one, 0, room + 1, NOVEMBER)
        if room:
            ledger.reserve("yes", ALPHA, "m", one, 0, room, NOVEMBER)


def test_a_clock_that_goes_back_un_counts_nothing() -> None:
    ledger = ledger_with(replace(POLICY, month_micros=150))
    ledger.reserve("r", ALPHA, "m", PRICE, 50, 200, DECEMBER)
    receive(ledger, "r", range(201), DECEMBER)
    ledger.finished("r", 130, DECEMBER)
    assert ledger.committed(NOVEMBER) == ledger.committed(DECEMBER) == 130
    assert refusal(lambda: ledger.reserve("s", ALPHA, "m", PRICE, 0, 100, NOVEMBER))[0] == "monthly_cap_reached"
    assert ledger.committed("2027-01") == 0


@pytest.mark.parametrize("wrong", ["", "2026", "2026-13", "2026-00", "26-11", "2026-11-01", "٢٠٢٦-١١", "2026-11\n"])
def test_a_month_is_a_month(wrong: str) -> None:
    ledger = ledger_with()
    with pytest.raises(ValueError, match="no month"):
        ledger.reserve("r", ALPHA, "m", PRICE, 1, 1, wrong)
    with pytest.raises(ValueError, match="no month"):
        Ledger(POLICY, State(spent={wrong: 1}))


def test_people_are_warned_at_four_fifths() -> None:
    assert not Ledger(Policy()).standing(NOVEMBER).is_near
    ledger = ledger_with(replace(POLICY, month_micros=100))
    ledger.proven(ALPHA, 79, NOVEMBER)
    assert not ledger.standing(NOVEMBER).is_near
    ledger.proven(ALPHA, 80, NOVEMBER)
    standing = ledger.standing(NOVEMBER)
    assert standing.is_near and (standing.cap, standing.committed, standing.reserved) == (100, 80, 0)


def test_a_state_that_contradicts_itself_is_refused() -> None:
    running = Running("r", ALPHA, "m", PRICE, 1, 1)
    for wrong in (State(running={"r": running}), State({ALPHA: Line(ALPHA)}, {"s": running})):
        with pytest.raises(ValueError, match="belongs to no channel"):
            Ledger(POLICY, wrong)
    with pytest.raises(ValueError, match="whole number"):
        Ledger(POLICY, State(spent={NOVEMBER: -1}))


def test_the_figures_of_a_channel_and_of_all() -> None:
    ledger = ledger_with(balance=1000)
    reserve(ledger, "a")
    reserve(ledger, "b", BETA)
    receive(ledger, "a", range(41))
    assert (ledger.reserved(ALPHA), ledger.reserved(BETA), ledger.reserved()) == (140 - 68, 140, 212)
    assert ledger.locked == 2000 - 68
    assert [running.request for running in ledger.running_on(BETA)] == ["b"]
    running = ledger.running("a")
    assert running and (running.tokens_in, running.received_out, running.covered_out) == (50, 40, 96)
    ledger.finished("a", 34, NOVEMBER)
    assert ledger.headroom(ALPHA) == 34 and ledger.headroom(BETA) == 0
    assert ledger.running("a") is None and ledger.line(bytes(32)) is None
    with pytest.raises(ValueError, match="no channel"):
        ledger.headroom(bytes(32))


def test_a_state_is_a_copy() -> None:
    ledger = ledger_with()
    reserve(ledger)
    before = ledger.state()
    receive(ledger, "r", range(41))
    ledger.release("r")
    assert before.spent == {} and list(before.running) == ["r"] and before.lines[ALPHA].signed_micros == 0
    assert ledger.state().spent == {NOVEMBER: 68}
