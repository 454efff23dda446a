"""A control port that answers as it is told to, for commands that ask the node of this home folder."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshnode.cli.main import root
from meshnode.errors import MeshnodeError

TOKEN = "test-token"
Answer = dict[str, Any] | MeshnodeError


class ScriptedNode(ThreadingHTTPServer):
    """`answers` has for each path what is said in turn, the last one again and again; `calls` is what was asked, and
    `terminals` with which terminal value each time."""

    daemon_threads = True

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.terminals: list[str | None] = []
        self.lock = (home / "node.lock").open("a+b")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        url = f"http://127.0.0.1:{self.server_address[1]}"
        (home / "runtime.json").write_text(json.dumps({"pid": 1, "api": url, "console": url, "token": TOKEN}))

    def answer_with(self, path: str, *answers: Answer) -> None:
        """From now on these, in turn."""
        self.answers[path] = list(answers)

    def show_mesh(self, *meshes: dict[str, Any] | None) -> None:
        """The `mesh` member of /api/status, in turn."""
        self.answer_with("/api/status", *({"mesh": mesh, "swarm": None} for mesh in meshes))


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedNode

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        assert self.headers["x-meshnode-token"] == TOKEN
        self.server.terminals.append(self.headers["x-meshnode-terminal"])
        self.server.calls.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
        self._answer()

    def _answer(self) -> None:
        left = self.server.answers[self.path]
        value = left.pop(0) if len(left) > 1 else left[0]
        failed = isinstance(value, MeshnodeError)
        body = json.dumps({"error": value.as_dict()} if isinstance(value, MeshnodeError) else value).encode()
        self.send_response(value.http_status if failed else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedNode]:
    """A node that runs here, as far as commands can see."""
    monkeypatch.setenv("MESHNODE_HOME", str(tmp_path))
    made = ScriptedNode(tmp_path)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()
    made.lock.close()


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("peers", "--json")` in the home folder of the test."""

    def call(*arguments: str, stdin: str = "", **environment: str) -> Result:
        runner = CliRunner(env={"MESHNODE_HOME": str(tmp_path), "NO_COLOR": "1", **environment})
        return runner.invoke(root, arguments, input=stdin)

    return call
