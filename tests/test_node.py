"""The life of a node in this very process: start, views, and an orderly end."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnode.config import Places, Settings, find_places
from meshnode.engine.installed import list_devices
from meshnode.engine.provision import find
from meshnode.errors import AlreadyRunning, HomeNotWritable, ModelNotFound, PortInUse
from meshnode.node import Node
from meshnode.telemetry import silent

pytestmark = [pytest.mark.anyio, pytest.mark.engine]


def places_in(folder: Path) -> Places:
    return Places(folder / "home", find_places().cache, folder / "home" / "config.toml")


@asynccontextmanager
async def running(folder: Path, *names: str) -> AsyncIterator[tuple[Node, dict[str, Any]]]:
    up: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def tell(label: str, text: str) -> None:
        if label == "up":
            up.set_result(json.loads(text))

    node = Node(Settings(model=names, port=0, console=0), places_in(folder), report=silent, tell=tell)
    task = asyncio.create_task(node.run())
    try:
        async with asyncio.timeout(60):
            await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield node, up.result()
    finally:
        up.cancel()
        node.stop(now=True)
        await asyncio.wait({task}, timeout=20)
        assert task.done()


async def test_a_node_lives_and_leaves_nothing_behind(tmp_path: Path, engine_bin: Path) -> None:
    home = tmp_path / "home"
    async with running(tmp_path, "demo") as (node, urls):
        facts = node.status()
        assert facts["ready"] and facts["state"] == "ready" and facts["api"]["url"] == urls["api"]
        json.dumps(facts)
        assert stat.S_IMODE((home / "runtime.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((home / "node.key").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert json.loads((home / "runtime.json").read_text())["token"] not in json.dumps(facts)
    assert not (home / "runtime.json").exists()
    assert not list((home / "run").rglob("*.sock"))


async def test_a_service_manager_is_told(tmp_path: Path, engine_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with running(tmp_path, "demo") as (_, urls):
            assert manager.recv(1000) == f"STATUS={urls['api']}".encode()
            assert manager.recv(1000) == b"READY=1"
            with pytest.raises(BlockingIOError):
                manager.recv(1000)
        assert manager.recv(1000) == b"STOPPING=1"


async def test_the_identity_stays(tmp_path: Path, engine_bin: Path) -> None:
    async with running(tmp_path) as (node, _):
        first = node.status()["node"]["id"]
    async with running(tmp_path) as (node, _):
        assert node.status()["node"]["id"] == first
        assert node.status()["ready"] is False


async def test_one_home_one_node(tmp_path: Path, engine_bin: Path) -> None:
    async with running(tmp_path):
        second = Node(Settings(port=0, console=0), places_in(tmp_path), report=silent, tell=lambda *_: None)
        with pytest.raises(AlreadyRunning, match="pid"):
            await second.run()


async def test_a_taken_port_ends_the_start_and_frees_the_home(tmp_path: Path, engine_bin: Path) -> None:
    async with running(tmp_path / "first") as (_, urls):
        port = int(urls["console"].rpartition(":")[2])
        second = Node(Settings(port=0, console=port), places_in(tmp_path), report=silent, tell=lambda *_: None)
        with pytest.raises(PortInUse, match=str(port)):
            await second.run()
    async with running(tmp_path):
        pass


async def test_a_model_that_nobody_knows_ends_the_start(tmp_path: Path, engine_bin: Path) -> None:
    node = Node(
        Settings(model=("nosuch",), port=0, console=0), places_in(tmp_path), report=silent, tell=lambda *_: None
    )
    with pytest.raises(ModelNotFound):
        await node.run()
    assert not (tmp_path / "home" / "runtime.json").exists()


async def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    node = Node(Settings(port=0, console=0), places_in(tmp_path), report=silent, tell=lambda *_: None)
    with pytest.raises(HomeNotWritable):
        await node.run()


def test_the_engine_lists_its_devices(engine_bin: Path) -> None:
    engine = find(find_places().cache)
    assert engine is not None
    assert "Available devices" in list_devices(engine)
