"""Answers as typed values: what is there, what is missing, and what a peer got wrong."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.sdk.values import ChatCompletion, Embeddings, Model, ModelList, ToolCall, Usage

CALL = {"index": 1, "id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 17,
    "model": "demo",
    "timings": {"predicted_n": 3},
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
}
NOT_AT_ALL: list[Any] = [None, 7, "text", [], [1], {"choices": 3}, {"choices": [None, {"message": []}]}, {"usage": 1}]


def test_an_answer_has_the_names_of_the_sdk() -> None:
    answer = ChatCompletion.of(ANSWER, node="ab", resumed=1)
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls or ()
    assert (answer.id, answer.object, answer.created, answer.model) == ("chatcmpl-1", "chat.completion", 17, "demo")
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "tool_calls", "assistant")
    assert choice.message.content is None and choice.message.reasoning_content == "hm"
    assert (call.index, call.id, call.type) == (1, "c", "function")
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 1}')
    assert answer.usage is not None and answer.usage.total_tokens == 8
    assert (answer.node, answer.resumed) == ("ab", 1)
    assert answer.to_dict()["timings"] == {"predicted_n": 3}


def test_a_chunk_has_a_delta() -> None:
    chunk = ChatCompletion.of({"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": None})
    assert chunk.choices[0].delta.content == "x" and chunk.choices[0].delta.tool_calls is None
    assert chunk.choices[0].finish_reason is None and chunk.usage is None


@pytest.mark.parametrize("value", NOT_AT_ALL, ids=repr)
def test_what_has_another_form_counts_as_missing(value: Any) -> None:
    answer = ChatCompletion.of(value)
    assert (answer.id, answer.created, answer.usage) == ("", 0, None)
    assert all(choice.message.content is None for choice in answer.choices)
    assert ToolCall.of(value).function.name is None
    assert Model.of(value).nodes == () and Embeddings.of(value).data == ()


def test_numbers_that_are_none() -> None:
    usage = Usage.of({"prompt_tokens": True, "completion_tokens": -3, "total_tokens": "8"})
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (0, 0, 0)


def test_models() -> None:
    model = Model.of(
        {
            "id": "demo",
            "context_length": 4096,
            "capabilities": ["chat"],
            "aliases": ["target"],
            "status": {"value": "loaded"},
            "meshnode": {"hosts": [{"node": "aa"}, {"node": "bb"}]},
        }
    )
    assert (model.id, model.context_length, model.ready) == ("demo", 4096, True)
    assert (model.capabilities, model.aliases, model.nodes) == (("chat",), ("target",), ("aa", "bb"))
    models = ModelList([model])
    assert models.data == [model] and [found.id for found in models] == ["demo"]


def test_embeddings() -> None:
    found = Embeddings.of({"model": "e", "data": [{"index": 1, "embedding": [1, 0.5, "x"]}], "usage": {}})
    assert found.data[0].index == 1 and found.data[0].embedding == (1.0, 0.5) and found.usage is None
