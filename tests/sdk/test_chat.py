"""What is sent for what a program asks."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.errors import ModelNotFound
from meshnode.sdk.chat import CHAT, Chat, EmbeddingRequests, Models
from meshnode.sdk.exchange import Api
from tests.sdk.application import DONE, LAST, Scripted, piece, usage

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def app() -> Scripted:
    made = Scripted()
    made.answers[CHAT] = piece("hi") + LAST + usage(5, 1) + DONE
    return made


async def test_a_question_goes_to_any_model_and_asks_for_its_token_counts(app: Scripted) -> None:
    assert await Chat(Api(app))("hello") == "hi"
    body = {"model": "auto", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    assert app.asked == [(CHAT, body)]


async def test_what_is_given_is_sent_and_what_is_none_is_not(app: Scripted) -> None:
    parts = [{"type": "text", "text": "hello"}]
    await Chat(Api(app))(parts, model="demo", system="be brief", max_tokens=3, stop=["."], temperature=0, seed=None)
    ((_, body),) = app.asked
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    assert (body["model"], body["max_tokens"], body["stop"], body["temperature"]) == ("demo", 3, ["."], 0)
    assert "seed" not in body


async def test_create_gives_a_whole_answer_or_a_stream(app: Scripted) -> None:
    completions = Chat(Api(app)).completions
    stream = await completions.create(model="demo", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.content == "hi" and stream.node == "ab" * 5
    assert "stream_options" not in app.asked[0][1], "as in the SDK: token counts are asked for"
    app.answers[CHAT] = {"model": "demo", "choices": [{"index": 0, "message": {"content": "hi"}}]}
    app.headers["x-meshnode-resumed"] = "2"
    answer = await completions.create(model="demo", messages=HELLO, max_tokens=None)
    assert answer.choices[0].message.content == "hi" and (answer.node, answer.resumed) == ("ab" * 5, 2)
    assert app.asked[1] == (CHAT, {"model": "demo", "messages": HELLO, "stream": False})


async def test_an_answer_can_be_given_back_as_it_came(app: Scripted) -> None:
    message = {"role": "assistant", "content": "hi", "reasoning_content": "hm"}
    app.answers[CHAT] = {"choices": [{"index": 0, "message": message}]}
    completions = Chat(Api(app)).completions
    answer = await completions.create(model="demo", messages=HELLO)
    await completions.create(model="demo", messages=[*HELLO, answer.choices[0].message, *HELLO], stream=bool(0))
    assert app.asked[1][1]["messages"] == [*HELLO, message, *HELLO]


async def test_models(app: Scripted) -> None:
    app.answers["/v1/models"] = {"object": "list", "data": [{"id": "demo"}, 7]}
    app.answers["/v1/models/hf://a b/c.gguf"] = {"id": "c", "context_length": 9}
    models = Models(Api(app))
    assert [model.id for model in await models.list()] == ["demo", ""]
    assert (await models.retrieve("hf://a b/c.gguf")).context_length == 9
    app.answers["/v1/models"] = []
    assert await models.list() == []


async def test_embeddings(app: Scripted) -> None:
    app.answers["/v1/embeddings"] = {"model": "e", "data": [{"index": 0, "embedding": [0.5]}]}
    found = await EmbeddingRequests(Api(app)).create(model="e", input=("one", "two"), dimensions=1)
    assert found.data[0].embedding == (0.5,)
    assert app.asked == [("/v1/embeddings", {"model": "e", "input": ["one", "two"], "dimensions": 1})]


async def test_a_refusal_is_raised_when_the_reply_is_read(app: Scripted) -> None:
    app.status = 404
    app.answers[CHAT] = {"error": {"message": "No such model: 'x'", "code": "model_not_found"}}
    reply = Chat(Api(app))("hello", model="x")
    with pytest.raises(ModelNotFound):
        await reply
    with pytest.raises(ModelNotFound):
        await Chat(Api(app)).completions.create(model="x", messages=HELLO, stream=True)
