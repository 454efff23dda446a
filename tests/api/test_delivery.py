import asyncio

import pytest

from meshnode.api.aggregate import StreamFailed
from meshnode.api.delivery import MAX_JOURNAL_BYTES, Journal, StallWatch, whole_events
from meshnode.api.upstream import Exchange, Pipe, UpstreamBroken
from tests.api.streams import recorded
from tests.api.test_upstream import MeshPipe

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


async def exchange_of(*pieces: bytes, error: OSError | None = None) -> Exchange:
    async def connect() -> Pipe:
        return MeshPipe(HEAD, *pieces, error=error)

    return await Exchange.send(connect, "POST", "/", api_key="", body=b"", content_type="a/b")


async def collected(*pieces: bytes, error: OSError | None = None) -> list[bytes]:
    return [piece async for piece in whole_events(await exchange_of(*pieces, error=error), lambda: None)]


async def test_only_whole_events_go_on_however_the_bytes_come() -> None:
    stream = recorded("chat")
    for size in (1, 7, 100, 5000):
        pieces = await collected(*(stream[at : at + size] for at in range(0, len(stream), size)))
        assert b"".join(pieces) == stream and all(piece.endswith(b"\n\n") for piece in pieces)
    assert await collected(b"a\n\nb\n\nc") == [b"a\n\nb\n\n", b"c"]


async def test_what_is_cut_inside_an_event_never_goes_on() -> None:
    found = []
    with pytest.raises(UpstreamBroken):
        async for piece in whole_events(await exchange_of(b"a\n\nb", error=ConnectionResetError()), lambda: None):
            found.append(piece)
    assert found == [b"a\n\n"]


@pytest.mark.parametrize(
    ("event", "status", "message"),
    [
        (b'data: {"error":{"code":503,"message":"no"}}\n\n', 503, "no"),
        (b'data: {"error":{"message":"no"}}\n\n', 500, "no"),
        (b'event: error\ndata: {"code":400,"message":"no"}\n\n', 400, "no"),
        (b'event: error\ndata: {"error":{"code":400,"message":"no"}}\n\n', 400, "no"),
        (b"event: error\ndata: what\n\n", 500, ""),
        (b'data: {"error":"text"}\n\n', 500, ""),
    ],
)
async def test_an_error_event_is_told_apart_from_what_came_before(event: bytes, status: int, message: str) -> None:
    found = []
    with pytest.raises(StreamFailed) as caught:
        async for piece in whole_events(await exchange_of(b"a\n\n" + event + b"b\n\n"), lambda: None):
            found.append(piece)
    assert found == [b"a\n\n"]
    assert (caught.value.event, caught.value.status, str(caught.value)) == (event, status, message)


async def test_a_text_that_speaks_of_errors_is_none() -> None:
    event = b'data: {"choices":[{"delta":{"content":"data: {\\"error\\": event: error\\n"}}]}\n\n'
    assert await collected(event) == [event]


async def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.api.delivery.MAX_EVENT_BYTES", 1000)
    with pytest.raises(UpstreamBroken, match="too large"):
        await collected(*[b"x" * 300] * 5)


def test_a_journal_keeps_all_or_nothing() -> None:
    journal = Journal()
    journal.keep(b"a")
    journal.keep(b"b")
    assert (journal.read(), journal.whole, journal.size_bytes) == (b"ab", True, 2)
    journal.keep(b"x" * MAX_JOURNAL_BYTES)
    journal.keep(b"y")
    assert (journal.read(), journal.whole) == (b"", False)
    journal.clear()
    assert (journal.whole, journal.size_bytes) == (True, 0)


async def test_a_watch_breaks_only_what_is_silent_and_can_be_left() -> None:
    leave = False
    exchange = await exchange_of(b"a\n\n")
    watch = StallWatch(exchange, 0.02, lambda: leave)
    for _ in range(6):
        await asyncio.sleep(0.01)
        watch.touch()
    leave = True
    assert not watch.stalled
    async with asyncio.timeout(1):
        while not watch.stalled:
            await asyncio.sleep(0.005)
    assert exchange._pipe.aborted == 1  # type: ignore[attr-defined]
    watch.close()
