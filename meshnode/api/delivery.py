"""A streamed answer on its way from a host to the caller: cut into whole events, remembered, and passed or collected.

Nothing is parsed on the way: an event costs a search for its end. The bytes that went out are kept (bounded), and only
when the host fails are they read, to continue the answer elsewhere. An event goes out whole or not at all, as half of
one would spoil whatever follows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from meshnode.api.aggregate import AGGREGATES, EventReader, StreamFailed
from meshnode.api.answer import SSE_HEADERS, TAIL_BYTES, Answer, encode
from meshnode.api.upstream import Exchange, UpstreamBroken

MAX_EVENT_BYTES = 16 << 20
MAX_JOURNAL_BYTES = 4 << 20
"""Of an answer so long nothing more is kept, and it cannot be continued: about 15,000 tokens of chat."""
ERROR_MARKS = (b'data: {"error":', b"event: error\n")
"""How llama-server begins an error event. Neither can stand inside an event: JSON escapes quotes and line ends."""
END_MARKS = {
    "/v1/chat/completions": b"data: [DONE]",
    "/v1/completions": b"data: [DONE]",
    "/v1/responses": b'"type":"response.completed"',
    "/v1/messages": b"event: message_stop",
}
"""What a whole answer ends with. A llama-server that stops ends its streams in form, but without it."""


class Journal:
    """What has gone out of an answer, as bytes. `whole` is False once it grew beyond its bound."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size_bytes = 0

    @property
    def whole(self) -> bool:
        """Everything that went out is here."""
        return self.size_bytes <= MAX_JOURNAL_BYTES

    def keep(self, events: bytes) -> None:
        """Remember one more piece."""
        self.size_bytes += len(events)
        if self.whole:
            self._pieces.append(events)
        else:
            self._pieces.clear()

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)

    def clear(self) -> None:
        """Begin anew."""
        self._pieces.clear()
        self.size_bytes = 0


async def whole_events(exchange: Exchange, touched: Callable[[], None]) -> AsyncIterator[bytes]:
    """The stream cut only between events; a rest that is none comes last. `touched` is called with every read.

    Raises StreamFailed at an error event, UpstreamBroken when the stream breaks.
    """
    rest = b""
    async for piece in exchange.body():
        touched()
        events, end, rest = (rest + piece).rpartition(b"\n\n")
        if end:
            if ERROR_MARKS[0] in events or ERROR_MARKS[1] in events:
                good, failure = _split_at_error(events + end)
                if good:
                    yield good
                raise StreamFailed(_error_of(failure), failure)
            yield events + end
        if len(rest) > MAX_EVENT_BYTES:
            raise UpstreamBroken("an event of the stream is too large")
    if rest:
        yield rest


def _split_at_error(events: bytes) -> tuple[bytes, bytes]:
    """What comes before the first error event, and that event."""
    at = min(found for mark in ERROR_MARKS if (found := events.find(mark)) >= 0)
    return events[:at], events[at : events.index(b"\n\n", at) + 2]


def _error_of(event: bytes) -> dict[str, Any]:
    data = next((line[5:] for line in event.split(b"\n") if line.startswith(b"data:")), b"")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    value = value.get("error", value) if isinstance(value, dict) else {}
    return value if isinstance(value, dict) else {}


class StallWatch:
    """Breaks an exchange that sends nothing for `stall_s`, if `may_break` says that there is another way.

    One timer for the whole stream: a read costs a clock reading and no timer of its own.
    """

    def __init__(self, exchange: Exchange, stall_s: float, may_break: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._exchange = exchange
        self._stall_s = stall_s
        self._may_break = may_break
        self._last = self._loop.time()
        self._timer = self._loop.call_later(stall_s, self._look)
        self.stalled = False

    def touch(self) -> None:
        """Something came."""
        self._last = self._loop.time()

    def _look(self) -> None:
        silent_s = self._loop.time() - self._last
        if silent_s >= self._stall_s and self._may_break():
            self.stalled = True
            self._exchange.close()
            return
        wait_s = self._stall_s - silent_s if silent_s < self._stall_s else self._stall_s
        self._timer = self._loop.call_later(wait_s, self._look)

    def close(self) -> None:
        """Watch no more."""
        self._timer.cancel()


class Sink(Protocol):
    """Where the events of an answer go."""

    async def take(self, events: bytes, /) -> None:
        """Whole events, in order."""
        ...

    async def end(self) -> None:
        """All were taken."""
        ...


class Passing:
    """Sends the events on as they are."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def take(self, events: bytes, /) -> None:
        """Pass them, after the head."""
        if not self._answer.started:
            await self._answer.start(200, SSE_HEADERS)
        self._answer.taken(events)
        await self._answer.write(events)

    async def end(self) -> None:
        """End the answer."""
        if not self._answer.started:
            await self._answer.start(200, SSE_HEADERS)
        await self._answer.finish()


class Collecting:
    """Puts a plain answer together and sends it at the end."""

    def __init__(self, answer: Answer, path: str) -> None:
        self._answer = answer
        self._path = path
        self.restart()

    def restart(self) -> None:
        """Forget what was taken: the answer begins anew on another host."""
        self._aggregate = AGGREGATES[self._path]()
        self._events = EventReader(MAX_EVENT_BYTES)

    async def take(self, events: bytes, /) -> None:
        """Collect them. Raises UpstreamBroken for an event of an unknown shape."""
        self._answer.taken(events)
        try:
            for event in self._events.feed(events):
                self._aggregate.take(event)
        except (KeyError, TypeError, AttributeError) as fault:
            raise UpstreamBroken(f"an event of the stream has an unknown shape ({fault})") from None

    async def end(self) -> None:
        """Send the answer. Raises UpstreamBroken when it is not complete."""
        body = encode(self._aggregate.result())
        self._answer.tail = body[-TAIL_BYTES:]
        await self._answer.whole(200, body, "application/json")
