from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import GasCapReached
from meshnode.settlement.fees import (
    LEAST_PRIORITY_WEI,
    MOST_GAS,
    MOST_PRIORITY_WEI,
    WEI_PER_ETH,
    Fees,
    GasBounds,
    bounded,
    dollars,
    expected,
    gas_limit,
    micros,
    raised,
)

GWEI = 10**9
BOUNDS = GasBounds(eth_micros=3_000_000_000, most_micros=100_000)
"""A coin is 3,000 dollars, and a transaction may cost ten cents."""


def test_dollars_are_rounded_up() -> None:
    assert micros(0, BOUNDS.eth_micros) == 0
    assert micros(1, BOUNDS.eth_micros) == 1
    assert micros(WEI_PER_ETH, BOUNDS.eth_micros) == BOUNDS.eth_micros


@pytest.mark.parametrize(
    "amount, words", [(0, "$0.00"), (1, "$0.000001"), (500_000, "$0.50"), (12_345_678, "$12.345678")]
)
def test_amounts_in_words(amount: int, words: str) -> None:
    assert dollars(amount) == words


def test_fees_of_this_moment_leave_room_for_the_base_fee_to_double() -> None:
    assert expected(10, [3 * GWEI // 10] * 3) == Fees(20 + 3 * GWEI // 10, 3 * GWEI // 10)


def test_the_priority_fee_is_that_of_the_middle_and_within_bounds() -> None:
    assert expected(0, []).priority_wei == LEAST_PRIORITY_WEI
    assert expected(0, [0, 0, 5 * 10**6]).priority_wei == 5 * 10**6
    assert expected(0, [10**30] * 5).priority_wei == MOST_PRIORITY_WEI


@given(
    st.integers(0, 10**12),
    st.integers(1, 10**12),
    st.integers(0, 10**12),
    st.integers(21_000, MOST_GAS),
    st.integers(0, 10**14),
)
def test_what_is_offered_never_costs_more_than_the_bound(
    base: int, most: int, priority: int, gas: int, l1_wei: int
) -> None:
    fees = Fees(most + priority, priority)
    try:
        offer = bounded(fees, base, gas=gas, l1_wei=l1_wei, bounds=BOUNDS)
    except GasCapReached:
        assert micros(gas * (base + priority) + l1_wei, BOUNDS.eth_micros) >= BOUNDS.most_micros
        return
    assert micros(gas * offer.most_wei + l1_wei, BOUNDS.eth_micros) <= BOUNDS.most_micros
    assert offer.priority_wei == priority <= offer.most_wei <= fees.most_wei


def test_a_spike_above_the_bound_is_refused_with_both_figures() -> None:
    fees = expected(50 * GWEI, [])
    with pytest.raises(GasCapReached, match=r"\$15.0\d+ now, and one transaction may cost \$0.10"):
        bounded(fees, 50 * GWEI, gas=100_000, l1_wei=0, bounds=BOUNDS)


@given(st.integers(1, 10**12), st.integers(1, 10**10), st.integers(0, 10**12))
def test_a_replacement_offers_a_tenth_more_of_both(most: int, priority: int, base: int) -> None:
    before = Fees(most, priority)
    after = raised(before, expected(base, []))
    assert after.most_wei * 10 >= before.most_wei * 11 and after.priority_wei * 10 >= before.priority_wei * 11
    assert after.most_wei >= expected(base, []).most_wei


@pytest.mark.parametrize("estimate", [0, 10_000, MOST_GAS, 10**30])
def test_estimates_that_cannot_be_true(estimate: int) -> None:
    with pytest.raises(ValueError):
        gas_limit(estimate)


def test_a_quarter_more_gas_than_estimated() -> None:
    assert gas_limit(100_000) == 125_000
