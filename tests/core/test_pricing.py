from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.prices import MOST_PRICE, Price
from meshnode.core.pricing import MOST_MARGIN_PERCENT, MOST_WATTS, price_by_power

KWH = 300_000
"""$0.30."""


def test_what_the_energy_of_a_million_tokens_costs() -> None:
    """360 W at 100 tokens/s: a million tokens take 10,000 s, which is one kWh."""
    found = price_by_power(360, KWH, 0, answer_tenths=1000, prompt_tenths=10_000)
    assert found == Price(30_000, 300_000)
    assert price_by_power(360, KWH, 50, answer_tenths=1000, prompt_tenths=10_000) == Price(45_000, 450_000)


def test_an_unknown_speed_is_dear_and_no_prompt_is_slower_than_its_answer() -> None:
    assert price_by_power(360, KWH, 0, answer_tenths=0, prompt_tenths=0) == Price(30_000_000, 30_000_000)
    assert price_by_power(360, KWH, 0, answer_tenths=1000, prompt_tenths=0) == Price(300_000, 300_000)


@pytest.mark.parametrize(
    ("watts", "kwh", "margin"),
    [(0, KWH, 0), (-1, KWH, 0), (MOST_WATTS + 1, KWH, 0), (1, 0, 0), (1, KWH, -1), (1, KWH, MOST_MARGIN_PERCENT + 1)],
)
def test_what_cannot_be_is_refused(watts: int, kwh: int, margin: int) -> None:
    with pytest.raises(ValueError):
        price_by_power(watts, kwh, margin, answer_tenths=10, prompt_tenths=10)


@given(
    st.integers(1, MOST_WATTS),
    st.integers(1, 10**7),
    st.integers(0, MOST_MARGIN_PERCENT),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_a_price_is_a_price_and_covers_its_cost(watts: int, kwh: int, margin: int, answer: int, prompt: int) -> None:
    price = price_by_power(watts, kwh, margin, answer_tenths=answer, prompt_tenths=prompt)
    assert 0 < price.tokens_in <= price.tokens_out <= MOST_PRICE
    if answer >= 10 and price.tokens_out < MOST_PRICE:
        cost = watts * kwh / 3_600_000 * 1_000_000 / (answer / 10)
        assert price.tokens_out >= cost * (1 - 1e-9)
