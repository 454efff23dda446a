"""llama-server under supervision, with the real one: ready, crash, restart, limit, bad models, stop, no orphans."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.engine.address import AddressBook
from meshnode.engine.commands import Address, ServerOptions, SplitOptions
from meshnode.engine.rpc_server import RpcServer, RpcServerParts
from meshnode.engine.server import (
    LlamaServer,
    RestartPolicy,
    ServerParts,
    ServerSnapshot,
    read_properties,
    start_limit_s,
)
from meshnode.errors import EngineCrashed, EngineIncompatible, EngineStartTimeout, ModelFileInvalid, WorkerLost
from meshnode.telemetry import ProblemBoard

QUICK = RestartPolicy(first_s=0.01, longest_s=0.05)
needs_engine = [pytest.mark.engine, pytest.mark.anyio]


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return Path(meshnode.__file__).parent / "models" / "demo" / "target.gguf"


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


class Rig:
    """A LlamaServer, what it told, and the board it tells its problems to."""

    def __init__(self, binary: Path, model: Path, home: Path, **parts: Any) -> None:
        self.seen: list[ServerSnapshot] = []
        self.board = ProblemBoard()
        self.home = home
        options = ServerOptions(model, "demo", context=512, parallel=1, threads=1, warmup=False)
        options = replace(options, **parts.pop("options", {}))
        given = ServerParts(
            binary=binary,
            run_dir=home / "run",
            environ={"PATH": os.environ["PATH"], "LLAMA_ARG_ALIAS": "wrong", "HF_TOKEN": "secret"},
            problems=self.board,
            log_file=home / "engine.log",
            policy=QUICK,
            rng=random.Random(1),
            on_change=self.seen.append,
        )
        self.server = LlamaServer(options, replace(given, **parts))

    @property
    def states(self) -> list[str]:
        return [after.state for before, after in zip([None, *self.seen], self.seen, strict=False)
                if before is None or before.state != after.state]  # fmt: skip

    @property
    def problems(self) -> list[str]:
        return [problem.kind.code for problem in self.board]

    async def until(self, condition: Callable[[ServerSnapshot], bool], limit_s: float = 30.0) -> ServerSnapshot:
        async with asyncio.timeout(limit_s):
            while not condition(self.server.snapshot()):
                await asyncio.sleep(0.005)
        return self.server.snapshot()


Make = Callable[..., Rig]


@pytest.fixture
async def rig(engine_bin: Path, demo_model: Path, home: Path) -> AsyncIterator[Make]:
    made: list[Rig] = []

    def make(model: Path = demo_model, binary: Path = engine_bin / "llama-server", **parts: Any) -> Rig:
        made.append(Rig(binary, model, home, **parts))
        return made[-1]

    yield make
    for one in made:
        await one.server.stop(0)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestReal:
    pytestmark = needs_engine

    @pytest.mark.parametrize("unix", [True, False])
    async def test_from_start_to_stop(self, rig: Make, unix: bool) -> None:
        one = rig(unix=unix)
        await one.server.start()
        ready = one.server.snapshot()
        assert ready.state == "ready" and ready.pid and ready.load_s and ready.restarts == 0
        assert ready.properties is not None and (ready.properties.context, ready.properties.slots) == (512, 1)
        assert one.states[0] == "starting" and one.states[-1] == "ready"
        assert (ready.address is not None) and (ready.address.socket is not None) == unix
        assert (await one.server.request("GET", "/health"))[0] == 200
        status, body = await one.server.request("GET", "/v1/models")
        assert status == 200 and json.loads(body)["data"][0]["id"] == "demo"
        assert await one.server.probe()

        await one.server.stop(20)
        assert one.server.snapshot().state == "stopped" and one.server.address is None
        assert not is_alive(ready.pid) and one.problems == []
        assert [path.name for path in one.home.iterdir()] == ["engine.log"]
        with pytest.raises(ConnectionRefusedError):
            await one.server.request("GET", "/health")

    async def test_the_stop_is_polite(self, rig: Make) -> None:
        one = rig(options={"log_verbosity": 3})
        await one.server.start()
        await one.server.stop(20)
        assert any("cleaning up before exit" in line for line in one.server.log.tail())

    async def test_the_key_is_asked_for_and_not_on_the_command_line(self, rig: Make) -> None:
        one = rig()
        await one.server.start()
        key = one.server.api_key
        one.server.api_key = "another"
        assert (await one.server.request("GET", "/v1/models"))[0] == 401
        if sys.platform == "linux":
            folder = Path("/proc") / str(one.server.snapshot().pid)
            assert key.encode() not in (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
            assert key.encode() in environment and b"HF_TOKEN" not in environment

    async def test_prompts_stay_out_of_the_log(self, rig: Make) -> None:
        one = rig()
        await one.server.start()
        chat = {"messages": [{"role": "user", "content": "xyzzyprompt"}], "max_tokens": 4}
        bodies = [
            json.dumps(chat),
            '{"messages": [{"content": xyzzyprompt',
            '{"prompt": "xyzzyprompt", "n_predict": "xyzzyprompt"}',
        ]
        for body in bodies:
            for path in ("/v1/chat/completions", "/completion"):
                await one.server.request("POST", path, body=body.encode(), deadline_s=30)
        await one.server.stop(20)
        text = (one.home / "engine.log").read_text()
        assert "got exception" in text and "xyzzy" not in text

    async def test_kill_9_of_the_child_is_answered_by_a_restart(self, rig: Make) -> None:
        one = rig()
        await one.server.start()
        before, key = one.server.snapshot(), one.server.api_key
        assert before.pid
        os.kill(before.pid, signal.SIGKILL)
        again = await one.until(lambda now: now.restarts == 1 and now.state == "ready")
        assert again.pid != before.pid and again.address != before.address and one.server.api_key != key
        assert again.crashes == 1
        states = [state for state in one.states if state != "loading"]
        assert states == ["starting", "ready", "restarting", "starting", "ready"]
        restarting = next(snapshot for snapshot in one.seen if snapshot.state == "restarting")
        assert restarting.address is None and "SIGKILL" in restarting.detail
        assert await one.server.probe()
        await one.until(lambda _: one.problems == [])
        await one.server.stop(20)
        assert [path.name for path in one.home.iterdir()] == ["engine.log"]

    async def test_too_many_crashes_end_in_a_problem(self, rig: Make) -> None:
        one = rig()
        await one.server.start()
        for crashes in range(1, 4):
            os.kill(one.server.snapshot().pid or 0, signal.SIGSEGV)
            await one.until(lambda now, crashes=crashes: now.restarts == crashes and now.state == "ready")
        os.kill(one.server.snapshot().pid or 0, signal.SIGSEGV)
        failed = await one.until(lambda now: now.state == "failed")
        assert "4 times in a row" in failed.detail and "SIGSEGV" in failed.detail and failed.address is None
        await one.until(lambda _: one.problems == ["engine-crash-loop"])
        assert next(iter(one.board)).facts["crashes"] == "4"
        await one.server.stop()
        assert one.problems == []

    async def test_a_long_good_time_forgives_earlier_crashes(self, rig: Make) -> None:
        one = rig(policy=replace(QUICK, stable_s=0.0, limit=2))
        await one.server.start()
        for count in range(1, 4):
            os.kill(one.server.snapshot().pid or 0, signal.SIGKILL)
            now = await one.until(lambda now, count=count: now.restarts == count and now.state == "ready")
            assert now.crashes == 1

    async def test_a_model_that_went_bad_is_not_tried_for_ever(self, rig: Make, demo_model: Path) -> None:
        model = rig().home / "model.gguf"
        model.write_bytes(demo_model.read_bytes())
        one = rig(model)
        await one.server.start()
        model.unlink()
        model.write_bytes(b"not a model")
        os.kill(one.server.snapshot().pid or 0, signal.SIGKILL)
        failed = await one.until(lambda now: now.state == "failed")
        assert "not a GGUF model" in failed.detail and failed.restarts == 1
        await one.until(lambda _: one.problems == ["model-load-failed"])

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda data: data[: len(data) * 2 // 3], "cut short"),
            (lambda data: data[:300], "cut short"),
            (lambda data: b"", "empty"),
            (lambda data: b"GGUX" + data[4:], "not a GGUF model"),
            (lambda data: data.replace(b"llama", b"zzama", 1), "architecture 'zzama'"),
            (lambda data: data[:8] + b"\xff" * 16 + data[24:], ""),
        ],
    )
    async def test_bad_models_fail_at_once(
        self, rig: Make, demo_model: Path, damage: Callable[[bytes], bytes], words: str
    ) -> None:
        model = rig().home / "model.gguf"
        model.write_bytes(damage(demo_model.read_bytes()))
        one = rig(model)
        began = time.monotonic()
        with pytest.raises(ModelFileInvalid) as caught:
            await one.server.start()
        assert time.monotonic() - began < 5
        assert words in caught.value.detail and str(model) in caught.value.detail
        assert one.server.snapshot().state == "failed" and not (one.home / "run").exists()

    async def test_a_flag_that_the_engine_does_not_know(self, rig: Make) -> None:
        with pytest.raises(EngineIncompatible, match="it does not accept --bogus"):
            await rig(options={"extra": ("--bogus",)}).server.start()

    async def test_a_port_that_was_taken_meanwhile(self, rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        one = rig(unix=False)
        fresh = AddressBook.fresh
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            answers = [Address(port=other.getsockname()[1])] * 2
            monkeypatch.setattr(AddressBook, "fresh", lambda book: answers.pop() if answers else fresh(book))
            await one.server.start()
            assert one.server.address != Address(port=other.getsockname()[1])
        assert one.server.snapshot().state == "ready" and answers == []

    async def test_cancelling_the_start_leaves_nothing(self, rig: Make) -> None:
        one = rig()
        starting = asyncio.create_task(one.server.start())
        pid = (await one.until(lambda now: now.pid is not None)).pid
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled() and pid and not is_alive(pid)
        assert not (one.home / "run").exists()

    async def test_a_hung_engine_fails_the_probe_in_time_and_can_be_stopped(self, rig: Make) -> None:
        one = rig()
        await one.server.start()
        pid = one.server.snapshot().pid or 0
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        assert not await one.server.probe(0.2)
        assert time.monotonic() - began < 5
        await one.server.stop(0.1)
        assert not is_alive(pid)

    async def test_a_listener_that_fails_does_not_end_the_supervision(self, rig: Make) -> None:
        def fail(_: ServerSnapshot) -> None:
            raise RuntimeError("listener")

        one = rig(on_change=fail)
        await one.server.start()
        os.kill(one.server.snapshot().pid or 0, signal.SIGKILL)
        await one.until(lambda now: now.restarts == 1 and now.state == "ready")

    @pytest.mark.parametrize("worker_dies", [True, False])
    async def test_a_split_that_ends_is_not_restarted(self, rig: Make, engine_bin: Path, worker_dies: bool) -> None:
        binary = engine_bin / "ggml-rpc-server"
        parts = RpcServerParts(binary=binary, run_dir=rig().home, environ=os.environ, on_exit=lambda _: None)
        worker = RpcServer(parts)
        await worker.start()
        split = SplitOptions((f"127.0.0.1:{worker.port}",), push=True)
        one = rig(options={"split": split, "gpu_layers": 2, "tensor_split": (2,)})
        try:
            await one.server.start()
            pid = one.server.snapshot().pid or 0
            assert await one.server.probe()
            if sys.platform == "linux":
                assert b"GGML_RPC_TUNNEL_PUSH=1" in (Path("/proc") / str(pid) / "environ").read_bytes()
            os.kill(worker.pid if worker_dies else pid, signal.SIGKILL)
            # An idle engine does not look at its connections.
            await one.server.probe()
            failed = await one.until(lambda now: now.state == "failed")
        finally:
            await worker.stop(0)
        assert failed.restarts == 0 and failed.address is None and not is_alive(pid)
        assert failed.detail == "the worker went away" if worker_dies else "SIGKILL" in failed.detail
        assert one.problems == []

    async def test_a_split_whose_worker_is_not_there(self, rig: Make) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            split = SplitOptions((f"127.0.0.1:{nobody.getsockname()[1]}",))
            one = rig(options={"split": split, "gpu_layers": 2, "tensor_split": (2,)})
            with pytest.raises(WorkerLost, match="the worker went away"):
                await one.server.start()
        assert one.server.snapshot().state == "failed"

    async def test_embeddings_probe(self, rig: Make) -> None:
        one = rig(options={"mode": "embedding", "pooling": "last"})
        await one.server.start()
        assert await one.server.probe()


NODE = """
import asyncio, json, os, sys
from pathlib import Path
from meshnode.engine.commands import ServerOptions
from meshnode.engine.server import LlamaServer, ServerParts
from meshnode.telemetry import ProblemBoard
binary, model, home = map(Path, sys.argv[1:])
async def main():
    options = ServerOptions(model, "demo", context=512, parallel=1, threads=1)
    parts = ServerParts(binary=binary, run_dir=home / "run", environ=os.environ, problems=ProblemBoard())
    server = LlamaServer(options, parts)
    await server.start()
    print(server.snapshot().pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.engine
def test_kill_9_of_the_node_leaves_no_llama_server(engine_bin: Path, demo_model: Path, home: Path) -> None:
    argv = [sys.executable, "-c", NODE, engine_bin / "llama-server", demo_model, home]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        pid = int(node.stdout.readline())
        assert is_alive(pid)
        node.kill()
    deadline = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    """Like is_alive, but a zombie that init has yet to reap counts as gone."""
    if sys.platform != "linux":
        return is_alive(pid)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("echo 'x.cpp:1: Remote RPC server crashed'; kill -ABRT $$", WorkerLost, "the worker went away"),
        ("echo an end; kill -ABRT $$", EngineCrashed, "SIGABRT"),
        ("exit 3", EngineCrashed, "exit code 3"),
        ("exec sleep 60", EngineStartTimeout, "not ready within 0 s"),
    ],
)
async def test_a_first_start_that_fails_raises(
    home: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[Exception], words: str
) -> None:
    binary = home / "fake-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    if kind is EngineStartTimeout:
        monkeypatch.setattr("meshnode.engine.server.start_limit_s", lambda _: 0.3)
    one = Rig(binary, home / "m.gguf", home)
    with pytest.raises(kind, match=words):
        await one.server.start()
    assert one.server.snapshot().state == "failed" and one.server.snapshot().pid is None


@pytest.mark.anyio
async def test_an_engine_that_is_not_there(home: Path) -> None:
    with pytest.raises(EngineIncompatible, match="absent could not be run: No such file"):
        await Rig(home / "absent", home / "m.gguf", home).server.start()


def test_pauses_double_with_jitter_up_to_the_longest() -> None:
    policy, rng = RestartPolicy(), random.Random(5)
    delays = [policy.delay_s(crashes, rng) for crashes in range(1, 12)]
    for crashes, delay_s in enumerate(delays, 1):
        whole = min(30.0, 0.25 * 2 ** (crashes - 1))
        assert whole / 2 <= delay_s <= whole
    assert len(set(delays)) == len(delays)


def test_the_limit_grows_with_the_model() -> None:
    assert start_limit_s(0) == 60
    assert start_limit_s(40_000_000_000) == 2060


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"null", b'{"default_generation_settings": 3, "total_slots": 1}', b"\xff", b"[" * 60000]
)
def test_properties_that_are_none(body: bytes) -> None:
    assert read_properties(body) is None


def test_properties() -> None:
    body = {
        "default_generation_settings": {"n_ctx": 1024}, "total_slots": 2, "build_info": "b1-0c1e570",
        "modalities": {"vision": True, "audio": False}, "chat_template_caps": {"supports_tools": True, "other": False},
    }  # fmt: skip
    read = read_properties(json.dumps(body).encode())
    assert read is not None
    assert (read.context, read.slots, read.build) == (1024, 2, "b1-0c1e570")
    assert (read.modalities, read.chat_capabilities) == ({"vision"}, {"supports_tools"})
