"""A payer's ledger with two funded channels, and how a request goes through it token by token."""

from collections.abc import Callable

import pytest

from meshnode.core.ledger import Ledger
from meshnode.core.ledger_entries import Line, Reserved
from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.prices import Price
from meshnode.core.windows import Window

PRICE = Price(200_000, 600_000)
DEAR = Price(3_000_000, 15_000_000)
ALPHA, BETA = bytes(31) + b"a", bytes(31) + b"b"
OCTOBER, NOVEMBER, DECEMBER = "2026-10", "2026-11", "2026-12"
WINDOW = Window()
POLICY = Policy("auto", DEAR, month_micros=1000)


def ledger_with(policy: Policy = POLICY, balance: int = 10**6) -> Ledger:
    ledger = Ledger(policy)
    for channel in (ALPHA, BETA):
        ledger.opened(channel)
        ledger.funded(channel, balance, 0, NOVEMBER)
    return ledger


def line(ledger: Ledger, channel: bytes = ALPHA) -> Line:
    found = ledger.line(channel)
    assert found
    return found


def reserve(
    ledger: Ledger, request: str = "r", channel: bytes = ALPHA, most_in: int = 400, most_out: int = 100
) -> Reserved:
    return ledger.reserve(request, channel, "m", PRICE, most_in, most_out, NOVEMBER)


def refusal(call: Callable[[], object]) -> tuple[str, dict[str, int]]:
    with pytest.raises(Refused) as refused:
        call()
    return refused.value.code, dict(refused.value.figures)


def receive(ledger: Ledger, request: str, tokens: range, month: str = NOVEMBER) -> list[tuple[int, int]]:
    """Token by token: (tokens, new cumulative) wherever something was signed."""
    signed = [(each, ledger.due(request, 50, each, WINDOW, month)) for each in tokens]
    return [(each, entry.line.signed_micros) for each, entry in signed if entry]
