"""What RPC tunnels between nodes cost and bring, measured by hand with the real engine on this machine.

    python -m bench.rpc_cost MODEL --engine FOLDER [--k 2] [--delay-ms 20] [--push patched|placeholder|off] [--compress]
                             [--send] [--prompt 16] [--tokens 64] [--plain]

Each worker is a process of its own with an rpc-server beside it; links are QUIC, late by `--delay-ms` one way if that
is given. `--plain` measures llama.cpp's own RPC over plain TCP, without nodes. `--send` sends all weights, and prints
what a megabyte costs. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.lossy_line import LossyLine
from meshnode.identity import Identity
from meshnode.models.references import References
from meshnode.net.address import Address
from meshnode.net.endpoint import Endpoint, EndpointOptions
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.rpc.facts import DeviceFacts, TunnelOptions, WorkerFacts
from meshnode.rpc.host_end import HostEnd
from meshnode.rpc.worker_end import WorkerEnd

HOST = "127.0.0.1"
TUNNEL, PUSH = b"\2", b"\4"
LOAD_LIMIT_S = 120


def identity(number: int) -> Identity:
    """The same key for the same number."""
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32))


class Streams:
    """A handler of an endpoint that passes streams on to `serve`."""

    def __init__(self, serve: Callable[[MeshStream], Awaitable[None]] | None = None) -> None:
        self.serve = serve
        self.tasks: set[asyncio.Task[None]] = set()

    def link_up(self, link: Link) -> None:
        """Not of interest."""

    def link_down(self, link: Link, code: int, reason: str) -> None:
        """Not of interest."""

    def datagram(self, link: Link, data: bytes) -> None:
        """Not of interest."""

    def link_silent(self, link: Link, silent: bool) -> None:
        """Not of interest."""

    def stream_opened(self, stream: MeshStream) -> None:
        """Serve it."""
        assert self.serve is not None
        task = asyncio.get_running_loop().create_task(self.serve(stream))  # type: ignore[arg-type]
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def free_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port


def ask_facts(port: int) -> WorkerFacts:
    """Ask an rpc-server for what a worker's node would know of it."""
    with socket.create_connection((HOST, port)) as connection:

        def ask(command: int, payload: bytes) -> bytes:
            connection.sendall(bytes([command]) + len(payload).to_bytes(8, "little") + payload)
            size = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little")
            return connection.recv(size, socket.MSG_WAITALL)

        def number(data: bytes) -> int:
            return int.from_bytes(data, "little")

        hello = ask(14, bytes(24))
        devices = []
        for each in range(number(ask(15, b""))):
            device = each.to_bytes(4, "little")
            memory = ask(11, device)
            devices.append(
                DeviceFacts(number(ask(1, device)), number(ask(2, device)), number(memory[:8]), number(memory[8:]))
            )
    return WorkerFacts(hello, tuple(devices))


async def worker(number: int, rpc_port: int, model: str, sha256: str, stages: int) -> None:
    """One worker's node: prints its port, reads where the others are from stdin, and serves."""
    loop = asyncio.get_running_loop()
    references = References.open(bytes.fromhex(sha256), Path(model)) if model else None
    ids = [identity(each + 1).node_id for each in range(stages)]
    places: dict[bytes, int] = {}
    streams = Streams()
    endpoint = await Endpoint.open(identity(number + 1), streams, host=HOST, options=EndpointOptions())

    async def open_push(peer: bytes) -> MeshStream:
        link = await endpoint.dial([Address.parse(f"{HOST}:{places[peer]}")], expected=peer)  # type: ignore[arg-type]
        stream = link.open_stream()
        stream.write(PUSH)
        return stream

    end = WorkerEnd(
        port=rpc_port,
        facts=ask_facts(rpc_port),
        workers=ids,
        stage=number,
        limit_bytes=1 << 40,
        references=references,
        open_push=open_push,
        working=lambda: True,
        to_half=None,
        from_half=None,
        failed=lambda words: print(f"worker {number}: {words}", file=sys.stderr, flush=True),
    )

    async def serve(stream: MeshStream) -> None:
        if await stream.read_exactly(1) == TUNNEL:
            await end.serve_tunnel(stream)
        else:
            await end.serve_push(stream, stream.link.peer)

    streams.serve = serve
    print(json.dumps({"port": endpoint.address.port}), flush=True)
    line = await loop.run_in_executor(None, sys.stdin.readline)
    places.update({bytes.fromhex(peer): port for peer, port in json.loads(line).items()})
    if number + 1 < stages:
        await endpoint.dial([Address.parse(f"{HOST}:{places[ids[number + 1]]}")], expected=ids[number + 1])
    print("linked", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    await end.close()
    await endpoint.close()


def call(port: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to llama-server."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def drive(arguments: argparse.Namespace, servers: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Start llama-server on these rpc-servers, all layers on them, and measure."""
    port, log, k = free_port(), arguments.log, arguments.k
    share = arguments.layers + 1
    counts = [share // k + (each >= k - share % k) for each in range(k)]
    flags = f"-m {arguments.model} --host {HOST} --port {port} -c {arguments.context} -np 1 -t 1"
    command = [str(Path(arguments.engine) / "llama-server"), *flags.split()]
    command += ["--no-webui", "-fit", "off", "-fa", "on", "-cram", "0"]
    if servers:
        command += ["--rpc", ",".join(servers), "-ngl", str(share), "-ts", ",".join(map(str, counts))]
    command += arguments.extra.split()
    begun = time.monotonic()
    told = {**os.environ, "GGML_NO_BACKTRACE": "1", **environment}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=told)
    try:
        while True:
            with suppress(OSError):
                if call(port, "/health").get("status") == "ok":
                    break
            if process.poll() is not None or time.monotonic() - begun > LOAD_LIMIT_S:
                raise SystemExit(f"llama-server did not come up: {log.read_text()[-1500:]}")
            time.sleep(0.01)
        found = {"load_s": round(time.monotonic() - begun, 3)}
        before = arguments.snapshot()
        cpu_loaded = arguments.cpu(process.pid)
        call(port, "/completion", {"prompt": "hello", "n_predict": 4, "temperature": 0})
        tokens = [(each * 7) % 370 for each in range(arguments.prompt)]
        first = call(port, "/completion", {"prompt": tokens, "n_predict": 1, "temperature": 0, "cache_prompt": True})
        found["prefill_per_s"] = round(first["timings"]["prompt_per_second"], 1)
        middle = arguments.snapshot()
        cpu = arguments.cpu(process.pid)
        answer = call(
            port,
            "/completion",
            {
                "prompt": tokens,
                "n_predict": arguments.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": True,
            },
        )
        after, cpu_after = arguments.snapshot(), arguments.cpu(process.pid)
        timings = answer["timings"]
        count = timings["predicted_n"]
        found |= {
            "tokens_per_s": round(timings["predicted_per_second"], 1),
            "ms_per_token": round(timings["predicted_per_token_ms"], 2),
            "text": hashlib.sha256(answer["content"].encode()).hexdigest()[:12],
            "load": before,
            "per_token": {key: round((after[key] - middle[key]) / count, 2) for key in after},
            "prefill": {key: middle[key] - before[key] for key in after},
            "cpu_s_of_load": {
                key: round(value - arguments.begun.get(key, 0.0), 3) for key, value in cpu_loaded.items()
            },
            "cpu_ms_per_token": {key: round((cpu_after[key] - cpu[key]) * 1000 / count, 3) for key in cpu},
        }
        return found
    finally:
        process.terminate()
        process.wait()


async def tunnels(arguments: argparse.Namespace, stack: ExitStack, ports: list[int]) -> dict[str, Any]:
    """Workers, links and host ends around `drive`."""
    sha256 = hashlib.sha256(arguments.model.encode()).hexdigest()
    ids = [identity(each + 1).node_id for each in range(arguments.k)]
    processes, places = [], {}
    for each, rpc_port in enumerate(ports):
        given = arguments.model if arguments.references else ""
        command = [sys.executable, "-m", "bench.rpc_cost", "--worker", str(each), str(rpc_port), given, sha256]
        process = subprocess.Popen(
            [*command, str(arguments.k)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(lambda process=process: (process.stdin.close(), process.wait()))
        processes.append(process)
        assert process.stdout is not None
        places[ids[each]] = json.loads(process.stdout.readline())["port"]

    def through(port: int) -> int:
        if not arguments.delay_ms:
            return port
        return stack.enter_context(LossyLine(0.0, arguments.delay_ms / 1000)).route(port)

    for process in processes:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({peer.hex(): through(port) for peer, port in places.items()}) + "\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout.readline() == "linked\n"
    endpoint = await Endpoint.open(identity(0), Streams(), host=HOST, options=EndpointOptions())
    ends: list[HostEnd] = []
    route: dict[int, int] = {}
    facts = await asyncio.to_thread(lambda: [ask_facts(port) for port in ports])
    lost: list[str] = []
    for stage in range(arguments.k):
        link = await endpoint.dial([Address.parse(f"{HOST}:{through(places[ids[stage]])}")], expected=ids[stage])

        async def connect(link: Link = link) -> MeshStream:
            stream = link.open_stream()
            stream.write(TUNNEL)
            return stream

        options = TunnelOptions(
            stage=stage,
            stages=arguments.k,
            push=arguments.push,
            worker_has_weights=arguments.references,
            compress=arguments.compress,
        )
        references = References.open(bytes.fromhex(sha256), Path(arguments.model))
        end = await HostEnd.open(
            facts=facts[stage],
            connect=connect,
            route=route.get,
            options=options,
            references=references,
            lost=lambda words: (lost.append(words), print("lost:", words, file=sys.stderr)),
        )
        route[end.port] = stage
        ends.append(end)

    def snapshot() -> dict[str, int]:
        sums: dict[str, int] = {}
        for end in ends:
            for key, value in asdict(end.counters).items():
                sums[key] = sums.get(key, 0) + value
        return sums

    arguments.snapshot = snapshot
    watched = [("host", os.getpid())] + [(f"worker{each}", process.pid) for each, process in enumerate(processes)]
    watched += [(f"rpc{each}", pid) for each, pid in enumerate(arguments.rpc_pids)]

    def cpu(server: int) -> dict[str, float]:
        return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in [*watched, ("llama", server)]}

    arguments.cpu = cpu
    arguments.begun = cpu(os.getpid())
    environment = {"GGML_RPC_TUNNEL_PUSH": "1"} if arguments.push == "patched" else {}
    if arguments.references:
        environment["GGML_RPC_TUNNEL_REF"] = sha256
    try:
        servers = [f"{HOST}:{end.port}" for end in ends]
        return await asyncio.to_thread(drive, arguments, servers, environment)
    finally:
        for end in ends:
            await end.close()
        await endpoint.close()


def main() -> None:
    """Parse, start the rpc-servers, measure, print."""
    if sys.argv[1] == "--worker":
        number, rpc_port, model, sha256, stages = sys.argv[2:7]
        asyncio.run(worker(int(number), int(rpc_port), model, sha256, int(stages)))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--push", default="placeholder")
    parser.add_argument("--compress", action="store_true")
    parser.add_argument("--send", dest="references", action="store_false")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--extra", default="")
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    arguments.cpu = lambda pid: {"llama": sum(psutil.Process(pid).cpu_times()[:2])}
    arguments.snapshot = dict
    arguments.begun = {}
    with ExitStack() as stack:
        arguments.log = Path(stack.enter_context(TemporaryDirectory())) / "llama-server.log"
        ports, arguments.rpc_pids = [], []
        for _ in range(arguments.k):
            port = free_port()
            command = [
                str(Path(arguments.engine) / "ggml-rpc-server"),
                "-H",
                HOST,
                "-p",
                str(port),
                "-d",
                "CPU",
                "-t",
                "1",
            ]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, restore_signals=False
            )
            stack.callback(lambda process=process: (process.kill(), process.wait()))
            ports.append(port)
            arguments.rpc_pids.append(process.pid)
        time.sleep(0.3)
        if arguments.plain:
            servers = [f"{HOST}:{port}" for port in ports]
            result = drive(arguments, servers, {})
        else:
            result = asyncio.run(tunnels(arguments, stack, ports))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
