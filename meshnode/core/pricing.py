"""What a provider asks, from what its electricity costs: a machine that draws `watts` while it answers, and a margin.

A token costs the energy of the time that it takes. Prompts are read much faster than answers are written, and so cost
less. Wear, idle hours and the machine itself are for the margin to cover.
"""

from __future__ import annotations

from meshnode.core.prices import MOST_PRICE, Price

SECONDS_AN_HOUR = 3600
WATTS_A_KILOWATT = 1000
TOKENS_OF_A_PRICE = 1_000_000
TENTHS = 10
SLOWEST_TENTHS = 10
"""A model of unknown speed is priced as one of a token a second: too dear for most, until it was measured."""
MOST_WATTS = 100_000
MOST_MARGIN_PERCENT = 10_000


def price_by_power(
    watts: int, kwh_micros: int, margin_percent: int, *, answer_tenths: int, prompt_tenths: int
) -> Price:
    """Micro-dollars for a million tokens in and out. Speeds are in tenths of a token per second, 0 where unknown.

    Raises ValueError for a power, a price of the kWh or a margin that cannot be.
    """
    if not (0 < watts <= MOST_WATTS and kwh_micros > 0 and 0 <= margin_percent <= MOST_MARGIN_PERCENT):
        raise ValueError("watts and the price of a kWh are above zero, the margin is not below")

    def of(tenths: int) -> int:
        asked = watts * kwh_micros * (100 + margin_percent) * TOKENS_OF_A_PRICE * TENTHS
        takes = WATTS_A_KILOWATT * SECONDS_AN_HOUR * 100 * max(tenths, SLOWEST_TENTHS)
        return min(-(-asked // takes), MOST_PRICE)

    return Price(of(max(prompt_tenths, answer_tenths)), of(answer_tenths))
