"""Boundaries from worker to worker: one stream for each pair, on which pushes follow each other in rising order.

The receiving rpc-server gets the bytes where the host's commands say so (TUNNEL_RECV): a push that comes first waits
for its command, a command that comes first waits for its push. What waits is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from meshnode.net.stream import MeshStream
from meshnode.rpc.flow import Flow
from meshnode.wire.ggml_rpc import REPLY_HEAD
from meshnode.wire.registry import Reset
from meshnode.wire.tunnel_blocks import MOST_PUSH_BYTES, PushFlag, PushReader, push_head
from meshnode.wire.values import WireError

READ_BYTES = 256 << 10
ENOUGH_BYTES = 64 << 20
"""So much may wait before no more is read, as long as no command waits."""
MOST_WAITING_BYTES = ENOUGH_BYTES + 2 * MOST_PUSH_BYTES
THREAD_BYTES = 512 << 10
"""Conversions of more than this are done in a thread."""

Convert = Callable[[bytes], bytes]
Open = Callable[[], Awaitable[MeshStream]]
Sink = Callable[[bytes, bool], None]
"""Takes the pieces of one reply of an rpc-server, head included, and whether it is the last."""


class PushTarget:
    """The push stream to one worker. Opened when first needed; what is pushed meanwhile waits in order."""

    def __init__(
        self, open_stream: Open, pause: Callable[[], None], resume: Callable[[], None], broke: Callable[[OSError], None]
    ) -> None:
        self._open = open_stream
        self._pause = pause
        self._resume = resume
        self._broke = broke
        self._stream: MeshStream | None = None
        self._flow: Flow | None = None
        self._backlog: deque[bytes | Coroutine[Any, Any, bytes]] = deque()
        self._task: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """Open the stream before it is needed."""
        if self._stream is None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def write(self, data: bytes | Coroutine[Any, Any, bytes]) -> None:
        """The next bytes, or what will give them."""
        if self._flow is not None and self._task is None and isinstance(data, bytes):
            self._flow.write(data)
            return
        self._backlog.append(data)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        self._pause()
        try:
            if self._flow is None:
                self._stream = await self._open()
                self._stream.watched = False
                self._flow = Flow(self._stream, pause=self._pause, resume=self._resume, broke=self._broke)
            while self._backlog:
                data = self._backlog.popleft()
                self._flow.write(data if isinstance(data, bytes) else await data)
                await self._flow.drain()
        except OSError as error:
            self._broke(error)
        finally:
            self._task = None
            self._resume()

    def close(self, *, broken: bool = False) -> None:
        """No more pushes: the far end drops what nobody claimed. If `broken`, it also learns that some are missing."""
        if self._task is not None:
            self._task.cancel()
        for data in self._backlog:
            if not isinstance(data, bytes):
                data.close()
        self._backlog.clear()
        if self._flow is not None:
            self._flow.close()
        if self._stream is not None and broken:
            self._stream.reset(Reset.UPSTREAM_BROKEN)
        elif self._stream is not None:
            self._stream.write_eof()


def outgoing(target: PushTarget, number: int, size: int, to_half: Convert | None) -> Sink:
    """Where the reply to a GET_TENSOR of `size` bytes goes, to become the push `number`. Raises WireError for a size
    that no push may have. What `to_half` cannot represent (it raises ValueError) is sent whole.
    """
    plain_head = push_head(number, PushFlag(0), size)
    if to_half is None:

        def pass_on(piece: bytes, last: bool) -> None:
            nonlocal plain_head
            if plain_head:
                target.write(plain_head + piece[REPLY_HEAD.size :])
                plain_head = b""
            else:
                target.write(piece)

        return pass_on
    convert, pieces = to_half, []

    def pushed(data: bytes) -> bytes:
        try:
            half = convert(data)
        except ValueError:
            return plain_head + data
        return push_head(number, PushFlag.HALF, len(half)) + half

    async def converted(data: bytes) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(None, pushed, data)

    def collect(piece: bytes, last: bool) -> None:
        pieces.append(piece)
        if not last:
            return
        data = b"".join(pieces)[REPLY_HEAD.size :]
        if len(data) > THREAD_BYTES:
            target.write(converted(data))
        else:
            target.write(pushed(data))

    return collect


class Arrivals:
    """Pushes that have come, and the one that is waited for. Shared by all push streams of a lease."""

    def __init__(self) -> None:
        self._unclaimed: dict[int, tuple[object, bytes]] = {}
        self._waiting: tuple[int, Callable[[bytes], None]] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.unclaimed_bytes = 0

    def arrived(self, source: object, number: int, data: bytes) -> None:
        """A push is complete. Raises WireError for one that is here already, and for more than may wait."""
        if self._waiting is not None and self._waiting[0] == number:
            give = self._waiting[1]
            self._waiting = None
            self._look()
            give(data)
            return
        if number in self._unclaimed:
            raise WireError(f"push {number} came twice")
        if self.unclaimed_bytes + len(data) > MOST_WAITING_BYTES:
            raise WireError("more pushes than anybody asked for")
        self._unclaimed[number] = source, data
        self.unclaimed_bytes += len(data)
        self._look()

    def claim(self, number: int, give: Callable[[bytes], None]) -> bytes | None:
        """The data of a push; None when it is still to come: `give` is called with them then."""
        assert self._waiting is None, "one claim at a time"
        found = self._unclaimed.pop(number, None)
        if found is None:
            self._waiting = number, give
            self._look()
            return None
        self.unclaimed_bytes -= len(found[1])
        self._look()
        return found[1]

    def _look(self) -> None:
        if self._waiting is not None or self.unclaimed_bytes < ENOUGH_BYTES:
            self._room.set()
        else:
            self._room.clear()

    async def room(self) -> None:
        """Wait until more may come."""
        await self._room.wait()

    def forget(self, source: object | None = None) -> None:
        """Drop the pushes of one stream; without one, everything, and whoever waits."""
        if source is None:
            self._waiting = None
        for number in [each for each, (of, _) in self._unclaimed.items() if source is None or of is source]:
            self.unclaimed_bytes -= len(self._unclaimed.pop(number)[1])
        self._look()


async def receive(stream: MeshStream, arrivals: Arrivals, from_half: Convert | None) -> None:
    """Take in the pushes of one stream, until its end. Raises WireError for what breaks the rules, and OSError."""
    reader = PushReader()
    loop = asyncio.get_running_loop()
    try:
        while data := await stream.read(READ_BYTES):
            for number, flags, body in reader.feed(data):
                if flags & PushFlag.HALF:
                    if from_half is None or len(body) % 2:
                        raise WireError("a push of halves that was not agreed on")
                    if len(body) > THREAD_BYTES:
                        body = await loop.run_in_executor(None, from_half, body)
                    else:
                        body = from_half(body)
                arrivals.arrived(stream, number, body)
            await arrivals.room()
        if not reader.is_between:
            raise WireError("a push stream that ends in a push")
    finally:
        arrivals.forget(stream)
