"""One HTTP/1.1 request to a llama-server of ours, on a fresh connection. Enough for health and properties.

The gateway has its own way to forward requests; this one keeps everything small: one deadline for the whole
exchange, a bounded body, no redirects, no keep-alive.
"""

from __future__ import annotations

import asyncio
import contextlib

import httptools

from meshnode.engine.commands import Address

BODY_BYTES = 4 << 20


class _Collected:
    """What httptools reports of one response."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


async def connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to `address`. Raises OSError."""
    if address.socket is not None:
        return await asyncio.open_unix_connection(str(address.socket))
    return await asyncio.open_connection(address.host, address.port)


async def request(
    address: Address, method: str, path: str, *, api_key: str = "", body: bytes = b"", deadline_s: float = 5.0
) -> tuple[int, bytes]:
    """Status and body of the answer. `body` is sent as JSON.

    Raises OSError if nobody listens or the answer is broken (ConnectionError) and TimeoutError after `deadline_s`
    seconds.
    """
    async with asyncio.timeout(deadline_s):
        reader, writer = await connect(address)
        try:
            writer.write(_head(method, path, api_key, len(body)) + body)
            await writer.drain()
            return await _answer(reader)
        finally:
            # Not close(): that would wait for a peer which no longer reads.
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _head(method: str, path: str, api_key: str, length: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {length}"]
    if length:
        lines.append("Content-Type: application/json")
    if api_key:
        lines.append(f"Authorization: Bearer {api_key}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    collected = _Collected()
    parser = httptools.HttpResponseParser(collected)
    while not collected.complete:
        data = await reader.read(1 << 16)
        if not data:
            raise ConnectionResetError("the engine closed the connection in the middle of an answer")
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionAbortedError(f"not an HTTP answer: {error}") from error
        if len(collected.body) > BODY_BYTES:
            raise ConnectionAbortedError(f"an answer of more than {BODY_BYTES} bytes")
    return parser.get_status_code(), bytes(collected.body)
