"""The benchmark of the public swarm: its relay, and what it takes for a token."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench import swarm
from meshnode.discovering import open_relays


def test_the_relay_lives_as_long_as_the_block(tmp_path: Path) -> None:
    with swarm.relay() as url:
        (report,) = asyncio.run(open_relays((url,), tmp_path / "key").fetch()).relays
        assert report.state == "empty"
    (report,) = asyncio.run(open_relays((url,), tmp_path / "key").fetch(1.0)).relays
    assert report.state == "down"


@pytest.mark.parametrize(
    ("status", "lines", "begun"),
    [
        (200, ["data: " + json.dumps({"choices": [{"delta": {"content": "1"}}]})], True),
        (
            200,
            [": ping", "data: " + json.dumps({"choices": [{"delta": {"role": "assistant"}}]}), "data: [DONE]"],
            False,
        ),
        (404, ["{}"], False),
    ],
)
def test_a_token_is_a_token(status: int, lines: list[str], begun: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["x-meshnode-radius"] == "public"
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write("\n\n".join(lines).encode() + b"\n\n")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert swarm.first_token(f"http://127.0.0.1:{server.server_port}/v1") is begun
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm, "LIMIT_S", 0.05)
    assert swarm.waited_s(lambda: True) < 0.05
    with pytest.raises(RuntimeError):
        swarm.waited_s(lambda: False, 0.01)
