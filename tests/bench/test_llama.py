"""Asking a llama-server directly: by a program that answers as one does."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from bench.llama import Llama

KEY = "s3cret"


@contextmanager
def answering(path: Path, status: int, answer: Any) -> Iterator[list[dict[str, Any]]]:
    """A server on a Unix socket that always says the same; what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append({"path": self.path, "body": json.loads(body or b"null"), **self.headers})
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


def chat(tokens: int) -> dict[str, Any]:
    return {
        "choices": [{"message": {"content": "1, 2"}}],
        "timings": {"predicted_n": tokens, "predicted_per_second": 50.0},
    }


def test_an_answer_of_so_many_tokens(tmp_path: Path) -> None:
    with answering(tmp_path / "s", 200, chat(7)) as asked:
        found = Llama.at_socket(str(tmp_path / "s"), KEY).decode(7, prompt="count", cache_prompt=False)
    assert (found.text, found.tokens, found.token_s) == ("1, 2", 7, 0.02)
    (request,) = asked
    assert request["path"] == "/v1/chat/completions" and request["authorization"] == f"Bearer {KEY}"
    wanted = {"max_tokens": 7, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    assert wanted.items() <= request["body"].items()


def test_another_number_of_tokens_is_no_measurement(tmp_path: Path) -> None:
    with answering(tmp_path / "s", 200, chat(6)), pytest.raises(RuntimeError, match="6 of 7"):
        Llama.at_socket(str(tmp_path / "s")).decode(7)


def test_a_refusal_is_said(tmp_path: Path) -> None:
    with answering(tmp_path / "s", 503, {"error": "loading"}), pytest.raises(RuntimeError, match="503.*loading"):
        Llama.at_socket(str(tmp_path / "s")).decode(7)


def test_waiting_for_health(tmp_path: Path) -> None:
    llama = Llama.at_socket(str(tmp_path / "s"))
    with pytest.raises(RuntimeError, match="not ready"):
        llama.until_healthy(0.05)
    with answering(tmp_path / "s", 503, {}), pytest.raises(RuntimeError, match="not ready"):
        llama.until_healthy(0.05)
    (tmp_path / "s").unlink()
    with answering(tmp_path / "s", 200, {}):
        llama.until_healthy(5)
