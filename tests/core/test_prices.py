import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.prices import (
    FREE,
    MOST_MICROS,
    MOST_PRICE,
    Price,
    charge,
    check_micros,
    parse_usd,
    tokens_out_within,
    usd,
)

PRICES = st.builds(Price, st.integers(0, MOST_PRICE), st.integers(0, MOST_PRICE))
TOKENS = st.integers(0, 2**31)
CHEAP = Price(200_000, 600_000)


def test_a_token_may_cost_less_than_the_smallest_amount() -> None:
    assert charge(CHEAP, 0, 0) == 0
    assert charge(CHEAP, 1, 0) == 1  # 0.2 micros
    assert charge(CHEAP, 5, 0) == 1
    assert charge(CHEAP, 50, 100) == 70
    assert charge(CHEAP, 1_000_000, 1_000_000) == 800_000
    assert charge(FREE, 2**31, 2**31) == 0


@given(PRICES, TOKENS, TOKENS)
def test_a_charge_is_rounded_up_once(price: Price, tokens_in: int, tokens_out: int) -> None:
    exact = tokens_in * price.tokens_in + tokens_out * price.tokens_out
    assert 0 <= charge(price, tokens_in, tokens_out) * 1_000_000 - exact < 1_000_000


@given(PRICES, TOKENS, TOKENS, st.integers(0, 1000), st.integers(0, 1000))
def test_a_charge_never_falls(price: Price, tokens_in: int, tokens_out: int, more_in: int, more_out: int) -> None:
    assert charge(price, tokens_in, tokens_out) <= charge(price, tokens_in + more_in, tokens_out + more_out)


@given(PRICES, TOKENS, st.lists(st.integers(0, 200), max_size=20))
def test_any_split_of_a_request_gives_one_total(price: Price, tokens_in: int, parts: list[int]) -> None:
    paid = received = 0
    for part in parts:
        received += part
        paid += charge(price, tokens_in, received) - paid
    assert paid == (charge(price, tokens_in, sum(parts)) if parts else 0)


@given(PRICES, TOKENS, st.integers(0, MOST_MICROS))
def test_the_tokens_that_an_amount_pays_for(price: Price, tokens_in: int, micros: int) -> None:
    tokens = tokens_out_within(price, tokens_in, micros)
    if tokens is None:
        assert not price.tokens_out and charge(price, tokens_in, 10**9) <= micros
    elif tokens < 0:
        assert tokens == -1 and charge(price, tokens_in, 0) > micros
    else:
        assert charge(price, tokens_in, tokens) <= micros < charge(price, tokens_in, tokens + 1)


def test_negative_tokens_are_nobodys() -> None:
    for tokens in ((-1, 5), (5, -1)):
        with pytest.raises(ValueError, match="tokens"):
            charge(CHEAP, *tokens)


@pytest.mark.parametrize("wrong", [-1, MOST_PRICE + 1, 0.5, True, "1", None])
def test_a_price_is_a_bounded_whole_number(wrong: object) -> None:
    for pair in ((wrong, 0), (0, wrong)):
        with pytest.raises(ValueError, match="a price is a whole number"):
            Price(*pair)  # type: ignore[arg-type]


def test_a_ceiling_holds_in_both_directions() -> None:
    assert not CHEAP.exceeds(CHEAP)
    assert Price(200_001, 0).exceeds(CHEAP)
    assert Price(0, 600_001).exceeds(CHEAP)
    assert not FREE.exceeds(FREE)
    assert FREE.is_free and not Price(0, 1).is_free and not Price(1, 0).is_free


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "$0.00"),
        (12, "$0.000012"),
        (1_500_000, "$1.50"),
        (1_234_560, "$1.23456"),
        (-250_000, "-$0.25"),
        (MOST_MICROS, "$1000000000.00"),
    ],
)
def test_dollars_are_written_exactly(micros: int, text: str) -> None:
    assert usd(micros) == text


@given(st.integers(0, MOST_MICROS))
def test_what_is_written_is_read_again(micros: int) -> None:
    assert parse_usd(usd(micros)) == micros


@pytest.mark.parametrize(
    ("text", "micros"), [("0.2", 200_000), ("$5", 5_000_000), (" 1 ", 1_000_000), ("0.000001", 1), ("007", 7_000_000)]
)
def test_dollars_as_people_write_them(text: str, micros: int) -> None:
    assert parse_usd(text) == micros


@pytest.mark.parametrize(
    "text",
    [
        *("", "$", ".", "5.", ".5", "-1", "+1", "1e3", "nan", "inf", "0x10", "1_000", "1,5", "$$1", "1 2", "0.0000001"),
        *("٣", "1\u00a0000", "1000000000.000001", "9" * 12, "9" * 5000, "1.2.3", "5\n5"),
    ],
)
def test_what_is_no_amount_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"no amount of dollars|is more than") as refused:
        parse_usd(text)
    assert len(str(refused.value)) < 200


def test_a_price_has_a_bound_of_its_own() -> None:
    assert parse_usd("1000000", most=MOST_PRICE) == MOST_PRICE
    with pytest.raises(ValueError, match=r"\$1000000\.01 is more than \$1000000\.00"):
        parse_usd("1000000.01", most=MOST_PRICE)


@pytest.mark.parametrize("wrong", [-1, MOST_MICROS + 1, 1.0, False, None])
def test_an_amount_is_a_bounded_whole_number(wrong: object) -> None:
    with pytest.raises(ValueError, match="the cap is a whole number"):
        check_micros("the cap", wrong)  # type: ignore[arg-type]
    check_micros("the cap", MOST_MICROS)
