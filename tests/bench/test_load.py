"""The load generator against a small server that answers in awkward pieces."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load import Job, LoadProcess, Outcome, Stream, Target

EVENT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
LAST = b'data: {"usage":{"completion_tokens":7}}\n\n'


def chunked(*pieces: bytes) -> bytes:
    frames = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + frames + b"0\r\n\r\n"


def plain(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


class ScriptedServer:
    """Answers each request with the next of `answers`, in pieces of `step` bytes; keeps what it was sent."""

    def __init__(self, listener: socket.socket, answers: list[bytes], step: int) -> None:
        self.listener, self.answers, self.step = listener, answers, step
        self.requests: list[bytes] = []
        self.connections = 0
        listener.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while self.answers:
            link, _ = self.listener.accept()
            self.connections += 1
            with link:
                while self.answers and (request := self.receive(link)):
                    self.requests.append(request)
                    answer = self.answers.pop(0)
                    for at in range(0, len(answer), self.step):
                        link.sendall(answer[at : at + self.step])
                    if b"Connection: close" in request:
                        break

    def receive(self, link: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := link.recv(65536)):
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += link.recv(65536)
        return head + b"\r\n\r\n" + body


@pytest.fixture
def load() -> Iterator[LoadProcess]:
    with LoadProcess() as process:
        yield process


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_streams_and_plain_answers(load: LoadProcess, step: int) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = ScriptedServer(listener, [chunked(EVENT, LAST), plain(b'{"text":"x","completion_tokens":2}')], step)
        target = Target("t", model="m", port=listener.getsockname()[1], key="secret")
        outcome = load.run(target, Job(['{"model":"{model}"}'], requests=2))
        server.thread.join()
    assert (outcome.tokens, outcome.statuses, len(outcome.first_s), server.connections) == (9, {"200": 2}, 2, 2)
    assert all(0 < first <= whole for first, whole in zip(outcome.first_s, outcome.whole_s, strict=True))
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert body == b'{"model":"m"}' and b"Authorization: Bearer secret" in head


def test_a_unix_socket_and_a_large_body_on_one_connection(load: LoadProcess, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        server = ScriptedServer(listener, [plain(b"{}"), plain(b"no", b"413 Too large")], 1000)
        job = Job(["{padding}"], requests=2, keep_alive=True, padding_bytes=3_000_000)
        outcome = load.run(Target("t", model="m", socket=str(path)), job)
        server.thread.join()
    assert outcome.statuses == {"200": 1, "413": 1} and outcome.refusal == "no"
    assert server.connections == 1
    assert all(len(request) > 3_000_000 for request in server.requests)
    with pytest.raises(RuntimeError, match=r"\{'413': 1\}"):
        outcome.check(200)
    assert outcome.check(200, 413) is outcome


def test_an_answer_that_breaks_off_is_counted(load: LoadProcess) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = ScriptedServer(listener, [chunked(EVENT, LAST)[:-8]], 50)
        outcome = load.run(Target("t", model="m", port=listener.getsockname()[1]), Job(["{}"]))
        server.thread.join()
    assert outcome.statuses == {"0": 1}


def test_a_job_that_cannot_run(load: LoadProcess) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(RuntimeError, match="load generator ended"):
            load.run(Target("t", model="m", port=unused.getsockname()[1]), Job(["{}"]))


def test_the_first_text_is_not_the_role() -> None:
    stream = Stream()
    stream.take(b'HTTP/1.1 200 OK\r\n\r\ndata: {"delta":{"role":"assistant","content":null}}\n\n')
    stream.take(b'data: {"delta":{"content":""}}\n\n')
    assert not stream.first and stream.status == 200
    stream.take(b'data: {"delta":{"con')
    stream.take(b'tent": "x"}}\n\n')
    assert stream.first and not stream.end


def test_rates() -> None:
    assert Outcome(wall_s=2.0, processor_s=0.1, tokens=100).tokens_per_s == 50
