"""One tunnel at the worker: the blocks of the host, the life of the connection to the rpc-server, and its signs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from meshnode.net.stream import MeshStream
from meshnode.rpc.codec import Unpacker
from meshnode.rpc.commands import Commands, Lent
from meshnode.rpc.flow import Flow
from meshnode.rpc.liveness import ALIVE_EVERY_S, ALIVE_FOR_S, Idleness
from meshnode.wire.registry import Reset
from meshnode.wire.tunnel_blocks import (
    Block,
    BlockReader,
    Option,
    block,
    failed_block,
    generation_block,
    read_generation,
    read_options,
)
from meshnode.wire.values import WireError

READ_BYTES = 256 << 10
THREAD_BYTES = 128 << 10
"""Larger packed blocks are unpacked in a thread."""
PARTING_S = 1.0
"""How long the host may take to read why a tunnel ends."""


class Session:
    """See the module. `run` serves one stream."""

    def __init__(self, lent: Lent, stream: MeshStream) -> None:
        self._lent = lent
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._flow = Flow(stream, pause=self._pause, resume=self._resume, broke=self._host_gone)
        self._half = False
        self._unpacker = Unpacker()
        self._commands: Commands | None = None
        self._pauses = 0
        self._idleness = Idleness()
        self._timer: asyncio.TimerHandle | None = None
        self._commanded_at = 0.0
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._broken = False

    # --- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the host ends the tunnel or something breaks; the stream and the connection are over then."""
        reader = self._loop.create_task(self._read())
        try:
            await asyncio.wait((reader, self._over), return_when=asyncio.FIRST_COMPLETED)
            if self._over.done() and not reader.done():
                reader.cancel()
                await self._let_go()
                # The words of the end are on their way; the host closes when it has read them.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stream.broken(), PARTING_S)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await self._let_go()
            if self._timer is not None:
                self._timer.cancel()
            self._flow.close()
            self._stream.reset(Reset.CANCELLED)

    def end(self, words: str) -> None:
        """End the tunnel and say why."""
        if not self._over.done():
            self._over.set_result(None)
            self._broken = True
            with suppress(OSError):
                self._stream.write(failed_block(words))
                self._stream.write_eof()

    def _server_ended(self, words: str) -> None:
        if not self._over.done():
            self.end(words)
            self._lent.failed(words)

    def _host_gone(self, _: OSError) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _refuse(self) -> None:
        self._stream.reset(Reset.MALFORMED)

    async def _connect(self) -> None:
        commands = Commands(self._lent, self._flow, half=self._half, end=self.end, refuse=self._refuse)
        try:
            await commands.connect(self._server_ended)
        except OSError as error:
            self._server_ended(f"the rpc-server cannot be reached: {error}")
            return
        self._commands = commands
        for _ in range(self._pauses):
            commands.pause()

    async def _let_go(self) -> None:
        commands, self._commands = self._commands, None
        if commands is not None:
            await commands.close(broken=self._broken)

    def _pause(self) -> None:
        self._pauses += 1
        if self._commands is not None:
            self._commands.pause()

    def _resume(self) -> None:
        self._pauses -= 1
        if self._commands is not None:
            self._commands.resume()

    # --- from the host ---------------------------------------------------------------------------------------

    async def _read(self) -> None:
        blocks = BlockReader()
        begun = False
        try:
            while data := await self._stream.read(READ_BYTES):
                self._commanded_at = self._loop.time()
                if self._timer is None:
                    self._timer = self._loop.call_later(ALIVE_EVERY_S, self._tick)
                for kind, body in blocks.feed(data):
                    await (self._block(kind, body) if begun else self._begin(kind, body))
                    begun = True
                if self._commands is not None:
                    await self._commands.room()
        except WireError:
            self._refuse()
        except OSError:
            return

    async def _begin(self, kind: int, body: bytes) -> None:
        if kind != Block.OPTIONS:
            raise WireError("a tunnel begins with its options")
        self._half = bool(read_options(body) & Option.HALF) and self._lent.to_half is not None
        self._stream.watched = False
        await self._connect()

    async def _block(self, kind: int, body: bytes) -> None:
        commands = self._commands
        if kind == Block.RESTART:
            await self._let_go()
            await self._connect()
            self._flow.write(generation_block(Block.RESTARTED, read_generation(body)))
        elif kind == Block.PACKED:
            if Unpacker.plain_bytes(body) > THREAD_BYTES:
                body = await self._loop.run_in_executor(None, self._unpacker.unpack, body)
            else:
                body = self._unpacker.unpack(body)
            if commands is not None:
                commands.feed(body)
        elif kind != Block.BYTES:
            raise WireError(f"a block of kind {kind} from a host")
        elif commands is not None:
            commands.feed(body)

    # --- signs of life ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Twice a second while there is work: tell the host, and look whether the rpc-server does it."""
        self._timer = None
        if self._over.done():
            return
        now = self._loop.time()
        commands = self._commands
        owes = commands is not None and commands.server_owes
        if self._idleness.stalled(now, working=not owes or self._lent.working()):
            self._server_ended("the rpc-server has stalled")
            return
        if owes or commands is None or commands.waits or now - self._commanded_at < ALIVE_FOR_S:
            self._flow.write(block(Block.ALIVE))
            self._timer = self._loop.call_later(ALIVE_EVERY_S, self._tick)
