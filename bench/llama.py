"""A llama-server asked directly, wherever it listens: on a Unix socket, or on the loopback of another namespace."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ANSWER_S = 300
HEALTH_EVERY_S = 0.005


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that somebody else opens."""

    def __init__(self, open_socket: Callable[[], socket.socket]) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._open_socket = open_socket

    def connect(self) -> None:
        """Called by http.client."""
        self.sock = self._open_socket()
        self.sock.settimeout(ANSWER_S)


@dataclass(frozen=True, slots=True)
class Decoded:
    """One answer: its text, and how fast the tokens after the first came, as llama-server counts."""

    text: str
    tokens: int
    tokens_per_s: float

    @property
    def token_s(self) -> float:
        """Seconds for a token."""
        return 1 / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class Llama:
    """`open_socket` connects to it; `key` is what it was told to ask for."""

    open_socket: Callable[[], socket.socket]
    key: str = ""

    @classmethod
    def at_socket(cls, path: str, key: str = "") -> Llama:
        """One that listens on a Unix socket."""

        def connect() -> socket.socket:
            opened = socket.socket(socket.AF_UNIX)
            try:
                opened.connect(path)
            except OSError:
                opened.close()
                raise
            return opened

        return cls(connect, key)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer. Raises OSError where nobody listens."""
        connection = _Connection(self.open_socket)
        try:
            headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def until_healthy(self, limit_s: float = ANSWER_S) -> None:
        """Wait until the model is loaded. Raises RuntimeError when it takes too long."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"llama-server is not ready after {limit_s} s")
            time.sleep(HEALTH_EVERY_S)

    def decode(self, tokens: int, *, prompt: str = "count from 1 to 200", **more: Any) -> Decoded:
        """A greedy answer of exactly so many tokens. Raises RuntimeError for a refusal."""
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            **more,
        }
        status, answer = self.ask("POST", "/v1/chat/completions", body)
        if status != 200:
            raise RuntimeError(f"{status} {answer}")
        timings = answer["timings"]
        if timings["predicted_n"] != tokens:
            raise RuntimeError(f"{timings['predicted_n']} of {tokens} tokens")
        text = answer["choices"][0]["message"]["content"]
        return Decoded(text, tokens, timings["predicted_per_second"])
