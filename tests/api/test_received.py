"""What came of a paid answer, by the one who pays: text is counted, and nothing else."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from meshnode.api import received
from meshnode.api.received import Received
from meshnode.wire.values import WireError
from tests.api.paid_stage import chunk, last

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
CHAT = "/v1/chat/completions"


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def read(path: str, *pieces: bytes) -> Received:
    found = Received(path)
    for piece in pieces:
        found.take(piece)
    return found


def choice(**delta: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": delta}])


CALL = {"index": 0, "id": "x" * 50, "function": {"name": "find", "arguments": '{"a":'}}
CASES: list[tuple[str, bytes, int, int]] = [
    (CHAT, choice(content="hello"), 5, 1),
    (CHAT, choice(content="ä€😀"), 9, 1),
    (CHAT, choice(content="\ud800"), 3, 1),
    (CHAT, choice(reasoning_content="why", content=None), 3, 1),
    (CHAT, choice(tool_calls=[CALL]), 9, 1),
    (CHAT, choice(role="assistant"), 0, 0),
    (CHAT, last(5), 0, 0),
    (CHAT, b": a comment of any length\n\n", 0, 0),
    ("/v1/completions", event(choices=[{"text": "abc"}, {"text": "de"}]), 5, 1),
    ("/v1/messages", event(type="content_block_delta", delta={"type": "text_delta", "text": "abc"}), 3, 1),
    ("/v1/messages", event(type="content_block_delta", delta={"thinking": "ab"}), 2, 1),
    ("/v1/messages", event(type="content_block_start", content_block={"type": "tool_use", "name": "find"}), 4, 1),
    ("/v1/responses", event(type="response.output_text.delta", delta="abcd"), 4, 1),
    ("/v1/responses", event(type="response.output_text.done", text="abcd", delta="x"), 0, 0),
    ("/v1/responses", event(type="response.output_item.added", item={"name": "find"}), 4, 1),
    ("/v1/embeddings", event(data=[{"embedding": [0.5]}]), 0, 0),
]


@pytest.mark.parametrize(("path", "data", "text_bytes", "events"), CASES)
def test_the_text_of_every_dialect_is_counted(path: str, data: bytes, text_bytes: int, events: int) -> None:
    found = read(path, HEAD + data)
    assert (found.text_bytes, found.events) == (text_bytes, events)


HOSTILE = [
    b"data: {}\n\n",
    b"data: []\n\n",
    b"data: 7\n\n",
    b"data: {not json}\n\n",
    b"data: " + b"[" * 5000 + b"\n\n",
    event(choices=7),
    event(choices=[7]),
    event(choices=[{"delta": "text"}]),
    event(choices=[{"delta": {"content": 10**9}}]),
    event(choices=[{"delta": {"content": ["a", "b"]}}]),
    event(choices=[{"delta": {"tool_calls": {"a": 1}}}]),
    event(padding="x" * 10_000),
    b"event: " + b"x" * 1000 + b"\n\n",
]


@pytest.mark.parametrize("data", HOSTILE)
def test_what_is_no_text_for_the_caller_is_not_paid_for(data: bytes) -> None:
    for path in received.TEXTS:
        found = read(path, HEAD, data)
        assert (found.text_bytes, found.events) == (0, 0)


def test_however_the_bytes_are_cut_it_is_the_same() -> None:
    stream = HEAD + b"".join(chunk(f"wörd {number}", number) for number in range(20)) + last(20)
    whole = read(CHAT, stream)
    for size in (1, 2, 3, 7, 50, 333):
        cut = read(CHAT, *(stream[at : at + size] for at in range(0, len(stream), size)))
        assert (cut.text_bytes, cut.events, cut.sha256) == (whole.text_bytes, whole.events, whole.sha256)
    assert whole.sha256 == sha256(stream[len(HEAD) :]).hexdigest(), "of the body alone"


def test_a_head_and_an_event_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "MAX_HEAD_BYTES", 100)
    monkeypatch.setattr(received, "MAX_EVENT_BYTES", 100)
    with pytest.raises(WireError, match="head"):
        read(CHAT, b"x" * 101)
    with pytest.raises(WireError, match="too large"):
        read(CHAT, HEAD, b"data: " + b"x" * 100)
