"""Server-sent events out of pieces of any size."""

from __future__ import annotations

import pytest

from meshnode.errors import EngineCrashed
from meshnode.sdk.events import MAX_EVENT_BYTES, Event, EventReader

STREAM = b': ping\n\ndata: {"a": 1}\n\nevent: x\r\ndata: one\r\ndata:two \xc3\xa9\r\n\r\nid: 7\n\ndata: [DONE]\n\n'
EVENTS = [Event("ping", comment=True), Event('{"a": 1}'), Event("one\ntwo é"), Event("[DONE]")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_of_any_size_give_the_same_events(size: int) -> None:
    reader = EventReader()
    found = []
    for at in range(0, len(STREAM), size):
        found += reader.feed(STREAM[at : at + size])
    assert found == EVENTS


def test_what_is_incomplete_is_no_event() -> None:
    reader = EventReader()
    assert reader.feed(b"data: half") == []
    assert reader.feed(b"\n") == []
    assert reader.feed(b"\n") == [Event("half")]
    assert reader.feed(b"\n\n\n") == []


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert EventReader().feed(b"data: \xff\n\n") == [Event("\ufffd")]


@pytest.mark.parametrize("line", [b"data: " + bytes(1 << 20), b"data: " + bytes(1 << 20) + b"\n"])
def test_an_event_without_end_is_refused(line: bytes) -> None:
    reader = EventReader()
    with pytest.raises(EngineCrashed, match="an event"):
        for _ in range(MAX_EVENT_BYTES // (1 << 20) + 1):
            reader.feed(line)
