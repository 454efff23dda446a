"""Nostr relays that misbehave, on raw websockets: each conduct says what follows a question (REQ) or an event (EVENT).

async with rogue_relay(forging([...])) as url: ...
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Event = dict[str, Any]


class Asked:
    """One question on one connection, and ways to answer it. `condition` is the filter; an event that was sent is
    `event`."""

    def __init__(self, socket: ServerConnection, name: str, condition: dict[str, Any], event: Event | None) -> None:
        self._socket = socket
        self.name = name
        self.condition = condition
        self.event = event

    async def say(self, *message: Any) -> None:
        """Any JSON array."""
        await self.raw(json.dumps(message))

    async def raw(self, text: str | bytes) -> None:
        """Any message."""
        await self._socket.send(text)

    async def give(self, *events: Any) -> None:
        """Events, in answer."""
        for event in events:
            await self.say("EVENT", self.name, event)

    async def end(self) -> None:
        """The end of what is stored."""
        await self.say("EOSE", self.name)

    def drop(self) -> None:
        """Break the connection without a word."""
        self._socket.transport.abort()


Conduct = Callable[[Asked], Awaitable[None]]


@asynccontextmanager
async def rogue_relay(conduct: Conduct) -> AsyncIterator[str]:
    """The URL of a relay that behaves so."""

    async def talk(socket: ServerConnection) -> None:
        try:
            async for message in socket:
                match json.loads(message):
                    case ["REQ", str(name), dict(condition)]:
                        await conduct(Asked(socket, name, condition, None))
                    case ["EVENT", dict(event)]:
                        await conduct(Asked(socket, "", {}, event))
        except ConnectionClosed:
            pass  # whoever asked has had enough

    async with serve(talk, "127.0.0.1", 0, compression=None, close_timeout=0.2) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def mute_port() -> AsyncIterator[str]:
    """The URL of something that accepts connections and never says a word."""
    writers: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in writers:
            writer.transport.abort()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def web_server(status: str, *headers: str) -> AsyncIterator[str]:
    """The URL of a web server that is no relay, and answers with this status line."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [f"HTTP/1.1 {status}", "content-length: 0", *headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


# --- conducts ---------------------------------------------------------------------------------------------------------


def honest(*events: Any) -> Conduct:
    """Gives these events, and ends."""

    async def conduct(asked: Asked) -> None:
        await asked.give(*events)
        await asked.end()

    return conduct


def stalling(*events: Any) -> Conduct:
    """Gives these events, and never ends."""

    async def conduct(asked: Asked) -> None:
        await asked.give(*events)

    return conduct


def dropping(*events: Any) -> Conduct:
    """Gives these events and breaks the connection."""

    async def conduct(asked: Asked) -> None:
        await asked.give(*events)
        asked.drop()

    return conduct


def waiting(seconds: float, *events: Any) -> Conduct:
    """Is honest after a while."""

    async def conduct(asked: Asked) -> None:
        await asyncio.sleep(seconds)
        await honest(*events)(asked)

    return conduct


def forging(*events: Event) -> Conduct:
    """Puts other words into what others have signed."""
    forged = [event | {"content": event["content"].replace("demo", "omed")} for event in events]
    return honest(*forged)


def refusing(reason: str) -> Conduct:
    """Ends every question with a reason, and takes no event."""

    async def conduct(asked: Asked) -> None:
        if asked.event is not None:
            await asked.say("OK", asked.event["id"], False, reason)
        else:
            await asked.say("CLOSED", asked.name, reason)

    return conduct


def noticing(text: str) -> Conduct:
    """Says something to people and nothing else."""

    async def conduct(asked: Asked) -> None:
        await asked.say("NOTICE", text)

    return conduct


def flooding(event: Callable[[int], Any], count: int) -> Conduct:
    """Gives so many events as fast as they are taken, and never ends."""

    async def conduct(asked: Asked) -> None:
        for number in range(count):
            await asked.give(event(number))
            await asyncio.sleep(0)

    return conduct


def babbling(messages: Sequence[str | bytes]) -> Conduct:
    """Says these very messages over and over."""

    async def conduct(asked: Asked) -> None:
        while True:
            for message in messages:
                await asked.raw(message)
                await asyncio.sleep(0)  # sending alone does not wait while there is room

    return conduct
