from __future__ import annotations

from typing import Any

import pytest

from meshnode.core.claiming import block_tag_for
from meshnode.errors import ChainDisagrees
from meshnode.settlement import contracts
from meshnode.settlement.abi_codec import encode
from meshnode.settlement.contracts import Standing
from meshnode.settlement.standings import MOST_TOGETHER, HubReader

pytestmark = pytest.mark.anyio
DOLLAR, CHANNEL = 1_000_000, b"c" * 32


def answer(channels: int, balance: int, since: int = 0) -> bytes:
    parts = [
        encode(("uint128", "uint128"), (balance, 0)),
        encode(("uint128", "uint40"), (0, since)),
        encode(("uint256",), (0,)),
    ]
    return encode(("bytes[]",), (parts * channels,))


class Chain:
    """Balances by block: at the newest (None), the safe (50) and the final one (20)."""

    def __init__(self, **balances: int) -> None:
        self.balances = balances
        self.calls = 0
        self.others: list[bytes] = []

    async def call(self, target: bytes, data: bytes, *, block: int | None = None) -> bytes:
        self.calls += 1
        (questions,) = contracts.interface("hub").arguments("multicall", data)
        name = {None: "now", 50: "safe", 20: "final"}[block]
        return answer(len(questions) // 3, self.balances[name]) if name in self.balances else b""

    async def final(self, tag: str) -> int:
        return {"safe": 50, "finalized": 20}[tag]

    async def any_call(self, target: bytes, data: bytes) -> list[bytes]:
        return self.others


def reader(chain: Any) -> HubReader:
    return HubReader(chain, bytes(20), tag_for=block_tag_for)


@pytest.mark.parametrize(
    "now, safe, final, usable",
    [
        (DOLLAR, 0, 0, DOLLAR),
        (2 * DOLLAR, 0, 0, 0),
        (2 * DOLLAR, DOLLAR, 0, 2 * DOLLAR),
        (50 * DOLLAR, 2 * DOLLAR, 0, 2 * DOLLAR),
        (500 * DOLLAR, 500 * DOLLAR, 0, 0),
        (500 * DOLLAR, 500 * DOLLAR, 450 * DOLLAR, 500 * DOLLAR),
        (500 * DOLLAR, 450 * DOLLAR, 450 * DOLLAR, 450 * DOLLAR),
        (2 * DOLLAR, 9 * DOLLAR, 9 * DOLLAR, 2 * DOLLAR),
    ],
)
async def test_how_much_counts_depends_on_what_is_at_risk(now: int, safe: int, final: int, usable: int) -> None:
    chain = Chain(now=now, safe=safe, final=final)
    assert await reader(chain).usable_micros(CHANNEL, Standing(now)) == usable


async def test_a_small_balance_costs_no_question() -> None:
    chain = Chain()
    assert await reader(chain).usable_micros(CHANNEL, Standing(DOLLAR)) == DOLLAR
    assert chain.calls == 0


async def test_before_there_was_a_hub_there_was_nothing() -> None:
    assert await reader(Chain(now=5 * DOLLAR)).usable_micros(CHANNEL, Standing(5 * DOLLAR)) == 0
    with pytest.raises(ChainDisagrees):
        await reader(Chain()).now([CHANNEL])


async def test_many_channels_are_asked_for_in_parts() -> None:
    chain = Chain(now=7)
    channels = [number.to_bytes(32, "big") for number in range(2 * MOST_TOGETHER + 1)]
    found = await reader(chain).now(channels)
    assert chain.calls == 3 and set(found) == set(channels) and found[channels[-1]] == Standing(7)
    assert await reader(chain).now([]) == {}


async def test_any_endpoint_is_heard_when_it_sounds_an_alarm_and_nonsense_is_not() -> None:
    chain = Chain(now=7)
    chain.others = [answer(1, 7), b"nonsense", answer(1, 7, since=99)]
    assert await reader(chain).alarms([CHANNEL]) == {CHANNEL: Standing(7, withdraw_since=99)}
    chain.others = [answer(1, 7), b"nonsense"]
    assert await reader(chain).alarms([CHANNEL]) == {}
