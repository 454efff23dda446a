"""Pipes to a real or fake engine that break at a chosen byte, as the pipe to a node does that dies."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from meshnode.api.upstream import Connect, Pipe


@dataclass
class Cut:
    """Breaks what is opened through it after `after_bytes` of each answer (None: never). `how`: "reset" raises, "end"
    ends without an error, "stall" goes silent for ever.
    """

    connect_inside: Connect
    after_bytes: int | None = None
    how: str = "reset"
    opened: int = 0
    passed: list[bytes] = field(default_factory=list)

    async def connect(self) -> Pipe:
        self.opened += 1
        return _CutPipe(await self.connect_inside(), self)


class _CutPipe:
    ends_cleanly = False

    def __init__(self, inside: Pipe, cut: Cut) -> None:
        self._inside = inside
        self._cut = cut
        self._left = cut.after_bytes
        self._aborted = asyncio.Event()
        self.write = inside.write

    async def read(self, limit_bytes: int, /) -> bytes:
        if self._left is None:
            piece = await self._inside.read(limit_bytes)
            self._cut.passed.append(piece)
            return piece
        if self._left <= 0:
            return await self._break()
        piece = (await self._inside.read(limit_bytes))[: self._left]
        self._left -= len(piece)
        return piece

    async def _break(self) -> bytes:
        if self._cut.how == "stall":
            await self._aborted.wait()
        self._inside.abort()
        if self._cut.how == "end":
            return b""
        raise ConnectionResetError(104, "Connection reset by peer")

    def abort(self) -> None:
        self._aborted.set()
        self._inside.abort()
