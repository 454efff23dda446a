"""A client that sends exactly the bytes it is given and reads HTTP/1.1 answers, pipelined ones included."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

DEADLINE_S = 20


@dataclass
class Reply:
    """One answer, decoded."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


def request(path: str, body: object = None, *, method: str = "", headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a request; a `body` that is not bytes is sent as JSON. Give `Host` or the framing to replace it."""
    payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Host": "localhost", **(headers or {})}
    if body is not None and "Transfer-Encoding" not in given:
        given.setdefault("Content-Length", str(len(payload)))
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1\r\n{head}\r\n".encode() + payload


class Connection:
    """One connection to a server on loopback."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._rest = b""

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Close at once."""
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with suppress(ConnectionError):
            await self.writer.drain()

    async def ask(self, path: str, body: object = None, *, method: str = "", **headers: str) -> Reply:
        """Send a request and read the answer. Underscores in header names become dashes."""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        await self.send(request(path, body, method=method, headers=named))
        return await self.reply()

    async def head(self) -> Reply:
        """Status and headers of the next answer."""
        async with asyncio.timeout(DEADLINE_S):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Reply(int(first.split(" ")[1]), headers)

    async def reply(self) -> Reply:
        """The next answer as a whole."""
        reply = await self.head()
        if reply.headers.get("transfer-encoding") == "chunked":
            while piece := await self.chunk():
                reply.body += piece
        else:
            async with asyncio.timeout(DEADLINE_S):
                reply.body = await self.reader.readexactly(int(reply.headers.get("content-length", "0")))
        return reply

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(DEADLINE_S):
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def event(self) -> bytes:
        """The next server-sent event or comment of a chunked body; empty at its end."""
        while b"\n\n" not in self._rest:
            piece = await self.chunk()
            if not piece:
                return b""
            self._rest += piece
        event, _, self._rest = self._rest.partition(b"\n\n")
        return event

    async def ended(self) -> bool:
        """Whether the server closes without sending anything more."""
        with suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE_S):
                return await self.reader.read() == b""
        return True


async def ask(port: int, path: str, body: object = None, *, method: str = "", **headers: str) -> Reply:
    """One request on a connection of its own."""
    async with await Connection.open(port) as connection:
        return await connection.ask(path, body, method=method, **headers)
