from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshnode.settlement import contracts
from meshnode.settlement.abi_codec import encode
from meshnode.settlement.answers import Log
from meshnode.settlement.watch import AGAIN_BLOCKS, KEEP_BLOCKS, MOST_CHANNELS, MOST_PAGES, PAGE_BLOCKS, HubWatch

pytestmark = pytest.mark.anyio
HUB, CHANNEL = bytes([4]) * 20, b"c" * 32
TOPIC = contracts.interface("hub").events["Deposited"].topic


def log(block: int, *, channel: bytes = CHANNEL, digest: bytes = b"b" * 32, place: int = 0) -> Log:
    return Log(
        *(HUB, (TOPIC, channel, bytes(32)), encode(("uint128", "uint128"), (5, 5)), block, digest, b"t" * 32, place)
    )


class Chain:
    """Endpoints with logs, and a store of cursors."""

    def __init__(self, head: int, *logs: Log) -> None:
        self.head = head
        self.logs = list(logs)
        self.pages: list[tuple[int, int]] = []
        self.filters: list[int] = []
        self.cursors: dict[str, int] = {}

    async def lowest_head(self) -> int:
        return self.head

    async def any_logs(self, address: bytes, topics: Any, first: int, last: int) -> list[Log]:
        self.pages.append((first, last))
        self.filters.append(len(topics))
        return [item for item in self.logs if first <= item.block <= last]

    async def cursor(self, name: str) -> int:
        return self.cursors.get(name, 0)

    async def move_cursor(self, name: str, to: int) -> None:
        self.cursors[name] = to


def watch(chain: Any) -> HubWatch:
    return HubWatch(chain, chain, HUB, 84532)


async def test_it_begins_where_the_chain_is_and_reads_on() -> None:
    chain = Chain(1000, log(1000), log(990, place=1))
    eyes = watch(chain)
    assert [event.block for event in await eyes.look([CHANNEL])] == [1000]
    assert chain.pages == [(1000, 1000)]
    chain.head, chain.logs = 1010, [log(1005, digest=b"x" * 32)]
    assert [event.block for event in await eyes.look([CHANNEL])] == [1005]
    assert chain.pages[-1] == (1000 - AGAIN_BLOCKS, 1010)


async def test_what_was_told_is_not_told_again_unless_its_block_was_replaced() -> None:
    chain = Chain(1000, log(1000))
    eyes = watch(chain)
    assert len(await eyes.look([CHANNEL])) == 1
    assert await eyes.look([CHANNEL]) == []
    chain.logs = [log(1000, digest=b"n" * 32)]
    assert len(await eyes.look([CHANNEL])) == 1


async def test_it_goes_on_after_a_restart_and_not_for_ever_back() -> None:
    chain = Chain(1000)
    eyes = watch(chain)
    await eyes.look([CHANNEL])
    chain.head = 1000 + KEEP_BLOCKS - 1
    await eyes.look([CHANNEL])
    assert set(chain.cursors.values()) == {1000}
    chain.head = 1500
    chain.logs = [log(1200)]
    assert len(await watch(chain).look([CHANNEL])) == 1
    assert set(chain.cursors.values()) == {1500}
    chain.head = 10**7
    chain.pages.clear()
    await watch(chain).look([CHANNEL])
    assert chain.pages[0][0] == 10**7 - PAGE_BLOCKS * MOST_PAGES
    assert all(last - first < PAGE_BLOCKS for first, last in chain.pages) and len(chain.pages) <= MOST_PAGES + 1


async def test_a_chain_that_went_back_is_read_from_there() -> None:
    chain = Chain(1000)
    eyes = watch(chain)
    await eyes.look([CHANNEL])
    chain.head, chain.logs = 995, [log(994)]
    assert [event.block for event in await eyes.look([CHANNEL])] == [994]


async def test_logs_that_lie_are_passed_over() -> None:
    good = log(1000)
    chain = Chain(
        *(1000, replace(good, data=b"short"), replace(good, address=bytes(20)), replace(good, topics=(TOPIC,))),
        *(log(1000, channel=b"z" * 32), good),
    )
    assert [event.channel for event in await watch(chain).look([CHANNEL])] == [CHANNEL]


async def test_of_many_channels_the_filter_names_none() -> None:
    chain = Chain(1000, log(1000))
    assert len(await watch(chain).look([CHANNEL, *(bytes([n]) * 32 for n in range(MOST_CHANNELS))])) == 1
    assert chain.filters == [1]
    await watch(chain).look([])
    assert len(chain.pages) == 1
