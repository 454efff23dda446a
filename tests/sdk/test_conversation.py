"""Conversations: what is remembered, what is dropped, and one answer at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshnode.errors import BadRequest, ModelNotFound
from meshnode.sdk.chat import CHAT, Chat, Models
from meshnode.sdk.conversation import Conversation
from meshnode.sdk.counting import TokenCounts
from meshnode.sdk.exchange import Api
from tests.sdk.application import DONE, LAST, Scripted, piece, settle
from tests.sdk.talking import talker, tokens_of

pytestmark = pytest.mark.anyio


def conversation(app: Scripted, **options: Any) -> Conversation:
    api = Api(app)
    return Conversation(Chat(api), Models(api), TokenCounts(api), **{"model": "demo", "parameters": {}, **options})


def prompts(app: Scripted) -> list[list[dict[str, Any]]]:
    """The messages of each question that was asked."""
    return [body["messages"] for path, body in app.asked if path == CHAT]


async def test_each_question_comes_with_what_was_said_before() -> None:
    app = talker()
    talk = conversation(app, system="be brief", parameters={"temperature": 0}, max_tokens=9)
    assert await talk.say("one?") == "yes"
    assert [text async for text in talk.say("two?", temperature=1)] == ["yes"]
    roles = [[message["role"] for message in messages] for messages in prompts(app)]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert talk.messages[-1] == {"role": "assistant", "content": "yes"} and talk.dropped == 0
    first, second = (body for path, body in app.asked if path == CHAT)
    assert (first["temperature"], second["temperature"], second["max_tokens"]) == (0, 1, 9)
    talk.forget()
    assert talk.messages == [{"role": "system", "content": "be brief"}]


@pytest.mark.parametrize("limits", [{}, {"max_tokens": 40}, {"keep_tokens": 55}, {"max_tokens": 5, "keep_tokens": 70}])
async def test_the_oldest_turns_are_dropped_and_the_system_prompt_stays(limits: dict[str, int]) -> None:
    app = talker(context=100)
    talk = conversation(app, system="be brief", **limits)
    for number in range(12):
        await talk.say(f"question {number}")
    room = min(100 - limits.get("max_tokens", 25), limits.get("keep_tokens", 100))
    sizes = [tokens_of(messages) for messages in prompts(app)]
    assert max(sizes) <= room
    assert min(sizes[-6:]) > room - 40, "no more is dropped than must be"
    assert all(messages[0]["role"] == "system" for messages in prompts(app))
    assert all(messages[1]["role"] == "user" for messages in prompts(app)), "no answer without its question"
    assert talk.dropped > 0 and talk.dropped + len(talk.messages) // 2 == 12


async def test_any_model_means_the_smallest_context_that_may_be_chosen() -> None:
    app = talker(context=80)
    talk = conversation(app, model="auto")
    for number in range(9):
        await talk.say(f"question {number}")
    assert max(map(tokens_of, prompts(app))) <= 60


async def test_a_model_that_does_not_say_how_much_it_takes() -> None:
    app = talker()
    app.answers["/v1/models/demo"] = {"id": "demo"}
    talk = conversation(app)
    for number in range(9):
        await talk.say(f"question {number}")
    assert talk.dropped == 0
    talk.keep_tokens = 50
    await talk.say("the last")
    assert talk.dropped > 0 and tokens_of(prompts(app)[-1]) <= 50


async def test_a_prompt_that_turns_out_too_long_is_shortened() -> None:
    app = talker(context=4000)
    talk = conversation(app)
    for number in range(5):
        await talk.say(f"question {number}")
    short = app.answers[CHAT]

    def refuse(body: dict[str, Any]) -> Any:
        app.status = 400 if tokens_of(body["messages"]) > 40 else 200
        if app.status == 200:
            return short(body)
        return {"error": {"message": "request exceeds", "code": "exceed_context_size_error"}}

    def counted(body: dict[str, Any]) -> Any:
        app.status = 200
        return {"input_tokens": 1}

    app.answers[CHAT], app.answers["/v1/chat/completions/input_tokens"] = refuse, counted
    assert await talk.say("and now?") == "yes"
    assert talk.dropped > 0 and tokens_of(prompts(app)[-1]) <= 40
    talk.forget()
    with pytest.raises(BadRequest, match="exceeds"):
        await talk.say("x" * 50)
    assert talk.messages == []


async def test_what_fails_is_not_part_of_it() -> None:
    app = talker()
    talk = conversation(app)
    await talk.say("one?")
    app.status = 404
    app.answers["/v1/models/demo"] = {"error": {"message": "No such model", "code": "model_not_found"}}
    with pytest.raises(ModelNotFound):
        await talk.say("two?")
    assert len(talk.messages) == 2
    app.status = 200
    app.answers.update(talker().answers)
    assert await talk.say("three?") == "yes", "and the next question finds its turn"


async def test_an_answer_that_is_left_early_is_kept_as_far_as_it_came() -> None:
    app = talker()
    app.answers[CHAT], app.hold = piece("one ") + piece("two"), True
    talk = conversation(app)
    async for text in talk.say("count"):
        assert text == "one "
        break
    assert talk.messages[-1] == {"role": "assistant", "content": "one "}
    app.answers[CHAT], app.hold = piece("yes") + LAST + DONE, False
    assert await talk.say("go on") == "yes"
    assert len(talk.messages) == 4


async def test_one_answer_at_a_time() -> None:
    app = talker()
    talk = conversation(app)
    first, second = talk.say("one?"), talk.say("two?")
    answers = await asyncio.gather(second._whole(), first._whole())
    assert answers == ["yes", "yes"]
    assert [message["content"] for message in talk.messages] == ["two?", "yes", "one?", "yes"]


async def test_a_question_inside_the_loop_of_another_is_a_mistake_that_is_told() -> None:
    app = talker()
    app.answers[CHAT], app.hold = piece("one "), True
    talk = conversation(app)
    async for _ in talk.say("count"):
        with pytest.raises(RuntimeError, match="still being read"):
            await talk.say("and?")
        break
    assert len(talk.messages) == 2


async def test_who_gives_up_waiting_leaves_the_turn_to_others() -> None:
    app = talker()
    app.answers[CHAT], app.hold = piece("one "), True
    talk = conversation(app)
    pieces = aiter(talk.say("count"))
    await anext(pieces)
    waiting = asyncio.create_task(talk.say("and?")._whole())
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del pieces
    app.answers[CHAT], app.hold = piece("yes") + LAST + DONE, False
    assert await talk.say("three?") == "yes"


async def test_an_earlier_conversation_goes_on() -> None:
    app = talker()
    before = [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "hi"}]
    talk = conversation(app, messages=before, system="be brief")
    await talk.say("well?")
    assert [message["content"] for message in prompts(app)[0]] == ["be brief", "hello", "hi", "well?"]
    with pytest.raises(BadRequest, match="system"):
        conversation(app, messages=[{"role": "system", "content": "x"}])


async def test_counts_are_learned_from_answers() -> None:
    app = talker()
    talk = conversation(app)
    await talk.say("one?")
    await talk.say("two?")
    counted = [body["messages"][0]["content"] for path, body in app.asked if path.endswith("input_tokens")]
    assert "yes" not in counted and counted.count("one?") == 1
