"""From the host to the worker: frames are collected for a moment and go out together, as they are or packed.

A SET_TENSOR does nothing until something is computed from it. So it waits for the next other command, which comes at
once: a step of decoding is one block, not ten. Small batches are packed in the turn of the loop that made them, large
ones in a thread; until that is done the uplink is busy, and must be given nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshnode.rpc.codec import MOST_PLAIN_BYTES, Packer, is_worth_packing
from meshnode.rpc.facts import TunnelCounters
from meshnode.rpc.flow import Flow
from meshnode.wire.ggml_rpc import OPENING, RUN, WHOLE_BYTES, Command
from meshnode.wire.tunnel_blocks import Block, block, bytes_block

FULL_BYTES = 128 << 10
INLINE_BYTES = 64 << 10
"""What may be packed without a thread: under a millisecond."""
LINGER_S = 0.002
"""How long a SET_TENSOR that nothing follows may wait."""


class Uplink:
    """See the module. `ready` is called when the uplink is no longer busy."""

    def __init__(self, flow: Flow, counters: TunnelCounters, *, compress: bool, ready: Callable[[], None]) -> None:
        self._flow = flow
        self._counters = counters
        self._packer = Packer() if compress else None
        self._ready = ready
        self._loop = asyncio.get_running_loop()
        self._pieces: list[tuple[int, bytes]] = []
        self._size = 0
        self._urgent = False
        self._timer: asyncio.TimerHandle | None = None
        self._job: asyncio.Task[None] | None = None
        self._plain_body = False

    @property
    def busy(self) -> bool:
        """Whether a batch is being packed; nothing may be added meanwhile."""
        return self._job is not None

    @property
    def is_full(self) -> bool:
        """Whether so much is collected that it should go out now."""
        return self._size >= FULL_BYTES

    def add(self, command: int, data: bytes) -> None:
        """A frame, or a cut of another kind (wire/ggml_rpc)."""
        self._pieces.append((command, data))
        self._size += len(data)
        if command != Command.SET_TENSOR:
            self._urgent = True

    def flush(self, *, now: bool = False) -> None:
        """Send what is collected: at once if something in it cannot wait or `now` is set, else shortly."""
        if not self._pieces or self._job is not None:
            return
        if not (self._urgent or now or self.is_full):
            if self._timer is None:
                self._timer = self._loop.call_later(LINGER_S, self._lingered)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pieces, size = self._pieces, self._size
        self._pieces, self._size, self._urgent = [], 0, False
        if self._packer is None or self._is_plain(pieces):
            self._send_bytes([data for _, data in pieces], size)
        elif size <= INLINE_BYTES:
            self._send(block(Block.PACKED, self._pack(self._packer, pieces)))
        else:
            self._job = self._loop.create_task(self._pack_aside(self._packer, pieces))

    def _lingered(self) -> None:
        self._timer = None
        self.flush(now=True)

    def send_block(self, data: bytes) -> None:
        """A block of another kind, behind all that was collected. Only while not busy and nothing is collected."""
        assert not self._pieces and self._job is None
        self._send(data)

    def _send(self, data: bytes) -> None:
        self._counters.bytes_up += len(data)
        self._flow.write(data)

    def _send_bytes(self, pieces: list[bytes], size: int) -> None:
        if size <= MOST_PLAIN_BYTES:
            self._send(bytes_block(pieces, size))
            return
        for piece in pieces:
            for at in range(0, len(piece), MOST_PLAIN_BYTES):
                part = piece[at : at + MOST_PLAIN_BYTES]
                self._send(bytes_block([part], len(part)))

    def _is_plain(self, pieces: list[tuple[int, bytes]]) -> bool:
        """Whether this is the body of one large tensor that packing would not make smaller."""
        kind, data = pieces[-1]
        if kind == OPENING:
            self._plain_body = not is_worth_packing(data)
        elif kind >= RUN:
            self._plain_body = False
        return self._plain_body

    @staticmethod
    def _pack(packer: Packer, pieces: list[tuple[int, bytes]]) -> bytes:
        return packer.pack([part for command, data in pieces for part in packer.record(command, data)])

    async def _pack_aside(self, packer: Packer, pieces: list[tuple[int, bytes]]) -> None:
        """In a thread, in batches that a block can hold."""
        batch: list[tuple[int, bytes]] = []
        size = 0
        for each in [*pieces, None]:
            if batch and (each is None or size + len(each[1]) > MOST_PLAIN_BYTES - WHOLE_BYTES):
                self._send(block(Block.PACKED, await self._loop.run_in_executor(None, self._pack, packer, batch)))
                batch, size = [], 0
            if each is not None:
                batch.append(each)
                size += len(each[1]) + 16
        self._job = None
        self._ready()

    def forget(self) -> None:
        """Drop what is collected: the client that sent it is gone, and so is the far connection."""
        self._pieces, self._size, self._urgent = [], 0, False

    def close(self) -> None:
        """Send nothing more."""
        self.forget()
        if self._timer is not None:
            self._timer.cancel()
        if self._job is not None:
            self._job.cancel()
