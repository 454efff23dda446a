"""Answers that are read piece by piece, or not to their end."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator

import pytest

from meshnode.errors import EngineCrashed
from meshnode.sdk.exchange import Api
from meshnode.sdk.streams import Reply, Stream
from tests.sdk.application import DONE, LAST, Scripted, event, piece, settle, usage

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
WHOLE = piece("one ") + piece("two") + LAST + usage(5, 3) + DONE


def scripted(answer: bytes, *, hold: bool = False) -> Scripted:
    app = Scripted()
    app.answers[CHAT], app.hold = answer, hold
    return app


async def stream_of(app: Scripted) -> Stream:
    return Stream(await Api(app).open("POST", CHAT, {}))


def reply_of(app: Scripted, ended: list[str] | None = None) -> Reply:
    async def begin() -> Stream:
        return await stream_of(app)

    return Reply(begin, lambda reply: (ended if ended is not None else []).append(reply.text))


async def test_the_pieces_of_a_reply() -> None:
    app, ended = scripted(WHOLE), list[str]()
    reply = reply_of(app, ended)
    assert reply.text == reply.node == "" and app.asked == [], "nothing is asked before it is read"
    assert [text async for text in reply] == ["one ", "two"]
    assert (reply.text, reply.finish_reason, reply.model, reply.node) == ("one two", "stop", "demo", "ab" * 5)
    assert reply.usage is not None and reply.usage.completion_tokens == 3
    assert ended == ["one two"]
    assert (app.finished, app.left) == (1, 0), "an answer that was read is no caller who left"


async def test_a_reply_that_is_awaited_is_a_text_with_facts() -> None:
    answer = await reply_of(scripted(WHOLE))
    assert answer == "one two" and f"{answer}!" == "one two!" and type(answer.text) is str
    assert (answer.finish_reason, answer.resumed, answer.node, answer.reasoning) == ("stop", 0, "ab" * 5, "")
    assert answer.usage is not None and answer.usage.prompt_tokens == 5


async def test_a_loop_that_is_left_ends_the_answer_though_the_reply_is_kept() -> None:
    app, ended = scripted(piece("one ") + piece("two"), hold=True), list[str]()
    reply = reply_of(app, ended)
    async for text in reply:
        assert text == "one "
        break
    assert ended == ["one "], "at once, not when the loop runs on"
    await settle()
    assert app.left == 1
    assert await reply == "one "


async def test_an_exception_in_the_loop_ends_the_answer() -> None:
    app = scripted(piece("one "), hold=True)
    with pytest.raises(ZeroDivisionError):
        async for _ in reply_of(app):
            raise ZeroDivisionError
    gc.collect()
    await settle()
    assert app.left == 1


async def test_a_reader_that_is_cancelled_ends_the_answer() -> None:
    app, ended = scripted(piece("one "), hold=True), list[str]()

    async def read() -> None:
        await reply_of(app, ended)

    reading = asyncio.create_task(read())
    await settle()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await settle()
    assert app.left == 1 and ended == ["one "]


async def test_who_holds_the_iterator_can_close_it() -> None:
    app = scripted(piece("one "), hold=True)
    pieces: AsyncIterator[str] = aiter(reply_of(app))
    assert await anext(pieces) == "one "
    await pieces.aclose()  # type: ignore[attr-defined]
    await settle()
    assert app.left == 1
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_another_task_can_stop_it() -> None:
    app, ended = scripted(piece("one "), hold=True), list[str]()
    reply = reply_of(app, ended)

    async def read() -> list[str]:
        return [text async for text in reply]

    reading = asyncio.create_task(read())
    await settle()
    reply.stop()
    assert await reading == ["one "] and ended == ["one "]
    await settle()
    assert app.left == 1


async def test_an_iterator_that_is_dropped_in_another_thread() -> None:
    app, ended = scripted(piece("one "), hold=True), list[str]()
    pieces = [aiter(reply_of(app, ended))]
    await anext(pieces[0])
    thread = threading.Thread(target=pieces.clear)
    thread.start()
    thread.join()
    assert ended == [], "not in the other thread"
    await settle()
    assert app.left == 1 and ended == ["one "]


async def test_a_reply_is_read_once() -> None:
    reply = reply_of(scripted(piece("one "), hold=True))
    async for _ in reply:
        with pytest.raises(RuntimeError, match="read already"):
            await reply
        break
    with pytest.raises(RuntimeError, match="once"):
        aiter(reply)
    stopped = reply_of(scripted(WHOLE))
    stopped.stop()
    assert await stopped == ""


async def test_reasoning_stands_apart() -> None:
    thought = piece("", delta={"reasoning_content": "hm "})
    answer = await reply_of(scripted(thought + thought + WHOLE))
    assert (answer, answer.reasoning) == ("one two", "hm hm ")


async def test_another_choice_is_not_mixed_in() -> None:
    other = event({"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": "length"}]})
    answer = await reply_of(scripted(other + WHOLE))
    assert (answer, answer.finish_reason) == ("one two", "stop")


async def test_an_answer_that_another_node_ended_says_so() -> None:
    app = scripted(piece("one ") + b": ping\n\n: meshnode-resumed 1\n\n" + piece("two") + LAST + DONE)
    chunks = [chunk async for chunk in await stream_of(app)]
    assert [chunk.resumed for chunk in chunks] == [0, 1, 1]
    assert (await reply_of(app)).resumed == 1
    app.answers[CHAT] = b": meshnode-resumed many\n\n" + DONE
    assert (await reply_of(app)).resumed == 0


async def test_an_answer_tells_how_far_it_is_from() -> None:
    farther = b": meshnode-resumed 2 radius=public\n\n"
    app = scripted(b": meshnode-radius trusted\n\n" + piece("one ") + farther + piece("two") + LAST + DONE)
    stream = await stream_of(app)
    assert stream.radius == ""
    assert [chunk.resumed async for chunk in stream] == [0, 2, 2]
    assert stream.radius == "public"
    answer = await reply_of(app)
    assert (answer.radius, answer.resumed, answer) == ("public", 2, "one two")
    app.headers["x-meshnode-radius"] = "local"
    app.answers[CHAT] = b": meshnode-radius of evil\n\n: meshnode-resumed 1 radius=all\n\n" + DONE
    answer = await reply_of(app)
    assert (answer.radius, answer.resumed) == ("local", 1)
    app.headers["x-meshnode-radius"] = "everywhere"
    assert (await stream_of(app)).radius == ""
    assert reply_of(app).radius == ""


async def test_a_stream_can_be_closed_in_three_ways() -> None:
    app = scripted(piece("one "), hold=True)
    stream = await stream_of(app)
    async for chunk in stream:
        assert chunk.choices[0].delta.content == "one "
        break
    await settle()
    assert app.left == 1
    async with await stream_of(app):
        pass
    await (await stream_of(app)).close()
    await settle()
    assert app.left == 3


async def test_a_stream_that_nobody_reads_ends_with_its_last_name() -> None:
    app = scripted(piece("one "), hold=True)
    stream = await stream_of(app)
    del stream
    gc.collect()
    await settle()
    assert app.left == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (piece("one ") + event({"error": {"message": "out of memory", "code": 500}}), "out of memory"),
        (piece("one "), "before it was complete"),
        (piece("one ") + b"data: {half\n\n", "not JSON"),
        (piece("one ") + b"data: " + b"[" * 100_000 + b"\n\n", "not JSON"),
    ],
    ids=["an error event", "cut off", "broken JSON", "deep JSON"],
)
async def test_an_answer_that_breaks_off(answer: bytes, words: str) -> None:
    ended: list[str] = []
    reply = reply_of(scripted(answer), ended)
    with pytest.raises(EngineCrashed, match=words):
        await reply
    assert len(ended) == 1


async def test_values_of_another_form_are_passed_over() -> None:
    odd = event([1]) + event({"choices": [{"index": 0, "delta": {"content": 7}}]}) + event(None)
    assert await reply_of(scripted(odd + WHOLE)) == "one two"
