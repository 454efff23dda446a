"""The host's end of a tunnel: a loopback port that llama-server takes for an rpc-server.

What is known here is answered here (`memory`); weights go by reference; boundaries between stages become pushes from
worker to worker; the rest goes through one stream to the worker's end, which keeps its connection to the real
rpc-server while llama-server's loader comes and goes. Clients are served one after the other, as an rpc-server would.

The tunnel owns liveness: llama-server waits for ever for a server that has stopped, but ends when its connection does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from meshnode.net.stream import MeshStream
from meshnode.rpc.boundaries import Boundaries
from meshnode.rpc.clients import Clients
from meshnode.rpc.expand import read_pieces
from meshnode.rpc.facts import References, TunnelCounters, TunnelOptions, WorkerFacts
from meshnode.rpc.flow import Flow
from meshnode.rpc.liveness import TICK_S, Watch
from meshnode.rpc.memory import TEACHING, Memory
from meshnode.rpc.uplink import Uplink
from meshnode.telemetry import LOG
from meshnode.wire import ggml_rpc as rpc
from meshnode.wire.ggml_rpc import BODY, OPENING, RUN, Command, Cut, ReplyCutter, RequestCutter
from meshnode.wire.registry import Reset
from meshnode.wire.tunnel_blocks import (
    Block,
    BlockReader,
    Option,
    bytes_block,
    generation_block,
    options_block,
    read_base,
    read_failed,
    read_generation,
)
from meshnode.wire.values import WireError

__all__ = ["HostEnd", "TunnelCounters", "TunnelOptions"]

READ_BYTES = 256 << 10
_RESTART = -4
"""In the list of what is to be done: the far connection must be a new one from here on."""
_ASKING = frozenset(rpc.REPLY_BYTES) | {Command.GET_TENSOR}


class _Asked(NamedTuple):
    """A question whose answer is to be remembered, or to be compared with what was guessed."""

    command: int
    frame: bytes
    guessed: bytes | None = None


class HostEnd:
    """See the module. Made by `open`, ended by `close` or by the loss of the worker."""

    def __init__(
        self,
        stream: MeshStream,
        facts: WorkerFacts,
        route: Callable[[int], int | None],
        options: TunnelOptions,
        references: References | None,
        lost: Callable[[str], None],
    ) -> None:
        self.port = 0
        self.counters = TunnelCounters()
        self._stream = stream
        self._boundaries = Boundaries(options, route)
        self._options = options
        self._references = references
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._memory = Memory(facts)
        self._flow = Flow(stream, pause=self._pause, resume=self._resume, broke=self._stream_broke)
        self._uplink = Uplink(self._flow, self.counters, compress=options.compress, ready=self._work)
        special = {*_ASKING, Command.FREE_BUFFER, Command.TUNNEL_PUSH, Command.TUNNEL_REF}
        if options.compress or options.push == "placeholder":
            special.add(Command.SET_TENSOR)
        self._special = frozenset(special)
        self._cutter = RequestCutter(())
        self._replies: ReplyCutter[_Asked | None] = ReplyCutter()
        self._todo: deque[Cut] = deque()
        self._swallow = False
        """The rest of the large frame that is open is a placeholder."""
        self._clients = Clients(begun=self._begun, received=self._received, left=self._left)
        self._is_full = False
        self._job: asyncio.Task[None] | None = None
        self._generation = 0
        self._restarted = 0
        """The generation of which replies come now; those of older ones are for nobody."""
        self._watch = Watch(options.stall_s)
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        *,
        facts: WorkerFacts,
        connect: Callable[[], Awaitable[MeshStream]],
        route: Callable[[int], int | None],
        options: TunnelOptions,
        references: References | None,
        lost: Callable[[str], None],
    ) -> HostEnd:
        """Open the tunnel and its port. `connect` gives the stream, `route` says which stage is behind a port of this
        host. `lost` is called once, in the loop, when the worker is gone: the port and llama-server's connection are
        closed then. Raises what `connect` raises, and OSError.
        """
        stream = await connect()
        end = cls(stream, facts, route, options, references, lost)
        flags = (Option.HALF if options.half else Option(0)) | (Option.PUSH if options.push != "off" else Option(0))
        try:
            stream.write(options_block(flags))
            stream.watched = False
            end.port = await end._clients.listen()
        except OSError:
            stream.abort()
            raise
        end._reader = end._loop.create_task(end._read())
        return end

    async def close(self) -> None:
        """End the tunnel; `lost` is not called for it. The worker's end frees what the client left."""
        self._end(Reset.CANCELLED)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def _end(self, code: Reset) -> None:
        if self._over:
            return
        self._over = True
        self._clients.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._job is not None:
            self._job.cancel()
        self._uplink.close()
        self._flow.close()
        self._stream.reset(code)

    def _lose(self, words: str, code: Reset = Reset.CANCELLED) -> None:
        """The worker is gone, or useless: llama-server learns of it by its connection, the owner by words."""
        if not self._over:
            self._end(code)
            self._lost(words)

    def _stream_broke(self, error: OSError) -> None:
        self._lose(f"the connection to the worker is lost: {error}")

    # --- clients ---------------------------------------------------------------------------------------------

    def _begun(self) -> None:
        """Another client has its turn."""
        self._cutter = RequestCutter(self._special, most_bytes=self._options.limit_bytes)
        self._swallow = False
        self.counters.connections += 1

    def _left(self) -> None:
        """The client has gone. What it leaves at the far server is freed by a new connection there."""
        if self._memory.has_live_buffers or len(self._replies) or self._todo or not self._cutter.is_between:
            self.counters.restarts += 1
            self._generation += 1
            self._memory.restarted()
            self._replies = ReplyCutter()
            self._uplink.forget()
            self._todo.clear()
            self._todo.append((_RESTART, self._generation.to_bytes(4, "big")))
            self._work()

    def _pause(self) -> None:
        self._is_full = True
        self._clients.read(False)

    def _resume(self) -> None:
        self._is_full = False
        self._look_up()

    def _look_up(self) -> None:
        """Read on if there is nothing to wait for."""
        self._clients.read(not (self._is_full or self._todo or self._uplink.busy or self._job is not None))

    # --- requests --------------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        begun = self._cutter.frames
        try:
            cuts = self._cutter.feed(data)
        except WireError as error:
            self._refuse(error)
            return
        self.counters.frames += self._cutter.frames - begun
        if self._todo:
            self._todo.extend(cuts)
        elif cuts:
            self._todo.extend(cuts)
            self._work()

    def _refuse(self, error: WireError) -> None:
        LOG.warning("the RPC client at a tunnel's port broke the rules: %s", error)
        self._clients.drop()

    def _work(self) -> None:
        """Do what is to be done, until something must be waited for."""
        todo = self._todo
        uplink = self._uplink
        try:
            while todo and self._job is None and not uplink.busy and not self._over:
                self._one(*todo.popleft())
                if uplink.is_full:
                    uplink.flush()
        except WireError as error:
            todo.clear()
            self._refuse(error)
        if self._over:
            return
        if self._job is None:
            uplink.flush()
        self._look_up()

    def _one(self, kind: int, data: bytes) -> None:
        if kind in (RUN, BODY):
            if not (kind == BODY and self._swallow):
                self._send(kind, data)
        elif kind == Command.SET_TENSOR or kind == OPENING:
            self._set_tensor(kind, data)
        elif kind == Command.TUNNEL_PUSH:
            self._push(data)
        elif kind == Command.TUNNEL_REF:
            self._reference(data)
        elif kind == Command.FREE_BUFFER:
            self._memory.freed(rpc.u64_of(data))
            self._send(kind, data)
        elif kind == _RESTART:
            self._uplink.send_block(generation_block(Block.RESTART, int.from_bytes(data, "big")))
            self._asked()
        else:
            self._ask(kind, data)

    def _send(self, kind: int, data: bytes) -> None:
        self._uplink.add(kind, data)
        self._asked()

    def _asked(self) -> None:
        self._watch.sent(self._loop.time())
        if self._timer is None:
            self._stream.watched = True
            self._timer = self._loop.call_later(TICK_S, self._look)

    def _ask(self, command: int, frame: bytes) -> None:
        """A request with a reply."""
        replaced = self._boundaries.replace(frame) if command == Command.GET_TENSOR else None
        if replaced is not None:
            push, reply = replaced
            self.counters.pushed += 1
            self._send(Command.TUNNEL_PUSH, push)
            self._answer(reply)
            return
        known = self._memory.answer(command, frame)
        if known is not None:
            self.counters.answered_here += 1
            self._answer(known)
            return
        reply_bytes = rpc.reply_size_of(command, frame)
        assert reply_bytes is not None
        guessed = self._memory.guess(command, frame)
        if guessed is not None:
            self.counters.answered_here += 1
            self._answer(guessed)
            self._replies.expect(_Asked(command, frame, guessed), reply_bytes, in_order=False)
        else:
            self.counters.round_trips += 1
            self._replies.expect(_Asked(command, frame) if command in TEACHING else None, reply_bytes)
        self._send(command, frame)

    def _answer(self, reply: bytes) -> None:
        if self._replies.insert(None, reply):
            self._clients.write(reply)

    def _set_tensor(self, kind: int, data: bytes) -> None:
        receive = self._boundaries.recognise(data)
        self._swallow = receive is not None and kind == OPENING
        if receive is None:
            self._send(kind, data)
        else:
            self._send(Command.TUNNEL_RECV, receive)

    def _push(self, frame: bytes) -> None:
        self.counters.pushed += 1
        self._send(Command.TUNNEL_PUSH, self._boundaries.push(frame))

    # --- weights ---------------------------------------------------------------------------------------------

    def _reference(self, frame: bytes) -> None:
        if self._options.worker_has_weights:
            self.counters.references += 1
            self._send(Command.TUNNEL_REF, frame)
            return
        sha256, tensor, offset, size = rpc.reference_of(frame)
        name = rpc.name_of(tensor).decode("utf-8", "replace")
        held = self._references
        found = held.find(name, offset, size) if held is not None and held.sha256 == sha256 else None
        if found is None:
            self._lose(f"the weights of {name} are not on this machine")
            return
        self._uplink.flush(now=True)
        if self._uplink.busy:
            self._todo.appendleft((Command.TUNNEL_REF, frame))
            return
        self.counters.expanded += 1
        head = rpc.set_tensor_head(rpc.set_fixed(tensor, offset), size)
        self._job = self._loop.create_task(self._expand(head, found, size))

    async def _expand(self, head: bytes, found: tuple[Path, int], size: int) -> None:
        """Send weights from our own disk, read in a thread, in the place of the reference."""
        path, at = found
        try:
            async for piece in read_pieces(path, at, size):
                self._uplink.send_block(bytes_block([head, piece], len(head) + len(piece)))
                head = b""
                self._asked()
                await self._flow.drain()
        except OSError as error:
            self._lose(f"weights could not be sent: {error}")
            return
        self._job = None
        self._work()

    # --- replies ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        blocks = BlockReader()
        try:
            while data := await self._stream.read(READ_BYTES):
                self._watch.heard(self._loop.time())
                self.counters.bytes_down += len(data)
                for kind, body in blocks.feed(data):
                    self._block(kind, body)
                await self._clients.room()
            self._lose("the worker has ended the tunnel")
        except WireError as error:
            self._lose(f"the worker broke the rules: {error}", Reset.MALFORMED)
        except OSError as error:
            self._stream_broke(error)

    def _block(self, kind: int, body: bytes) -> None:
        if kind == Block.BYTES:
            if self._restarted == self._generation:
                self._replied(body)
        elif kind == Block.BASE:
            if self._restarted == self._generation:
                self._memory.told_base(*read_base(body))
        elif kind == Block.RESTARTED:
            self._restarted = read_generation(body)
        elif kind == Block.FAILED:
            self._lose(read_failed(body))
        elif kind != Block.ALIVE:
            raise WireError(f"a block of kind {kind} from a worker")

    def _replied(self, data: bytes) -> None:
        pieces = []
        for asked, piece, _ in self._replies.feed(data):
            if asked is None:
                pieces.append(piece)
            elif asked.guessed is None:
                self._memory.learn(asked.command, asked.frame, piece)
                self.counters.refused += asked.command == Command.ALLOC_BUFFER and not rpc.pair_of(piece)[0]
                pieces.append(piece)
            elif not self._memory.is_right(asked.frame, asked.guessed, piece):
                self._lose("the worker needs more memory for the same work than it said before")
                return
        if pieces:
            self._clients.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    # --- liveness --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._timer = None
        if self._over:
            return
        if self._stream.silent:
            self._lose("nothing is heard of the worker any more")
        elif self._watch.stalled(self._loop.time(), owed=len(self._replies) > 0):
            self._lose("the worker has stalled")
        elif self._watch.is_on:
            self._timer = self._loop.call_later(TICK_S, self._look)
        else:
            self._stream.watched = False
