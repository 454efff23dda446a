"""A real node that is attacked, and what can be seen of it from outside.

The attackers live in the test's process (tests/lab/rogue_peer.py) and share nothing with the node but the wire. After
every attack the node must still count to twenty, with the engine that it had, and its memory must not have grown.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.counting import Streams, by_socket
from meshnode.identity import Identity, load
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, mesh_of
from tests.lab.rogue_peer import rogue

GROWTH_BYTES = 16 << 20
"""What one attack may leave behind in the node's resident memory."""
OTHERS_WAIT_AT_MOST_S = 5.0
CHAT = "/v1/chat/completions"


class Victim:
    """A real node that serves the demo, and what can be seen of it from outside."""

    def __init__(self, node: NodeProcess) -> None:
        self.node = node
        self.token = self.invite(uses=1000)

    @property
    def identity(self) -> Identity:
        """The key in its home, to sign what only the node could sign."""
        return load(self.node.home / "node.key")

    def control(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A call of the control API, as the commands make it."""
        token = json.loads((self.node.home / "runtime.json").read_text())["token"]
        headers = {"x-meshnode-token": token, "content-type": "application/json"}
        asked = urllib.request.Request(f"{self.node.console_url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return dict(json.load(answer))

    def invite(self, role: str = "member", ttl_s: int = 600, uses: int = 1) -> str:
        made = self.control("/api/invite", {"role": role, "ttl_s": ttl_s, "uses": uses, "may_invite": False})
        return str(made["token"])

    def counter(self, name: str) -> int:
        return int(mesh_of(self.node)["counters"].get(name, 0))

    async def until_counted(self, name: str, least: int) -> None:
        await until(lambda: self.counter(name) >= least)

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.node.process.pid).memory_info().rss)

    def answers(self) -> None:
        """It counts to twenty, soon enough."""
        begun = time.monotonic()
        with Streams(by_socket(self.node.base_url), [("demo", 20)]) as streams:
            pass
        assert streams.faults() == [] and time.monotonic() - begun < OTHERS_WAIT_AT_MOST_S

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.node.console_url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


@contextmanager
def a_victim(start: StartNode, folder: Path) -> Iterator[Victim]:
    """A new node. It is warm: what is loaded at the first use is loaded."""
    victim = Victim(start("--model", "demo", environment=SMALL))
    asyncio.run(_be_nice(victim, folder))
    victim.answers()
    yield victim
    victim.node.end()


@contextmanager
def unharmed(victim: Victim) -> Iterator[Victim]:
    """What must be true after every attack is asked at the end of the block."""
    before, engine = victim.resident_bytes(), victim.node.engine_pids()
    yield victim
    victim.answers()
    assert victim.node.engine_pids() == engine
    assert victim.node.status()["problems"] == []
    grown = victim.resident_bytes() - before
    assert grown < GROWTH_BYTES, f"{grown / 1e6:.1f} MB more"


async def _be_nice(victim: Victim, folder: Path) -> None:
    async with rogue(folder) as peer:
        await peer.join(victim.token)
        await peer.ask(request(CHAT, chat(20)))


async def until(check: Callable[[], object], within_s: float = 5.0) -> None:
    """As `eventually`, while the peers of this process go on."""
    deadline = time.monotonic() + within_s
    while not await asyncio.to_thread(check):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.02)


def chat(last: int, **changes: Any) -> bytes:
    return json.dumps(
        {"model": "demo", "messages": [{"role": "user", "content": f"count from 1 to {last}"}], **changes}
    ).encode()


def request(path: str, body: bytes, *, method: str = "POST", host: str = "llama-server", more: str = "") -> bytes:
    """A request as a gateway writes it, with `more` lines in its head."""
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{more}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body
