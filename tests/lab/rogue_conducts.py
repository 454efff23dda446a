"""Workers of splits that lie, stall and break the rules: what a rogue member does under a lease (rogue_member.py)."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable

from meshnode.net.stream import MeshStream
from meshnode.rpc.worker_end import WorkerEnd
from meshnode.wire.ggml_rpc import REPLY_HEAD, Command
from meshnode.wire.registry import RpcKind
from meshnode.wire.tunnel_blocks import BlockReader, bytes_block
from tests.lab.rogue_member import Conduct
from tests.rpc.fake_rpc_server import FakeRpcServer


class Pretends(Conduct):
    """It says that it has the weights; its tunnels end at something that speaks like an rpc-server."""

    def server(self) -> FakeRpcServer:
        """What they end at: one that keeps what it is given, and computes nothing."""
        return FakeRpcServer()

    async def serve_tunnel(self, stream: MeshStream) -> None:
        server = await asyncio.start_server(self.server().connected, "127.0.0.1", 0)
        end = WorkerEnd(
            port=server.sockets[0].getsockname()[1],
            facts=self.facts,
            workers=self.ask.workers,
            stage=self.ask.stage,
            limit_bytes=1 << 63,
            references=None,
            open_push=lambda node: self.member.open(node, RpcKind.PUSH, bytes(16)),
            working=lambda: True,
            to_half=None,
            from_half=None,
            failed=lambda words: None,
        )
        try:
            await end.serve_tunnel(stream)
        finally:
            server.close()


class Stingy(Pretends):
    """It grants what was asked for, and has nothing to give."""

    def server(self) -> FakeRpcServer:
        return Pauper()


class Pauper(FakeRpcServer):
    """An rpc-server without any memory."""

    def _carry_out(self, command: int, payload: bytes) -> bytes | None:
        return bytes(16) if command == Command.ALLOC_BUFFER else super()._carry_out(command, payload)


class Inflates(Pretends):
    """Whatever it is asked about takes four exabytes, which it has."""

    def server(self) -> FakeRpcServer:
        found = FakeRpcServer()
        found.extra_bytes = 1 << 62
        return found


class Saboteur(Conduct):
    """It waits for the first command, and then does something else."""

    async def serve_tunnel(self, stream: MeshStream) -> None:
        blocks, heard = BlockReader(), 0
        while heard < 2 and (data := await stream.read(1 << 16)):
            heard += len(blocks.feed(data))
        await self.sabotage(stream)

    async def sabotage(self, stream: MeshStream) -> None:
        raise NotImplementedError


class Babbles(Saboteur):
    async def sabotage(self, stream: MeshStream) -> None:
        stream.write(os.urandom(1000).replace(b"\7", b"\xff") * 10)
        await stream.read(1)


class AnswersInAbsurdSizes(Saboteur):
    async def sabotage(self, stream: MeshStream) -> None:
        stream.write(bytes_block([REPLY_HEAD.pack(1 << 63)], REPLY_HEAD.size))
        await stream.read(1)


class Stalls(Saboteur):
    async def sabotage(self, stream: MeshStream) -> None:
        while await stream.read(1 << 16):
            pass


class HangsUp(Saboteur):
    async def sabotage(self, stream: MeshStream) -> None:
        stream.write_eof()


class GoesAway(Saboteur):
    """The whole node is gone, while the engine loads."""

    async def sabotage(self, stream: MeshStream) -> None:
        stream.link.close(0)


class TakesItBack(Conduct):
    """Each lease ends as soon as it is ready."""

    async def failure(self) -> str:
        return "no more"


class Dawdles(Conduct):
    """It is never ready."""

    async def prepare(self, progress: Callable[[int, int], None]) -> None:
        for have in itertools.count(1):
            progress(have, 1 << 30)
            await asyncio.sleep(0.2)
