"""Logs of the hub: which channels something happened to since the last look.

A log is a hint to look at the channel, never a fact by itself: endpoints may leave some out, make some up, or take some
back after a reorganisation. So blocks that were read are read once more for a while, and whoever uses this looks at all
channels now and then without any hint.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode.settlement import contracts
from meshnode.settlement.abi_codec import Malformed
from meshnode.settlement.contracts import ChannelEvent
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.transactions import TransactionStore

AGAIN_BLOCKS = 12
"""How many blocks are read again: deeper reorganisations of an OP chain are those of the chain below."""
KEEP_BLOCKS = 50
"""The place is written down that often: reading a few blocks twice costs less than a sync of the disk at every look."""
PAGE_BLOCKS = 1000
"""Many endpoints refuse larger pages."""
MOST_PAGES = 20
"""At one look. Who was away for longer starts from here, and looks at every channel."""
MOST_CHANNELS = 100
"""In a filter. Of more, all logs of the hub are read and looked through."""
MOST_REMEMBERED = 10_000


class HubWatch:
    """Reads on from where the last look ended; after a restart from not far before that."""

    def __init__(self, rpc: RpcPair, store: TransactionStore, hub: bytes, chain: int) -> None:
        self._rpc = rpc
        self._store = store
        self._hub = hub
        self._name = f"logs:{chain}:{hub.hex()}"
        self._reached: int | None = None
        self._kept = 0
        self._told: dict[tuple[bytes, bytes, int], None] = {}

    async def look(self, channels: Sequence[bytes]) -> list[ChannelEvent]:
        """Events of these channels that were not told before, oldest first. Raises ChainUnreachable."""
        head = await self._rpc.lowest_head()
        if self._reached is None:
            self._reached = self._kept = await self._store.cursor(self._name)
        reached = self._reached
        first = max(reached - AGAIN_BLOCKS, head - PAGE_BLOCKS * MOST_PAGES, 0) if reached else head
        found: list[ChannelEvent] = []
        while channels and first <= head:
            last = min(first + PAGE_BLOCKS - 1, head)
            found += await self._page(channels, first, last)
            first = last + 1
        self._reached = head
        if abs(head - self._kept) >= KEEP_BLOCKS:
            await self._store.move_cursor(self._name, head)
            self._kept = head
        return sorted(found, key=lambda event: event.block)

    async def _page(self, channels: Sequence[bytes], first: int, last: int) -> list[ChannelEvent]:
        topics = contracts.watched_topics(channels)
        known = set(channels)
        if len(channels) > MOST_CHANNELS:
            topics = topics[:1]
        found = []
        for log in await self._rpc.any_logs(self._hub, topics, first, last):
            name = (log.block_digest, log.transaction, log.place)
            try:
                event = contracts.channel_event(log) if log.address == self._hub else None
            except Malformed:
                continue
            if event is None or event.channel not in known or name in self._told:
                continue
            self._told[name] = None
            if len(self._told) > MOST_REMEMBERED:
                del self._told[next(iter(self._told))]
            found.append(event)
        return found
