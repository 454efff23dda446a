"""What the worker's end does with the commands of a host, over one connection to its rpc-server.

Whatever the host sends is cut and checked here. Most of it passes as it is; what is not for the rpc-server's ears is
done in its place: weights from this disk, boundaries from other workers, allocations within the bound of the lease.
Commands behind something that takes time wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from meshnode.rpc.expand import Feed, Part
from meshnode.rpc.facts import References
from meshnode.rpc.flow import Flow
from meshnode.rpc.liveness import HEARSAY_S
from meshnode.rpc.push import Arrivals, Convert, Open, PushTarget, outgoing
from meshnode.rpc.server_link import ServerLink
from meshnode.wire import ggml_rpc as rpc
from meshnode.wire.ggml_rpc import REPLY_HEAD, RUN, Command, Cut, RequestCutter
from meshnode.wire.tunnel_blocks import MOST_BLOCK_BYTES, base_block, bytes_block
from meshnode.wire.values import WireError

MOST_TODO_BYTES = 1 << 20
"""Commands that wait; beyond that the tunnel should not be read."""
_F32 = bytes(4)
_SPECIAL = frozenset(
    {*rpc.REPLY_BYTES, Command.GET_TENSOR, Command.FREE_BUFFER}
    | {Command.TUNNEL_PUSH, Command.TUNNEL_RECV, Command.TUNNEL_REF}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """What a host may use of a worker. `opens[i]` opens a push stream to the worker of stage i; None for this one's
    own. `failed` is told what is wrong with the rpc-server.
    """

    port: int
    limit_bytes: int
    references: References | None
    opens: Sequence[Open | None]
    arrivals: Arrivals
    working: Callable[[], bool]
    to_half: Convert | None
    failed: Callable[[str], None]


class Commands:
    """See the module. `feed` for the RPC bytes of the host, until `close`.

    `end(words)` is called when something makes the tunnel useless, `refuse` for a breach of the rules that shows late.
    """

    def __init__(
        self, lent: Lent, down: Flow, *, half: bool, end: Callable[[str], None], refuse: Callable[[], None]
    ) -> None:
        self._lent = lent
        self._down = down
        self._half = half
        self._end = end
        self._refuse = refuse
        self._loop = asyncio.get_running_loop()
        self._cutter = RequestCutter(_SPECIAL)
        self._server: ServerLink
        self._todo: deque[Cut] = deque()
        self._todo_bytes = 0
        self._go = asyncio.Event()
        self._go.set()
        self._out: list[bytes] = []
        self._replies: list[bytes] = []
        self._buffers: dict[int, int] = {}
        self._targets: dict[int, PushTarget] = {}
        self._feed: Feed | None = None
        self._job: asyncio.Task[None] | None = None

    async def connect(self, ended: Callable[[str], None]) -> None:
        """Connect to the rpc-server. Raises OSError. `ended(words)` is called when it breaks the connection."""
        self._server = await ServerLink.connect(self._lent.port, flush=self._reply, ended=ended)

    async def close(self, *, broken: bool) -> None:
        """Let go of the rpc-server and of all that is under way. Other workers that wait for what a `broken` one would
        have pushed learn that it will not come.
        """
        self._todo.clear()
        if self._feed is not None:
            self._feed.stop()
        self._server.abort()
        if self._job is not None:
            await asyncio.gather(self._job, return_exceptions=True)
        for target in self._targets.values():
            target.close(broken=broken)
        self._lent.arrivals.forget()

    @property
    def waits(self) -> bool:
        """Whether commands wait for something."""
        return not self._go.is_set()

    @property
    def server_owes(self) -> bool:
        """Whether the rpc-server has a reply to give, and could give it."""
        return self._server.owes

    def pause(self) -> None:
        """Take no replies until as many calls of `resume`."""
        self._server.pause()

    def resume(self) -> None:
        """See `pause`."""
        self._server.resume()

    async def room(self) -> None:
        """Wait until more commands may come."""
        while self._todo_bytes > MOST_TODO_BYTES:
            await self._go.wait()
        if not self._server.may_write.is_set():
            await self._server.may_write.wait()

    # --- commands --------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """The next bytes of the host. Raises WireError."""
        cuts = self._cutter.feed(data)
        self._todo.extend(cuts)
        self._todo_bytes += sum(len(piece) for _, piece in cuts)
        if self._go.is_set():
            self._work()

    def _work(self) -> None:
        """Do what is to be done, until something must be waited for."""
        todo = self._todo
        while todo and self._go.is_set():
            kind, data = todo.popleft()
            self._todo_bytes -= len(data)
            if kind == RUN:
                self._out.append(data)
            else:
                self._one(kind, data)
        self._flush()
        self._reply()

    def _flush(self) -> None:
        if self._out:
            self._server.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._out.clear()

    def _wait(self) -> None:
        self._flush()
        self._go.clear()

    def _go_on(self) -> None:
        """What was waited for is there."""
        self._go.set()
        try:
            self._work()
        except WireError:
            self._refuse()

    def _one(self, kind: int, frame: bytes) -> None:
        if kind == Command.TUNNEL_PUSH:
            self._push(frame)
        elif kind == Command.TUNNEL_RECV:
            self._receive(frame)
        elif kind == Command.TUNNEL_REF:
            self._reference(frame)
        elif kind == Command.ALLOC_BUFFER:
            self._allocate(frame)
        elif kind == Command.FREE_BUFFER:
            self._buffers.pop(rpc.u64_of(frame), None)
            self._out.append(frame)
        elif kind == Command.HELLO:
            raise WireError("a second HELLO")
        else:
            size = rpc.reply_size_of(kind, frame)
            assert size is not None
            self._server.replies.expect(self._to_host, size)
            self._out.append(frame)

    # --- replies ---------------------------------------------------------------------------------------------

    def _to_host(self, piece: bytes, _: bool) -> None:
        self._replies.append(piece)

    def _reply(self) -> None:
        if not self._replies:
            return
        pieces, self._replies = self._replies, []
        size = sum(map(len, pieces))
        if size <= MOST_BLOCK_BYTES:
            self._down.write(bytes_block(pieces, size))
            return
        for piece in pieces:
            self._down.write(bytes_block([piece], len(piece)))

    # --- buffers ---------------------------------------------------------------------------------------------

    def _allocate(self, frame: bytes) -> None:
        _, size = rpc.allocation_of(frame)
        replies = self._server.replies
        if size + sum(self._buffers.values()) > self._lent.limit_bytes:
            refusal = rpc.pair_reply(0, 0)
            if replies.insert(self._to_host, refusal):
                self._replies.append(refusal)
            return
        replies.expect(partial(self._allocated, size), rpc.REPLY_BYTES[Command.ALLOC_BUFFER])
        self._out.append(frame)
        self._wait()

    def _allocated(self, size: int, reply: bytes, _: bool) -> None:
        """The client asks next where the buffer begins, so that is found out before it gets its answer."""
        buffer, granted = rpc.pair_of(reply)
        if not buffer:
            self._replies.append(reply)
            self._go_on()
            return
        self._buffers[buffer] = max(size, granted)
        base_bytes = rpc.REPLY_BYTES[Command.BUFFER_GET_BASE]
        self._server.replies.expect(partial(self._found_base, buffer, reply), base_bytes)
        self._server.write(rpc.get_base(buffer))

    def _found_base(self, buffer: int, reply: bytes, base: bytes, _: bool) -> None:
        self._reply()
        self._down.write(base_block(buffer, int.from_bytes(base[REPLY_HEAD.size :], "little")))
        self._replies.append(reply)
        self._go_on()

    # --- boundaries ------------------------------------------------------------------------------------------

    def _push(self, frame: bytes) -> None:
        number, stage, size, get = rpc.push_of(frame)
        half = self._half and get[8:12] == _F32 and size % 4 == 0
        sink = outgoing(self._target(stage), number, size, self._lent.to_half if half else None)
        self._server.replies.expect(sink, size)
        self._out.append(rpc.request(Command.GET_TENSOR, get))

    def _target(self, stage: int) -> PushTarget:
        target = self._targets.get(stage)
        if target is None:
            open_stream = self._lent.opens[stage] if stage < len(self._lent.opens) else None
            if open_stream is None:
                raise WireError(f"a push to stage {stage}")

            def broke(error: OSError) -> None:
                words = f"the connection to the worker of stage {stage + 1} is lost: {error}"
                self._loop.call_later(HEARSAY_S, self._end, words)

            target = self._targets[stage] = PushTarget(open_stream, self.pause, self.resume, broke)
        return target

    def _receive(self, frame: bytes) -> None:
        number, size, fixed = rpc.receive_of(frame)
        data = self._lent.arrivals.claim(number, partial(self._received, size, fixed))
        if data is None:
            self._wait()
        else:
            self._set(size, fixed, data)

    def _received(self, size: int, fixed: bytes, data: bytes) -> None:
        self._set(size, fixed, data)
        self._go_on()

    def _set(self, size: int, fixed: bytes, data: bytes) -> None:
        if len(data) == size:
            self._out += rpc.set_tensor_head(fixed, size), data
        else:
            self._end(f"a push of {len(data)} bytes where {size} were due")

    # --- weights ---------------------------------------------------------------------------------------------

    def _reference(self, frame: bytes) -> None:
        """This reference and those right behind it: a thread sends them all."""
        frames = [frame]
        while self._todo and self._todo[0][0] == Command.TUNNEL_REF:
            frames.append(self._todo.popleft()[1])
            self._todo_bytes -= len(frames[-1])
        parts: list[Part] = []
        for each in frames:
            part = self._part(each)
            if part is None:
                return
            parts.append(part)
        self._wait()
        self._job = self._loop.create_task(self._send_weights(parts))

    def _part(self, frame: bytes) -> Part | None:
        sha256, tensor, offset, size = rpc.reference_of(frame)
        name = rpc.name_of(tensor).decode("utf-8", "replace")
        held = self._lent.references
        found = held.find(name, offset, size) if held is not None and held.sha256 == sha256 else None
        if found is None:
            self._end(f"the worker does not have the weights of {name}")
            return None
        return rpc.set_tensor_head(rpc.set_fixed(tensor, offset), size), *found, size

    async def _send_weights(self, parts: list[Part]) -> None:
        """From our disk to the rpc-server in a thread, while nothing else is written to it."""
        await self._server.may_write.wait()
        try:
            with self._server.socket() as connection:
                self._feed = Feed(connection, parts)
                await self._loop.run_in_executor(None, self._feed.run)
        except OSError as error:
            self._end(f"weights could not be read or passed on: {error}")
            return
        finally:
            self._feed = None
        self._job = None
        self._go_on()
