"""Carrying datagrams for others: the relay's side of `relay` streams (protocol/14-traversal.md).

    asker ── RelayConnect ──> here ── RelayFlow ──> the peer that is wanted, which agrees or not
    asker <── RelayFlow ───── here                  from now on the endpoint's forwarder moves datagrams

Both ends are peers that this very mesh has admitted, with direct links to this node; nothing of what they exchange can
be read here. A flow lives as long as the two streams on which it was granted, and ends with a reason for both ends.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from meshnode.core.budget import Bucket
from meshnode.mesh.message_stream import MessageStream
from meshnode.mesh.sessions import Sessions
from meshnode.net.link import Link
from meshnode.net.relay import Forwarder
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import LIMIT_RELAY_FLOWS, RELAY_TEXTS, Close, RelayCode, Reset, StreamType
from meshnode.wire.traversal import (
    FLOW_BYTES,
    RELAY_MESSAGES,
    RelayConnect,
    RelayEnd,
    RelayFlow,
    RelayRefused,
    RelayReserved,
)
from meshnode.wire.values import WireError

BUDGETS = 1024


class Forwards(Protocol):
    """What is needed of the endpoint."""

    @property
    def forwarder(self) -> Forwarder:
        """What moves the datagrams."""


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Bounds of a relay.

    Flows count for both of their ends, and two nodes have no more than `flows_of_a_pair`, so that nobody can take all
    places of another one. `asks_per_s` and `asks_burst` are flows that one peer asks for, and of what is refused
    `refusals_burst` are forgiven before the peer counts as a flood.
    """

    flows: int = LIMIT_RELAY_FLOWS
    flows_of_a_peer: int = 16
    flows_of_a_pair: int = 2
    streams_of_a_peer: int = 24
    reservations: int = 128
    bytes_per_s: int = 2_000_000
    burst_bytes: int = 1 << 20
    asks_per_s: float = 1.0
    asks_burst: int = 32
    refusals_per_s: float = 1.0
    refusals_burst: int = 64
    answer_s: float = 3.0


class _Budget:
    """What one peer may ask for."""

    __slots__ = ("asks", "refusals")

    def __init__(self, limits: RelayLimits, now: float) -> None:
        self.asks = Bucket(limits.asks_per_s, limits.asks_burst, now)
        self.refusals = Bucket(limits.refusals_per_s, limits.refusals_burst, now)


class Relaying:
    """See the module. `on` says whether this node relays at all, between `begin` and `leave`; `open` comes first.

    `counters` gets: relay_flows, relay_reservations, relay_refused, relay_overload, relay_not_agreed.
    """

    def __init__(
        self, sessions: Sessions, *, on: bool, counters: Counter[str], limits: RelayLimits = RelayLimits()
    ) -> None:
        self._wanted = on
        self.on = False
        self._sessions = sessions
        self._counters = counters
        self._limits = limits
        self._streams: Counter[bytes] = Counter()
        self._flows_of: Counter[bytes] = Counter()
        self._flows: dict[bytes, asyncio.Future[RelayCode]] = {}
        self._reserved: set[bytes] = set()
        self._budgets: dict[bytes, _Budget] = {}
        self._leaving = asyncio.Event()
        self._endpoint: Forwards

    def open(self, endpoint: Forwards) -> None:
        """Forward with this endpoint."""
        self._endpoint = endpoint
        endpoint.forwarder.on_ended = self._went_idle

    def begin(self) -> None:
        """Relay from now on, if this node does."""
        self.on = self._wanted

    def leave(self) -> None:
        """End all flows and reservations, and say why: their ends look for another relay while this node drains."""
        self.on = False
        self._leaving.set()
        self._leaving = asyncio.Event()

    @property
    def flows(self) -> int:
        """How many are carried."""
        return len(self._flows)

    # --- who asks -------------------------------------------------------------------------------------------------

    async def reserve(self, messages: MessageStream, link: Link) -> None:
        """Serve a reservation until its stream ends."""
        node = link.peer
        if not self.on:
            return self._refuse(messages, link, RelayCode.NOT_RELAYING)
        if node in self._reserved or len(self._reserved) >= self._limits.reservations:
            return self._refuse(messages, link, RelayCode.TOO_MANY)
        with self._stream_of(messages, link) as room:
            if not room:
                return
            self._reserved.add(node)
            self._counters["relay_reservations"] += 1
            try:
                limits = self._limits
                messages.send(RelayReserved(link.address, limits.flows_of_a_peer, limits.bytes_per_s))
                code = await first(self._left(), why_ended(messages))
            finally:
                self._reserved.discard(node)
            messages.finish(RelayEnd(code))

    async def connect(self, messages: MessageStream, link: Link, wanted: RelayConnect) -> None:
        """Serve a flow until either end, or this node, ends it."""
        with self._stream_of(messages, link) as room:
            if not room:
                return
            code = self._why_not(link, wanted.node)
            if code is not None:
                return self._refuse(messages, link, code)
            with self._place(link.peer, wanted.node) as flow:
                try:
                    await self._carry(messages, link, wanted.node, flow)
                except OSError:  # the peer that is wanted has just gone
                    self._refuse(messages, link, RelayCode.NOT_CONNECTED)

    async def _carry(self, messages: MessageStream, link: Link, node: bytes, flow: bytes) -> None:
        peer = self._sessions.get(node)
        assert peer is not None, "it was there before"
        target = peer.link
        async with _asked(target, RelayFlow(link.peer, flow, link.address)) as there:
            if not await self._agrees(there, flow):
                self._counters["relay_not_agreed"] += 1
                return self._refuse(messages, link, RelayCode.REFUSED)
            limits = self._limits
            forwarder = self._endpoint.forwarder
            try:
                forwarder.open(flow, link, target, bytes_per_s=limits.bytes_per_s, burst_bytes=limits.burst_bytes)
            except ValueError:
                return self._refuse(messages, link, RelayCode.NOT_CONNECTED)
            try:
                self._counters["relay_flows"] += 1
                messages.send(RelayFlow(node, flow, target.address))
                code = await first(self._left(), why_ended(messages), why_ended(there), _given(self._flows[flow]))
            finally:
                forwarder.close(flow)
            for end in (messages, there):
                end.finish(RelayEnd(code))

    async def _agrees(self, there: MessageStream, flow: bytes) -> bool:
        try:
            answer = await there.receive(self._limits.answer_s)
        except (WireError, OSError, TimeoutError):
            return False
        return isinstance(answer, RelayFlow) and answer.flow == flow

    # --- what may be ----------------------------------------------------------------------------------------------

    def _why_not(self, link: Link, node: bytes) -> RelayCode | None:
        if not self.on:
            return RelayCode.NOT_RELAYING
        if not self._budget(link.peer).asks.take(1, monotonic()):
            return RelayCode.QUOTA
        peer = self._sessions.get(node)
        if peer is None or node == link.peer or not peer.link.alive or peer.link.silent:
            return RelayCode.NOT_CONNECTED
        if link.path != "direct" or peer.link.path != "direct":
            return RelayCode.NOT_CONNECTED
        most = self._limits.flows_of_a_peer
        if len(self._flows) >= self._limits.flows or max(self._flows_of[link.peer], self._flows_of[node]) >= most:
            return RelayCode.TOO_MANY
        if self._flows_of[_pair(link.peer, node)] >= self._limits.flows_of_a_pair:
            return RelayCode.TOO_MANY
        return None

    def _budget(self, node: bytes) -> _Budget:
        found = self._budgets.pop(node, None) or _Budget(self._limits, monotonic())
        self._budgets[node] = found  # the one that was asked for last is the last to go
        if len(self._budgets) > BUDGETS:
            del self._budgets[next(iter(self._budgets))]
        return found

    def _refuse(self, messages: MessageStream, link: Link, code: RelayCode) -> None:
        self._counters["relay_refused"] += 1
        messages.finish(RelayRefused(code, RELAY_TEXTS[code]))
        if not self._budget(link.peer).refusals.take(1, monotonic()):
            self._sessions.offend(link, Close.FLOOD, "it asks for flows without end")

    @contextmanager
    def _stream_of(self, messages: MessageStream, link: Link) -> Iterator[bool]:
        """Count a stream of a peer. Gives False, and has reset the stream, when it has too many."""
        if self._streams[link.peer] >= self._limits.streams_of_a_peer:
            self._counters["relay_overload"] += 1
            messages.stream.reset(Reset.OVERLOAD)
            yield False
            return
        with _counted(self._streams, link.peer):
            yield True

    @contextmanager
    def _place(self, one: bytes, other: bytes) -> Iterator[bytes]:
        """A new flow id, and the place of the flow among those that are allowed."""
        flow = os.urandom(FLOW_BYTES)
        self._flows[flow] = asyncio.get_running_loop().create_future()
        try:
            with (
                _counted(self._flows_of, one),
                _counted(self._flows_of, other),
                _counted(self._flows_of, _pair(one, other)),
            ):
                yield flow
        finally:
            del self._flows[flow]

    # --- how it ends ----------------------------------------------------------------------------------------------

    def _went_idle(self, flow: bytes) -> None:
        """The forwarder has ended a flow, for want of datagrams or of a link."""
        over = self._flows.get(flow)
        if over is not None and not over.done():
            over.set_result(RelayCode.IDLE)

    async def _left(self) -> RelayCode:
        await self._leaving.wait()
        return RelayCode.LEAVING


def _pair(one: bytes, other: bytes) -> bytes:
    return min(one, other) + max(one, other)


@contextmanager
def _counted(counter: Counter[bytes], key: bytes) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]


@asynccontextmanager
async def _asked(target: Link, flow: RelayFlow) -> AsyncIterator[MessageStream]:
    """A stream to the peer that is wanted, on which it has been asked. Raises OSError."""
    stream = target.open_stream()
    # It may stay open for days, and the two ends watch each other.
    stream.watched = False
    try:
        stream.write(encode_stream_header(StreamType.RELAY, b""))
        messages = MessageStream(stream, RELAY_MESSAGES)
        messages.send(flow)
        yield messages
        messages.finish()
    finally:
        if not stream.is_closing():
            stream.reset(Reset.CANCELLED)


async def why_ended(messages: MessageStream) -> RelayCode:
    """Wait until the other end of a stream ends it, with a reason, without a word or out of turn. Raises nothing."""
    with suppress(WireError, OSError):
        message = await messages.receive()
        if isinstance(message, RelayEnd) and message.code in tuple(RelayCode):
            return RelayCode(message.code)
    return RelayCode.DONE


async def first(*ways: Coroutine[Any, Any, RelayCode]) -> RelayCode:
    """The reason that comes first; nobody waits for the others any more."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _given(over: asyncio.Future[RelayCode]) -> RelayCode:
    return await asyncio.shield(over)
