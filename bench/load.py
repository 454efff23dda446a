"""A light load generator in a process of its own: one thread, one epoll loop, non-blocking sockets, little parsing.

Run as a program it reads jobs from stdin, one JSON object a line, and answers each with one line. `LoadProcess` is
the other end. A job keeps `concurrency` requests under way until `requests` are done (a closed loop). What is timed:

- first token: from the moment the connection is opened to the first piece of text in the answer;
- whole: to the last byte of the answer.

Each request opens its own connection unless the job says `keep_alive`: llama-server closes after every streamed
answer, so that reuse would help only the one in front of it.
"""

from __future__ import annotations

import json
import re
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

READ_BYTES = 256 << 10
TAIL_BYTES = 4096
STALL_S = 120
FIRST_TEXT = re.compile(rb'"(?:content|text|reasoning_content)": ?"[^"]')
TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: a loopback port or a Unix socket, the model's name there, and a key."""

    name: str
    model: str
    port: int = 0
    socket: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """What to send, how often, and how many at a time.

    `bodies` are JSON texts that are sent in turn. In them `{model}` becomes the target's name for it, and `{padding}`
    that many bytes of text, so that large bodies do not travel through the pipe.
    """

    bodies: Sequence[str]
    path: str = "/v1/chat/completions"
    requests: int = 1
    concurrency: int = 1
    keep_alive: bool = False
    padding_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one job gave. Times are in seconds; `statuses` counts the answers, 0 for a lost connection.

    `refusal` is the end of the last answer that was not 200.
    """

    wall_s: float
    processor_s: float
    tokens: int
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    refusal: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all streams together."""
        return self.tokens / self.wall_s

    def check(self, *expected: int) -> Self:
        """Raises RuntimeError when an answer had another status than the expected ones."""
        wrong = {status: count for status, count in self.statuses.items() if int(status) not in expected}
        if wrong:
            raise RuntimeError(f"answers with the statuses {wrong}, expected {expected}: {self.refusal}")
        return self


class LoadProcess:
    """The load generator as a child process. Use it as a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def run(self, target: Target, job: Job) -> Outcome:
        """Run a job to its end. Raises RuntimeError when the generator itself fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"target": asdict(target), "job": asdict(job)}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with status {self._process.wait()}")
        return Outcome(**json.loads(line))


# --- the child --------------------------------------------------------------------------------------------------


class Stream:
    """One connection and the answer that it carries at the moment."""

    __slots__ = ("begun", "buffer", "chunked", "end", "first", "left", "link", "size", "status", "unsent")

    def __init__(self) -> None:
        self.link: socket.socket | None = None
        self.reset(b"")

    def reset(self, request: bytes) -> None:
        """Begin with the next request."""
        self.begun = time.perf_counter()
        self.first = 0.0
        self.status = 0
        self.buffer = b""
        self.chunked = False
        self.left = -1
        self.end = False
        self.size = 0
        self.unsent = memoryview(request)

    def take(self, data: bytes) -> None:
        """More of the answer. `end` is set when it is whole."""
        self.buffer += data
        if not self.status:
            if b"\r\n\r\n" not in self.buffer:
                return
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            match = STATUS.match(head)
            self.status = int(match[1]) if match else 0
            length = LENGTH.search(head)
            self.chunked = length is None
            self.left = int(length[1]) if length else -1
            data = self.buffer
        if not self.first and FIRST_TEXT.search(self.buffer):
            self.first = time.perf_counter()
        self.size += len(data)
        # The last bytes hold the token counts; what came before was looked at already.
        self.buffer = self.buffer[-TAIL_BYTES:]
        self.end = self.buffer.endswith(b"\r\n0\r\n\r\n") if self.chunked else self.size >= self.left


class Runner:
    """Runs one job against one target."""

    def __init__(self, target: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        self._target, self._job = target, job
        self._requests = [self._request(body) for body in job["bodies"]]
        self._selector = selectors.DefaultSelector()
        self._left = job["requests"]
        self._active = 0
        self._tokens = 0
        self._first: list[float] = []
        self._whole: list[float] = []
        self._statuses: dict[int, int] = {}
        self._refusal = ""

    def _request(self, body: str) -> bytes:
        target, job = self._target, self._job
        padded = body.replace("{model}", target["model"]).replace(
            "{padding}", "lorem ipsum " * (job["padding_bytes"] // 12)
        )
        raw = padded.encode()
        head = (
            f"POST {job['path']} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {target['key']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
            f"Connection: {'keep-alive' if job['keep_alive'] else 'close'}\r\n\r\n"
        )
        return head.encode() + raw

    def run(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        begun, used = time.perf_counter(), _processor_s()
        for _ in range(min(self._job["concurrency"], self._left)):
            self._next(Stream())
        while self._active:
            ready = self._selector.select(STALL_S)
            if not ready:
                sys.exit(f"{self._target['name']} was silent for {STALL_S} s")
            for key, events in ready:
                self._serve(key.data, events)
        self._selector.close()
        return {
            "wall_s": time.perf_counter() - begun,
            "processor_s": _processor_s() - used,
            "tokens": self._tokens,
            "first_s": [round(value, 6) for value in self._first],
            "whole_s": [round(value, 6) for value in self._whole],
            "statuses": self._statuses,
            "refusal": self._refusal,
        }

    def _next(self, stream: Stream) -> None:
        if not self._left:
            self._drop(stream)
            return
        self._left -= 1
        self._active += 1
        stream.reset(self._requests[self._left % len(self._requests)])
        if stream.link is None:
            stream.link = self._open()
            self._selector.register(stream.link, selectors.EVENT_READ, stream)
        self._send(stream)

    def _open(self) -> socket.socket:
        if self._target["socket"]:
            link = socket.socket(socket.AF_UNIX)
            link.connect(self._target["socket"])
        else:
            link = socket.create_connection(("127.0.0.1", self._target["port"]))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setblocking(False)
        return link

    def _send(self, stream: Stream) -> None:
        assert stream.link is not None
        try:
            while stream.unsent:
                stream.unsent = stream.unsent[stream.link.send(stream.unsent) :]
        except BlockingIOError:
            self._selector.modify(stream.link, selectors.EVENT_READ | selectors.EVENT_WRITE, stream)
            return
        except OSError:  # refused before all was sent: the answer tells why
            stream.unsent = memoryview(b"")
        self._selector.modify(stream.link, selectors.EVENT_READ, stream)

    def _serve(self, stream: Stream, events: int) -> None:
        assert stream.link is not None
        if events & selectors.EVENT_WRITE:
            self._send(stream)
        if not events & selectors.EVENT_READ:
            return
        try:
            data = stream.link.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            stream.take(data)
        if stream.end or not data:
            self._count(stream)
            if not (data and self._job["keep_alive"]):
                self._drop(stream)
            self._active -= 1
            self._next(stream)

    def _count(self, stream: Stream) -> None:
        status = stream.status if stream.end else 0
        self._statuses[status] = self._statuses.get(status, 0) + 1
        if status != 200:
            self._refusal = stream.buffer[-600:].decode("utf-8", "replace")
        if stream.first:
            self._first.append(stream.first - stream.begun)
        self._whole.append(time.perf_counter() - stream.begun)
        found = TOKENS.findall(stream.buffer)
        self._tokens += int(found[-1]) if found else 0

    def _drop(self, stream: Stream) -> None:
        if stream.link is not None:
            self._selector.unregister(stream.link)
            stream.link.close()
            stream.link = None


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Answer jobs until stdin ends."""
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(Runner(order["target"], order["job"]).run()), flush=True)


if __name__ == "__main__":
    main()
