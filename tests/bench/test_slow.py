"""The slow readers, against a server whose behaviour is known."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bench.slow import read_slowly

EVENT = b'data: {"x": 1}\n\n'


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """`serve(answer)` is the port of a server that reads the head of each request and lets `answer` write."""
    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: Callable[[socket.socket], None]) -> int:
        server = socket.create_server(("127.0.0.1", 0), backlog=64)
        servers.append(server)

        def accept() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=serve_one, args=(link,)))
                threads[-1].start()

        def serve_one(link: socket.socket) -> None:
            with link:
                link.recv(65536)
                answer(link)

        threads.append(threading.Thread(target=accept))
        threads[-1].start()
        return int(server.getsockname()[1])

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join()


def test_all_events_of_all_streams_are_counted(serve: Callable[..., int]) -> None:
    def answer(link: socket.socket) -> None:
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + EVENT * 300)

    outcome = read_slowly(serve(answer), "{}", streams=8)
    assert outcome.events == [300] * 8
    assert 0.1 < outcome.wall_s < 5


@pytest.mark.alone
def test_a_silence_within_a_stream_shows(serve: Callable[..., int]) -> None:
    def answer(link: socket.socket) -> None:
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + EVENT[:4])
        time.sleep(0.3)  # before the first event is whole, so that it does not count
        link.sendall(EVENT[4:])
        time.sleep(0.5)
        link.sendall(EVENT)

    (pause_s,) = read_slowly(serve(answer), "{}", streams=1).pauses_s
    assert 0.3 < pause_s < 0.6


def test_a_refusal_is_told(serve: Callable[..., int]) -> None:
    def answer(link: socket.socket) -> None:
        link.sendall(b"HTTP/1.1 429 Too Many Requests\r\n\r\nfull")

    with pytest.raises(RuntimeError, match="429 Too Many Requests.*full"):
        read_slowly(serve(answer), "{}", streams=2)
