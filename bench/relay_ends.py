"""Two nodes and a relay between them, in processes of their own or in one, for bench.relay.

    python -m bench.relay_ends relay CPU
    python -m bench.relay_ends serve CPU RELAY_PORT RELAY_NODE
    python -m bench.relay_ends dial CPU RELAY_PORT RELAY_NODE WAY SERVER_PORT SERVER_NODE

Each prints a line of JSON when it is ready and goes on until its stdin ends; the client reads jobs from there, as those
of bench.transport do. WAY is `direct` or `relayed`. A relay carries a flow between the first peer that has linked to it
and each later one; the id of a flow is the beginning of the later peer's node id.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from bench.transport_ends import Client, pin, serve_flow
from bench.transport_ways import HOST, Flow, Streams, open_ours
from meshnode.identity import NodeId
from meshnode.net.address import Address
from meshnode.net.endpoint import Endpoint
from meshnode.net.link import Link
from meshnode.wire.traversal import FLOW_BYTES

DATAGRAM_BYTES = 1452
QUOTA_BYTES_PER_S = 1e10
LIMIT_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes about. Raises TimeoutError."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.002)


class Relay(Streams):
    """The handler of a node that relays for whoever comes."""

    endpoint: Endpoint

    def __init__(self) -> None:
        super().__init__(None)
        self.links: list[Link] = []

    def link_up(self, link: Link) -> None:
        """The first is the server; each later one is connected with it."""
        self.links.append(link)
        if len(self.links) > 1:
            quota = {"bytes_per_s": QUOTA_BYTES_PER_S, "burst_bytes": 1 << 30}
            self.endpoint.forwarder.open(link.peer[:FLOW_BYTES], self.links[0], link, **quota)


async def open_relay() -> Endpoint:
    """An endpoint that relays."""
    endpoint = await open_ours("fast", 16384)
    relay = Relay()
    relay.endpoint = endpoint
    endpoint._handler = relay
    return endpoint


async def reach(endpoint: Endpoint, place: dict[str, Any]) -> Link:
    """A direct link."""
    return await endpoint.dial([Address(HOST, place["port"])], expected=NodeId(bytes.fromhex(place["node"])))


def place_of(endpoint: Endpoint) -> dict[str, Any]:
    """Where an endpoint is."""
    return {"port": endpoint.address.port, "node": endpoint.node_id.hex()}


def expect(server: Endpoint, relay: Link, client: NodeId) -> None:
    """Open the server's end of the flow of a client."""
    server.open_flow(client[:FLOW_BYTES], relay)


async def reach_through(endpoint: Endpoint, relay: Link, server: NodeId) -> Link:
    """A link over the flow that the relay carries for this node."""
    way = endpoint.open_flow(endpoint.node_id[:FLOW_BYTES], relay)
    return await endpoint.dial([way], expected=server)


async def settle(link: Link) -> None:
    """Wait until the size of datagrams is found."""
    most = DATAGRAM_BYTES - (9 if link.path == "relayed" else 0)
    await until(lambda: link.datagram_bytes == most)


def opener(link: Link) -> Callable[[], Awaitable[Flow]]:
    """What opens streams on a link."""

    async def open_flow() -> Flow:
        return link.open_stream()

    return open_flow


async def no_attack() -> dict[str, Any]:
    """There is none here."""
    return {}


# --- processes ------------------------------------------------------------------------------------------------


def say(**facts: Any) -> None:
    """One line for whoever has started this."""
    print(json.dumps(facts), flush=True)


async def run_relay(lines: asyncio.StreamReader) -> None:
    """Relay until stdin ends."""
    endpoint = await open_relay()
    say(**place_of(endpoint))
    await lines.read()
    await endpoint.close()


async def run_server(lines: asyncio.StreamReader, relay: dict[str, Any]) -> None:
    """Serve until stdin ends; each line of it names a client that will come through the relay."""
    endpoint = await open_ours("fast", DATAGRAM_BYTES, serve_flow)
    to_relay = await reach(endpoint, relay)
    say(**place_of(endpoint))
    while line := await lines.readline():
        expect(endpoint, to_relay, NodeId(bytes.fromhex(json.loads(line)["node"])))
        say()
    await endpoint.close()


async def run_client(lines: asyncio.StreamReader, relay: dict[str, Any], way: str, place: dict[str, Any]) -> None:
    """Do jobs until stdin ends. On the relayed way the first line says that the server expects this client."""
    endpoint = await open_ours("fast", DATAGRAM_BYTES)
    to_relay = await reach(endpoint, relay)
    say(**place_of(endpoint))
    await lines.readline()
    server = NodeId(bytes.fromhex(place["node"]))
    link = await (reach_through(endpoint, to_relay, server) if way == "relayed" else reach(endpoint, place))
    await settle(link)
    client = Client(opener(link), no_attack)
    say()
    while line := await lines.readline():
        job = json.loads(line)
        try:
            outcome = await getattr(client, job.pop("job"))(**job)
        except Exception as error:
            outcome = {"error": f"{type(error).__name__}: {error}"}
        say(**outcome)
    await endpoint.close()


class Process:
    """One of them, with its place. Every line it is told is answered with one."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "bench.relay_ends", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.place = self._answer()

    def run(self, **line: Any) -> dict[str, Any]:
        """Tell it something. Raises RuntimeError when it could not do it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Three:
    """Server, relay and clients in processes of their own until the `with` block ends."""

    def __enter__(self) -> Self:
        self._processes: list[Process] = []
        self._relay = self._start("relay", "1")
        self._server = self._start("serve", "1", *self._named(self._relay))
        self.clients = {way: self._client(way) for way in ("direct", "relayed")}
        return self

    def _start(self, *arguments: str) -> Process:
        self._processes.append(Process(*arguments))
        return self._processes[-1]

    def _named(self, process: Process) -> tuple[str, str]:
        return str(process.place["port"]), process.place["node"]

    def _client(self, way: str) -> Process:
        client = self._start("dial", "0", *self._named(self._relay), way, *self._named(self._server))
        if way == "relayed":
            self._server.run(node=client.place["node"])
        client.run()
        return client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.close()


async def _main(role: str, *more: str) -> None:
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    if role == "relay":
        await run_relay(lines)
        return
    relay = {"port": int(more[0]), "node": more[1]}
    if role == "serve":
        await run_server(lines, relay)
    else:
        await run_client(lines, relay, more[2], {"port": int(more[3]), "node": more[4]})


if __name__ == "__main__":
    pin(int(sys.argv[2]))
    asyncio.run(_main(sys.argv[1], *sys.argv[3:]))
