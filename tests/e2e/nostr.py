"""A Nostr relay in a thread of the test process, for nodes in processes of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def relay_in_a_thread() -> Iterator[str]:
    """The URL of a relay that lives as long as the block."""
    ready, over = threading.Event(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        from nostr_sdk import LocalRelayBuilder, RateLimit

        limit = RateLimit(max_reqs=500, notes_per_minute=6000)
        relay = LocalRelayBuilder().addr("127.0.0.1").rate_limit(limit).build()
        await relay.run()
        found.append(str(await relay.url()).rstrip("/"))
        ready.set()
        await asyncio.to_thread(over.wait)
        relay.shutdown()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="nostr relay")
    thread.start()
    try:
        assert ready.wait(10), "the relay did not start"
        yield found[0]
    finally:
        over.set()
        thread.join(10)
