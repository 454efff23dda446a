"""Nodes in public meshes, without engines: real QUIC on loopback, an embedded Nostr relay, models that the test makes
up.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from meshnode.api.upstream import Exchange
from meshnode.config import Places, Settings
from meshnode.core.effects import Member
from meshnode.discovering import open_relays
from meshnode.identity import load_or_create
from meshnode.mesh.tunnel import TunnelReply
from meshnode.mesh.tunnel_request import TunnelRequest
from meshnode.swarm import Swarm, SwarmParts
from meshnode.telemetry import ProblemBoard
from meshnode.wire.statements import Capability, Device, Dynamic, ModelState, Offer
from tests.stage import QUIET

PATH = "/v1/chat/completions"
PATIENCE_S = 20.0
NOBODY = "ws://127.0.0.1:9"
"""Where no relay is."""


@asynccontextmanager
async def nostr_relay() -> AsyncIterator[str]:
    """The URL of a relay in this process."""
    from nostr_sdk import LocalRelayBuilder, RateLimit

    builder = LocalRelayBuilder().addr("127.0.0.1").rate_limit(RateLimit(max_reqs=500, notes_per_minute=6000))
    relay = builder.build()
    await relay.run()
    try:
        yield str(await relay.url()).rstrip("/")
    finally:
        relay.shutdown()


def offer(name: str, *, digest: int = 1, state: int = ModelState.READY) -> Offer:
    """A model that is there."""
    return Offer(
        name=name, content_hash=bytes([digest]) * 16, state=state, context=4096, slots=4, capabilities=Capability.CHAT
    )


class Stranger:
    """One node's Swarm and what surrounds it. By default it answers requests with its name."""

    def __init__(self, home: Path, relays: tuple[str, ...] = (NOBODY,), **settings: Any) -> None:
        self.home = home
        self.settings: Settings = dataclasses.replace(QUIET, name=home.name, nostr_relay=relays, **settings)
        self.identity = load_or_create(home / "node.key")
        self.node = bytes(self.identity.node_id)
        self.models: list[Offer] = []
        self.devices: tuple[Device, ...] = (Device("GPU", 8 << 30, 6 << 30),)
        self.known: set[bytes] = set()
        self.private: frozenset[bytes] = frozenset()
        self.told: list[tuple[str, str]] = []
        self.problems = ProblemBoard()
        self.requests: list[TunnelRequest] = []
        self.changes = asyncio.Event()
        self.status = 200
        self.refusing: bool | None = None
        self.swarm = self.fresh()

    def fresh(self) -> Swarm:
        """A swarm as at the start of the process."""
        places = Places(self.home, self.home / "cache", self.home / "config.toml")
        return Swarm(
            SwarmParts(
                settings=self.settings,
                places=places,
                identity=self.identity,
                has=lambda: Dynamic(devices=self.devices, rpc=7),
                offers=lambda: tuple(self.models),
                problems=self.problems,
                tell=lambda label, text: self.told.append((label, text)),
                changed=self.changes.set,
                relays=open_relays(self.settings.nostr_relay, self.home / "public" / "nostr.key"),
                answer=self._answer,
                trust=lambda node: "trusted" if node in self.known else "public",
                known_private=self._private,
                pausing=lambda paused: setattr(self, "refusing", paused),
            )
        )

    def _private(self) -> Collection[bytes]:
        return self.private

    async def _answer(self, request: TunnelRequest, reply: TunnelReply) -> None:
        self.requests.append(request)
        await reply.head(400 if request.body == b"{}" and self.status == 200 else self.status, [])
        await reply.body(self.settings.name.encode() if self.settings.name else b"")
        await reply.finish()

    def serve(self, *models: Offer) -> None:
        self.models = list(models)
        self.swarm.touch()

    async def ask(self, model: str) -> bytes:
        """What the first host of a model answers."""
        (found,) = [each for each in self.swarm.hosts([]) if each.id == model]
        connect = found.hosts[0].connect
        assert connect is not None
        exchange = await Exchange.send(connect, "POST", PATH, api_key="", body=b"hi", content_type="text/plain")
        try:
            return await exchange.read_all(1 << 20)
        finally:
            exchange.close()

    @property
    def facts(self) -> dict[str, Any]:
        return self.swarm.facts() or {}

    @property
    def state(self) -> str:
        return str(self.facts.get("state"))

    def sees(self, other: Stranger) -> Member | None:
        mesh = self.swarm.mesh
        return None if mesh is None else mesh.members().members.get(other.node)

    def meets(self, other: Stranger) -> bool:
        """Whether the other is an alive member that is linked."""
        member = self.sees(other)
        return member is not None and member.state == "alive" and member.linked

    def hosts(self) -> dict[str, list[str]]:
        """Models and the radius of each host."""
        return {model.id: [host.radius for host in model.hosts] for model in self.swarm.hosts([])}

    async def until(self, condition: Callable[[], object], limit_s: float = PATIENCE_S) -> float:
        """Wait until `condition` holds; how long that took, in seconds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(limit_s):
            while not condition():
                self.changes.clear()
                try:
                    await asyncio.wait_for(self.changes.wait(), 0.02)
                except TimeoutError:
                    continue
        return loop.time() - began


@asynccontextmanager
async def stranger(
    home: Path, relays: tuple[str, ...] = (NOBODY,), *models: Offer, known: Collection[bytes] = (), **settings: Any
) -> AsyncIterator[Stranger]:
    """A node that is started, and stopped at the end."""
    found = Stranger(home, relays, **settings)
    found.models = list(models)
    found.known = set(known)
    try:
        await found.swarm.start()
        yield found
    finally:
        await found.swarm.stop(now=True)
