"""HTTP over a stream of the mesh: one request, one answer, then the stream is over.

    caller   stream header, HTTP/1.1 request with a Content-Length        (api/upstream writes it)
    server   HTTP/1.1 head with "connection: close", body, FIN            a RESET says that the answer broke

Where the stream header says that the answer is paid, the same bytes travel in frames (paid_stream.py).

The caller's reset, or its STOP_SENDING, cancels the answer at once, also while nothing is being written: the read side
is watched for as long as the answer runs. What a piece costs is one write and one drain; time limits are kept by one
tick a second over all answers, not by a timer for each piece.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from meshnode.mesh.paid_stream import PaidStream, StreamMisused
from meshnode.mesh.tunnel_request import (
    CutShort,
    Head,
    Refusal,
    RequestLimits,
    TunnelRequest,
    read_body,
    read_head,
)
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.payments import FREE_HEADER, is_paid
from meshnode.wire.registry import LIMIT_HTTP_STREAMS, Reset, StreamType
from meshnode.wire.values import WireError

LINGER_S = 300.0
"""How long a caller may take over the last half megabyte of its answer."""
_HTTP_HEADER = encode_stream_header(StreamType.HTTP, FREE_HEADER)
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def open_tunnel(link: Link) -> MeshStream:
    """A fresh stream whose header says HTTP; the request is the next thing to write. Raises OSError."""
    stream = link.open_stream()
    stream.write(_HTTP_HEADER)
    return stream


@dataclass(frozen=True, slots=True)
class TunnelLimits:
    """Bounds of the serving side. `streams` and `body_bytes` are for one peer; `stall_s` is how long a peer may take
    nothing of its answer.

    A gateway may bring all of its callers to one host: how many wait there is for the queue of the model to say. Fewer
    streams than a link may have, so that a peer with too many is told so, and its control stream has room.
    """

    request: RequestLimits = RequestLimits()
    streams: int = LIMIT_HTTP_STREAMS
    body_bytes: int = 256 << 20
    stall_s: float = 120.0


class TunnelReply:
    """Where the answer goes. Every call waits until the stream can take more, and raises OSError when it is gone."""

    def __init__(self, stream: MeshStream | PaidStream) -> None:
        self._stream = stream
        self._write = stream.write
        self._drain = stream.drain
        self._now = asyncio.get_running_loop().time
        self.begun = False
        self.finished = False
        self.waiting_since = math.inf

    async def head(self, status: int, headers: Sequence[tuple[str, str]], /) -> None:
        """Status and headers; those that belong to one connection are left out. Raises ValueError for a bad one."""
        assert not self.begun, "an answer has one head"
        data = head_bytes(status, headers)
        self.begun = True
        await self._send(data)

    async def body(self, piece: bytes, /) -> None:
        """Part of the body, in the order of the calls."""
        assert self.begun and not self.finished, "a body comes after its head and before its end"
        if piece:
            await self._send(piece)

    async def finish(self) -> None:
        """The body is whole."""
        assert self.begun, "an answer begins with its head"
        if not self.finished:
            self.finished = True
            self._stream.write_eof()

    async def _send(self, data: bytes) -> None:
        self._write(data)
        self.waiting_since = self._now()
        await self._drain()
        self.waiting_since = math.inf


Answer = Callable[[TunnelRequest, TunnelReply], Awaitable[None]]
"""Answers one request. When it raises, or returns without `finish`, the stream is reset with UPSTREAM_BROKEN."""


def head_bytes(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """The head of an answer whose body ends with the stream. Raises ValueError for what would break the framing."""
    if not 200 <= status <= 599:
        raise ValueError(f"status {status}")
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}"]
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"header {name[:60]!r}")
        if name.lower() not in _HOP_BY_HOP:
            lines.append(f"{name}: {value}")
    lines.append("connection: close\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1")


@dataclass(eq=False, slots=True)
class _Running:
    """One answer under way. `code` says why it was ended, if it was."""

    reply: TunnelReply
    task: asyncio.Future[None]
    code: Reset | None = None

    def end(self, code: Reset) -> None:
        if self.code is None:
            self.code = code
            self.task.cancel()


class TunnelServer:
    """Answers the HTTP streams of all peers. `admitted` holds the (method, path) that peers may ask for.

    `counters` gets: http_answered, http_refused, http_malformed, http_too_slow, http_cancelled, http_broken,
    http_handed_over.
    """

    def __init__(
        self, answer: Answer, *, admitted: Collection[tuple[str, str]], limits: TunnelLimits, counters: Counter[str]
    ) -> None:
        self._answer = answer
        self._admitted = frozenset(admitted)
        self._limits = limits
        self._counters = counters
        self._streams: Counter[bytes] = Counter()
        self._body_bytes: Counter[bytes] = Counter()
        self._running: set[_Running] = set()
        self._stopping = False
        self._tick: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._running)

    async def serve(self, opened: MeshStream, header: bytes = FREE_HEADER) -> None:
        """Read the request of one stream and answer it. Returns when the stream is over; never raises OSError."""
        stream: MeshStream | PaidStream = opened
        paid: PaidStream | None = None
        if header:
            try:
                paid = PaidStream(opened) if is_paid(header) else None
            except WireError:
                self._end(opened, "http_malformed", Reset.MALFORMED)
                return
            stream = paid or opened
        peer = opened.link.peer
        self._streams[peer] += 1
        held_bytes = 0
        try:
            self._check_room(peer)
            limits = self._limits.request
            if paid is not None:
                await paid.begin(limits.head_s)
            head = await read_head(stream, admitted=self._admitted, limits=limits)
            self._check_memory(peer, head)
            held_bytes = head.length_bytes
            self._body_bytes[peer] += held_bytes
            body = await read_body(stream, head, limits)
            request = TunnelRequest(head.method, head.path, head.content_type, body, peer, head.request_id, paid)
            leaving = await self._run(stream, request)
        except Refusal as refusal:
            self._counters["http_refused"] += 1
            leaving = await self._refuse(stream, refusal)
        except TimeoutError:
            self._end(stream, "http_too_slow", Reset.TOO_SLOW)
            return
        except (CutShort, StreamMisused):
            self._end(stream, "http_malformed", Reset.MALFORMED)
            return
        except OSError:
            self._end(stream, "http_cancelled", Reset.CANCELLED)
            return
        except BaseException:
            stream.reset(Reset.UPSTREAM_BROKEN)
            raise
        finally:
            self._subtract(self._streams, peer, 1)
            self._subtract(self._body_bytes, peer, held_bytes)
        if leaving is not None:
            await _linger(stream, leaving)

    def refuse_new(self, refuse: bool = True) -> None:
        """From now on every request is answered with 503, as this node is about to stop; or no more."""
        self._stopping = refuse

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no answer runs. False when some still do after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def hand_over(self) -> None:
        """End every answer where it is: the gateways that asked continue them elsewhere."""
        for running in list(self._running):
            running.end(Reset.UPSTREAM_BROKEN)
        self._counters["http_handed_over"] += len(self._running)

    # --- limits -----------------------------------------------------------------------------------------------

    def _check_room(self, peer: bytes) -> None:
        if self._stopping:
            raise Refusal(503, "node_stopping", "this node is stopping", retry_after_s=5)
        if self._streams[peer] > self._limits.streams:
            raise Refusal(429, "too_many_requests", "too many requests of this peer run here", retry_after_s=2)

    def _check_memory(self, peer: bytes, head: Head) -> None:
        if self._body_bytes[peer] + head.length_bytes > self._limits.body_bytes:
            raise Refusal(429, "too_many_requests", "too many bytes of this peer wait here", retry_after_s=2)

    @staticmethod
    def _subtract(counts: Counter[bytes], peer: bytes, amount: int) -> None:
        counts[peer] -= amount
        if counts[peer] <= 0:
            del counts[peer]

    def _end(self, stream: MeshStream | PaidStream, counter: str, code: Reset) -> None:
        self._counters[counter] += 1
        stream.reset(code)

    def _check_pace(self) -> None:
        self._tick = None
        oldest = asyncio.get_running_loop().time() - self._limits.stall_s
        for running in list(self._running):
            if running.reply.waiting_since < oldest:
                running.end(Reset.TOO_SLOW)
        self._keep_ticking()

    def _keep_ticking(self) -> None:
        if self._running and self._tick is None:
            wait_s = min(1.0, self._limits.stall_s / 2)
            self._tick = asyncio.get_running_loop().call_later(wait_s, self._check_pace)

    # --- one answer -------------------------------------------------------------------------------------------

    async def _run(self, stream: MeshStream | PaidStream, request: TunnelRequest) -> asyncio.Future[bool] | None:
        """Answer, and watch the caller meanwhile. Returns that watch when all went well."""
        reply = TunnelReply(stream)
        running = _Running(reply, asyncio.ensure_future(self._answer(request, reply)))
        leaving = asyncio.ensure_future(_until_left(stream))
        self._running.add(running)
        self._idle.clear()
        self._keep_ticking()
        keep = False
        try:
            either: set[asyncio.Future[Any]] = {running.task, leaving}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not running.task.done():
                running.end(Reset.MALFORMED if _sent_more(leaving) else Reset.CANCELLED)
                await asyncio.wait({running.task})
            keep = self._outcome(stream, running)
            return leaving if keep else None
        finally:
            running.task.cancel()
            if not keep:
                leaving.cancel()
            self._running.discard(running)
            if not self._running:
                self._idle.set()

    def _outcome(self, stream: MeshStream | PaidStream, running: _Running) -> bool:
        """Whether the answer is whole; the stream is reset where it is not."""
        failure = None if running.task.cancelled() else running.task.exception()
        if failure is None and running.reply.finished:
            self._counters["http_answered"] += 1
            return True
        counter = "http_broken"
        code = running.code or Reset.UPSTREAM_BROKEN
        if code is Reset.TOO_SLOW:
            counter = "http_too_slow"
        elif code is Reset.MALFORMED:
            counter = "http_malformed"
        elif code is Reset.CANCELLED or (isinstance(failure, OSError) and running.code is None):
            counter = "http_cancelled"
        elif failure is not None:
            LOG.debug("an answer to a peer broke: %s", type(failure).__name__)
        self._end(stream, counter, code)
        return False

    async def _refuse(self, stream: MeshStream | PaidStream, refusal: Refusal) -> asyncio.Future[bool] | None:
        try:
            stream.write(head_bytes(refusal.status, refusal.headers()) + refusal.body())
            stream.write_eof()
        except OSError:
            stream.reset(Reset.CANCELLED)
            return None
        return asyncio.ensure_future(_until_left(stream, discard_bytes=1 << 20))


def _sent_more(leaving: asyncio.Future[bool]) -> bool:
    return leaving.exception() is None and leaving.result()


async def _until_left(stream: MeshStream | PaidStream, *, discard_bytes: int = 0) -> bool:
    """Wait until the caller is gone; its FIN alone does not say so, unless it pays. True when it sent what nobody asked
    for.
    """
    try:
        while piece := await stream.read(16 << 10):
            discard_bytes -= len(piece)
            if discard_bytes < 0:
                return True
        await stream.broken()
    except StreamMisused:
        return True
    except OSError:
        pass
    return False


async def _linger(stream: MeshStream | PaidStream, leaving: asyncio.Future[bool]) -> None:
    """Give the caller time to take the end of its answer: a reset now would throw it away, here or there."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                if await leaving:
                    await stream.broken()
    finally:
        leaving.cancel()
        stream.reset(Reset.CANCELLED)
