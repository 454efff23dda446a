import fcntl
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from meshnode.cli.client import RunningNode, find_node, is_held, reported
from meshnode.config import Places
from meshnode.errors import DiskFull, ModelNotFound, NodeNotRunning

FACTS = {"pid": 7, "api": "http://127.0.0.1:1/v1", "console": "http://127.0.0.1:2", "token": "secret"}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path, tmp_path / "cache", tmp_path / "config.toml")


@contextmanager
def held(places: Places) -> Iterator[None]:
    with places.lock_file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


class FakeControl(ThreadingHTTPServer):
    """A control port that gives one answer and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.status, self.body = status, body
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def node(self) -> RunningNode:
        return RunningNode(7, "", f"http://127.0.0.1:{self.server_address[1]}", "secret", Path("/home"))


class _Answers(BaseHTTPRequestHandler):
    server: FakeControl

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if self.server.status:
            self.send_response(self.server.status)
            self.send_header("content-length", str(len(self.server.body)))
            self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = _answer

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def control(status: int, body: object) -> Iterator[FakeControl]:
    server = FakeControl(status, body if isinstance(body, bytes) else json.dumps(body).encode())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_call_sends_the_token_and_gives_the_parsed_answer() -> None:
    with control(202, {"model": "é"}) as server:
        assert server.node.call("POST", "/api/load", {"model": "é"}) == {"model": "é"}
        assert server.node.call("GET", "/api/status") == {"model": "é"}
        (method, path, headers, body), (_, _, _, empty) = server.asked
    assert (method, path, headers["x-meshnode-token"]) == ("POST", "/api/load", "secret")
    assert (json.loads(body), empty) == ({"model": "é"}, b"")


def test_an_error_of_the_node_keeps_its_sentence_code_and_exit_code() -> None:
    for status, body, message, code, exit_code in (
        (404, {"error": {"message": "No such: x", "code": "model_not_found"}}, "No such: x", "model-not-found", 4),
        (507, {"error": {"message": "full", "code": "disk_full"}}, "full", "disk-full", DiskFull.exit_code),
        (503, {"error": {"message": "why", "code": 503}}, "why", "503", 1),
        (500, {"error": "text"}, "status 500", "error", 1),
        (500, [1], "status 500", "error", 1),
        (500, {}, "status 500", "error", 1),
    ):  # fmt: skip
        with control(status, body) as server, pytest.raises(Exception) as caught:
            server.node.call("GET", "/api/status")
        error = caught.value
        assert (str(error), error.code, error.exit_code) == (message, code, exit_code)


def test_a_reported_fix_is_kept() -> None:
    error = reported(ModelNotFound("'x'", fix="did you mean y?").as_dict())
    assert (error.message, error.fix, error.exit_code) == ("No such model: 'x'", "did you mean y?", 4)
    assert error.as_dict() == ModelNotFound("'x'", fix="did you mean y?").as_dict()


def test_whoever_does_not_answer_as_a_node_is_none() -> None:
    for status, body in ((200, b"<html>"), (200, b""), (0, b"garbage\r\n\r\n"), (0, b""), (200, b"\xff\xfe")):
        with control(status, body) as server, pytest.raises(NodeNotRunning, match="pid 7 does not answer") as caught:
            server.node.call("GET", "/api/status")
        assert caught.value.exit_code == 3
    with pytest.raises(NodeNotRunning, match="does not answer"):  # nobody listens there any more
        server.node.call("GET", "/api/status")


def test_a_node_that_hangs_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        node = RunningNode(7, "", f"http://127.0.0.1:{silent.getsockname()[1]}", "t", Path("/home"))
        with pytest.raises(NodeNotRunning, match="timed out"):
            node.call("GET", "/api/status", timeout_s=0.05)


def test_a_node_is_found_by_its_file_and_its_lock(places: Places) -> None:
    with pytest.raises(NodeNotRunning, match=str(places.home)):
        find_node(places)
    places.runtime_file.write_text(json.dumps(FACTS))
    with pytest.raises(NodeNotRunning, match="pid 7 has ended without saying goodbye"):
        find_node(places)
    with held(places):
        node = find_node(places)
        assert (node.pid, node.token, node.home) == (7, "secret", places.home)
        assert is_held(places.lock_file)
    assert not is_held(places.lock_file)
    with pytest.raises(NodeNotRunning, match="goodbye"):
        find_node(places)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"null", b"{}", b'{"pid": 7}', b"\xff", json.dumps({**FACTS, "pid": "x"}).encode(),
     json.dumps({**FACTS, "pid": [1]}).encode(), b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_is_named(content: bytes, places: Places) -> None:
    places.runtime_file.write_bytes(content)
    with held(places), pytest.raises(NodeNotRunning, match="runtime.json cannot be read"):
        find_node(places)


def test_the_token_is_never_shown(places: Places) -> None:
    places.runtime_file.write_text(json.dumps(FACTS))
    with held(places):
        assert "secret" not in repr(find_node(places))
