from typing import Any

import pytest

from meshnode.core.ledger_entries import Line, Running
from meshnode.core.prices import MOST_PRICE, Price

CHANNEL = bytes(32)
PRICE = Price(200_000, 600_000)


def test_what_is_locked_in_a_channel() -> None:
    assert Line(CHANNEL).locked_micros == 0
    assert Line(CHANNEL, signed_micros=30, balance_micros=100, depositing_micros=50).locked_micros == 120
    assert Line(CHANNEL, signed_micros=30, balance_micros=20).locked_micros == 0  # withdrawn


def test_what_a_request_costs() -> None:
    running = Running("r", CHANNEL, "m", PRICE, 400, 100, tokens_in=50, received_out=33, covered_out=97)
    assert (running.received_micros, running.covered_micros, running.most_micros) == (30, 69, 140)


@pytest.mark.parametrize(
    "wrong",
    [
        {"most_out": 0},
        {"most_out": 2**31 + 1},
        {"most_in": -1},
        {"most_in": 2**31 + 1},
        {"tokens_in": 401},
        {"tokens_in": -1},
        {"received_out": 101},
        {"covered_out": 101},
        {"covered_out": -1},
        {"price": Price(0, MOST_PRICE), "most_out": 2**31},
    ],
)
def test_a_request_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        Running(
            **{"request": "r", "channel": CHANNEL, "model": "m", "price": PRICE, "most_in": 400, "most_out": 100}
            | wrong
        )


@pytest.mark.parametrize("wrong", [{"channel": bytes(31)}, {"signed_micros": -1}, {"balance_micros": 2**53}])
def test_a_channel_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="channel id|whole number"):
        Line(**{"channel": CHANNEL} | wrong)
