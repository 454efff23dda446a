"""This node's ends of flows through relays: those it has asked for, and those that a relay asks it to take part in.

A flow is a way for the datagrams of a link. The endpoint knows it by a virtual address, which can be dialled as any
other; here it is kept open by the `relay` stream on which it was granted, and given up with it. What a relay says is
checked as far as it can be: to whom a flow really leads is shown by the keys of the link that comes up over it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from meshnode.core.budget import Bucket
from meshnode.mesh.background import Background
from meshnode.mesh.message_stream import MessageStream
from meshnode.mesh.relaying import first, why_ended
from meshnode.net.link import Link
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import RELAY_TEXTS, RelayCode, Reset, Role, StreamType
from meshnode.wire.traversal import RELAY_MESSAGES, RelayConnect, RelayEnd, RelayFlow, RelayRefused
from meshnode.wire.values import WireError

ANSWER_S = 3.0
MOST_FLOWS = 128
MOST_OF_A_RELAY = 32
OFFERS_PER_S, OFFERS_BURST = 1.0, 64
RELAYS = 256


class RelayFailed(Exception):
    """A relay gives no flow. `lied` says that what it answered cannot be, and not only that it could not help."""

    def __init__(self, reason: str, *, lied: bool = False) -> None:
        super().__init__(reason)
        self.lied = lied


class Ways(Protocol):
    """What is needed of the endpoint."""

    def open_flow(self, flow: bytes, relay: Link) -> Address:
        """The virtual address of a new flow. Raises ValueError."""

    def close_flow(self, flow: bytes) -> None:
        """Forget a flow."""


@dataclass(eq=False, slots=True)
class Flow:
    """One flow that ends here: to `node`, through the peer of the link `relay`, which sees `node` at `observed`."""

    flow: bytes
    node: bytes
    relay: Link
    address: Address
    observed: Address | None
    messages: MessageStream
    since: float = field(default_factory=monotonic)
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False


class Flows:
    """See the module. `ended` is told of flows we asked for that end without our doing. `endpoint` is set first.

    `counters` gets: flows_asked, flows_failed, flows_joined, flows_declined, relays_lied.
    """

    def __init__(
        self, own: bytes, *, banned: Callable[[bytes], bool], ended: Callable[[Flow], None], counters: Counter[str]
    ) -> None:
        """`banned` says with whom this node has no dealings."""
        self._own = own
        self._banned = banned
        self._ended = ended
        self._counters = counters
        self._by_address: dict[Address, Flow] = {}
        self._offers: OrderedDict[bytes, Bucket] = OrderedDict()
        self._watches = Background()
        self.endpoint: Ways

    def at(self, address: Address) -> Flow | None:
        """The flow with this virtual address."""
        return self._by_address.get(address)

    def over_relay(self, link: Link) -> list[Flow]:
        """The flows through the peer of this link."""
        return [flow for flow in self._by_address.values() if flow.relay is link]

    def close(self, flow: Flow) -> None:
        """It is needed no more. Idempotent."""
        flow.given_up.set()
        self._forget(flow)

    async def end(self) -> None:
        """Close all, and wait until that is written."""
        for flow in list(self._by_address.values()):
            self.close(flow)
        await self._watches.ended()

    # --- flows that this node asks for ------------------------------------------------------------------------------

    async def through(self, relay: Link, node: bytes) -> Flow:
        """A flow to `node` through the peer of `relay`. Raises RelayFailed."""
        self._counters["flows_asked"] += 1
        stream = None
        try:
            stream = relay.open_stream()
            stream.watched = False  # the link over the flow is watched itself
            stream.write(encode_stream_header(StreamType.RELAY, b""))
            messages = MessageStream(stream, RELAY_MESSAGES)
            messages.send(RelayConnect(node))
            flow = self._granted(await messages.receive(ANSWER_S), relay, node, messages)
            stream = None
        except WireError as error:
            raise self._failed(error.reason, lied=True) from None
        except TimeoutError:
            raise self._failed("no answer") from None
        except OSError as error:
            raise self._failed(str(error)) from None
        finally:
            if stream is not None:
                stream.reset(Reset.CANCELLED)
        self._watches.start(self._watch(flow))
        return flow

    def _granted(self, answer: object, relay: Link, node: bytes, messages: MessageStream) -> Flow:
        if isinstance(answer, RelayRefused):
            raise self._failed(RELAY_TEXTS.get(answer.code, "an unknown reason"))
        if not isinstance(answer, RelayFlow):
            raise self._failed("another answer than a flow", lied=answer is not None)
        if answer.node != node:
            raise self._failed("a flow to somebody else", lied=True)
        try:
            return self._open(answer, relay, messages)
        except ValueError as error:
            raise self._failed(str(error), lied=True) from None

    def _failed(self, reason: str, *, lied: bool = False) -> RelayFailed:
        self._counters["flows_failed"] += 1
        LOG.debug("no way through a relay: %s", reason)
        self._counters["relays_lied"] += lied
        return RelayFailed(reason, lied=lied)

    async def _watch(self, flow: Flow) -> None:
        """Until either end gives the flow up."""
        try:
            await self._until_over(flow)
        finally:
            self._forget(flow)
        if not flow.given_up.is_set():
            self._ended(flow)

    # --- flows that others ask for ------------------------------------------------------------------------------------

    async def offered(self, messages: MessageStream, link: Link, role: Role | None, offer: RelayFlow) -> None:
        """A relay has somebody who wants to reach this node: agree, and keep the flow until it ends."""
        why_not = self._why_not(link, role, offer.node)
        flow = None
        if why_not is None:
            try:
                flow = self._open(offer, link, messages)
            except ValueError as error:
                why_not = str(error)
        if flow is None:
            self._counters["flows_declined"] += 1
            LOG.debug("no flow of %s through %s: %s", offer.node.hex()[:10], link.peer.hex()[:10], why_not)
            messages.finish(RelayRefused(RelayCode.REFUSED, RELAY_TEXTS[RelayCode.REFUSED]))
            return
        self._counters["flows_joined"] += 1
        try:
            messages.send(RelayFlow(offer.node, offer.flow))
            await self._until_over(flow)
        finally:
            self._forget(flow)

    def _why_not(self, link: Link, role: Role | None, node: bytes) -> str | None:
        if role is not Role.MEMBER:
            return "only members relay"
        if node in (self._own, link.peer) or self._banned(node):
            return "nobody to talk to"
        if len(self._by_address) >= MOST_FLOWS or len(self.over_relay(link)) >= MOST_OF_A_RELAY:
            return "too many flows end here"
        offers = self._offers.pop(link.peer, None) or Bucket(OFFERS_PER_S, OFFERS_BURST, monotonic())
        self._offers[link.peer] = offers
        if len(self._offers) > RELAYS:
            self._offers.popitem(last=False)
        return None if offers.take(1, monotonic()) else "too many in too little time"

    # --- both ---------------------------------------------------------------------------------------------------------

    def _open(self, granted: RelayFlow, relay: Link, messages: MessageStream) -> Flow:
        address = self.endpoint.open_flow(granted.flow, relay)
        flow = Flow(granted.flow, granted.node, relay, address, granted.observed, messages)
        self._by_address[address] = flow
        return flow

    async def _until_over(self, flow: Flow) -> None:
        await first(why_ended(flow.messages), _given_up(flow))
        with suppress(OSError):  # it may have ended with its stream
            flow.messages.finish(RelayEnd(RelayCode.DONE))

    def _forget(self, flow: Flow) -> None:
        if not flow.over:
            flow.over = True
            del self._by_address[flow.address]
            self.endpoint.close_flow(flow.flow)


async def _given_up(flow: Flow) -> RelayCode:
    await flow.given_up.wait()
    return RelayCode.DONE
