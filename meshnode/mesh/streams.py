"""Where an incoming stream goes: by its type, and by the role of who opened it.

A stream begins with its type and a header (protocol/02-framing.md). Which role may open which type stands in the
registry; what is not allowed is reset with a code that says so, and nothing behind it is read. A stream that overtakes
the end of its own admission waits for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from meshnode.core.budget import Bucket
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire.frames import HEADER_BYTES, decode_stream_header
from meshnode.wire.registry import BEFORE_ADMISSION, MAY_OPEN, Close, Reset, Role, StreamType
from meshnode.wire.values import WireError

StreamHandler = Callable[[MeshStream, bytes, Role | None], Awaitable[None]]
"""Serves one stream: the stream, its header, and the role of the peer (None before admission)."""
Admission = Callable[[Link], Awaitable[Role | None]]
"""Waits until the peer of a link is admitted, and gives its role; None when it is refused."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds for one link: streams a second in the long run and at once, streams whose header is not complete, and the
    time for that header. A peer that goes on after `most_refused` streams were refused is closed; `forgiven_per_s` of
    them are forgotten again, whether or not others were let through meanwhile.
    """

    rate_per_s: float = 1000.0
    burst: int = 2000
    half_open: int = 128
    header_s: float = 10.0
    most_refused: int = 1024
    forgiven_per_s: float = 32.0


class StreamBudget:
    """What one link may open, and whether it has been refused too often. `half_open` is kept by the owner. Pure."""

    __slots__ = ("_most_half_open", "_refusals", "_streams", "half_open")

    def __init__(self, limits: StreamLimits, now: float) -> None:
        self._streams = Bucket(limits.rate_per_s, limits.burst, now)
        self._refusals = Bucket(limits.forgiven_per_s, limits.most_refused, now)
        self._most_half_open = limits.half_open
        self.half_open = 0

    def take(self, now: float) -> bool:
        """Whether one more stream may be opened."""
        return self.half_open < self._most_half_open and self._streams.take(1, now)

    def is_flood(self, now: float) -> bool:
        """Count a refusal. True when there were so many that it cannot be an accident."""
        return not self._refusals.take(1, now)


class StreamDispatch:
    """Reads the header of every stream that a peer opens, and hands it to the handler of its type.

    `offend(link, code)` is told of a peer that floods. `counters` gets: streams_opened, streams_not_allowed,
    streams_overload, streams_unknown, streams_malformed, streams_too_slow.
    """

    def __init__(
        self,
        handlers: Mapping[StreamType, StreamHandler],
        *,
        admission: Admission,
        offend: Callable[[Link, Close], None],
        counters: Counter[str],
        limits: StreamLimits = StreamLimits(),
    ) -> None:
        self._handlers = dict(handlers)
        self._admission = admission
        self._offend = offend
        self._counters = counters
        self._limits = limits
        self._budgets: dict[Link, StreamBudget] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def opened(self, stream: MeshStream) -> None:
        """A peer opened `stream`; nothing of it has been read."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        budget = self._budgets.get(stream.link)
        if budget is None:
            budget = self._budgets[stream.link] = StreamBudget(self._limits, now)
        if not budget.take(now):
            self._counters["streams_overload"] += 1
            stream.reset(Reset.OVERLOAD)
            if budget.is_flood(now):
                self._offend(stream.link, Close.FLOOD)
            return
        self._counters["streams_opened"] += 1
        task = loop.create_task(self._serve(stream, budget))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, link: Link) -> None:
        """The link is down; its streams end by themselves."""
        self._budgets.pop(link, None)

    async def close(self) -> None:
        """End every stream that is being served."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, stream: MeshStream, budget: StreamBudget) -> None:
        budget.half_open += 1
        try:
            found = await self._read_header(stream)
            role = None
            if found is not None and found[0] not in BEFORE_ADMISSION:
                role = await self._admission(stream.link)
        finally:
            budget.half_open -= 1
        if found is None:
            return
        kind, header = found
        handler = self._handlers.get(kind)
        if handler is None or (kind not in BEFORE_ADMISSION and role not in MAY_OPEN[kind]):
            self._refuse(stream, "streams_not_allowed", Reset.REFUSED)
            return
        try:
            await handler(stream, header, role)
        except OSError:
            stream.reset(Reset.CANCELLED)
        except asyncio.CancelledError:
            stream.reset(Reset.UPSTREAM_BROKEN)
            raise
        except Exception:
            LOG.exception("a %s stream of a peer failed", kind.name)
            stream.reset(Reset.UPSTREAM_BROKEN)

    async def _read_header(self, stream: MeshStream) -> tuple[StreamType, bytes] | None:
        """Type and header; None when the stream has been reset instead."""
        try:
            async with asyncio.timeout(self._limits.header_s):
                kind, size = decode_stream_header(await stream.read_exactly(HEADER_BYTES))
                header = await stream.read_exactly(size) if size else b""
            return StreamType(kind), header
        except TimeoutError:
            self._refuse(stream, "streams_too_slow", Reset.TOO_SLOW)
        except ValueError:
            self._refuse(stream, "streams_unknown", Reset.UNKNOWN_TYPE)
        except (WireError, asyncio.IncompleteReadError):
            self._refuse(stream, "streams_malformed", Reset.MALFORMED)
        except OSError:
            pass
        return None

    def _refuse(self, stream: MeshStream, counter: str, code: Reset) -> None:
        self._counters[counter] += 1
        stream.reset(code)
