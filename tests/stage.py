"""One node's part in its mesh, without an engine: real QUIC on loopback, and models that the test makes up."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from meshnode.api.gate import Gates
from meshnode.api.served import Served
from meshnode.config import Places, Settings
from meshnode.identity import load_or_create
from meshnode.meshing import Meshing
from meshnode.pool import Pool
from meshnode.serving import Serving
from meshnode.telemetry import ProblemBoard, silent
from meshnode.trust import Trust

QUIET = Settings(
    bind_host="127.0.0.1",
    bind_port=0,
    public_port=0,
    lan="off",
    port_map="off",
    nostr_relay=("ws://127.0.0.1:9",),
    sources={"bind_port": "test"},
)


class FakeServing(Serving):
    """Serves whatever the test says, without an engine."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.models: list[Served] = []

    def served(self) -> list[Served]:
        return self.models

    def entries(self) -> list[dict[str, Any]]:
        return []


async def nowhere() -> Any:
    raise ConnectionError


async def refuse(*_: object) -> None:
    raise AssertionError("no request was expected")


class Stage:
    """One node's Meshing and what surrounds it."""

    def __init__(self, home: Path, **settings: Any) -> None:
        places = Places(home, home / "cache", home / "config.toml")
        problems = ProblemBoard()
        gates = Gates(capacity=1, timeout_s=1)
        self.told: list[tuple[str, str]] = []

        def tell(label: str, text: str) -> None:
            self.told.append((label, text))

        chosen = dataclasses.replace(QUIET, **settings)
        self.serving = FakeServing(
            settings=chosen,
            places=places,
            problems=problems,
            gates=gates,
            report=silent,
            tell=tell,
            changed=lambda: None,
        )
        identity = load_or_create(home / "node.key")
        self.node = bytes(identity.node_id)
        self.pool = Pool(
            settings=chosen,
            places=places,
            node=self.node,
            name=home.name,
            serving=self.serving,
            tell=tell,
            changed=lambda: self.meshing.touch(),
            mesh=lambda: self.meshing.mesh,
            snapshot=lambda: self.meshing.snapshot(),
            wishes=lambda: self.meshing.demand.wishes(time.monotonic()),
            offers=lambda: self.meshing.offers(),
        )
        self.meshing = Meshing(
            settings=chosen,
            places=places,
            identity=identity,
            serving=self.serving,
            problems=problems,
            tell=tell,
            changed=self.pool.mesh_changed,
            handlers=self.pool.handlers,
            has=self.pool.has,
            trust=Trust(home, self.node),
        )

    def serve(self, name: str) -> None:
        self.serving.models = [
            Served(name, "ready", slots=2, context_length=512, capabilities=("chat",)).here(
                nowhere, node="aa" * 32, content_hash="cc" * 16
            )
        ]
        self.meshing.touch()

    def facts(self) -> dict[str, Any]:
        facts = self.meshing.facts()
        assert facts is not None
        return facts


@asynccontextmanager
async def running(home: Path, **settings: Any) -> AsyncIterator[Stage]:
    stage = Stage(home, **settings)
    try:
        await stage.pool.start()
        await stage.meshing.start(refuse)
        yield stage
    finally:
        await stage.pool.leave(0.0)
        await stage.meshing.stop(now=True)
        await stage.pool.stop()


async def until(true: Callable[[], bool], limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not true():
            await asyncio.sleep(0.01)


async def token_of(stage: Stage) -> str:
    token = await stage.meshing.first_invite()
    assert token is not None
    return token
