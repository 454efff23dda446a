"""`meshnode` alone: a node that is open, says what to do, and takes nothing on before it is told to."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import NodeProcess
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

FREE_PORTS = {"MESHNODE_PORT": "0", "MESHNODE_CONSOLE": "0"}


@pytest.fixture
def idle(tmp_path: Path, engine_bin: Path) -> Iterator[NodeProcess]:
    """A node that was started with no option at all."""
    node = NodeProcess("--json", home=tmp_path / "home", environment=FREE_PORTS).wait_ready()
    yield node
    node.end()


def ask(node: NodeProcess) -> tuple[int, dict[str, object]]:
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hello"}]}).encode()
    request = urllib.request.Request(f"{node.base_url}/v1/chat/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status), dict(json.load(answer))
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, dict(json.load(refused)["error"])


def test_it_serves_nothing_and_says_so_everywhere(idle: NodeProcess) -> None:
    facts = idle.status()
    assert facts["models"] == [] and not facts["ready"]
    assert "meshnode load" in facts["idle"]["reason"]
    code, error = ask(idle)
    assert code == 503 and "meshnode" in str(error["message"])
    assert facts["mesh"]["invites"] == [], "nobody asked for an invite"
    assert idle.ready["mesh"]["invite"] is None
    with urllib.request.urlopen(idle.console_url, timeout=10) as page:
        assert b"<title>" in page.read()


def test_in_a_terminal_it_says_how_to_go_on(tmp_path: Path) -> None:
    node = NodeProcess(home=tmp_path / "home", environment=FREE_PORTS).wait_listening()
    eventually(lambda: node.status()["state"] == "ready", 20)
    out, words = node.end(signal.SIGINT)
    assert out == "", "stdout is data, and nobody asked for any"
    assert f"Look around       {node.console_url}" in words and "meshnode load demo" in words
    assert node.process.returncode == 0


def test_a_model_can_be_loaded_then(idle: NodeProcess) -> None:
    done = idle.command("load", "demo")
    assert done.returncode == 0, done.stderr
    code, answer = ask(idle)
    assert code == 200 and answer["model"] == "demo"
    assert idle.status()["idle"] is None


def test_meshnode_again_shows_what_runs_here(idle: NodeProcess) -> None:
    done = idle.command()
    assert done.returncode == 0 and idle.console_url in done.stdout
    assert json.loads(idle.command("--json").stdout)["pid"] == idle.process.pid


def test_no_engine_is_built_before_one_is_needed(tmp_path: Path) -> None:
    environment = {**FREE_PORTS, "MESHNODE_CACHE": str(tmp_path / "cache")}
    node = NodeProcess("--json", home=tmp_path / "home", environment=environment).wait_ready()
    try:
        assert node.status()["engine"] is None and "builds the engine" in node.status()["idle"]["reason"]
        assert psutil.Process(node.process.pid).children() == []
        assert not (tmp_path / "cache" / "engine").exists()
        done = node.command("load", "demo", "--no-wait")
        assert done.returncode == 0, done.stderr
        eventually(lambda: any(task["task"].startswith("engine") for task in node.status()["tasks"]), 20)
    finally:
        node.end()
