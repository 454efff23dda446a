"""The channels of one chain in the journal, for whoever watches that chain (chain.py, ChannelBook).

What the chain says is written first and told to the listeners then: the books of what is paid and what is earned keep
channels in memory, so that no request waits for a chain or a disk to know what a channel holds.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence

from meshnode.settlement.store import Store
from meshnode.settlement.store_channels import (
    Channel,
    OnChain,
    Role,
    State,
    add_channel,
    channel_of,
    channels,
    seen_on_chain,
)
from meshnode.wire.payments import ChannelConfig
from meshnode.wire.registry import LIMIT_MONEY_MICROS

Listener = Callable[[Channel], Awaitable[None]]


class Book:
    """The channels of `store` on this chain and hub. `listeners` are told of each that is new or has changed."""

    def __init__(self, store: Store, *, chain: int, hub: bytes, clock: Callable[[], float] = time.time) -> None:
        self.listeners: list[Listener] = []
        self._store = store
        self._chain = chain
        self._hub = hub
        self._clock = clock

    async def channels(self) -> Sequence[Channel]:
        """All of this chain and hub, the newest first."""
        found = await self._store.run(channels)
        return [channel for channel in found if (channel.chain, channel.hub) == (self._chain, self._hub)]

    async def opening(self, config: ChannelConfig, channel_id: bytes, role: Role, node: bytes) -> None:
        """Keep a channel before anything is signed or sent for it; one that is there stays as it is."""
        new = Channel(channel_id, role, node, self._chain, self._hub, config, opened_at=self._clock())

        def work(db: sqlite3.Connection) -> Channel | None:
            add_channel(db, new)
            return channel_of(db, channel_id)

        await self._tell(await self._store.run(work))

    async def seen(
        self,
        channel_id: bytes,
        *,
        balance_micros: int,
        usable_micros: int,
        claimed_micros: int,
        state: State,
        withdrawable_at: float | None,
    ) -> None:
        """Keep what the chain says of a channel; of one that is not in the journal, nothing.

        An amount that no channel of people holds is cut to the greatest that is reckoned with here.
        """
        facts = OnChain(
            balance_micros=min(balance_micros, LIMIT_MONEY_MICROS),
            usable_micros=min(usable_micros, LIMIT_MONEY_MICROS),
            claimed_micros=min(claimed_micros, LIMIT_MONEY_MICROS),
            state=state,
            at=self._clock(),
            withdrawable_at=withdrawable_at,
        )

        def work(db: sqlite3.Connection) -> tuple[Channel | None, Channel | None]:
            return channel_of(db, channel_id), seen_on_chain(db, channel_id, facts)

        before, after = await self._store.run(work)
        if after is not None and before is not None and _changed(before, after):
            await self._tell(after)

    async def _tell(self, channel: Channel | None) -> None:
        if channel is not None:
            for listener in self.listeners:
                await listener(channel)


def _changed(before: Channel, after: Channel) -> bool:
    """Whether more has changed than when it was looked at."""
    names = ("state", "balance_micros", "usable_micros", "depositing_micros", "claimed_micros", "withdrawable_at")
    return any(getattr(before, name) != getattr(after, name) for name in names)
