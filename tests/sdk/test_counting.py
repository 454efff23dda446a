"""Token counts that are asked for once."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.errors import EngineCrashed
from meshnode.sdk import counting
from meshnode.sdk.counting import COUNT, SLACK_TOKENS, TokenCounts
from meshnode.sdk.exchange import Api
from tests.sdk.talking import talker, tokens_of

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "what is that?"}
ASSISTANT = {"role": "assistant", "content": "a test, I think"}


@pytest.mark.parametrize("system", [None, "be brief"])
@pytest.mark.parametrize("messages", [[USER], [USER, ASSISTANT, USER], [USER, ASSISTANT] * 3 + [USER]])
async def test_the_sum_is_exact_where_messages_are_treated_alike(system: str | None, messages: list[Any]) -> None:
    counts = TokenCounts(Api(talker()))
    first = [{"role": "system", "content": system}] if system else []
    assert await counts.prompt("demo", system, messages) == tokens_of([*first, *messages]) + SLACK_TOKENS


async def test_only_what_is_new_is_asked_for() -> None:
    counts = TokenCounts(Api(talker()))
    await counts.prompt("demo", None, [USER])
    before = counts.asked
    await counts.prompt("demo", None, [USER])
    assert counts.asked == before
    await counts.prompt("demo", None, [USER, ASSISTANT, USER])
    assert counts.asked == before + 1
    await counts.prompt("other", None, [USER])
    assert counts.asked > before + 1, "another model cuts a text into other tokens"


async def test_what_an_answer_told_is_not_asked_for() -> None:
    counts = TokenCounts(Api(talker()))
    await counts.prompt("demo", None, [USER])
    before = counts.asked
    counts.learn("demo", ASSISTANT["content"], 1000)
    assert await counts.prompt("demo", None, [USER, ASSISTANT, USER]) > 1000
    assert counts.asked == before


async def test_messages_without_text() -> None:
    app = talker()
    app.answers[COUNT] = lambda body: {"input_tokens": 10 * len(body["messages"])}
    counts = TokenCounts(Api(app))
    empty = {"role": "assistant", "content": None}
    calling = {**empty, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    parts = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    assert await counts.prompt("demo", None, [parts, empty, calling]) > 0
    sent = [body["messages"][0]["content"] for _, body in app.asked]
    assert parts["content"] in sent and None not in sent and any("add" in str(content) for content in sent)


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MOST_REMEMBERED", 8)
    counts = TokenCounts(Api(talker()))
    for number in range(20):
        await counts.prompt("demo", None, [{"role": "user", "content": str(number)}])
    assert len(counts._known) == 8
    before = counts.asked
    await counts.prompt("demo", None, [{"role": "user", "content": "19"}])
    assert counts.asked == before


@pytest.mark.parametrize("answer", [{}, [], {"input_tokens": "7"}, {"input_tokens": True}, {"input_tokens": -1}])
async def test_a_count_that_is_none(answer: Any) -> None:
    app = talker()
    app.answers[COUNT] = answer
    with pytest.raises(EngineCrashed, match="how many tokens"):
        await TokenCounts(Api(app)).prompt("demo", None, [USER])
