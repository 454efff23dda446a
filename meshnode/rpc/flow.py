"""Writing to a stream of the mesh from callbacks: whoever makes the bytes is paused while the stream is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshnode.net.stream import MeshStream

LOOK_BYTES = 64 << 10
"""After so many bytes the stream is asked whether it can take more."""


class Flow:
    """One writer of a stream. `pause` and `resume` are called in turn; `broke` once, when the stream is gone."""

    def __init__(
        self,
        stream: MeshStream,
        *,
        pause: Callable[[], None],
        resume: Callable[[], None],
        broke: Callable[[OSError], None],
    ) -> None:
        self._stream = stream
        self._pause = pause
        self._resume = resume
        self._broke = broke
        self._unasked_bytes = 0
        self._waiting: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        """Send `data`. A stream that is gone is told to `broke`, not to the caller."""
        try:
            self._stream.write(data)
        except OSError as error:
            self._broke(error)
            return
        self._unasked_bytes += len(data)
        if self._unasked_bytes > LOOK_BYTES and self._waiting is None:
            self._unasked_bytes = 0
            self._waiting = asyncio.get_running_loop().create_task(self._wait())
            self._pause()

    async def _wait(self) -> None:
        try:
            await self._stream.drain()
        except OSError as error:
            self._broke(error)
        finally:
            self._waiting = None
            self._resume()

    async def drain(self) -> None:
        """Wait until the stream can take more. Raises OSError when it is gone."""
        await self._stream.drain()

    def close(self) -> None:
        """Wait for nothing any more."""
        if self._waiting is not None:
            self._waiting.cancel()
