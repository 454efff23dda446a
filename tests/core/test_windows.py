import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.windows import MOST_AHEAD_TOKENS, Window, window_for


@pytest.mark.parametrize(
    ("rate", "rtt", "ahead"), [(20, 0.15, 64), (60, 0.15, 64), (60, 0.4, 70), (150, 0.4, 115), (1000, 1, 256)]
)
def test_fast_answers_over_long_paths_are_paid_further_ahead(rate: float, rtt: float, ahead: int) -> None:
    assert window_for(rate, rtt) == Window(32, ahead, 0)


@given(st.floats(0, 200), st.floats(0, 0.8), st.integers(0, 64))
def test_what_is_on_the_way_is_covered(rate: float, rtt: float, unpaid: int) -> None:
    window = window_for(rate, rtt, unpaid)
    assert 64 <= window.ahead <= MOST_AHEAD_TOKENS
    enough = window.ahead + window.unpaid >= 1.25 * (window.every + rate * rtt)
    assert enough or window.ahead == MOST_AHEAD_TOKENS


@given(st.floats(), st.floats())
def test_no_measurement_breaks_it(rate: float, rtt: float) -> None:
    window = window_for(rate, rtt)
    assert 64 <= window.ahead <= MOST_AHEAD_TOKENS
    if math.isnan(rate) or math.isnan(rtt) or rate <= 0 or rtt <= 0:
        assert window.ahead == 64


@pytest.mark.parametrize("wrong", [(0, 64, 0), (65, 64, 0), (32, 257, 0), (32, 64, -1), (32, 64, 65)])
def test_windows_are_bounded(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="a window of"):
        Window(*wrong)
