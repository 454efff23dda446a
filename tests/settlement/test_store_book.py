"""What is seen on the chain is written, and told to whoever keeps channels in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.settlement.store import Store
from meshnode.settlement.store_book import Book
from meshnode.settlement.store_channels import Channel
from tests.lab.paying_ends import CHANNEL, CONFIG, NETWORK, channel_line

pytestmark = pytest.mark.anyio
NODE = bytes([7]) * 32


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    found = Store(tmp_path)
    await found.start()
    yield found
    await found.close()


def seen(**changes: Any) -> dict[str, Any]:
    known = {"balance_micros": 100, "usable_micros": 60, "claimed_micros": 0, "state": "open", "withdrawable_at": None}
    return known | changes


async def test_a_channel_from_its_opening_to_its_end(store: Store) -> None:
    now, told = [10.0], list[Channel]()
    book = Book(store, chain=NETWORK.chain, hub=NETWORK.hub, clock=lambda: now[0])

    async def listen(channel: Channel) -> None:
        told.append(channel)

    book.listeners.append(listen)
    await book.opening(CONFIG, CHANNEL, "receiver", NODE)
    await book.seen(CHANNEL, **seen())
    now[0] = 11.0
    await book.seen(CHANNEL, **seen())  # nothing new, which nobody is told
    await book.seen(CHANNEL, **seen(usable_micros=100))
    await book.seen(CHANNEL, **seen(usable_micros=100, state="withdrawing", withdrawable_at=99.0))
    assert [(item.state, item.usable_micros) for item in told] == [
        ("opening", 0),
        ("open", 60),
        ("open", 100),
        ("withdrawing", 100),
    ]
    (channel,) = await book.channels()
    assert channel == told[-1]
    assert (channel.id, channel.config, channel.node, channel.role) == (CHANNEL, CONFIG, NODE, "receiver")
    assert (channel.opened_at, channel.checked_at, channel.withdrawable_at) == (10.0, 11.0, 99.0)


async def test_a_channel_that_is_not_there_stays_unknown(store: Store) -> None:
    book = Book(store, chain=NETWORK.chain, hub=NETWORK.hub)
    await book.seen(CHANNEL, **seen())
    assert await book.channels() == []


async def test_channels_of_another_chain_or_hub_are_not_shown(store: Store) -> None:
    await store.run(lambda db: channel_line(db, 1, chain=1))
    await store.run(lambda db: channel_line(db, 2, hub=bytes(20)))
    ours = await store.run(lambda db: channel_line(db, 3))
    book = Book(store, chain=NETWORK.chain, hub=NETWORK.hub)
    assert [channel.id for channel in await book.channels()] == [ours]
