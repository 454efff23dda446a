"""A real Nostr relay as a process of its own: the one that is embedded in nostr-sdk.

python tests/lab/nostr_relay.py ADDRESS PORT        prints the URL when it listens, and ends with its stdin

with relay() as url: ...                            on loopback
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOTES_PER_MINUTE = 6000


async def serve(address: str, port: int) -> None:
    """Run until stdin ends."""
    from nostr_sdk import LocalRelayBuilder, RateLimit

    limits = RateLimit(max_reqs=500, notes_per_minute=NOTES_PER_MINUTE)
    relay = LocalRelayBuilder().addr(address).port(port).rate_limit(limits).build()
    await relay.run()
    print(await relay.url(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    relay.shutdown()


@contextmanager
def relay(address: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A relay for the length of the block; its URL. In a thread that is inside a namespace it runs there."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), address, str(port or _free(address))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the relay did not start"
        yield url.rstrip("/")
    finally:
        process.kill()
        process.communicate()


def _free(address: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
