"""Watchers of a node's events, in a process of their own so that they do not take its event loop's time.

    python -m bench.watchers URL --count 20

Each reads /api/events until standard input ends; then one JSON object says what they got.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

READ_BYTES = 1 << 20


@dataclass(slots=True)
class Got:
    """What one watcher received."""

    received_bytes: int = 0
    events: int = 0


async def watch(url: str, got: Got) -> None:
    """Read the events of a console, counting; ends when it is cancelled or the node ends."""
    target = urlsplit(url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    try:
        writer.write(f"GET /api/events HTTP/1.1\r\nHost: {target.netloc}\r\n\r\n".encode())
        tail = b""
        while data := await reader.read(READ_BYTES):
            got.received_bytes += len(data)
            got.events += (tail + data).count(b"\nevent: ")
            tail = data[-7:]  # one byte less than the mark, so that none is counted twice
    finally:
        writer.close()


async def run(url: str, count: int) -> list[Got]:
    """So many watchers until standard input ends."""
    all_got = [Got() for _ in range(count)]
    tasks = [asyncio.create_task(watch(url, got)) for got in all_got]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return all_got


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="the console of a node")
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()
    found = asyncio.run(run(options.url, options.count))
    print(json.dumps({"events": [got.events for got in found], "bytes": [got.received_bytes for got in found]}))


if __name__ == "__main__":
    main()
