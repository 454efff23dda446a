"""Weights from files into a tunnel or a socket, in threads: disks are slow, and gigabytes are many turns of a loop."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 512 << 10
WAIT_MS = 200
_MORE = getattr(socket, "MSG_MORE", 0)

Part = tuple[bytes, Path, int, int]
"""What goes before, and then so many bytes of a file from a position on."""


def _read_at(path: Path, at: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(at)
        data = file.read(size)
    if data is None or len(data) != size:
        raise OSError(f"{path.name} has become shorter")
    return data


async def read_pieces(path: Path, at: int, size: int) -> AsyncIterator[bytes]:
    """The bytes of a file in pieces of PIECE_BYTES at most. Raises OSError, also for a file that is too short."""
    loop = asyncio.get_running_loop()
    for begin in range(0, size, PIECE_BYTES):
        yield await loop.run_in_executor(None, _read_at, path, at + begin, min(PIECE_BYTES, size - begin))


class Feed:
    """Sends parts of files through a socket that an event loop owns and keeps away from meanwhile.

    `run` is for a thread; `stop`, from anywhere, makes it end soon. The socket stays non-blocking, as it is shared.
    """

    def __init__(self, connection: socket.socket, parts: Sequence[Part]) -> None:
        self._connection = connection
        self._parts = parts
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End before the next piece."""
        self._stopped.set()

    def run(self) -> None:
        """Send everything. Raises OSError when the socket or a file fails, or after `stop`."""
        for head, path, at, size in self._parts:
            self._send(head)
            with path.open("rb", buffering=0) as file:
                self._send_file(file, at, size)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLOUT)
        while not self._stopped.is_set():
            if poll.poll(WAIT_MS):
                return
        raise ConnectionAbortedError("stopped")

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._connection.send(view, _MORE) :]
            except BlockingIOError:
                self._wait()

    def _send_file(self, file: BinaryIO, at: int, size: int) -> None:
        end = at + size
        while at < end:
            if self._stopped.is_set():
                raise ConnectionAbortedError("stopped")
            try:
                sent = os.sendfile(self._connection.fileno(), file.fileno(), at, end - at)
            except BlockingIOError:
                self._wait()
                continue
            if not sent:
                raise OSError(f"{Path(file.name).name} has become shorter")
            at += sent
