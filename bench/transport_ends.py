"""The two ends of a connection in processes of their own, for bench.transport: aioquic's asyncio API, or ours.

    python -m bench.transport_ends serve WAY DATAGRAM_BYTES CPU
    python -m bench.transport_ends dial WAY DATAGRAM_BYTES CPU PORT NODE

The server prints one line, {"port": ..., "node": ...}, and serves until its stdin ends. The client then reads jobs
from stdin, one JSON object a line, and answers each with one line. `Ends` is how a benchmark holds both.

WAY is `stock` (serve and connect of aioquic.asyncio), `tuned` (our endpoint over aioquic's own connection class) or
`fast` (our endpoint as it is); see bench/transport_ways.py. Both processes are pinned, each to a processor of its own
where there are two.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import psutil

from bench.transport_ways import Attack, Flow, OpenFlow, dial_ours, dial_stock, serve_ours, serve_stock

READ_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16

# The first nine bytes of a stream say what its server is to do: a kind, and a number that the kind explains.
SINK, ECHO, IDLE, STOPPED, MEMORY = b"s", b"e", b"i", b"t", b"m"


# --- what streams do ------------------------------------------------------------------------------------------


async def serve_flow(flow: Flow) -> None:
    """The server's part of a stream."""
    order = await flow.read_exactly(9)
    kind, number = order[:1], int.from_bytes(order[1:], "big")
    if kind == ECHO:
        await _echo(flow, number)
    elif kind == MEMORY:
        gc.collect()
        flow.write(psutil.Process().memory_info().rss.to_bytes(8, "big"))
    else:
        if kind == STOPPED:
            await asyncio.sleep(number / 1000)
        count = 0
        while data := await flow.read(READ_BYTES):
            count += len(data)
        flow.write(count.to_bytes(8, "big"))
    flow.write_eof()


async def _echo(flow: Flow, size: int) -> None:
    try:
        while True:
            flow.write(await flow.read_exactly(size))
    except asyncio.IncompleteReadError:
        return


class Client:
    """The client's jobs. `open_flow` opens a stream; `attack` overruns the server's reassembly with few bytes."""

    def __init__(self, open_flow: OpenFlow, attack: Attack) -> None:
        self._open_flow = open_flow
        self.attack = attack
        self._idle: list[Flow] = []

    async def _begin(self, kind: bytes, number: int = 0) -> Flow:
        flow = await self._open_flow()
        flow.write(kind + number.to_bytes(8, "big"))
        return flow

    async def bulk(self, size: int) -> dict[str, Any]:
        """Send `size` bytes on one stream; the time until the server says that it has them all."""
        chunk = os.urandom(CHUNK_BYTES)
        flow = await self._begin(SINK)
        began_at, used_at = time.perf_counter(), time.process_time()
        left = size
        while left > 0:
            flow.write(chunk[:left] if left < CHUNK_BYTES else chunk)
            left -= CHUNK_BYTES
            await flow.drain()
        flow.write_eof()
        count = int.from_bytes(await flow.read_exactly(8), "big")
        wall_s = time.perf_counter() - began_at
        if count != size:
            raise RuntimeError(f"{count} of {size} bytes arrived")
        return {"wall_s": wall_s, "processor_s": time.process_time() - used_at}

    async def ping(self, size: int, count: int, limit_s: float = 60.0) -> dict[str, Any]:
        """Send `size` bytes and wait for them to come back, again and again. The first tenth is warm-up."""
        message = os.urandom(size)
        flow = await self._begin(ECHO, size)
        trips_s = []
        ends_at = time.perf_counter() + limit_s
        for _ in range(count):
            began_at = time.perf_counter()
            flow.write(message)
            answer = await flow.read_exactly(size)
            trips_s.append(time.perf_counter() - began_at)
            if answer != message:
                raise RuntimeError("other bytes came back")
            if time.perf_counter() > ends_at:
                break
        flow.write_eof()
        await flow.read(1)
        return {"trips_s": trips_s[len(trips_s) // 10 :]}

    async def idle(self, count: int) -> dict[str, Any]:
        """Leave so many streams open, on which nothing happens."""
        self._idle += [await self._begin(IDLE) for _ in range(count)]
        return {}

    async def busy(self) -> dict[str, Any]:
        """End the idle streams."""
        for flow in self._idle:
            flow.write_eof()
            await flow.read_exactly(8)
        self._idle.clear()
        return {}

    async def memory(self) -> dict[str, Any]:
        """Resident bytes of both ends."""
        flow = await self._begin(MEMORY)
        server = int.from_bytes(await flow.read_exactly(8), "big")
        gc.collect()
        return {"server": server, "client": psutil.Process().memory_info().rss}

    async def stopped(self, stop_s: float, size: int, count: int) -> dict[str, Any]:
        """Send to a reader that does not read for `stop_s`; meanwhile round trips on another stream, and memory."""
        before = await self.memory()
        flow = await self._begin(STOPPED, int(stop_s * 1000))
        ends_at = time.perf_counter() + stop_s - 0.5
        sender = asyncio.create_task(self._fill(flow, size))
        await asyncio.sleep(min(1.0, stop_s / 4))
        trips_s = (await self.ping(64, count, stop_s / 4))["trips_s"]
        await asyncio.sleep(max(ends_at - time.perf_counter(), 0))
        after = await self.memory()
        accepted = await sender
        count_read = int.from_bytes(await flow.read_exactly(8), "big")
        if count_read != size:
            raise RuntimeError(f"{count_read} of {size} bytes arrived")
        growth = {name: after[name] - before[name] for name in before}
        return {"growth": growth, "trips_s": trips_s, "accepted": accepted}

    async def _fill(self, flow: Flow, size: int) -> int:
        chunk, written = os.urandom(CHUNK_BYTES), 0
        while written < size:
            flow.write(chunk)
            written += len(chunk)
            await flow.drain()
        flow.write_eof()
        return written


# --- processes ------------------------------------------------------------------------------------------------


def pin(cpu: int) -> None:
    """Run on one processor only, where there is a choice."""
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[cpu % len(usable)]})


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def run_server(way: str, datagram_bytes: int) -> None:
    """Serve until stdin ends."""
    lines = await _lines()
    if way == "stock":
        place = await serve_stock(datagram_bytes, serve_flow)
    else:
        place = await serve_ours(way, datagram_bytes, serve_flow)
    print(json.dumps({"port": place["port"], "node": place["node"]}), flush=True)
    await lines.read()


async def run_client(way: str, datagram_bytes: int, port: int, node: str) -> None:
    """Do jobs until stdin ends."""
    lines = await _lines()

    async def use(open_flow: OpenFlow, attack: Attack) -> None:
        client = Client(open_flow, attack)
        print("{}", flush=True)
        while line := await lines.readline():
            job = json.loads(line)
            try:
                outcome = await getattr(client, job.pop("job"))(**job)
            except Exception as error:
                outcome = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(outcome), flush=True)

    if way == "stock":
        await dial_stock(datagram_bytes, port, use)
    else:
        await dial_ours(way, datagram_bytes, port, node, use)


@dataclass
class Ends:
    """A server and a client of one way, in processes that are there until the `with` block ends."""

    way: str
    datagram_bytes: int
    route: Callable[[int], int] = field(default=lambda port: port)
    """Given the server's port, the port to dial."""

    def __enter__(self) -> Self:
        self._server = self._start("serve", "1")
        place = self._answer(self._server)
        self._client = self._start("dial", "0", str(self.route(place["port"])), place["node"])
        self._answer(self._client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._client, self._server):
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    def run(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Let the client do a job. Raises RuntimeError when it could not."""
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
        self._client.stdin.flush()
        return self._answer(self._client)

    def _start(self, role: str, cpu: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench.transport_ends", role, self.way, str(self.datagram_bytes), cpu, *more]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.way} process has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.way}: {answer['error']}")
        return answer


def main(arguments: list[str]) -> None:
    """The command line of the processes."""
    role, way, datagram_bytes, cpu, *more = arguments
    pin(int(cpu))
    if role == "serve":
        asyncio.run(run_server(way, int(datagram_bytes)))
    else:
        asyncio.run(run_client(way, int(datagram_bytes), int(more[0]), more[1] if len(more) > 1 else ""))


if __name__ == "__main__":
    main(sys.argv[1:])
