import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from meshnode.rpc.clients import MOST_WAITING, Clients
from tests.net.nodes import until

pytestmark = pytest.mark.anyio
Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Told:
    """What a `Clients` says."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.data = b""
        self.clients = Clients(
            begun=lambda: self.events.append("begun"),
            received=self.received,
            left=lambda: self.events.append("left"),
        )

    def received(self, data: bytes) -> None:
        self.data += data


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Told, int]]:
    told = Told()
    port = await told.clients.listen()
    yield told, port
    told.clients.close()


async def connect(port: int) -> Pipe:
    return await asyncio.open_connection("127.0.0.1", port)


async def test_one_after_the_other() -> None:
    async with listening() as (told, port):
        pipes = [await connect(port) for _ in range(3)]
        for number, (_, writer) in enumerate(pipes):
            writer.write(b"%d" % number)
        await until(lambda: told.data == b"0")
        told.clients.write(b"hello")
        assert await pipes[0][0].readexactly(5) == b"hello"
        pipes[0][1].close()
        await until(lambda: told.data == b"01")
        assert told.events == ["begun", "left", "begun"]
        pipes[2][1].close()
        pipes[1][1].close()
        await until(lambda: told.events[-1] == "left")
        for _, writer in pipes:
            writer.close()


async def test_too_many_are_turned_away() -> None:
    async with listening() as (told, port):
        pipes = [await connect(port) for _ in range(1 + MOST_WAITING)]
        await until(lambda: len(told.clients._waiting) == MOST_WAITING)
        reader, writer = await connect(port)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        for _, each in [*pipes, (reader, writer)]:
            each.close()
        await until(lambda: told.events[-1] == "left")


async def test_nothing_is_read_while_reading_is_off_also_of_the_next() -> None:
    async with listening() as (told, port):
        first, second = await connect(port), await connect(port)
        await until(lambda: len(told.clients._waiting) == 1)
        told.clients.read(False)
        first[1].write(b"first")
        second[1].write(b"second")
        told.clients.drop()
        await until(lambda: told.events == ["begun", "left", "begun"])
        assert told.data == b""
        told.clients.read(True)
        await until(lambda: told.data == b"second")
        first[1].close()
        second[1].close()


async def test_a_client_that_takes_nothing_is_waited_for() -> None:
    async with listening() as (told, port):
        await told.clients.room()
        reader, writer = await connect(port)
        await until(lambda: told.events == ["begun"])
        told.clients.write(bytes(16 << 20))
        waiting = asyncio.create_task(told.clients.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert len(await reader.readexactly(16 << 20)) == 16 << 20
        await asyncio.wait_for(waiting, 5)
        writer.close()
        await until(lambda: told.events[-1] == "left")
        await told.clients.room()


async def test_after_the_end_nobody_is_told() -> None:
    async with listening() as (told, port):
        pipes = [await connect(port), await connect(port)]
        await until(lambda: len(told.clients._waiting) == 1)
        told.clients.close()
        for reader, writer in pipes:
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert told.events == ["begun"]
        with pytest.raises(OSError):
            await connect(port)
