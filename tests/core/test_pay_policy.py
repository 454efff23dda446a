from dataclasses import replace
from typing import Any

import pytest

from meshnode.core.pay_policy import SENTENCES, Policy, Refused
from meshnode.core.prices import FREE, MOST_MICROS, Price

CEILING = Price(200_000, 600_000)
OPEN = Policy("auto", CEILING, {"large": Price(3_000_000, 15_000_000), "tiny": FREE}, month_micros=5_000_000)


def code(policy: Policy, price: Price, model: str = "any") -> str | None:
    refused = policy.refusal(price, model)
    return refused.code if refused else None


def test_unless_a_person_says_so_nothing_is_paid() -> None:
    assert code(Policy(), Price(1, 1)) == "pay_off"
    assert Policy().month_micros == 0
    assert code(Policy("auto", month_micros=5_000_000), Price(1, 1)) == "price_above_ceiling"


def test_the_ceiling() -> None:
    assert code(OPEN, CEILING) is None
    refused = OPEN.refusal(Price(200_001, 1), "any")
    assert refused and refused.figures == {
        "price_in": 200_001,
        "price_out": 1,
        "ceiling_in": 200_000,
        "ceiling_out": 600_000,
    }
    assert str(refused) == "a million tokens cost $0.200001 in and $0.000001 out, the ceiling is $0.20 in and $0.60 out"


def test_a_model_may_have_a_ceiling_of_its_own() -> None:
    dear = Price(3_000_000, 15_000_000)
    assert code(OPEN, dear, "large") is None
    assert code(OPEN, dear) == "price_above_ceiling"
    assert code(OPEN, Price(0, 1), "tiny") == "price_above_ceiling"
    assert OPEN.ceiling_for("other") == CEILING
    assert code(replace(OPEN, ceiling=None), dear, "large") is None


def test_the_kill_switch_is_above_all() -> None:
    assert code(replace(OPEN, no_pay=True), Price(1, 1)) == "no_pay"
    assert code(replace(OPEN, mode="off"), Price(1, 1)) == "pay_off"
    assert code(replace(OPEN, mode="off", no_pay=True), Price(1, 1)) == "no_pay"
    assert OPEN.switched_off() is None


def test_what_is_free_needs_no_permission() -> None:
    assert code(Policy(no_pay=True), FREE) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "always"},
        {"month_micros": -1},
        {"month_micros": 0.5},
        {"deposit_micros": MOST_MICROS + 1},
        {"most_deposit_micros": None},
        {"gas_month_micros": True},
        {"prepay_micros": "5"},
    ],
)
def test_a_policy_that_makes_no_sense_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the mode is|is a whole number"):
        Policy(**wrong)


def test_a_refusal_says_every_figure() -> None:
    figures = {"cap": 5_000_000, "committed": 4_980_000, "reserved": 15_000, "locked": 0, "wanted": 45_000}
    refused = Refused("monthly_cap_reached", figures)
    assert refused.code == "monthly_cap_reached" and refused.figures == figures
    assert str(refused) == (
        "the cap is $5.00 a month: $4.98 are spent, $0.015 are promised, and $0.045 more are wanted"
    )
    assert str(Refused("over_count", {"claimed": 90, "most": 50})) == "90 are claimed, 50 are the most that can be owed"
    with pytest.raises(TypeError):
        refused.figures["cap"] = 0  # type: ignore[index]


def test_a_refusal_without_its_figures_is_our_own_fault() -> None:
    for each, sentence in SENTENCES.items():
        if "{" in sentence:
            with pytest.raises(KeyError):
                Refused(each)
        else:
            assert str(Refused(each)) == sentence
