"""The rpc-server of a worker: its facts, its port, its end, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from meshnode.engine import rpc_server
from meshnode.engine.rpc_server import RpcServer, RpcServerParts
from meshnode.errors import EngineCrashed, EngineStartTimeout
from tests.fuzz.rpc_server import Client

pytestmark = pytest.mark.anyio
engine = pytest.mark.engine
Make = Callable[..., RpcServer]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[RpcServer] = []

    def one(binary: Path, ends: list[str] | None = None, **parts: Any) -> RpcServer:
        note = (lambda _: None) if ends is None else ends.append
        given = {"run_dir": tmp_path, "environ": os.environ, "memory_limit_bytes": 256 << 20, "on_exit": note}
        made.append(RpcServer(RpcServerParts(binary=binary, **{**given, **parts})))
        return made[-1]

    yield one
    for server in made:
        await server.stop(0)


def script(folder: Path, text: str) -> Path:
    file = folder / "fake-rpc-server"
    file.write_text(f"#!{Path(sys.executable).resolve()}\n{text}")
    file.chmod(0o755)
    return file


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@engine
async def test_from_start_to_stop(make: Make, engine_bin: Path, tmp_path: Path) -> None:
    ends: list[str] = []
    server = make(engine_bin / "ggml-rpc-server", ends, log_file=tmp_path / "rpc.log")
    await server.start()
    assert server.facts.hello[:3] == bytes([7, 0, 0]) and len(server.facts.hello) == 28
    (cpu,) = server.facts.devices
    assert cpu.alignment >= 32 and cpu.max_size > 1 << 30 and 0 < cpu.free_bytes <= cpu.total_bytes
    client = await asyncio.to_thread(Client, server.port)
    assert client.answers()
    client.close()
    assert server.working()
    await server.stop(20)
    assert not is_alive(server.pid) and ends == [] and not server.working()
    assert "Accepted client connection" in (tmp_path / "rpc.log").read_text()


@engine
async def test_only_the_loopback_address(make: Make, engine_bin: Path) -> None:
    server = make(engine_bin / "ggml-rpc-server")
    await server.start()
    with socket.socket() as probe:
        # Were it 0.0.0.0, the whole of 127/8 would be taken.
        probe.bind(("127.0.0.2", server.port))


@engine
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
async def test_its_memory_is_bounded(make: Make, engine_bin: Path) -> None:
    server = make(engine_bin / "ggml-rpc-server")
    await server.start()
    client = await asyncio.to_thread(Client, server.port)
    assert client.ask(0, pack("<IQ", 0, 200 << 20))[:8] != bytes(8)
    assert client.ask(0, pack("<IQ", 0, 4 << 30)) == bytes(16)
    assert client.answers()
    client.close()


@engine
async def test_its_end_is_told_once(make: Make, engine_bin: Path) -> None:
    ends: list[str] = []
    server = make(engine_bin / "ggml-rpc-server", ends)
    await server.start()
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while not ends:
            await asyncio.sleep(0.005)
    await server.stop()
    assert len(ends) == 1 and "SIGKILL" in ends[0] and not server.working()


@engine
async def test_a_stopped_one_does_not_work(make: Make, engine_bin: Path) -> None:
    server = make(engine_bin / "ggml-rpc-server")
    await server.start()
    assert server.working() and server.working()
    os.kill(server.pid, signal.SIGSTOP)
    async with asyncio.timeout(20):
        while server.working():
            await asyncio.sleep(0.005)
    assert not server.working()
    os.kill(server.pid, signal.SIGCONT)
    async with asyncio.timeout(20):
        while not server.working():
            await asyncio.sleep(0.005)
    os.kill(server.pid, signal.SIGSTOP)
    await server.stop(0.1)
    assert not is_alive(server.pid)


@engine
async def test_a_port_that_was_taken_meanwhile(make: Make, engine_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = rpc_server._reserved_port
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]

        class Taken:
            def __enter__(self) -> int:
                return taken

            def __exit__(self, *_: object) -> None:
                pass

        answers = [Taken()]
        monkeypatch.setattr(rpc_server, "_reserved_port", lambda: answers.pop() if answers else reserved())
        server = make(engine_bin / "ggml-rpc-server")
        await server.start()
        assert server.port != taken and answers == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.exit('error: unknown device: CUDA7')", "unknown device"),
        ("import os; os.abort()", "SIGABRT"),
        ("print('Failed to create server socket')", "no free port"),
    ],
)
async def test_one_that_ends_at_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setattr(rpc_server, "sandboxed", lambda program, **_: program)
    server = make(script(tmp_path, text))
    with pytest.raises(EngineCrashed, match=words):
        await server.start()
    assert not is_alive(server.pid)


LISTEN = """
import socket, sys
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[4])))
server.listen()
client, _ = server.accept()
{then}
client.recv(1)
"""


@pytest.mark.parametrize(
    "then",
    ["client.sendall(bytes(8))", "client.sendall(b'\\xff' * 64)", "client.close()", "client.sendall(b'HTTP/1.1')"],
)
async def test_one_that_answers_nonsense(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(rpc_server, "sandboxed", lambda program, **_: program)
    server = make(script(tmp_path, LISTEN.format(then=then)))
    with pytest.raises(EngineCrashed):
        await server.start()
    assert not is_alive(server.pid)


async def test_one_that_is_silent(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "sandboxed", lambda program, **_: program)
    monkeypatch.setattr(rpc_server, "START_LIMIT_S", 0.5)
    server = make(script(tmp_path, LISTEN.format(then="import time; time.sleep(60)")))
    with pytest.raises(EngineStartTimeout):
        await server.start()
    assert not is_alive(server.pid)


async def test_one_that_is_not_there(make: Make, tmp_path: Path) -> None:
    with pytest.raises(EngineCrashed, match="could not be run"):
        await make(tmp_path / "absent").start()


@engine
async def test_cancelling_the_start_leaves_nothing(make: Make, engine_bin: Path) -> None:
    server = make(engine_bin / "ggml-rpc-server")
    starting = asyncio.create_task(server.start())
    async with asyncio.timeout(20):
        while not server.pid:
            await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    assert not is_alive(server.pid)


NODE = """
import asyncio, os, sys
from pathlib import Path
from meshnode.engine.rpc_server import RpcServer, RpcServerParts
async def main():
    binary, folder = map(Path, sys.argv[1:])
    server = RpcServer(RpcServerParts(binary=binary, run_dir=folder, environ=os.environ, on_exit=print))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@engine
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kill_9_of_the_node_leaves_no_rpc_server(engine_bin: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", NODE, engine_bin / "ggml-rpc-server", tmp_path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        status = Path(f"/proc/{int(node.stdout.readline())}/stat")
        assert status.exists()
        node.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.005)
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
