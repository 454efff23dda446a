"""One sandboxed `ggml-rpc-server` on the loopback address: started on a port of its own, asked once what it offers.

The program computes whatever the one client of its port says, so it gets a process group, limits and a sandbox
(`engine/sandbox.py`), dies with its node, and listens nowhere but on 127.0.0.1. It serves one client after another
and frees what a client had when that one goes. It is never restarted: whoever lent it decides what becomes of the
work that was lost.

The protocol (RPC 7.0.0, ggml/src/ggml-rpc/ggml-rpc.cpp) is little endian. A request is a command, one byte, the size
of its payload, eight, and the payload; a response the size and the payload.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from meshnode.engine.diagnosis import last_error
from meshnode.engine.process import BoundedLog, Child, Exit, child_environment
from meshnode.engine.sandbox import landlock_abi, missing, sandboxed
from meshnode.errors import EngineCrashed, EngineStartTimeout
from meshnode.telemetry import LOG

LOOPBACK = "127.0.0.1"
PORT_TRIES = 5
# GPU runtimes take seconds to come up; on a CPU it is some 30 ms.
START_LIMIT_S = 60.0
POLL_FIRST_S, POLL_LAST_S = 0.005, 0.25
DEVICES_LIMIT = 16
_HELLO_BYTES, _CAPABILITIES_BYTES = 28, 24

_ALIGNMENT, _MAX_SIZE, _MEMORY, _HELLO, _DEVICE_COUNT = 1, 2, 11, 14, 15
_PORT_TAKEN = "Failed to create server socket"
_ACCEPTED = "Accepted client connection"
_STOPPED = {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


@dataclass(frozen=True, slots=True)
class RpcDeviceFacts:
    """What a device of an rpc-server says of itself: alignment and largest size of a buffer, its memory; in bytes."""

    alignment: int
    max_size: int
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class RpcFacts:
    """The answers of an rpc-server that do not change: the payload of its HELLO response, and its devices in order."""

    hello: bytes
    devices: tuple[RpcDeviceFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcServerParts:
    """What an `RpcServer` is given.

    `devices` names devices as `--list-devices` does, () is the processor. `run_dir` becomes its working folder;
    `environ` is the node's environment, of which only an allow-list is passed on. `memory_limit_bytes` bounds what a
    processor's buffers may take; with GPUs their driver's limit counts. `on_exit` is called once, in the loop, with
    the reason in words when the server ends without having been stopped.
    """

    binary: Path
    run_dir: Path
    environ: Mapping[str, str]
    on_exit: Callable[[str], None]
    log_file: Path | None = None
    devices: tuple[str, ...] = ()
    threads: int = 1
    memory_limit_bytes: int | None = None


class RpcServer:
    """One ggml-rpc-server. `start` once, `stop` once; `port`, `pid` and `facts` are there after `start`."""

    def __init__(self, parts: RpcServerParts) -> None:
        self.port = 0
        self.pid = 0
        self.facts = RpcFacts(b"", ())
        self.log = BoundedLog()
        self._parts = parts
        self._child: Child | None = None
        self._watch: asyncio.Task[None] | None = None
        self._processor_s = -1.0

    async def start(self) -> None:
        """Start the server and ask what it offers.

        Raises EngineCrashed when it ended instead, and EngineStartTimeout when it did not answer in time. Nothing
        runs then, nor after a cancellation.
        """
        assert self._watch is None, "start() is called once"
        _say_what_is_missing()
        for _ in range(PORT_TRIES):
            try:
                end = await self._launch()
            except OSError as error:
                raise EngineCrashed(f"the rpc-server could not be started: {error}") from error
            finally:
                if not self.facts.hello:
                    await self._discard(0)
            if end is None:
                assert self._child is not None
                self._watch = asyncio.create_task(self._follow(self._child), name=f"rpc-server {self.pid}")
                LOG.info("rpc-server ready", extra={"facts": {"pid": self.pid, "port": self.port}})
                return
            if not any(_PORT_TAKEN in line for line in self.log.tail()):
                raise EngineCrashed(f"the rpc-server ended: {_words(end, self.log)}")
        raise EngineCrashed(f"the rpc-server found no free port in {PORT_TRIES} tries")

    async def stop(self, grace_s: float = 1.0) -> None:
        """End it, politely for `grace_s` seconds and then by force. `on_exit` is not called any more."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        await self._discard(grace_s)

    def working(self) -> bool:
        """Whether it has used processor time since the last call, or could.

        False while it is stopped (SIGSTOP, a debugger, a frozen container) and once it has ended. A server that
        waits, for its GPU or for a request, is working: which of the two its client knows.
        """
        if self._child is None or not self._child.running:
            return False
        try:
            process = psutil.Process(self.pid)
            with process.oneshot():
                times, status = process.cpu_times(), process.status()
        except psutil.Error:
            return False
        before, self._processor_s = self._processor_s, times.user + times.system
        return before != self._processor_s or status not in _STOPPED

    async def _launch(self) -> Exit | None:
        """None once it has answered, its end if that came first. Raises EngineStartTimeout and OSError."""
        with contextlib.ExitStack() as kept:
            self.port = kept.enter_context(_reserved_port())
            if sys.platform != "linux":
                # Elsewhere two sockets of one address cannot be bound, even if neither listens.
                kept.close()
            self.log = BoundedLog(self._parts.log_file)
            self._child = await Child.start(
                self._argv(), env=child_environment(self._parts.environ), log=self.log, cwd=self._parts.run_dir
            )
            self.pid = self._child.pid
            return await self._until_ready(self._child)

    def _argv(self) -> list[str]:
        parts = self._parts
        program = [str(parts.binary), "-H", LOOPBACK, "-p", str(self.port), "-t", str(parts.threads)]
        program += ["-d", ",".join(parts.devices) or "CPU"]
        libraries = [folder for folder in parts.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
        return sandboxed(
            program,
            port=self.port,
            gpu=bool(parts.devices) and parts.devices != ("CPU",),
            memory_bytes=parts.memory_limit_bytes,
            readable=(str(parts.binary.resolve().parent), *libraries),
        )

    async def _until_ready(self, child: Child) -> Exit | None:
        deadline, interval_s = time.monotonic() + START_LIMIT_S, POLL_FIRST_S
        ended = asyncio.ensure_future(child.wait())
        asking = asyncio.ensure_future(self._ask_when_it_listens())
        try:
            done, _ = await asyncio.wait(
                {ended, asking}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
            if ended in done:
                return ended.result()
            if asking not in done:
                raise EngineStartTimeout(f"the rpc-server did not answer within {START_LIMIT_S:.0f} s")
            facts = asking.result()
            # Whoever took the port meanwhile could have answered; that it was our child its log says.
            while not any(_ACCEPTED in line for line in self.log.tail()):
                await asyncio.wait({ended}, timeout=interval_s)
                if ended.done():
                    return ended.result()
                if time.monotonic() > deadline:
                    raise EngineStartTimeout("another program answered on the port of the rpc-server")
            self.facts = facts
            return None
        finally:
            for task in (ended, asking):
                task.cancel()
            await asyncio.wait({asking})

    async def _ask_when_it_listens(self) -> RpcFacts:
        interval_s = POLL_FIRST_S
        while True:
            try:
                reader, writer = await asyncio.open_connection(LOOPBACK, self.port)
            except ConnectionRefusedError:
                await asyncio.sleep(interval_s)
                interval_s = min(POLL_LAST_S, interval_s * 1.5)
                continue
            try:
                return await _ask(reader, writer)
            except (ConnectionError, EOFError, ValueError) as error:
                raise EngineCrashed(f"the rpc-server answered wrongly ({error})") from error
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _follow(self, child: Child) -> None:
        words = _words(await child.wait(), self.log)
        LOG.warning("rpc-server ended", extra={"facts": {"pid": self.pid, "reason": words}})
        try:
            self._parts.on_exit(words)
        except Exception:
            LOG.exception("a listener of rpc-servers failed")

    async def _discard(self, grace_s: float) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop(grace_s)


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A free port that nobody else is given as long as the context lasts.

    On Linux a second socket may bind it with SO_REUSEADDR as long as the first does not listen; rpc-server does so.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind((LOOPBACK, 0))
        yield reservation.getsockname()[1]


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> RpcFacts:
    """HELLO, DEVICE_COUNT, and three figures of each device. Raises ValueError for what no rpc-server says."""

    async def ask(command: int, payload: bytes, response_bytes: int) -> bytes:
        writer.write(struct.pack("<BQ", command, len(payload)) + payload)
        (size,) = struct.unpack("<Q", await reader.readexactly(8))
        if size != response_bytes:
            raise ValueError(f"{size} bytes in response to command {command}, expected {response_bytes}")
        return await reader.readexactly(response_bytes)

    hello = await ask(_HELLO, bytes(_CAPABILITIES_BYTES), _HELLO_BYTES)
    (count,) = struct.unpack("<I", await ask(_DEVICE_COUNT, b"", 4))
    if not 1 <= count <= DEVICES_LIMIT:
        raise ValueError(f"{count} devices")
    devices = []
    for number in range(count):
        which = struct.pack("<I", number)
        (alignment,) = struct.unpack("<Q", await ask(_ALIGNMENT, which, 8))
        (max_size,) = struct.unpack("<Q", await ask(_MAX_SIZE, which, 8))
        free_bytes, total_bytes = struct.unpack("<QQ", await ask(_MEMORY, which, 16))
        devices.append(RpcDeviceFacts(alignment, max_size, free_bytes, total_bytes))
    return RpcFacts(hello, tuple(devices))


def _words(end: Exit, log: BoundedLog) -> str:
    said = last_error(log.tail())
    return f"{end.words}: {said}" if said else end.words


@functools.cache
def _say_what_is_missing() -> None:
    """Log, once, what the sandbox of this machine leaves open."""
    if words := missing(landlock_abi()):
        LOG.warning(words)
