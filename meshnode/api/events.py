"""The live view of a node: one snapshot, then only what changed, for any number of watchers.

Watchers hold no queue: each remembers the last status it was sent and gets the difference to the present one. So a
slow watcher costs nothing and misses only states that are past.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

Status = dict[str, Any]

SETTLE_S = 0.1
"""Changes that come together are sent together."""
REFRESH_S = 2.0
"""Memory, rates and queues drift without an event; they are looked at this often."""
KEEP_ALIVE_S = 15.0
MAX_WATCHERS = 64


class Events:
    """Tells watchers of changes. `touch()` may be called at any moment from the event loop."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self._changed = asyncio.Event()
        self._number = 0
        self.watchers = 0

    def touch(self) -> None:
        """Something has changed."""
        self._number += 1
        self._changed.set()

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events for one watcher: `snapshot`, then `change` with the top-level members that differ."""
        self.watchers += 1
        try:
            sent = self._status()
            yield self._event("snapshot", sent)
            silent_s = 0.0
            while True:
                silent_s += await self._pause()
                present = self._status()
                changed = {key: value for key, value in present.items() if sent.get(key) != value}
                if changed:
                    yield self._event("change", changed)
                    sent, silent_s = present, 0.0
                elif silent_s >= KEEP_ALIVE_S:
                    yield b": here\n\n"
                    silent_s = 0.0
        finally:
            self.watchers -= 1

    async def _pause(self) -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            async with asyncio.timeout(REFRESH_S):
                await self._changed.wait()
            await asyncio.sleep(SETTLE_S)
            self._changed.clear()
        except TimeoutError:
            pass
        return loop.time() - begin

    def _event(self, kind: str, data: Status) -> bytes:
        return f"id: {self._number}\nevent: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
