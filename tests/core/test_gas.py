import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.gas import GasLedger, GasPaid, GasReleased, GasReserved
from meshnode.core.pay_policy import Refused

NOVEMBER, DECEMBER = "2026-11", "2026-12"


def test_a_fee_is_promised_and_then_paid() -> None:
    gas = GasLedger(1000)
    assert gas.reserve("deposit", 400, NOVEMBER) == GasReserved("deposit", 400)
    assert gas.promised == 400
    assert gas.paid("deposit", 150, NOVEMBER) == GasPaid("deposit", 150, NOVEMBER, 150)
    assert gas.promised == 0 and gas.committed(NOVEMBER) == 150


def test_the_cap_has_all_its_figures() -> None:
    gas = GasLedger(1000, {NOVEMBER: 500}, {"claim": 300})
    with pytest.raises(Refused) as refused:
        gas.reserve("deposit", 201, NOVEMBER)
    assert refused.value.code == "gas_cap_reached"
    assert refused.value.figures == {"cap": 1000, "committed": 500, "reserved": 300, "wanted": 201}
    gas.reserve("deposit", 200, NOVEMBER)
    assert gas.reserve("other", 500, DECEMBER)  # what is promised goes along, what was paid does not


def test_a_replacement_pays_more_for_one_transaction() -> None:
    gas = GasLedger(1000)
    gas.reserve("claim", 600, NOVEMBER)
    assert gas.reserve("claim", 700, NOVEMBER) == GasReserved("claim", 700)
    assert gas.reserve("claim", 100, NOVEMBER) == GasReserved("claim", 700)  # the first may still be mined
    assert gas.promised == 700
    assert gas.release("claim") == GasReleased("claim")
    assert gas.promised == 0


def test_saving_money_is_never_stopped_and_always_counted() -> None:
    gas = GasLedger(0)
    assert gas.reserve("withdraw", 500, NOVEMBER, forced=True).most_micros == 500
    gas.paid("withdraw", 450, NOVEMBER)
    assert gas.committed(NOVEMBER) == 450


def test_a_clock_that_went_back_forgets_nothing() -> None:
    gas = GasLedger(1000)
    gas.paid("a", 900, DECEMBER)
    assert gas.committed(NOVEMBER) == 900
    with pytest.raises(Refused):
        gas.reserve("b", 101, NOVEMBER)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 400), st.booleans()), max_size=40))
def test_the_cap_holds_in_any_order(steps: list[tuple[str, int, bool]]) -> None:
    gas = GasLedger(1000)
    promised: dict[str, int] = {}
    for purpose, micros, is_mined in steps:
        if is_mined and purpose in promised:
            gas.paid(purpose, min(micros, promised.pop(purpose)), NOVEMBER)
        else:
            try:
                promised[purpose] = gas.reserve(purpose, micros, NOVEMBER).most_micros
            except Refused as refused:
                assert refused.figures["committed"] + refused.figures["reserved"] + refused.figures["wanted"] > 1000
        assert gas.promised == sum(promised.values())
        assert gas.committed(NOVEMBER) + gas.promised <= 1000
