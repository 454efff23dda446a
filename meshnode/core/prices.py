"""What tokens cost, in whole numbers: prices, charges, and dollars as text.

Theory of operation. USDC has six decimals, so money is a count of micro-dollars ("micros"). A price is the micros of a
million tokens, because one token often costs less than one micro. Therefore nothing is ever rounded for a token or a
voucher: the charge of a request is one exact sum that is rounded up once, and the loss is below a micro a request,
however many vouchers it was paid with. There are no floats and no decimals.

Rules of this file: pure; amounts are 0 to MOST_MICROS, which every JSON reader and every chain can hold exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MICROS_PER_USD = 1_000_000
TOKENS_PER_PRICE = 1_000_000
"""A price is for so many tokens."""
MOST_MICROS = 10**15
"""No amount is above a billion dollars."""
MOST_PRICE = 10**12
"""No price is above a million dollars a million tokens."""
USD_TEXT = re.compile(r"\$?([0-9]{1,12})(?:\.([0-9]{1,6}))?", re.ASCII)
LONGEST_TEXT = 40


@dataclass(frozen=True, slots=True)
class Price:
    """Micros for a million tokens: of the prompt, and of the answer. Raises ValueError beyond 0 to MOST_PRICE."""

    tokens_in: int
    tokens_out: int

    def __post_init__(self) -> None:
        for price in (self.tokens_in, self.tokens_out):
            if type(price) is not int or not 0 <= price <= MOST_PRICE:
                raise ValueError(f"a price is a whole number of micro-dollars up to {MOST_PRICE}, not {price!r}")

    @property
    def is_free(self) -> bool:
        """Whether nothing is ever charged."""
        return not self.tokens_in and not self.tokens_out

    def exceeds(self, ceiling: Price) -> bool:
        """Whether it is above the ceiling in either direction; a cheap prompt makes up for no dear answer."""
        return self.tokens_in > ceiling.tokens_in or self.tokens_out > ceiling.tokens_out


FREE = Price(0, 0)


def charge(price: Price, tokens_in: int, tokens_out: int) -> int:
    """The micros of a whole request so far, rounded up. Raises ValueError for a negative count of tokens."""
    if tokens_in < 0 or tokens_out < 0:
        raise ValueError(f"{tokens_in} and {tokens_out} tokens")
    return -(-_exact(price, tokens_in, tokens_out) // TOKENS_PER_PRICE)


def tokens_out_within(price: Price, tokens_in: int, micros: int) -> int | None:
    """The most tokens of an answer that `micros` pay for, beside the prompt: the inverse of `charge`.

    None when answers are free and so any number is paid for; -1 when the prompt alone costs more.
    """
    left = micros * TOKENS_PER_PRICE - _exact(price, tokens_in, 0)
    if left < 0:
        return -1
    return left // price.tokens_out if price.tokens_out else None


def usd(micros: int) -> str:
    """The exact amount in dollars: "$0.000012", "$1.50"."""
    whole, rest = divmod(abs(micros), MICROS_PER_USD)
    digits = f"{rest:06}"
    return f"{'-' if micros < 0 else ''}${whole}.{digits[:2]}{digits[2:].rstrip('0')}"


def parse_usd(text: str, most: int = MOST_MICROS) -> int:
    """The micros of an amount as a person writes it: "0.2", "$5". For a price, `most` is MOST_PRICE.

    Raises ValueError with a sentence: not plain digits, more than six decimals (they would be lost), above `most`.
    """
    found = USD_TEXT.fullmatch(text.strip()) if len(text) <= LONGEST_TEXT else None
    if not found:
        raise ValueError(
            f"{text[:LONGEST_TEXT]!r} is no amount of dollars; write it as 0.25, with six decimals at most"
        )
    micros = int(found[1]) * MICROS_PER_USD + int((found[2] or "").ljust(6, "0"))
    if micros > most:
        raise ValueError(f"{usd(micros)} is more than {usd(most)}")
    return micros


def check_micros(name: str, micros: int) -> None:
    """Raise ValueError unless it is a whole number from 0 to MOST_MICROS."""
    if type(micros) is not int or not 0 <= micros <= MOST_MICROS:
        raise ValueError(f"{name} is a whole number of micro-dollars up to {MOST_MICROS}, not {micros!r}")


def _exact(price: Price, tokens_in: int, tokens_out: int) -> int:
    """Millionths of a micro."""
    return tokens_in * price.tokens_in + tokens_out * price.tokens_out
