"""The reader that must notice every wrong token; itself tested against answers with known faults."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.counting import Heard, Streams, Take, by_socket, counted, question


def chunk(text: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choice = {"delta": delta, "finish_reason": more.pop("finish", None)}
    return {"id": "x", "choices": [choice], **more}


def stream(last: int) -> list[dict[str, Any]]:
    """The chunks of a faultless answer."""
    begin = {"id": "x", "choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    texts = [f"{', ' if number > 1 else ''}{number}" for number in range(1, last + 1)]
    usage = {"id": "x", "choices": [], "usage": {"completion_tokens": last}}
    return [begin, *(chunk(text) for text in texts), chunk(finish="stop"), usage]


def heard(chunks: list[dict[str, Any]], ended: bool = True) -> Heard:
    found = Heard("m", 4, ended=ended)
    for one in chunks:
        found.take(one)
    return found


def test_what_the_demo_counts() -> None:
    assert counted(4) == "1, 2, 3, 4"
    assert question("m", 4)["messages"] == [{"role": "user", "content": "count from 1 to 4"}]


def test_a_whole_answer_has_no_fault() -> None:
    assert heard(stream(4)).fault() == ""


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda chunks: chunks.pop(2), "the text is '1, 3, 4'"),
        (lambda chunks: chunks.insert(3, chunks[2]), "the text is '1, 2, 2, 3, 4'"),
        (lambda chunks: chunks.insert(3, chunks[0]), "ids {'x'}, 2 roles, finish 'stop', ended True"),
        (lambda chunks: chunks.append(chunk(finish="stop")), "ids {'x'}, 1 roles, finish 'stopstop', ended True"),
        (lambda chunks: chunks.pop(-2), "ids {'x'}, 1 roles, finish '', ended True"),
        (lambda chunks: chunks.pop(), "no token counts"),
    ],
    ids=["lost", "repeated", "second role", "second end", "no end", "no counts"],
)
def test_every_fault_shows(change: Callable[[list[dict[str, Any]]], object], fault: str) -> None:
    chunks = stream(4)
    change(chunks)
    assert heard(chunks).fault() == fault


def test_a_stream_that_is_cut_in_due_form_has_a_fault() -> None:
    assert "ended False" in heard(stream(4), ended=False).fault()


def test_an_error_counts_before_all_else() -> None:
    found = heard(stream(3))
    found.error = "ConnectionResetError"
    assert found.fault() == "ConnectionResetError after '1, 2, 3'"


def test_the_gap_is_the_longest_pause_after_a_moment() -> None:
    found = Heard("m", 4, arrived_at=[0.0, 3.0, 3.1, 4.0, 4.2])
    assert found.gap_s(1.0) == 3.0
    assert found.gap_s(3.05) == pytest.approx(0.9)
    assert found.gap_s(9.0) == 0.0
    assert Heard("m", 4).gap_s(0.0) == 0.0


@pytest.fixture
def base_url() -> Iterator[str]:
    """A server that counts, hands over in the middle, and refuses the model `none`."""

    class Counting(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(404 if body["model"] == "none" else 200)
            self.send_header("x-meshnode-node", "n1")
            self.end_headers()
            if body["model"] == "error":
                self.wfile.write(b'data: {"error": {"message": "gone"}}\n\n')
                return
            for number, one in enumerate(stream(4)):
                self.wfile.write(b": meshnode-resumed\n\n" if number == 2 else b"")
                self.wfile.write(b"data: %s\n\n" % json.dumps(one).encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_streams_are_read_by_socket(base_url: str) -> None:
    with Streams(by_socket(base_url), [("m", 4)] * 5) as streams:
        pass
    assert streams.faults() == []
    assert {(one.node, one.resumed, one.tokens) for one in streams.heard} == {("n1", True, 4)}


def test_refusals_and_errors_within_a_stream_are_faults(base_url: str) -> None:
    with Streams(by_socket(base_url), [("none", 4), ("error", 4), ("m", 5)]) as streams:
        pass
    refused, broken, wrong = streams.faults()
    assert refused.startswith("RuntimeError: 404") and "gone" in broken and wrong == "the text is '1, 2, 3, 4'"


def test_a_stream_that_is_over_has_a_follower() -> None:
    over, finish = threading.Event(), threading.Event()

    def listen(found: Heard, take: Take) -> None:
        for one in stream(4)[:4]:
            take(one)
        if over.is_set():
            assert finish.wait(10)
        for one in stream(4)[4:]:
            take(one)
        found.ended = True
        over.set()

    with Streams(listen, [("m", 4)]) as streams:
        assert over.wait(10)
        (running,) = streams.until_all_run()
        first, second = streams.heard
        assert first.finish and second is running and not second.finish
        finish.set()
    assert streams.faults() == []


def test_a_stream_that_fails_does_not_run() -> None:
    def listen(found: Heard, take: Take) -> None:
        raise ConnectionError("refused")

    with Streams(listen, [("m", 4)]) as streams, pytest.raises(RuntimeError, match="1 of 1 .* do not run: .*refused"):
        streams.until_all_run()


def test_a_silent_stream_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.counting.LIMIT_S", 0.05)
    finish = threading.Event()

    def listen(found: Heard, take: Take) -> None:
        assert finish.wait(10)

    with Streams(listen, [("m", 4)]) as streams:
        with pytest.raises(RuntimeError, match="1 of 1 streams bring no text"):
            streams.until_all_run()
        finish.set()
