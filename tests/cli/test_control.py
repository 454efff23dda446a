"""load, unload and stop against a real control API with a FakeNode behind it."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshnode.cli.main import root

TOKEN = "test-token"


class FakeNode(ThreadingHTTPServer):
    """Answers the calls of the CLI as a node would and remembers them."""

    daemon_threads = True

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.states = ["loading", "ready"]
        self.lock = (home / "node.lock").open("a+b")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        url = f"http://127.0.0.1:{self.server_address[1]}"
        facts = {"pid": 1, "api": url, "console": url, "token": TOKEN}
        (home / "runtime.json").write_text(json.dumps(facts))
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class FakeHandler(BaseHTTPRequestHandler):
    server: FakeNode

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server.states.pop(0) if len(self.server.states) > 1 else self.server.states[0]
        error = {"code": "engine-crashed", "message": "why", "fix": "do this"} if state == "failed" else None
        self._answer(200, {"models": [{"id": "demo", "state": state, "detail": "", "error": error}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.headers["x-meshnode-token"] == TOKEN
        self.server.calls.append((self.path, body))
        if body.get("model") == "nosuch":
            error = {"code": "model_not_found", "message": "No such model: nosuch"}
            return self._answer(404, {"error": error})
        if self.path == "/api/stop":
            self.server.lock.close()
        self._answer(200, {"model": body.get("model"), "state": "loading"})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    monkeypatch.setenv("MESHNODE_HOME", str(tmp_path))
    made = FakeNode(tmp_path)
    yield made
    made.shutdown()
    made.server_close()
    made.lock.close()


def test_load_waits_until_the_model_answers(node: FakeNode) -> None:
    result = CliRunner().invoke(root, ["load", "demo"])
    assert result.exit_code == 0 and "demo is ready" in result.output
    assert node.calls == [("/api/load", {"model": "demo"})]


def test_load_can_go_on_without_waiting(node: FakeNode) -> None:
    result = CliRunner().invoke(root, ["load", "demo", "--no-wait", "--json"])
    assert json.loads(result.stdout) == {"schema": 1, "model": "demo", "state": "loading"}


def test_a_load_that_fails_says_why(node: FakeNode) -> None:
    node.states = ["failed"]
    result = CliRunner().invoke(root, ["load", "demo"])
    assert result.exit_code == 6 and "why (engine-crashed)" in result.output and "do this" in result.output


def test_the_nodes_refusal_keeps_its_code_and_exit_code(node: FakeNode) -> None:
    result = CliRunner().invoke(root, ["load", "nosuch"])
    assert result.exit_code == 4
    assert "No such model: nosuch (model-not-found)" in result.output


def test_unload(node: FakeNode) -> None:
    assert CliRunner().invoke(root, ["unload", "demo"]).exit_code == 0
    assert node.calls == [("/api/unload", {"model": "demo"})]


def test_stop_waits_for_the_end(node: FakeNode) -> None:
    result = CliRunner().invoke(root, ["stop", "--now"])
    assert result.exit_code == 0 and "has stopped" in result.output
    assert node.calls == [("/api/stop", {"now": True})]


@pytest.mark.parametrize("command", [["load", "x"], ["unload", "x"], ["stop"]])
def test_without_a_node_it_is_exit_code_3(command: list[str], tmp_path: Path) -> None:
    assert CliRunner().invoke(root, command, env={"MESHNODE_HOME": str(tmp_path)}).exit_code == 3
