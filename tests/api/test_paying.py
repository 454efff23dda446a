"""Which hosts may be asked, as far as money goes, and what is said when none may."""

from __future__ import annotations

import pytest

from meshnode.api.paying import ONLY_FREE, Affording
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Pipe
from meshnode.core.prices import Price
from meshnode.errors import MeshnodeError, PaymentsOff, PriceAboveCeiling

CHEAP, FAIR, DEAR = Price(1, 2), Price(10, 20), Price(100, 200)


async def connect() -> Pipe:
    raise AssertionError


def host(node: str, price: Price | None = None, **more: object) -> Host:
    if price is None:
        return Host(node, connect=connect)
    paid = {"price": price, "chain": 84532, "connect_paid": connect, "radius": "public"}
    return Host(node, connect=connect, **{**paid, **more})  # type: ignore[arg-type]


class FakePurse:
    """Pays up to FAIR, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Price, int, str]] = []

    def refusal(self, price: Price, chain: int, model: str, /) -> MeshnodeError | None:
        self.asked.append((price, chain, model))
        return PriceAboveCeiling(f"{price.tokens_out}") if price.exceeds(FAIR) else None

    async def begin(self, call: object, /) -> None:  # type: ignore[override]
        raise AssertionError


def model(*hosts: Host) -> Served:
    return Served("demo", "ready", hosts=hosts)


def nodes(found: Served | None) -> list[str]:
    return [] if found is None else [each.node for each in found.hosts]


def affording() -> tuple[Affording, FakePurse]:
    purse = FakePurse()
    return Affording(purse), purse  # type: ignore[arg-type]


def test_a_free_host_is_never_a_question_of_money() -> None:
    afford, purse = affording()
    free = model(host("a"), host("b"))
    assert afford.within(free) is free and ONLY_FREE.within(free) is free
    assert afford.refusal(free) is None and purse.asked == []


def test_hosts_above_the_ceiling_are_left_out() -> None:
    afford, purse = affording()
    found = model(host("a", DEAR), host("b", FAIR), host("c"), host("d", CHEAP))
    assert nodes(afford.within(found)) == ["b", "c", "d"]
    assert purse.asked == [(DEAR, 84532, "demo"), (FAIR, 84532, "demo"), (CHEAP, 84532, "demo")]
    assert afford.within(model(host("a", DEAR))) is None


def test_the_refusal_is_that_of_the_cheapest_that_is_ready() -> None:
    afford, _ = affording()
    refusal = afford.refusal(model(host("a", DEAR), host("b", Price(11, 20)), host("c", Price(9, 21), state="loading")))
    assert isinstance(refusal, PriceAboveCeiling) and refusal.detail == "20"
    assert afford.refusal(model(host("a", FAIR))) is None
    assert afford.refusal(model(host("a", DEAR, state="loading"))) is None


@pytest.mark.parametrize("price", [CHEAP, DEAR])
def test_without_a_purse_nobody_is_paid(price: Price) -> None:
    found = model(host("a", price))
    assert ONLY_FREE.within(found) is None
    assert isinstance(ONLY_FREE.refusal(found), PaymentsOff)
    assert nodes(ONLY_FREE.within(model(host("a", price), host("b")))) == ["b"]
