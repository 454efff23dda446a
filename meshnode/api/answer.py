"""The answer to one caller on its way out: a head once, then pieces, with a sign of life while nothing comes.

Only this object sends, so that a heartbeat can never fall between two pieces of one event.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from meshnode.api.dialects import Dialect, error_body, error_event, error_headers
from meshnode.errors import MeshnodeError

Send = Callable[[dict[str, Any]], Awaitable[None]]

PING = b": ping\n\n"
SSE_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
TAIL_BYTES = 2048
"""How much of a stream is remembered at either end: its first and last events, which report the token counts."""


def encode(value: object) -> bytes:
    """`value` as JSON in UTF-8; half a surrogate pair, which UTF-8 cannot hold, makes it all-ASCII instead."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


STALL_S = 60
"""A caller that takes nothing for so long has given up its slot. nginx's send_timeout is 60 s too."""


class CallerLeft(Exception):
    """Nobody waits for the answer any more, or nobody takes it."""


class Answer:
    """Sends status, headers and body. `first_byte_at`, `lead` and `tail` are kept for the log and the metrics; `taken`
    is told of the events that make up the body, be it passed on or put together from them.
    """

    def __init__(
        self,
        send: Send,
        *,
        dialect: Dialect,
        headers: Mapping[str, str],
        request_id: str,
        taken: Callable[[bytes], None] = lambda events: None,
    ) -> None:
        self._send = send
        self.taken = taken
        self._headers = dict(headers)
        self._finished = False
        self._last_sent = time.monotonic()
        self._writing = False
        self._heartbeat: asyncio.TimerHandle | None = None
        self._pings: set[asyncio.Task[None]] = set()
        self._writer: asyncio.Task[Any] | None = None
        self._given_up: asyncio.Task[Any] | None = None
        self._write_began = 0.0
        self._patience: asyncio.TimerHandle | None = None
        self.dialect = dialect
        self.request_id = request_id
        self.status = 0
        self.first_byte_at: float | None = None
        self.lead = self.tail = b""

    @property
    def started(self) -> bool:
        """The status has been sent and cannot be changed any more."""
        return self.status != 0

    def add_headers(self, **headers: str) -> None:
        """Headers for the head, if that has not gone yet. Underscores in names become dashes."""
        self._headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head."""
        self.status = status
        pairs = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in {**headers, **self._headers}.items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; waits while the caller is slower than the model."""
        if self.first_byte_at is None:
            self.first_byte_at = time.monotonic()
            self.lead = piece[:TAIL_BYTES]
        self.tail = piece[-TAIL_BYTES:] if len(piece) >= TAIL_BYTES else (self.tail + piece)[-TAIL_BYTES:]
        await self._write(piece)

    async def _write(self, piece: bytes) -> None:
        # One timer watches all writes: a time-out for each would cost more than all else that is done with an event.
        self._writing = True
        self._writer = asyncio.current_task()
        self._write_began = time.monotonic()
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(STALL_S, self._look)
        try:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        except asyncio.CancelledError:
            if self._given_up is None or self._given_up is not asyncio.current_task():
                raise
            self._given_up.uncancel()
            raise CallerLeft from None
        finally:
            self._writing = False
            self._last_sent = time.monotonic()

    def _look(self) -> None:
        """Give up a write that takes too long."""
        waited_s = time.monotonic() - self._write_began if self._writing else 0.0
        if waited_s >= STALL_S and self._writer is not None:
            self._given_up = self._writer
            self._writer.cancel()
            return
        self._patience = asyncio.get_running_loop().call_later(STALL_S - waited_s, self._look)

    async def finish(self) -> None:
        """End the body."""
        if not self._finished:
            self._finished = True
            self.stop_watching()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Send a complete answer at once."""
        await self.start(status, {"content-type": content_type, "content-length": str(len(body)), **headers})
        self.first_byte_at = self.first_byte_at or time.monotonic()
        self._finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def json(self, status: int, value: object, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Send a complete JSON answer."""
        await self.whole(status, encode(value), "application/json", headers)

    async def fail(self, error: MeshnodeError) -> None:
        """Report an error in the caller's dialect: as the answer, or as the last event of a stream that has begun."""
        if not self.started:
            await self.json(error.http_status, error_body(error, self.dialect, self.request_id), error_headers(error))
        elif not self._finished:
            await self._write(error_event(error, self.dialect, self.request_id))
            await self.finish()

    # --- signs of life --------------------------------------------------------------------------------------

    def start_heartbeat(self, interval_s: float) -> None:
        """Send an SSE comment whenever the stream was silent for `interval_s`; begins the answer if need be."""
        loop = asyncio.get_running_loop()

        def beat() -> None:
            self._heartbeat = loop.call_later(interval_s, beat)
            if time.monotonic() - self._last_sent >= interval_s * 0.9:
                task = loop.create_task(self._ping())
                self._pings.add(task)
                task.add_done_callback(self._pings.discard)

        self._heartbeat = loop.call_later(interval_s, beat)

    async def _ping(self) -> None:
        # Asked here and not when the timer fired: a piece may have been written in between.
        between_events = not self.tail or self.tail.endswith(b"\n\n")
        if self._writing or self._finished or not between_events:
            return
        if not self.started:
            await self.start(200, SSE_HEADERS)
        await self._write(PING)

    def stop_watching(self) -> None:
        """No more comments, and no more patience with slow writes: the answer is over."""
        for timer in (self._heartbeat, self._patience):
            if timer is not None:
                timer.cancel()
        self._heartbeat = self._patience = None
