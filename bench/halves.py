"""What it costs a model's answers that the activations between two machines of a split travel as f16.

    python -m bench.halves [MODEL] [--layers 12] [--tokens 200]

Host and two workers in one process, on loopback, with the real engine: a text is read token by token once with whole
activations and once with halves. The text is the model's own (sampled at temperature 0.8, seeded, by the engine alone),
so that it is one the model knows. Prints one JSON object: the perplexity of both, by how much the log-probability
of the true next token moved (mean and most), and how often the likeliest next token was another. MODEL is the demo
unless given. Needs an engine with the patches for tunnels.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.config import find_places
from meshnode.engine.halves import load_halves
from meshnode.engine.installed import Engine
from meshnode.engine.provision import find
from meshnode.engine.rpc_server import RpcServer, RpcServerParts
from meshnode.identity import Identity
from meshnode.models.catalog import DEMO_TARGET
from meshnode.net.address import Address
from meshnode.net.endpoint import Endpoint, EndpointOptions
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.rpc.facts import DeviceFacts, TunnelOptions, WorkerFacts
from meshnode.rpc.host_end import HostEnd
from meshnode.rpc.worker_end import WorkerEnd

HOST = "127.0.0.1"
TUNNEL, PUSH = b"\2", b"\4"
STAGES = 2
LOAD_S = 60
LEAST_LOGPROB = -20.0
PROMPT = "<|im_start|>user\nTell me about the sea, and what people do there.<|im_end|>\n<|im_start|>assistant\n"


class Streams:
    """A handler of an endpoint that hands streams to a worker's end, told apart by their first byte."""

    def __init__(self) -> None:
        self.end: WorkerEnd | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def link_up(self, link: Link) -> None: ...
    def link_down(self, link: Link, code: int, reason: str) -> None: ...
    def datagram(self, link: Link, data: bytes) -> None: ...
    def link_silent(self, link: Link, silent: bool) -> None: ...

    def stream_opened(self, stream: MeshStream) -> None:
        """Serve it."""
        task = asyncio.get_running_loop().create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: MeshStream) -> None:
        assert self.end is not None
        if await stream.read_exactly(1) == TUNNEL:
            await self.end.serve_tunnel(stream)
        else:
            await self.end.serve_push(stream, stream.link.peer)


async def opened(endpoint: Endpoint, port: int, peer: bytes, header: bytes) -> MeshStream:
    """A stream to a node on loopback."""
    link = await endpoint.dial([Address.parse(f"{HOST}:{port}")], expected=peer)  # type: ignore[arg-type]
    stream = link.open_stream()
    stream.write(header)
    return stream


async def measured(
    engine: Engine, arguments: argparse.Namespace, folder: Path, *, half: bool
) -> list[dict[int, float]]:
    """For each token of the text the log-probabilities of what may follow, over a split with or without halves."""
    halves = load_halves(engine.folder)
    assert engine.rpc_server is not None and halves is not None
    keys = [Identity(Ed25519PrivateKey.from_private_bytes(bytes([n + 1]) * 32)) for n in range(STAGES + 1)]
    places: dict[bytes, int] = {}
    servers, endpoints, ends = [], [], []
    for stage in range(STAGES):
        streams = Streams()
        endpoint = await Endpoint.open(keys[stage + 1], streams, host=HOST, options=EndpointOptions())  # type: ignore[arg-type]
        parts = RpcServerParts(
            binary=engine.rpc_server, run_dir=folder / f"{half}-{stage}", environ=os.environ, log_file=None, devices=(),
            threads=1, memory_limit_bytes=None, on_exit=lambda words: print(words, file=sys.stderr),
        )  # fmt: skip
        parts.run_dir.mkdir()
        server = RpcServer(parts)
        await server.start()

        async def push(peer: bytes, endpoint: Endpoint = endpoint) -> MeshStream:
            return await opened(endpoint, places[peer], peer, PUSH)

        facts = WorkerFacts(
            server.facts.hello,
            tuple(DeviceFacts(d.alignment, d.max_size, d.free_bytes, d.total_bytes) for d in server.facts.devices),
        )
        streams.end = WorkerEnd(
            port=server.port, facts=facts, workers=[key.node_id for key in keys[1:]], stage=stage, limit_bytes=1 << 40,
            references=None, open_push=push, working=lambda: True, to_half=halves.to_half, from_half=halves.from_half,
            failed=lambda words: print(words, file=sys.stderr),
        )  # fmt: skip
        places[keys[stage + 1].node_id] = endpoint.address.port
        servers.append(server)
        endpoints.append(endpoint)
        ends.append(streams.end)
    host = await Endpoint.open(keys[0], Streams(), host=HOST, options=EndpointOptions())  # type: ignore[arg-type]
    tunnels: list[HostEnd] = []
    route: dict[int, int] = {}
    for stage in range(STAGES):
        peer = keys[stage + 1].node_id
        tunnel = await HostEnd.open(
            facts=ends[stage].facts, connect=partial(opened, host, places[peer], peer, TUNNEL), route=route.get,
            options=TunnelOptions(stage=stage, stages=STAGES, push="patched", worker_has_weights=False, half=half),
            references=None, lost=lambda words: print("lost:", words, file=sys.stderr),
        )  # fmt: skip
        route[tunnel.port] = stage
        tunnels.append(tunnel)
    try:
        ports = [tunnel.port for tunnel in tunnels]
        return await asyncio.to_thread(read_text, engine, arguments, ports)
    finally:
        for tunnel in tunnels:
            await tunnel.close()
        for end, server, endpoint in zip(ends, servers, endpoints, strict=True):
            await end.close()
            await server.stop()
            await endpoint.close()
        await host.close()


def call(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request to llama-server."""
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", json.dumps(body).encode(), timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def llama_server(engine: Engine, model: str, *options: str) -> Iterator[int]:
    """A llama-server on a port of loopback, as soon as it can answer."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    argv = [str(engine.server), "-m", model, "--host", HOST, "--port", str(port), "-c", "2048", "-np", "1", "-t", "1"]
    argv += ["--no-ui", "-fit", "off", "-fa", "on", "-cram", "0", *options]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "GGML_RPC_TUNNEL_PUSH": "1"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + LOAD_S
            while True:
                with suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"llama-server did not come up (exit code {process.poll()})")
                time.sleep(0.02)
            yield port
        finally:
            process.kill()


def own_text(engine: Engine, arguments: argparse.Namespace) -> tuple[list[int], int]:
    """Tokens of a prompt with what the model makes of it, and how many are the prompt's."""
    with llama_server(engine, arguments.model) as port:
        prompt = call(port, "/tokenize", {"content": PROMPT, "add_special": True, "parse_special": True})["tokens"]
        wish = {"prompt": prompt, "n_predict": arguments.tokens, "temperature": 0.8, "seed": 1, "return_tokens": True}
        return prompt + call(port, "/completion", {**wish, "ignore_eos": True})["tokens"], len(prompt)


def read_text(engine: Engine, arguments: argparse.Namespace, ports: list[int]) -> list[dict[int, float]]:
    """Start llama-server over these tunnels, and ask after each token of the text what follows; -1 is what does."""
    units = arguments.layers + 1
    split = ["-ngl", str(units), "-ts", f"{units // 2},{units - units // 2}"]
    tokens, begin = arguments.text
    with llama_server(engine, arguments.model, "--rpc", ",".join(f"{HOST}:{port}" for port in ports), *split) as port:
        found = []
        for count in range(begin, len(tokens)):
            wish = {"prompt": tokens[:count], "n_predict": 1, "temperature": 0, "n_probs": 4096, "cache_prompt": True}
            first = call(port, "/completion", wish)["completion_probabilities"][0]
            likely = {int(each["id"]): float(each["logprob"]) for each in first["top_logprobs"]}
            likely[-1] = likely.get(tokens[count], LEAST_LOGPROB)
            found.append(likely)
        return found


def compared(whole: list[dict[int, float]], half: list[dict[int, float]]) -> dict[str, float]:
    """What became of the log-probabilities; -1 is the token that followed."""
    moved = [abs(a[-1] - b[-1]) for a, b in zip(whole, half, strict=True)]
    tops = [[max((key for key in row if key >= 0), key=row.__getitem__) for row in rows] for rows in (whole, half)]
    return {
        "tokens": len(whole),
        "perplexity": round(math.exp(-sum(row[-1] for row in whole) / len(whole)), 5),
        "perplexity_half": round(math.exp(-sum(row[-1] for row in half) / len(half)), 5),
        "logprob_moved_mean": round(sum(moved) / len(moved), 6),
        "logprob_moved_most": round(max(moved), 6),
        "other_first_token": sum(a != b for a, b in zip(*tops, strict=True)),
    }


def sha256_of(model: str) -> str:
    """The first 16 digits."""
    return hashlib.sha256(Path(model).read_bytes()).hexdigest()[:16]


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(DEMO_TARGET))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    engine = find(find_places().cache)
    if engine is None:
        raise SystemExit("build the engine first: meshnode engine build")
    arguments.text = own_text(engine, arguments)
    with tempfile.TemporaryDirectory() as folder:
        whole, half = (asyncio.run(measured(engine, arguments, Path(folder), half=each)) for each in (False, True))
    names = {"model": Path(arguments.model).name, "sha256": sha256_of(arguments.model)}
    print(json.dumps(names | compared(whole, half)))


if __name__ == "__main__":
    main()
