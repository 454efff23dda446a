"""The rpc-servers of one node: each has a slot with a folder and a log of its own, and some are kept for the next use.

An rpc-server is used once, so that nobody finds what another left in it. On a processor a new one is there in some
30 ms; a GPU runtime takes seconds, so after one with GPUs has ended a fresh one is started and kept for a while, for
the same user. Only one is kept, and it goes as soon as something else is wanted: its memory counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from meshnode.engine.rpc_server import RpcFacts, RpcServer, RpcServerParts
from meshnode.errors import MeshnodeError
from meshnode.telemetry import LOG

SPARE_S = 60.0
STOP_GRACE_S = 0.3
EXIT_WORDS_S = 0.1


class Server(Protocol):
    """What is needed of an rpc-server; `port` and `facts` are there after `start`."""

    port: int
    facts: RpcFacts

    async def start(self) -> None:
        """Start it. Raises EngineError."""

    async def stop(self, grace_s: float = ...) -> None:
        """End it."""

    def working(self) -> bool:
        """Whether it works, or could."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolParts:
    """`run_dir` gets a folder for each slot, `logs` the log files; `environ` is the node's own environment."""

    run_dir: Path
    logs: Path
    environ: Mapping[str, str]
    server: Callable[[RpcServerParts], Server] = RpcServer
    spare_s: float = SPARE_S


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rpc-server: the program, its devices (() is the processor), its threads, a limit for its memory."""

    binary: Path
    devices: tuple[str, ...]
    threads: int
    memory_limit_bytes: int | None


class RunningServer:
    """An rpc-server that runs; `broken` is done, with words, when it cannot go on."""

    def __init__(self, slot: int, wanted: Wanted) -> None:
        self.slot = slot
        self.wanted = wanted
        self.server: Server
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._exited: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def fail(self, words: str) -> None:
        """It cannot go on. The first reason counts."""
        if not self.broken.done():
            self.broken.set_result(words)

    def exited(self, words: str) -> None:
        """The process has ended, and not because it was stopped."""
        if not self._exited.done():
            self._exited.set_result(words)
        self.fail(words)

    async def failure(self) -> str:
        """Wait until it cannot go on, and say why. Whoever talks to it notices first that it is gone; how it ended is
        known a moment later, and says more.
        """
        words = await asyncio.shield(self.broken)
        await asyncio.wait({self._exited}, timeout=EXIT_WORDS_S)
        return self._exited.result() if self._exited.done() else words


class RpcPool:
    """See the module. `user` is whoever a server works for. `close` last."""

    def __init__(self, parts: PoolParts) -> None:
        self._parts = parts
        self._slots: set[int] = set()
        self._spare: tuple[bytes, RunningServer] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._closed = False

    async def take(self, user: bytes, wanted: Wanted) -> RunningServer:
        """A server that knows nothing of another user: the one that was kept for this one, or a new one.

        Raises EngineCrashed, EngineStartTimeout; nothing runs then.
        """
        spare = await self._stop_keeping()
        if spare is not None:
            kept_for, running = spare
            if (kept_for, running.wanted) == (user, wanted) and not running.broken.done():
                return running
            await self._stop(running)
        return await self._start(wanted)

    async def end(self, running: RunningServer, user: bytes) -> None:
        """End a server that was taken, and have a fresh one ready where starting takes long."""
        await self._stop(running)
        if running.wanted.devices and not (self._closed or self._keeping or self._spare):
            self._keeping = asyncio.create_task(self._keep(user, running.wanted), name="spare rpc-server")

    async def close(self) -> None:
        """Keep nothing any more. Servers that were taken are ended by `end`."""
        self._closed = True
        spare = await self._stop_keeping()
        if spare is not None:
            await self._stop(spare[1])

    async def _keep(self, user: bytes, wanted: Wanted) -> None:
        try:
            self._spare = user, await self._start(wanted)
        except MeshnodeError as error:
            LOG.info("no rpc-server is kept ready: %s", error.message)
        else:
            await asyncio.wait({self._spare[1].broken}, timeout=self._parts.spare_s)
        spare, self._spare, self._keeping = self._spare, None, None
        if spare is not None:
            await self._stop(spare[1])

    async def _stop_keeping(self) -> tuple[bytes, RunningServer] | None:
        """What was kept, which the caller has to end or to use."""
        spare, self._spare = self._spare, None
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        return spare

    async def _start(self, wanted: Wanted) -> RunningServer:
        parts = self._parts
        running = RunningServer(min(set(range(len(self._slots) + 1)) - self._slots), wanted)
        self._slots.add(running.slot)
        try:
            run_dir = parts.run_dir / f"rpc-{running.slot}"
            await asyncio.to_thread(_make_folders, run_dir, parts.logs)
            running.server = parts.server(
                RpcServerParts(
                    binary=wanted.binary,
                    run_dir=run_dir,
                    environ=parts.environ,
                    log_file=parts.logs / f"engine-rpc-{running.slot}.log",
                    devices=wanted.devices,
                    threads=wanted.threads,
                    memory_limit_bytes=wanted.memory_limit_bytes,
                    on_exit=running.exited,
                )
            )
            await running.server.start()
        except BaseException:
            self._slots.discard(running.slot)
            raise
        return running

    async def _stop(self, running: RunningServer) -> None:
        try:
            await running.server.stop(STOP_GRACE_S)
        finally:
            self._slots.discard(running.slot)


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
