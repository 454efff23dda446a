import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.demand import HALF_LIFE_S, MODELS, MOST_PER_MINUTE, REFRESH_S, DemandMeter, total
from meshnode.wire.registry import LIMIT_DEMANDS, LIMIT_MODEL_NAME_CHARS
from meshnode.wire.schema import pack, unpack
from meshnode.wire.statements import Demand, Wish

ONE_REQUEST = round(1000 * 60 * 0.6931471805599453 / HALF_LIFE_S)


def rate(meter: DemandMeter, now: float, model: str = "m") -> float:
    """Requests per minute."""
    return next((wish.rate / 1000 for wish in meter.wishes(now) if wish.model == model), 0.0)


def asked(per_minute: float, minutes: float, model: str = "m") -> DemandMeter:
    meter = DemandMeter()
    for number in range(round(per_minute * minutes)):
        meter.record(model, number * 60 / per_minute)
    return meter


@pytest.mark.parametrize("per_minute", [10, 60, 600])
def test_a_steady_rate_is_measured(per_minute: float) -> None:
    assert rate(asked(per_minute, 10), 600.0) == pytest.approx(per_minute, rel=0.05)


def test_it_halves_every_minute_and_goes_to_nothing() -> None:
    meter = DemandMeter()
    meter.record("m", 0.0)
    assert meter.wishes(0.0) == (Wish("m", ONE_REQUEST),)
    assert meter.wishes(60.0) == (Wish("m", 347),)  # 693.1 / 2
    assert meter.wishes(600.0) == ()


def test_models_are_counted_apart_and_the_most_wanted_stands_first() -> None:
    meter = DemandMeter()
    for model, times in (("a", 1), ("b", 3), ("c", 2)):
        for _ in range(times):
            meter.record(model, 0.0)
    assert [(wish.model, wish.rate) for wish in meter.wishes(0.0)] == [
        ("b", round(3 * 60 * 0.6931471805599453 / HALF_LIFE_S * 1000)),
        ("c", round(2 * 60 * 0.6931471805599453 / HALF_LIFE_S * 1000)),
        ("a", ONE_REQUEST),
    ]


def test_names_without_end_neither_fill_memory_nor_push_out_what_is_wanted() -> None:
    meter = DemandMeter()
    for _ in range(2):
        meter.record("wanted", 0.0)
    for number in range(10 * MODELS):
        meter.record(f"m{number}", 1.0)
    assert len(meter._rates) == MODELS
    wishes = meter.wishes(1.0)
    assert len(wishes) == LIMIT_DEMANDS
    assert wishes[0].model == "wanted"
    assert unpack(Demand, pack(Demand(wishes))) == Demand(wishes)


@pytest.mark.parametrize("name", ["", "x" * (LIMIT_MODEL_NAME_CHARS + 1)])
def test_names_that_cannot_travel_are_passed_over(name: str) -> None:
    meter = DemandMeter()
    meter.record(name, 0.0)
    assert meter.wishes(0.0) == ()


# --- when to tell it ------------------------------------------------------------------------------------------------


def test_a_change_by_a_fifth_is_told_and_a_smaller_one_is_not() -> None:
    meter = DemandMeter()
    assert meter.to_publish(0.0) is None
    for _ in range(10):
        meter.record("m", 0.0)
    assert meter.to_publish(0.0) == meter.wishes(0.0)
    meter.record("m", 1.0)
    assert meter.to_publish(1.0) is None
    meter.record("m", 1.0)
    meter.record("m", 1.0)
    assert meter.to_publish(1.0) == meter.wishes(1.0)


def test_what_fades_alone_needs_no_words() -> None:
    """Until the minute is over; then once more, and at the end that there is nothing left."""
    meter = DemandMeter()
    meter.record("m", 0.0)
    told = [second for second in range(1200) if meter.to_publish(float(second)) is not None]
    assert told[0] == 0
    *minutes, last = told
    assert minutes == [REFRESH_S * number for number in range(len(minutes))]
    assert last < 8 * REFRESH_S
    assert meter.wishes(float(last)) == ()
    assert meter.to_publish(5000.0) is None


def test_a_steady_rate_is_told_about_once_a_minute() -> None:
    meter = DemandMeter()
    told = 0
    for second in range(1200):
        meter.record("m", float(second))
        told += second >= 600 and meter.to_publish(float(second)) is not None
    assert 9 <= told <= 40


def test_readers_are_never_off_by_much() -> None:
    source = random.Random(3)
    meter, heard, heard_at = DemandMeter(), Demand(), 0.0
    for second in range(1800):
        now = float(second)
        if source.random() < (0.9 if second // 300 % 2 else 0.05):
            meter.record("m", now)
        if (wishes := meter.to_publish(now)) is not None:
            heard, heard_at = Demand(wishes), now
        assert total([(heard, heard_at)], now).get("m", 0.0) == pytest.approx(rate(meter, now), rel=0.25, abs=0.03)


# --- the sum over the mesh ------------------------------------------------------------------------------------------


def test_nodes_are_added_and_fade_since_their_arrival() -> None:
    demands = [
        (Demand((Wish("m", 6000), Wish("n", 1000))), 100.0),
        (Demand((Wish("m", 4000),)), 40.0),
        (Demand((Wish("n", 7000),)), 160.0),  # from the future, by a clock that jumped: counts as now
    ]
    assert total(demands, 100.0) == {"m": 6 + 2, "n": 1 + 7}
    assert list(total(demands, 100.0)) == ["m", "n"]
    assert total(demands, 160.0) == {"n": 0.5 + 7, "m": 3 + 1}


def test_a_node_that_fell_silent_fades_away() -> None:
    assert total([(Demand((Wish("m", 6000),)), 0.0)], 1200.0) == {}


def test_one_liar_adds_a_bounded_rate() -> None:
    lie = Demand((Wish("m", 2**32 - 1), Wish("m", 2**32 - 1)))
    assert total([(lie, 0.0)], 0.0) == {"m": MOST_PER_MINUTE}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**6), st.floats(0, 1e4)), max_size=20))
def test_the_sum_does_not_depend_on_the_order(entries: list[tuple[str, int, float]]) -> None:
    demands = [(Demand((Wish(model, value),)), at) for model, value, at in entries]
    assert total(demands, 1e4) == pytest.approx(total(demands[::-1], 1e4))
