import asyncio
import json
from typing import Any

import pytest

from meshnode.api.answer import PING, SSE_HEADERS, TAIL_BYTES, Answer, CallerLeft, encode
from meshnode.errors import BadRequest, TooManyRequests

pytestmark = pytest.mark.anyio


class FakeSend:
    """Keeps what is sent; `open` holds it up, as a caller does that does not read."""

    def __init__(self) -> None:
        self.heads: list[dict[str, Any]] = []
        self.pieces: list[bytes] = []
        self.ended = 0
        self.open = asyncio.Event()
        self.open.set()
        self.sent = asyncio.Event()

    async def __call__(self, message: dict[str, Any]) -> None:
        await self.open.wait()
        if message["type"] == "http.response.start":
            self.heads.append(message)
        else:
            self.pieces.append(message["body"])
            self.ended += not message["more_body"]
        self.sent.set()

    async def until(self, pieces: int) -> None:
        async with asyncio.timeout(5):
            while len(self.pieces) < pieces:
                self.sent.clear()
                await self.sent.wait()


def answer(send: FakeSend) -> Answer:
    return Answer(send, dialect="openai", headers={"x-a": "b"}, request_id="req_1")


async def test_a_stream_is_a_head_pieces_and_one_end() -> None:
    send = FakeSend()
    reply = answer(send)
    assert not reply.started
    await reply.start(200, SSE_HEADERS)
    assert reply.first_byte_at is None
    await reply.write(b"a" * 10)
    first = reply.first_byte_at
    await reply.write(b"b" * (TAIL_BYTES - 1))
    await reply.write(b"c")
    await reply.finish()
    await reply.finish()
    await reply.fail(BadRequest("too late"))
    assert (b"x-a", b"b") in send.heads[0]["headers"]
    assert (len(send.heads), send.ended, b"".join(send.pieces)) == (1, 1, b"a" * 10 + b"b" * (TAIL_BYTES - 1) + b"c")
    assert reply.first_byte_at == first
    assert (reply.lead, reply.tail) == (b"a" * 10, b"b" * (TAIL_BYTES - 1) + b"c")


async def test_an_error_is_the_answer_before_the_head_and_an_event_after_it() -> None:
    send = FakeSend()
    reply = answer(send)
    await reply.fail(TooManyRequests("busy", retry_after_s=2))
    assert (send.heads[0]["status"], reply.status) == (429, 429)
    assert (b"retry-after", b"2") in send.heads[0]["headers"]
    assert json.loads(send.pieces[0])["error"]["code"] == "too_many_requests"
    send = FakeSend()
    reply = answer(send)
    await reply.start(200, SSE_HEADERS)
    await reply.fail(BadRequest("no"))
    assert send.pieces[0].startswith(b'data: {"error":')
    assert (len(send.heads), send.ended) == (1, 1)


async def test_a_heartbeat_begins_the_answer_and_stops_with_it() -> None:
    send = FakeSend()
    reply = answer(send)
    reply.start_heartbeat(0.01)
    await send.until(2)
    assert send.pieces[:2] == [PING, PING]
    assert (len(send.heads), send.heads[0]["status"]) == (1, 200)
    assert reply.first_byte_at is None  # a ping is not a token
    await reply.finish()
    count = len(send.pieces)
    await asyncio.sleep(0.03)
    assert len(send.pieces) == count
    reply.stop_watching()


async def test_a_ping_that_was_due_before_half_an_event_was_written_is_not_sent_into_it() -> None:
    send = FakeSend()
    reply = answer(send)
    await reply.start(200, SSE_HEADERS)
    await asyncio.gather(reply.write(b"data: half"), reply._ping())
    assert send.pieces == [b"data: half"]
    await reply.write(b"\n\n")
    await reply._ping()
    assert send.pieces[-1] == PING


async def test_no_ping_queues_up_behind_a_caller_that_does_not_read() -> None:
    send = FakeSend()
    reply = answer(send)
    await reply.start(200, SSE_HEADERS)
    send.open.clear()
    writing = asyncio.create_task(reply.write(b"data: 1\n\n"))
    reply.start_heartbeat(0.005)
    await asyncio.sleep(0.03)
    send.open.set()
    await writing
    reply.stop_watching()
    assert send.pieces == [b"data: 1\n\n"]


async def test_a_caller_that_takes_nothing_for_too_long_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.api.answer.STALL_S", 0.02)
    send = FakeSend()
    reply = answer(send)
    await reply.start(200, SSE_HEADERS)
    await reply.write(b"taken")
    send.open.clear()
    with pytest.raises(CallerLeft):
        await reply.write(b"not taken")
    assert send.pieces == [b"taken"]


def test_half_a_surrogate_pair_does_not_stop_an_answer() -> None:
    assert encode({"a": "é"}) == '{"a": "é"}'.encode()
    assert json.loads(encode({"a": "é\ud800"})) == {"a": "é\ud800"}
