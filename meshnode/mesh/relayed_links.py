"""What becomes of a link that this node has dialled through a relay: it is moved to a direct path as soon as there is
one, and to another relay when the first is lost. Streams in it notice neither.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic

from meshnode.core.traversal import Retries
from meshnode.identity import short
from meshnode.mesh.background import Background
from meshnode.mesh.direct_paths import DirectPaths, becomes_direct
from meshnode.mesh.flows import Flow, Flows, RelayFailed
from meshnode.net.link import Link
from meshnode.telemetry import LOG
from meshnode.wire.registry import Close

LOOK_S = 2.0
BUSY_S = 0.25
REROUTE_S = 1.0
"""A link is led over another relay no more often than that, however fast relays give it up."""
TAKE_OVER_S = 0.5
"""Of two links to a peer the older one is closed after a second."""
LINGER_S = 5.0
"""So long a flow stays open after its link has moved, in case that the direct path does not last."""


class RelayedLinks:
    """See the module. `relays` gives those that could carry a link, best first, without one node; `ask` asks one of
    them for a flow to a node and raises RelayFailed. `circumstances` are all that a search for a direct path to a node
    depends on, `in_use` says whether a link is the one that is talked over. `moved` is told when a link has become a
    direct one.

    `counters` gets: relayed_moved, relayed_rerouted.
    """

    def __init__(
        self,
        *,
        flows: Flows,
        paths: DirectPaths,
        relays: Callable[[bytes, bytes], Sequence[Link]],
        ask: Callable[[Link, bytes], Awaitable[Flow]],
        circumstances: Callable[[bytes], object],
        in_use: Callable[[Link], bool],
        moved: Callable[[], None],
        counters: Counter[str],
    ) -> None:
        self._flows = flows
        self._paths = paths
        self._relays = relays
        self._ask = ask
        self._circumstances = circumstances
        self._in_use = in_use
        self._has_moved = moved
        self._counters = counters
        self._carried: dict[Link, Flow] = {}
        self._rerouting: set[Link] = set()
        self._rerouted_at: dict[Link, float] = {}
        self._background = Background()

    async def close(self) -> None:
        """Do nothing any more."""
        await self._background.stop()

    # --- what happens -------------------------------------------------------------------------------------------------

    def carry(self, link: Link, flow: Flow) -> None:
        """A link has come up over this flow."""
        self._carried[link] = flow

    def was_relayed(self, link: Link) -> bool:
        """Whether a link is relayed, or was so a moment ago."""
        return link.path == "relayed" or link in self._carried

    def admitted(self, link: Link) -> None:
        """The peer of a relayed link that we dialled was admitted: look for a direct path."""
        self._background.start(self._improve(link))

    def shown(self, link: Link, direct: Link, *, otherwise: Callable[[], None]) -> None:
        """The peer of a relayed link has answered a direct dial after all: lead the link there, and end the new one.

        The new one would replace the other, and what is under way there would be lost. `otherwise` is called if the
        link cannot be moved.
        """
        self._background.start(self._take_over(link, direct, otherwise))

    def down(self, link: Link) -> None:
        """A link has ended: its flow is needed no more."""
        self._rerouted_at.pop(link, None)
        flow = self._carried.pop(link, None) or self._flows.at(link.address)
        if flow is not None:
            self._flows.close(flow)

    def silent(self, link: Link) -> None:
        """Nothing is heard over a link: if a relay is in between, or it is a relay, that may be why."""
        for carried, flow in list(self._carried.items()):
            if carried is link or flow.relay is link:
                self._reroute_soon(carried, flow, flow.relay.peer)

    def flow_ended(self, flow: Flow) -> None:
        """The relay, or the peer, has ended a flow of ours."""
        for link, carried in list(self._carried.items()):
            if carried is flow:
                del self._carried[link]
                # The same relay may do: its link here may have been replaced by another one.
                self._reroute_soon(link, flow, b"")

    # --- to a direct path ---------------------------------------------------------------------------------------------

    async def _improve(self, link: Link) -> None:
        """Look for a direct path, now and again, as long as the link is relayed and used."""
        retries = Retries(monotonic())
        while link.path == "relayed" and link.alive and self._in_use(link):
            now = monotonic()
            due_at = retries.due_at(self._circumstances(link.peer), now)
            if due_at is None or due_at > now:
                await asyncio.sleep(LOOK_S if due_at is None else min(LOOK_S, due_at - now))
            elif self._paths.is_busy(link.peer):
                await asyncio.sleep(BUSY_S)
            elif not await self._paths.seek(link):
                retries.failed(monotonic())
        if link.path == "direct" and link.alive:
            self._counters["relayed_moved"] += 1
            LOG.info("a direct path to %s: %s", short(link.peer), link.address)
            self._has_moved()
            await self._linger(link)

    async def _take_over(self, link: Link, direct: Link, otherwise: Callable[[], None]) -> None:
        # A search may be moving the link at the same time, which is as good.
        if link.path == "direct" or await link.redirect(direct.address) or await becomes_direct(link, TAKE_OVER_S):
            direct.close(Close.DUPLICATE)
        elif direct.alive:
            otherwise()

    async def _linger(self, link: Link) -> None:
        """Keep the relay for a while; then the flow ends, if the link did not fall back on it."""
        await asyncio.sleep(LINGER_S)
        if link.alive and link.path == "relayed":
            self._background.start(self._improve(link))
        elif (flow := self._carried.pop(link, None)) is not None:
            self._flows.close(flow)

    # --- to another relay ---------------------------------------------------------------------------------------------

    def _reroute_soon(self, link: Link, lost: Flow, without: bytes) -> None:
        if link.alive and link.path == "relayed" and link not in self._rerouting:
            self._rerouting.add(link)
            self._background.start(self._reroute(link, lost, without))

    async def _reroute(self, link: Link, lost: Flow, without: bytes) -> None:
        try:
            await asyncio.sleep(self._rerouted_at.get(link, 0.0) + REROUTE_S - monotonic())
            self._rerouted_at[link] = monotonic()
            for relay in self._relays(link.peer, without):
                if not link.alive or link.path == "direct":
                    return
                if await self._moved_over(link, relay):
                    self._counters["relayed_rerouted"] += 1
                    self._flows.close(lost)
                    return
        finally:
            self._rerouting.discard(link)

    async def _moved_over(self, link: Link, relay: Link) -> bool:
        """Whether the link goes on through this relay."""
        flow = None
        with suppress(RelayFailed):
            flow = await self._ask(relay, link.peer)
        if flow is None:
            return False
        moved = False
        try:
            moved = link.alive and await link.redirect(flow.address)
        finally:
            if moved:
                self._carried[link] = flow
            else:
                self._flows.close(flow)
        return moved
