"""Many callers at once that read slowly: small windows, a little at a time, as over a bad line."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass

READ_BYTES = 2048
PAUSE_S = 0.1
WINDOW_BYTES = 8192
LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Slow:
    """What each stream brought: events, and its longest silence (seconds) after its first event."""

    wall_s: float
    events: list[int]
    pauses_s: list[float]


def read_slowly(port: int, body: str, *, streams: int) -> Slow:
    """Send `body` to the chat endpoint on loopback `streams` times at once and read all answers slowly.

    Raises RuntimeError for an answer other than 200, and TimeoutError when they take longer than LIMIT_S.
    """
    return asyncio.run(asyncio.wait_for(_read_all(port, body, streams), LIMIT_S))


async def _read_all(port: int, body: str, streams: int) -> Slow:
    begun = time.monotonic()
    results = await asyncio.gather(*(_read(port, body) for _ in range(streams)))
    wall_s = time.monotonic() - begun
    return Slow(wall_s, [events for events, _ in results], [pause_s for _, pause_s in results])


async def _read(port: int, body: str) -> tuple[int, float]:
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
    link.setblocking(False)
    await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=link, limit=READ_BYTES)
    raw = body.encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(raw), raw)
    )
    events = 0
    longest_s = 0.0
    rest = b""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"{head!r} {await reader.read(500)!r}")
        while True:
            waiting_since = time.monotonic()
            data = await reader.read(READ_BYTES)
            if not data:
                return events, longest_s
            if events:
                longest_s = max(longest_s, time.monotonic() - waiting_since)
            # An event may be cut in two between reads: what could be the beginning of its name is looked at again.
            events += (rest + data).count(b"data: {")
            rest = data[-6:]
            await asyncio.sleep(PAUSE_S)
    finally:
        writer.close()
