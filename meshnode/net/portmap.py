"""A UDP port that the router forwards to this node: asked for, renewed at half of its life, given back at the end.

PCP, then NAT-PMP, then UPnP: the first that grants it is kept. Nothing waits for that: `mapped` is empty until a router
has said yes, and again when it has forgotten. A machine that is carried to another network asks there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from meshnode.net import nat_pmp, pcp, upnp
from meshnode.net.gateway import Gateway, find_gateway
from meshnode.net.mapping import Mapping, NoMapping
from meshnode.net.nat import is_global
from meshnode.wire.address import Address

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Way:
    """One protocol. Both functions raise NoMapping."""

    name: str
    map_port: Callable[[Gateway, int, Mapping | None], Awaitable[Mapping]]
    unmap_port: Callable[[Gateway, Mapping], Awaitable[None]]


WAYS = (
    Way(pcp.WAY, pcp.map_port, pcp.unmap_port),
    Way(nat_pmp.WAY, nat_pmp.map_port, nat_pmp.unmap_port),
    Way(upnp.WAY, upnp.map_port, upnp.unmap_port),
)


@dataclass(frozen=True, slots=True)
class MapperOptions:
    """`look_s`: how often it is looked whether this is still the same network. `retry_s`: when a router that refused is
    asked again. `shortest_s`: between two tries to renew. `close_s`: how long giving back may take.
    """

    look_s: float = 30.0
    retry_s: float = 900.0
    shortest_s: float = 5.0
    close_s: float = 1.0


class PortMapper:
    """Keeps one UDP port mapped from `start` to `close`; `changed` is called whenever `mapped` or `facts` differ."""

    def __init__(
        self,
        *,
        changed: Callable[[], None] = lambda: None,
        find: Callable[[], Gateway | None] = find_gateway,
        ways: tuple[Way, ...] = WAYS,
        options: MapperOptions | None = None,
    ) -> None:
        self._changed = changed
        self._find = find
        self._ways = ways
        self._options = options or MapperOptions()
        self._task: asyncio.Task[None] | None = None
        self._gateway: Gateway | None = None
        self._kept: tuple[Way, Mapping] | None = None
        self._settled = asyncio.Event()
        self._state, self._sentence = "off", "nobody has asked for it"

    @property
    def mapped(self) -> tuple[Address, ...]:
        """Where the internet reaches the port; empty when no router forwards it."""
        return (self._kept[1].external,) if self._kept else ()

    @property
    def facts(self) -> dict[str, Any]:
        """`state` is off, asking, mapped, refused, needless or no-router; `sentence` says it in words."""
        return {
            "state": self._state,
            "sentence": self._sentence,
            "way": self._kept[0].name if self._kept else None,
            "external": str(self._kept[1].external) if self._kept else None,
            "router": self._gateway.host if self._gateway else None,
        }

    async def start(self, port: int) -> None:
        """Begin to ask for `port`; returns at once."""
        self._task = asyncio.create_task(self._run(port), name="port mapping")

    async def settled(self) -> None:
        """Returns when it is known for the first time whether a router forwards the port."""
        await self._settled.wait()

    async def close(self) -> None:
        """Give the port back, as far as that is possible within `close_s`."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._kept is not None and self._gateway is not None:
            way, mapping = self._kept
            with suppress(NoMapping, TimeoutError):
                async with asyncio.timeout(self._options.close_s):
                    await way.unmap_port(self._gateway, mapping)
        self._kept = None
        self._say("off", "it was given back")

    async def _run(self, port: int) -> None:
        while True:
            self._gateway = gateway = await asyncio.to_thread(self._find)
            if gateway is None:
                self._say("no-router", "this machine has no router to the internet (over IPv4)")
                await self._until_moved(None)
            elif is_global(Address(gateway.own, port)):
                self._say("needless", f"this machine has an address of the internet itself: {gateway.own}")
                await self._until_moved(gateway)
            elif await self._ask(gateway, port):
                await self._keep(gateway, port)
            else:
                await self._until_moved(gateway, self._options.retry_s)

    async def _ask(self, gateway: Gateway, port: int) -> bool:
        self._say("asking", f"asking the router {gateway.host}")
        reasons: list[tuple[bool, int, str]] = []
        for way in self._ways:
            try:
                mapping = await way.map_port(gateway, port, None)
            except NoMapping as reason:
                reasons.append((not reason.answered, len(reasons), f"{way.name}: {reason}"))
                continue
            self._take(way, mapping)
            return True
        # What a router that speaks one of the protocols says tells more than the silence of the others.
        self._say("refused", f"the router {gateway.host} forwards no port; {min(reasons)[2]}")
        return False

    async def _keep(self, gateway: Gateway, port: int) -> None:
        """Renew until that is refused for the rest of its life, or the machine is elsewhere."""
        loop = asyncio.get_running_loop()
        assert self._kept is not None
        way, mapping = self._kept
        ends = loop.time() + mapping.lifetime_s
        lost = f"the router {gateway.host} has let the mapping lapse"
        while (left_s := ends - loop.time()) > 0:
            if await self._until_moved(gateway, min(left_s, max(left_s / 2, self._options.shortest_s))):
                lost = "this machine is on another network than before"
                break
            try:
                mapping = await way.map_port(gateway, port, mapping)
            except NoMapping as reason:
                _log.info("port mapping not renewed by %s: %s", way.name, reason)
                continue
            ends = loop.time() + mapping.lifetime_s
            self._take(way, mapping)
        self._kept = None
        self._say("asking", lost)

    async def _until_moved(self, gateway: Gateway | None, limit_s: float = float("inf")) -> bool:
        """Wait for that long, or until the way to the internet is another one; whether it is."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + limit_s
        while (left_s := ends - loop.time()) > 0:
            await asyncio.sleep(min(left_s, self._options.look_s))
            if await asyncio.to_thread(self._find) != gateway:
                return True
        return False

    def _take(self, way: Way, mapping: Mapping) -> None:
        before, self._kept = self._kept, (way, mapping)
        self._say(
            "mapped", f"the router forwards {mapping.external} to this machine ({way.name})", before != self._kept
        )

    def _say(self, state: str, sentence: str, anew: bool = True) -> None:
        if anew or (state, sentence) != (self._state, self._sentence):
            self._state, self._sentence = state, sentence
            if state != "asking":
                self._settled.set()
            self._changed()
