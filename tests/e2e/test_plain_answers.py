"""A plain answer is put together from a stream; it must be what llama-server itself answers, field by field."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import NodeProcess

pytestmark = pytest.mark.engine

# What differs from one run to the next: names, clocks and speeds.
VARYING = {"id", "call_id", "created", "created_at", "completed_at", "timings", "request_id"}
FIXED = {"model": "file:tools", "temperature": 0, "seed": 1, "cache_prompt": False}
QUESTION = [{"role": "user", "content": "count from 1 to 20"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 40}),
    "chat cut short": ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 3}),
    "chat with log-probabilities": (
        "/v1/chat/completions",
        {"messages": QUESTION, "max_tokens": 6, "logprobs": True, "top_logprobs": 3},
    ),
    "chat that stops at a word": ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 60, "stop": ["5"]}),
    "chat with two choices": ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 12, "n": 2}),
    "chat by a schema": (
        "/v1/chat/completions",
        {
            "messages": QUESTION,
            "max_tokens": 60,
            "response_format": {"type": "json_schema", "json_schema": {"name": "pair", "schema": SCHEMA}},
        },
    ),
    "chat with a system prompt": (
        "/v1/chat/completions",
        {"messages": [{"role": "system", "content": "Be brief."}, *QUESTION], "max_tokens": 20},
    ),
    "completion": ("/v1/completions", {"prompt": "1, 2, 3,", "max_tokens": 20}),
    "completion with log-probabilities": ("/v1/completions", {"prompt": "1, 2, 3,", "max_tokens": 5, "logprobs": 2}),
    "completions of two prompts": ("/v1/completions", {"prompt": ["1, 2,", "a, b,"], "max_tokens": 8}),
    "response": ("/v1/responses", {"input": "count from 1 to 20", "max_output_tokens": 40}),
    "response cut short": ("/v1/responses", {"input": "count from 1 to 20", "max_output_tokens": 3}),
    "message": ("/v1/messages", {"messages": QUESTION, "max_tokens": 40}),
    "message that stops at a word": (
        "/v1/messages",
        {"messages": QUESTION, "max_tokens": 60, "stop_sequences": ["5"], "system": "Be brief."},
    ),
}


def plain(base: str, path: str, body: dict[str, Any]) -> Any:
    data = json.dumps({**FIXED, **body}).encode()
    request = urllib.request.Request(f"{base}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def steady(value: Any) -> Any:
    """`value` with what varies replaced by its type: that a field is there at all is compared too."""
    if isinstance(value, dict):
        return {key: type(item).__name__ if key in VARYING else steady(item) for key, item in value.items()}
    return [steady(item) for item in value] if isinstance(value, list) else value


Twin = Callable[[NodeProcess, str], str]


@pytest.mark.parametrize("case", CASES)
def test_plain_answer_is_that_of_llama_server(case: str, several_server: NodeProcess, twin: Twin) -> None:
    path, body = CASES[case]
    ours = plain(several_server.base_url, path, body)
    theirs = plain(twin(several_server, "file:tools"), path, body)
    assert steady(ours) == steady(theirs)
    assert set(ours.get("timings", {})) == set(theirs.get("timings", {}))


PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
BEGUN = [*QUESTION, {"role": "assistant", "content": "{"}]
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {
            "messages": BEGUN,
            "tools": [{"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}],
            "tool_choice": "required",
            "max_tokens": 60,
        },
    ),
    "message": (
        "/v1/messages",
        {
            "messages": BEGUN,
            "tools": [{"name": "add", "input_schema": PARAMETERS}],
            "tool_choice": {"type": "any"},
            "max_tokens": 60,
        },
    ),
    "response": (
        "/v1/responses",
        {
            "input": "count from 1 to 20",
            "tools": [{"type": "function", "name": "add", "parameters": PARAMETERS, "strict": False}],
            "tool_choice": "required",
            "logit_bias": {"{": 100},
            "max_output_tokens": 60,
        },
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_tool_call_is_that_of_llama_server(case: str, several_server: NodeProcess, twin: Twin) -> None:
    path, body = CALLS[case]
    ours = plain(several_server.base_url, path, body)
    theirs = plain(twin(several_server, "file:tools"), path, body)
    assert '"add"' in json.dumps(ours)
    assert steady(ours) == steady(theirs)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "embedder", "input": ["one", "two three"]}),
        ("/v1/rerank", {"model": "reranker", "query": "one", "documents": ["one two", "three"], "top_n": 1}),
    ],
)
def test_answers_without_a_stream_are_forwarded(
    path: str, body: dict[str, Any], several_server: NodeProcess, twin: Twin
) -> None:
    assert plain(several_server.base_url, path, body) == plain(
        twin(several_server, f"file:{body['model']}"), path, body
    )
