"""A fake rpc-server for unit tests: it keeps what is written to tensors by their address, and computes nothing.

It checks what the real one would end the connection for: HELLO first, one client at a time, known commands. `log` has
the commands in the order in which they were carried out.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshnode.rpc.facts import DeviceFacts, WorkerFacts
from meshnode.wire.ggml_rpc import FIXED_BYTES, Command

HELLO = bytes([7, 0, 0, 0]) + bytes(24)
FACTS = WorkerFacts(HELLO, (DeviceFacts(32, 1 << 40, 1 << 30, 1 << 31),))


class FakeRpcServer:
    """See the module. Made by `fake_rpc_server`."""

    def __init__(self) -> None:
        self.port = 0
        self.log: list[Command] = []
        self.memory: dict[int, bytearray] = {}
        self.buffers: dict[int, int] = {}
        self.connections = 0
        self.may_work = asyncio.Event()
        self.may_work.set()
        self.extra_bytes = 0
        """How much more than its plain size a tensor takes."""
        self._turn = asyncio.Lock()
        self._next = 0x10000
        self._tasks: set[asyncio.Task[None]] = set()
        self.writers: set[asyncio.StreamWriter] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.writers.add(writer)
        try:
            async with self._turn:
                self.connections += 1
                await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.buffers.clear()
            self.writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted = False
        while True:
            command, size = struct.unpack("<BQ", await reader.readexactly(9))
            if (
                FIXED_BYTES.get(command, size) != size
                or command > Command.MEMSET_TENSOR
                or greeted is (command == Command.HELLO)
            ):
                return
            greeted = True
            payload = await reader.readexactly(size)
            await self.may_work.wait()
            self.log.append(Command(command))
            answer = self._carry_out(command, payload)
            if answer is not None:
                writer.write(struct.pack("<Q", len(answer)) + answer)
                await writer.drain()

    def _carry_out(self, command: int, payload: bytes) -> bytes | None:
        match command:
            case Command.HELLO:
                return HELLO
            case Command.ALLOC_BUFFER:
                _, size = struct.unpack("<IQ", payload)
                self._next += 0x1000
                self.buffers[self._next] = size
                return struct.pack("<QQ", self._next, size)
            case Command.BUFFER_GET_BASE:
                return struct.pack("<Q", struct.unpack("<Q", payload)[0] + 64)
            case Command.FREE_BUFFER:
                self.buffers.pop(struct.unpack("<Q", payload)[0])
                return None
            case Command.SET_TENSOR:
                (offset,) = struct.unpack_from("<Q", payload, 297)
                self._tensor(payload)[offset : offset + len(payload) - 305] = payload[305:]
                return None
            case Command.GET_TENSOR:
                offset, size = struct.unpack_from("<QQ", payload, 296)
                return bytes(self._tensor(payload)[offset : offset + size].ljust(size, b"\0"))
            case Command.GET_ALLOC_SIZE:
                shape, strides = struct.unpack_from("<4I", payload, 24), struct.unpack_from("<4I", payload, 40)
                plain = 4 + sum((ne - 1) * nb for ne, nb in zip(shape, strides, strict=True))
                return struct.pack("<Q", plain + self.extra_bytes)
            case Command.COPY_TENSOR:
                return b"\1"
        return None

    def _tensor(self, payload: bytes) -> bytearray:
        (address,) = struct.unpack_from("<Q", payload, 220)
        return self.memory.setdefault(address, bytearray())

    async def close(self) -> None:
        """End every connection."""
        self.may_work.set()
        for writer in list(self.writers):
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def fake_rpc_server() -> AsyncIterator[FakeRpcServer]:
    """One that listens on a free port of loopback."""
    fake = FakeRpcServer()
    server = await asyncio.start_server(fake.connected, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        await fake.close()
