"""The real engine over tunnels between nodes of this process: the same text as without, and an end in time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from meshnode.engine.rpc_server import RpcServer, RpcServerParts
from meshnode.models.catalog import DEMO_TARGET
from meshnode.models.references import References
from meshnode.rpc.facts import DeviceFacts, TunnelOptions, WorkerFacts
from tests.rpc.tunnels import SHA256, Plan, plan

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
START_LIMIT_S = 60.0
PROMPT = "Once upon a time there was a mesh of machines, and each of them"


class Engine:
    """A llama-server that answers."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self._port = port

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    async def ready(self) -> None:
        """Wait until it is up."""
        begun = monotonic()
        while monotonic() - begun < START_LIMIT_S and self.process.returncode is None:
            with suppress(OSError):
                await asyncio.to_thread(self._call, "/health")
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"llama-server did not come up: {self.process.returncode}")

    async def complete(self, tokens: int) -> str:
        """The text after PROMPT at temperature 0."""
        body = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = await asyncio.to_thread(self._call, "/completion", body)
        return str(answer["content"])


@asynccontextmanager
async def llama_server(
    engine: Path, folder: Path, servers: Sequence[int] = (), **environment: str
) -> AsyncIterator[Engine]:
    """A llama-server for the demo, its layers on these rpc-servers, the first of them here."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    argv = [str(engine / "llama-server"), "--model", str(DEMO_TARGET), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["-c", "1024", "-np", "1", "-t", "1", "-fit", "off", "-fa", "on", "-cram", "0", "--no-webui"]
    if servers:
        ports = ",".join(f"127.0.0.1:{each}" for each in servers)
        argv += ["--rpc", ports, "-ngl", "99", "-ts", ",".join("1" for _ in servers)]
    log = (folder / f"llama-{port}.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=log, stderr=log, env={**os.environ, "GGML_NO_BACKTRACE": "1", **environment}
    )
    try:
        running = Engine(process, port)
        await running.ready()
        yield running
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        log.close()


@asynccontextmanager
async def split(
    engine: Path,
    folder: Path,
    options: TunnelOptions,
) -> AsyncIterator[tuple[Plan, list[RpcServer]]]:
    """Two real rpc-servers behind two workers."""
    servers = []
    async with AsyncExitStack() as stack:
        for number in range(2):
            run_dir = folder / f"rpc-{number}"
            run_dir.mkdir()
            parts = RpcServerParts(
                binary=engine / "ggml-rpc-server", run_dir=run_dir, environ=os.environ, on_exit=lambda _: None
            )
            server = RpcServer(parts)
            await server.start()
            stack.push_async_callback(server.stop)
            servers.append(server)
        real = [
            (
                server.port,
                WorkerFacts(
                    server.facts.hello,
                    tuple(
                        DeviceFacts(each.alignment, each.max_size, each.free_bytes, each.total_bytes)
                        for each in server.facts.devices
                    ),
                ),
                server.working,
            )
            for server in servers
        ]
        held = References.open(SHA256, DEMO_TARGET)
        made = await stack.enter_async_context(
            plan(
                2,
                options=options,
                references=held,
                host_references=held,
                real=real,
                limit_bytes=8 << 30,
            )
        )
        yield made, servers


@pytest.fixture(scope="module")
def solo_text() -> dict[Path, str]:
    """What one machine answers, by engine."""
    return {}


@pytest.mark.parametrize(
    ("push", "compress", "weights"),
    [("patched", True, True), ("patched", False, False), ("placeholder", True, True), ("off", False, True)],
)
async def test_a_split_answers_as_one_machine_does(
    engine_bin: Path, tmp_path: Path, solo_text: dict[Path, str], push: Any, compress: bool, weights: bool
) -> None:
    if engine_bin not in solo_text:
        async with llama_server(engine_bin, tmp_path) as engine:
            solo_text[engine_bin] = await engine.complete(48)
    options = TunnelOptions(stage=0, stages=2, push=push, compress=compress, worker_has_weights=weights)
    environment = {"GGML_RPC_TUNNEL_REF": SHA256.hex()} | ({"GGML_RPC_TUNNEL_PUSH": "1"} if push == "patched" else {})
    async with split(engine_bin, tmp_path, options) as (made, _):
        ports = [end.port for end in made.ends]
        async with llama_server(engine_bin, tmp_path, ports, **environment) as engine:
            loaded = [end.counters.round_trips for end in made.ends]
            assert await engine.complete(48) == solo_text[engine_bin]
        first, last = (end.counters for end in made.ends)
        assert max(loaded) < 12 and first.references + first.expanded > 10
        assert (first.bytes_up < 3_000_000) is weights
        if push != "off":
            assert first.round_trips - loaded[0] < 8 and first.pushed >= 48
        assert last.round_trips - loaded[1] >= 48
        assert made.lost == []


@pytest.mark.alone
@pytest.mark.parametrize(("number", "limit_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 3.0)])
@pytest.mark.parametrize("stage", [0, 1])
async def test_llama_server_ends_in_time_when_an_rpc_server_does_or_stalls(
    engine_bin: Path, tmp_path: Path, number: int, limit_s: float, stage: int
) -> None:
    async with split(engine_bin, tmp_path, TunnelOptions(stage=0, stages=2)) as (made, servers):
        environment = {"GGML_RPC_TUNNEL_PUSH": "1", "GGML_RPC_TUNNEL_REF": SHA256.hex()}
        ports = [end.port for end in made.ends]
        async with llama_server(engine_bin, tmp_path, ports, **environment) as engine:
            answering = asyncio.create_task(engine.complete(100_000))
            while made.ends[0].counters.pushed < 20:
                await asyncio.sleep(0.005)
            begun = monotonic()
            os.kill(servers[stage].pid, number)
            async with asyncio.timeout(10):
                while not made.lost:
                    await asyncio.sleep(0.005)
                # As the owner of the plan does: llama-server may wait for the other stage alone.
                await asyncio.gather(*(end.close() for end in made.ends))
                await engine.process.wait()
            assert monotonic() - begun < limit_s
            assert "rpc-server" in made.lost[0]
            with pytest.raises(OSError):
                await answering
        if number == signal.SIGSTOP:
            os.kill(servers[stage].pid, signal.SIGCONT)
