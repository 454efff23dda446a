"""The public swarm: from `meshnode --auto` to a token, two meshes of one name, the death of a publisher.

    python -m bench.swarm [--quick] [--only auto|merge|takeover]

Real nodes on loopback and a Nostr relay in this process: nothing is asked on the internet. The engine must have been
built already (`meshnode engine build`).
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from bench.figures import quantile
from bench.node import BenchNode
from bench.record import Figure, Run
from meshnode.core.publishing import PUBLISHERS
from meshnode.discovering import open_relays
from meshnode.wire.open_meshes import open_mesh_id

ASK = {"model": "demo", "messages": [{"role": "user", "content": "count from 1 to 3"}], "stream": True}
HEADERS = {"content-type": "application/json", "x-meshnode-radius": "public"}
LIMIT_S = 120.0
LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each part is repeated."""

    autos: int = 20
    merges: int = 5
    takeovers: int = 2


QUICK = Effort(autos=3, merges=1, takeovers=1)


@contextmanager
def relay() -> Iterator[str]:
    """The URL of a relay in a thread of this process."""
    ready, over = threading.Event(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        from nostr_sdk import LocalRelayBuilder, RateLimit

        limit = RateLimit(max_reqs=500, notes_per_minute=6000)
        running = LocalRelayBuilder().addr("127.0.0.1").rate_limit(limit).build()
        await running.run()
        found.append(str(await running.url()).rstrip("/"))
        ready.set()
        await asyncio.to_thread(over.wait)
        running.shutdown()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="nostr relay")
    thread.start()
    try:
        if not ready.wait(10):
            raise RuntimeError("the relay did not start")
        yield found[0]
    finally:
        over.set()
        thread.join(10)


def node(model: str | None, url: str, *options: str) -> BenchNode:
    """A node that knows this relay alone, and no network but loopback."""
    environment = {
        "MESHNODE_PUBLIC_PORT": "0",
        "MESHNODE_PORT_MAP": "off",
        "MESHNODE_NOSTR_RELAY": url,
        "MESHNODE_THREADS": "1",
        "MESHNODE_CTX_SIZE": "1024",
    }
    return BenchNode(model, *options, environment=environment)


def waited_s(true: Callable[[], object], pause_s: float = 0.05) -> float:
    """How long it takes until something is true. Raises RuntimeError when it takes too long."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > LIMIT_S:
            raise RuntimeError(f"nothing after {LIMIT_S:.0f} s")
        time.sleep(pause_s)
    return time.monotonic() - begun


def first_token(api: str) -> bool:
    """Whether a streamed answer of the demo has begun."""
    target = urlsplit(api)
    with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(ASK), HEADERS)
        answer = connection.getresponse()
        if answer.status != 200:
            return False
        while line := answer.readline():
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return True
    return False


def is_listed(found: BenchNode) -> bool:
    """Whether the node has its mesh on the relay, with its model."""
    swarm = found.status()["swarm"]
    return bool(swarm and swarm["listing"])


def auto(run: Run, effort: Effort) -> None:
    """From the command to the first token of a mesh that is there, without anything saved."""
    with relay() as url, node("demo", url, "--publish") as publisher:
        waited_s(lambda: is_listed(publisher))
        time.sleep(2)
        ready, tokens = [], []
        for _ in range(effort.autos):
            begun = time.monotonic()
            with node(None, url, "--client", "--auto") as found:
                ready.append(found.ready_s)
                waited_s(lambda found=found: first_token(found.ready["api"]), 0.02)  # type: ignore[misc]
                tokens.append(time.monotonic() - begun)
    note = f"of {len(tokens)} starts; the node itself was ready after {quantile(ready, 0.5):.2f} s (median)"
    run.add(Figure("--auto: first token, median", quantile(tokens, 0.5), "s", note=note))
    run.add(Figure("--auto: first token, p95", quantile(tokens, 0.95), "s", 3, high=max(tokens), note=note))


def merge(run: Run, effort: Effort) -> None:
    """Two nodes that begin a mesh of one name at the same time, each alone."""
    took = []
    for _ in range(effort.merges):
        with (
            relay() as url,
            node(None, url, "--mesh-name", "one") as first,
            node(None, url, "--mesh-name", "one") as second,
        ):
            took.append(
                waited_s(lambda pair=(first, second): all(each.status()["swarm"]["peers"] for each in pair))  # type: ignore[misc]
            )
    note = f"of {len(took)}, from when the second one was ready"
    run.add(Figure("two meshes of one name are one, longest", max(took), "s", 60, low=min(took), note=note))


def takeover(run: Run, effort: Effort) -> None:
    """Of seven nodes five list the mesh; one of these is killed, and another one steps in."""
    took = []
    mesh = open_mesh_id("one")
    for _ in range(effort.takeovers):
        with ExitStack() as stack, TemporaryDirectory() as folder:
            url = stack.enter_context(relay())
            nodes = [stack.enter_context(node(None, url, "--mesh-name", "one")) for _ in range(PUBLISHERS + 2)]

            def publishers(url: str = url, folder: str = folder) -> set[bytes]:
                relays = open_relays((url,), Path(folder) / "key")
                return {each.node for each in asyncio.run(relays.fetch(mesh=mesh)).listings}

            def settled(nodes: list[BenchNode] = nodes) -> bool:
                known = [each.status()["swarm"] for each in nodes]
                acquainted = all(len(swarm["peers"]) == len(nodes) - 1 for swarm in known)
                return acquainted and sum(swarm["publisher"] for swarm in known) == PUBLISHERS

            waited_s(settled, LOOK_S)
            waited_s(lambda publishers=publishers: len(publishers()) == PUBLISHERS, LOOK_S)  # type: ignore[misc]
            before = publishers()
            victim = next(each for each in nodes if bytes.fromhex(each.status()["node"]["id"]) in before)
            victim.process.kill()
            took.append(waited_s(lambda p=publishers, b=before: p() - b, LOOK_S))  # type: ignore[misc]
    note = f"of {len(took)}, from kill -9 to the listing of another node"
    run.add(Figure("a publisher is replaced, longest", max(took), "s", 90, low=min(took), note=note))


PARTS = {"auto": auto, "merge": merge, "takeover": takeover}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few repetitions; nothing is saved")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    run, effort = Run("swarm", quick=options.quick), QUICK if options.quick else Effort()
    for name, part in PARTS.items():
        if options.only in (None, name):
            part(run, effort)
    run.finish(options.out)


if __name__ == "__main__":
    main()
