"""A client inside this process, and one node of a mesh beside it: real QUIC on loopback, no engine."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode import client
from meshnode.client import Client
from meshnode.errors import (
    AlreadyRunning,
    InviteInvalid,
    MeshnodeError,
    ModelNotFound,
    NodeStopping,
    NotInMesh,
    PeerUnreachable,
    SettingsError,
)
from tests.loopback import LOOPBACK_ONLY
from tests.stage import Stage, running, token_of, until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No other network, and temporary homes where the test can see them."""
    for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
        monkeypatch.delenv(name)
    for name, value in LOOPBACK_ONLY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@asynccontextmanager
async def mesh_of(home: Path, **settings: Any) -> AsyncIterator[Stage]:
    """A node that says at once what it has, as real ones do."""
    async with running(home, **settings) as stage:
        stage.meshing.touch()
        yield stage


def temporary_homes(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("meshnode-*"))


async def test_it_sees_the_models_of_the_mesh_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with mesh_of(tmp_path / "anna") as anna:
        anna.serve("demo")
        async with Client.join(await token_of(anna), name="program") as mesh:
            (home,) = temporary_homes(tmp_path)
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            await until(lambda: bool(anna.facts()["peers"]))
            (peer,) = anna.facts()["peers"]
            assert (peer["role"], peer["name"], peer["id"]) == ("client", "program", mesh.node)
            assert mesh.mesh_name == anna.facts()["name"]
            while not (models := await mesh.models.list()):
                await asyncio.sleep(0.01)
            assert [model.id for model in models] == ["demo"] and models[0].nodes == (anna.node.hex(),)
            with pytest.raises(ModelNotFound) as raised:
                await mesh.chat("hello", model="dmeo")
            assert raised.value.fix == "did you mean demo?"
            with pytest.raises(MeshnodeError):
                await mesh.chat("hello", model="demo")
        await until(lambda: not anna.facts()["peers"])
        assert temporary_homes(tmp_path) == []
        with pytest.raises(NodeStopping):
            await mesh.models.list()


async def test_no_task_outlives_it(tmp_path: Path) -> None:
    async with mesh_of(tmp_path / "anna") as anna:
        counts = []
        for _ in range(2):
            async with Client.join(await token_of(anna)) as mesh:
                await mesh.models.list()
            await until(lambda: not anna.facts()["peers"])
            counts.append(len(asyncio.all_tasks()))
        assert counts[0] == counts[1]


async def test_no_port_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_of(tmp_path / "anna") as anna:
        token = await token_of(anna)
        opened: list[int] = []

        def listen(self: socket.socket, *_: object) -> None:
            opened.append(self.fileno())

        monkeypatch.setattr(socket.socket, "listen", listen)
        async with Client.join(token):
            assert opened == []


async def test_a_home_is_kept_and_opened_again(tmp_path: Path) -> None:
    home = tmp_path / "kept"
    async with mesh_of(tmp_path / "anna") as anna:
        async with Client.join(await token_of(anna), home=home) as first:
            with pytest.raises(AlreadyRunning):
                await Client.open(home).__aenter__()
        async with Client.open(str(home)) as again:
            assert again.node == first.node and again.mesh_name == first.mesh_name
            assert temporary_homes(tmp_path) == []
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


async def test_two_clients_in_one_program(tmp_path: Path) -> None:
    async with mesh_of(tmp_path / "anna") as anna:
        token = await token_of(anna)
        async with Client.join(token, name="one") as one, Client.join(token, name="two") as two:
            assert one.node != two.node
            await until(lambda: {peer["name"] for peer in anna.facts()["peers"]} == {"one", "two"})


async def test_tokens_that_are_none(tmp_path: Path) -> None:
    async with mesh_of(tmp_path / "anna") as anna:
        token = await token_of(anna)
        made = await anna.meshing.invite(role="client", ttl_s=60, uses=1, may_invite=False)
        await anna.meshing.revoke(made["id"])
        for bad in ("hello", token[:-4], str(made["token"])):
            with pytest.raises(InviteInvalid):
                await Client.join(bad).__aenter__()
        with pytest.raises(SettingsError):
            await Client.join("").__aenter__()
    with pytest.raises(PeerUnreachable):
        await Client.join(token).__aenter__()
    assert temporary_homes(tmp_path) == []


async def test_a_mesh_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "kept"
    with pytest.raises(NotInMesh):
        await Client.open(home).__aenter__()
    async with mesh_of(tmp_path / "anna") as anna, Client.join(await token_of(anna), home=home):
        port = anna.meshing.mesh.bound.port if anna.meshing.mesh else 0
    monkeypatch.setattr(client, "HEARD_WITHIN_S", 0.2)
    with pytest.raises(PeerUnreachable, match="no node of the mesh answers"):
        await Client.open(home).__aenter__()
    monkeypatch.setattr(client, "HEARD_WITHIN_S", 15)
    with pytest.raises(AssertionError):
        async with mesh_of(tmp_path / "anna", bind_port=port), Client.open(home):
            raise AssertionError("its lock was given back, and it is there again")


async def test_a_client_is_entered_once(tmp_path: Path) -> None:
    async with mesh_of(tmp_path / "anna") as anna:
        mesh = Client.join(await token_of(anna))
        with pytest.raises(NotInMesh, match="not entered"):
            mesh.chat("hello")
        async with mesh:
            pass
        with pytest.raises(RuntimeError, match="once"):
            await mesh.__aenter__()


async def test_a_program_that_is_cancelled_leaves_in_order(tmp_path: Path) -> None:
    async with mesh_of(tmp_path / "anna") as anna:
        token = await token_of(anna)
        inside = asyncio.Event()

        async def program() -> None:
            async with Client.join(token):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(program())
        await inside.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert temporary_homes(tmp_path) == []
        await until(lambda: not anna.facts()["peers"])
        entering = asyncio.create_task(program())
        await until(lambda: bool(temporary_homes(tmp_path)))
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert temporary_homes(tmp_path) == []


async def test_a_time_limit_of_anyio_ends_it_in_order(tmp_path: Path) -> None:
    anyio = pytest.importorskip("anyio")
    async with mesh_of(tmp_path / "anna") as anna:
        token = await token_of(anna)
        with anyio.move_on_after(0.5) as scope:
            async with Client.join(token):
                await anyio.sleep_forever()
        assert scope.cancelled_caught and temporary_homes(tmp_path) == []
        await until(lambda: not anna.facts()["peers"])


async def test_what_it_takes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a node, as one who runs a node in the same shell has them, do not reach a client."""
    for name, value in {"MODEL": "demo", "SOLO": "1", "PORT": "x", "API_KEY": "k", "NAME": "shell"}.items():
        monkeypatch.setenv(f"MESHNODE_{name}", value)
    async with mesh_of(tmp_path / "anna") as anna:
        token = await token_of(anna)
        async with Client.join(token) as mesh:
            await until(lambda: [peer["name"] for peer in anna.facts()["peers"]] == ["shell"])
            assert await mesh.models.list() == []
        monkeypatch.setenv("MESHNODE_STALL_TIMEOUT", "soon")
        with pytest.raises(SettingsError, match="MESHNODE_STALL_TIMEOUT"):
            await Client.join(token).__aenter__()


async def test_a_conversation_takes_what_it_is_given(tmp_path: Path) -> None:
    async with mesh_of(tmp_path / "anna") as anna, Client.join(await token_of(anna)) as mesh:
        talk = mesh.conversation(
            model="demo", system="be brief", keep_tokens=9, max_tokens=3, messages=[{"role": "user", "content": "x"}]
        )
        assert (talk.model, talk.keep_tokens, talk.max_tokens, len(talk.messages)) == ("demo", 9, 3, 2)
        with pytest.raises(MeshnodeError):
            await talk.say("hello")
        assert len(talk.messages) == 2, "what was not answered is not part of it"


def test_the_package_exports_it_without_importing_it() -> None:
    assert meshnode.Client is Client
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        meshnode.Cleint  # noqa: B018
    code = "import sys, meshnode; print('asyncio' in sys.modules, meshnode.Client.__name__, 'asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "Client", "True"]


def test_a_library_writes_no_log_unasked() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("meshnode").handlers)
