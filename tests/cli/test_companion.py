"""Starts real nodes for the length of a block: found, waited for, ended; and says why where that cannot be."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from meshnode.cli.client import find_node
from meshnode.cli.companion import is_in_mesh, node_for_now
from meshnode.config import find_places
from meshnode.errors import MeshnodeError, NodeNotRunning
from tests.conftest import StartNode
from tests.loopback import LOOPBACK_ONLY


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of this process, and of the nodes that it starts."""
    cache = find_places().cache
    folder = tmp_path / "home"
    for name, value in {**LOOPBACK_ONLY, "MESHNODE_PORT": "0", "MESHNODE_CONSOLE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MESHNODE_MODEL", raising=False)
    monkeypatch.setenv("MESHNODE_HOME", str(folder))
    monkeypatch.setenv("MESHNODE_CACHE", str(cache))
    return folder


def test_a_home_is_in_a_mesh_when_others_are(home: Path) -> None:
    places = find_places()
    assert not is_in_mesh(places)
    mesh = home / "mesh"
    mesh.mkdir(parents=True)
    (mesh / "membership").write_bytes(b"x")
    assert is_in_mesh(places), "let in by somebody"
    (mesh / "mesh.key").write_bytes(b"x")
    assert not is_in_mesh(places), "founded here, and nobody came"
    (mesh / "peers").write_bytes(b"x")
    assert is_in_mesh(places)


def test_no_node_and_nothing_to_start(home: Path) -> None:
    with pytest.raises(NodeNotRunning) as missing, node_for_now(None, configured=False):
        pass
    assert "--model demo" in missing.value.fix
    assert not home.exists()


@pytest.mark.engine
def test_a_node_lives_as_long_as_the_block(home: Path, engine_bin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with node_for_now("demo", configured=False) as (node, model):
        assert model.id == "demo" and node.call("GET", "/api/status")["ready"]
        process = psutil.Process(node.pid)
        assert node.home == home and process.parent() == psutil.Process()
        assert find_node().pid == node.pid
        with node_for_now("demo", configured=False) as (same, _):
            assert same.pid == node.pid
        assert process.is_running(), "it was not ours to end"
    assert not process.is_running()
    with pytest.raises(NodeNotRunning):
        find_node()
    words = capfd.readouterr()
    assert words.out == "" and "starting one with demo" in words.err


@pytest.mark.engine
def test_it_ends_when_the_block_fails(home: Path, engine_bin: Path) -> None:
    with pytest.raises(ValueError, match="^mine$"), node_for_now("demo", configured=False) as (node, _):
        pid = node.pid
        raise ValueError("mine")
    assert not psutil.pid_exists(pid)


@pytest.mark.engine
def test_what_the_node_says_is_passed_on(home: Path, engine_bin: Path) -> None:
    with pytest.raises(MeshnodeError) as refusal, node_for_now("nosuchmodel", configured=False):
        pass
    assert (refusal.value.code, refusal.value.exit_code) == ("model-not-found", 4)


@pytest.mark.engine
@pytest.mark.parametrize("role", ["member", "client"])
def test_in_a_mesh_it_comes_back_in_its_role(
    role: str, home: Path, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = start_node("--model", "demo")
    invite = host.command("invite").stdout.strip()
    flags = ["--client"] if role == "client" else []
    node = start_node(*flags, "--join", invite)
    node.end()
    monkeypatch.setenv("MESHNODE_HOME", str(node.home))
    with node_for_now(None, configured=False) as (found, model):
        status = found.call("GET", "/api/status")
        assert model.id == "demo" and status["models"][0]["where"] != "here"
        assert status["mesh"]["role"] == role
    assert not psutil.pid_exists(found.pid)
