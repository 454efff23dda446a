"""The official `openai` client against real nodes: what its users do, and the error classes they catch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

COUNT = ", ".join(str(number) for number in range(1, 21))
QUESTION: Any = [{"role": "user", "content": "count from 1 to 20"}]
SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "integer", "maximum": 99}, "letter": {"enum": ["x", "y"]}},
    "required": ["number", "letter"],
    "additionalProperties": False,
}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}]
BEGUN: Any = [*QUESTION, {"role": "assistant", "content": "{"}]


def client_of(node: NodeProcess, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{node.base_url}/v1", "api_key": "unused", "max_retries": 0, **options})


@pytest.fixture
def client(demo_server: NodeProcess) -> Iterator[openai.OpenAI]:
    with client_of(demo_server) as opened:
        yield opened


@pytest.fixture
def several(several_server: NodeProcess) -> Iterator[openai.OpenAI]:
    with client_of(several_server) as opened:
        yield opened


# --- chat -----------------------------------------------------------------------------------------------------


def test_chat_counts(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == COUNT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.completion_tokens > 20
    assert answer.object == "chat.completion" and answer.model == "demo"


def test_streamed_chat_is_the_plain_one_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    plain = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == plain.choices[0].message.content
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == [plain.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage and plain.usage
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert len(chunks) >= 30


def test_stream_without_usage_has_none(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=3, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_max_tokens_and_stop(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=2, temperature=0)
    assert cut.choices[0].finish_reason == "length" and cut.usage and cut.usage.completion_tokens == 2
    whole = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=30, temperature=0)
    text = whole.choices[0].message.content or ""
    stopped = client.chat.completions.create(
        model="demo", messages=QUESTION, max_tokens=30, temperature=0, stop=[text[6:10]]
    )
    assert stopped.choices[0].message.content == text[: text.index(text[6:10])]
    assert stopped.choices[0].finish_reason == "stop"


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=8, n=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content) == 4
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in logprobs.content)
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content


def test_answer_by_a_json_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "pair", "schema": SCHEMA, "strict": True}}
    asked: dict[str, Any] = {"model": "demo", "messages": QUESTION, "temperature": 0, "response_format": form}
    answer = client.chat.completions.create(**asked, max_tokens=200)
    value = json.loads(answer.choices[0].message.content or "")
    assert isinstance(value["number"], int) and value["letter"] in ("x", "y") and len(value) == 2
    pieces = client.chat.completions.create(**asked, max_tokens=200, stream=True)
    text = "".join(choice.delta.content or "" for chunk in pieces for choice in chunk.choices)
    assert json.loads(text) == value


# --- tools ----------------------------------------------------------------------------------------------------


def test_required_tool_is_called(several: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tools", "messages": BEGUN, "tools": TOOLS, "tool_choice": "required"}
    answer = several.chat.completions.create(**asked, temperature=0, max_tokens=60)
    calls = answer.choices[0].message.tool_calls or []
    assert calls and all(call.type == "function" and call.id and call.function.name == "add" for call in calls)
    pieces = [
        part
        for chunk in several.chat.completions.create(**asked, temperature=0, max_tokens=60, stream=True)
        for choice in chunk.choices
        for part in choice.delta.tool_calls or []
    ]
    for index, call in enumerate(calls):
        parts = [piece.function for piece in pieces if piece.index == index and piece.function]
        assert "".join(part.name or "" for part in parts) == "add"
        arguments = "".join(part.arguments or "" for part in parts)
        assert call.type == "function" and arguments == call.function.arguments and arguments.startswith("{")
    assert {piece.index for piece in pieces} == set(range(len(calls)))


def test_tool_results_can_be_sent_back(several: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 3}'}}
    messages: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "7"},
    ]
    answer = several.chat.completions.create(model="tools", messages=messages, tools=TOOLS, max_tokens=5)
    assert answer.usage and answer.usage.completion_tokens > 0


def test_tools_do_not_hinder_a_model_that_has_none(client: openai.OpenAI) -> None:
    """Agents always send their tools; the demo then simply answers."""
    answer = client.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS, max_tokens=5, temperature=0)
    assert answer.choices[0].message.content


# --- the other endpoints --------------------------------------------------------------------------------------


def test_completions(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": "1, 2, 3,", "max_tokens": 8, "temperature": 0}
    plain = client.completions.create(**asked)
    pieces = [choice.text for chunk in client.completions.create(**asked, stream=True) for choice in chunk.choices]
    assert plain.choices[0].text and "".join(pieces) == plain.choices[0].text
    assert plain.usage and plain.usage.completion_tokens == 8


def test_responses(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "input": "count from 1 to 20", "max_output_tokens": 30, "temperature": 0}
    plain = client.responses.create(**asked)
    assert plain.status == "completed" and plain.output_text and plain.usage
    events = list(client.responses.create(**asked, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(pieces) == plain.output_text == events[-1].response.output_text


def test_embeddings(several: openai.OpenAI) -> None:
    answer = several.embeddings.create(model="embedder", input=["one", "two three"])
    assert [item.index for item in answer.data] == [0, 1]
    assert {len(item.embedding) for item in answer.data} == {192}
    # The client asks for base64 unless it is told otherwise; both forms carry the same numbers.
    (plain,) = several.embeddings.create(model="embedder", input="one", encoding_format="float").data
    assert plain.embedding == pytest.approx(answer.data[0].embedding, abs=1e-5)


@pytest.mark.parametrize("model", ["demo", "embedder"])
def test_a_model_asked_for_what_it_cannot_do_says_so(model: str, client: openai.OpenAI, several: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        if model == "demo":
            client.embeddings.create(model="demo", input="one")
        else:
            several.chat.completions.create(model="embedder", messages=QUESTION)
    assert "GET /v1/models shows what each one can" in refusal.value.message


def test_models(client: openai.OpenAI, several: openai.OpenAI) -> None:
    (demo,) = client.models.list().data
    assert demo.id == "demo" and demo.to_dict()["context_length"] == 4096
    assert client.models.retrieve("demo").id == "demo"
    listed = {model.id: model.to_dict()["capabilities"] for model in several.models.list().data}
    assert listed["file:embedder"] == ["embedding"] and listed["file:reranker"] == ["rerank"]
    assert listed["file:tools"] == ["completion", "chat", "tools"]
    assert several.models.retrieve("file:tools").id == several.models.retrieve("tools").id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/repository:Q4_K_M")


# --- error classes --------------------------------------------------------------------------------------------


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.chat.completions.create(model="demi", messages=QUESTION)
    assert refusal.value.code == "model_not_found" and "did you mean demo" in refusal.value.message
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="demi", messages=QUESTION, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_beyond_the_context(stream: bool, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": " ".join(map(str, range(6000)))}]
    with pytest.raises(openai.BadRequestError) as refusal:
        list(client.chat.completions.create(model="demo", messages=messages, stream=stream))
    assert refusal.value.code == "exceed_context_size_error" and "4096" in refusal.value.message


def test_impossible_parameter(client: openai.OpenAI) -> None:
    wrong: list[dict[str, Any]] = [{"messages": [{"role": "user"}]}, {"messages": QUESTION, "tool_choice": "sideways"}]
    for body in wrong:
        with pytest.raises(openai.BadRequestError) as refusal:
            client.chat.completions.create(model="demo", **body)
        assert refusal.value.body


def test_keyed_node(start_node: StartNode) -> None:
    node = start_node("--model", "demo", environment={"MESHNODE_API_KEY": "correct horse"})
    with client_of(node, api_key="battery staple") as stranger, pytest.raises(openai.AuthenticationError) as refusal:
        stranger.chat.completions.create(model="demo", messages=QUESTION)
    assert "correct horse" not in str(refusal.value)
    with client_of(node, api_key="battery staple") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with client_of(node, api_key="correct horse") as friend:
        assert friend.chat.completions.create(model="demo", messages=QUESTION, max_tokens=3).usage


def test_refused_while_loading_and_answered_after(start_node: StartNode, tmp_path: Path) -> None:
    """The engine is held up by the lock of its build, as if another node were just building it."""
    from meshnode.engine.lock import build_lock

    cache = tmp_path / "cache"
    with build_lock(cache):
        node = start_node("--model", "demo", wait=False, environment={"MESHNODE_CACHE": str(cache)}).wait_listening()
        with client_of(node) as client:
            for stream in (False, True):
                with pytest.raises(openai.APIStatusError) as refusal:
                    client.chat.completions.create(model="demo", messages=QUESTION, stream=stream)
                assert refusal.value.status_code == 503 and refusal.value.code == "model_loading"
                assert int(refusal.value.response.headers["retry-after"]) >= 1
            assert client.models.retrieve("demo").to_dict()["status"] == {"value": "loading"}
        node.end()
    assert node.process.returncode == 0


# --- several at once ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_more_streams_than_slots_all_end(demo_server: NodeProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo_server.base_url}/v1", api_key="unused", max_retries=0) as client:

        async def ask(number: int) -> int:
            stream = await client.chat.completions.create(
                model="demo", messages=QUESTION, stream=True, max_tokens=20 + number, extra_body={"ignore_eos": True}
            )
            return len([chunk async for chunk in stream if chunk.choices and chunk.choices[0].delta.content])

        counts = await asyncio.gather(*(ask(number) for number in range(12)))
    assert all(abs(count - 20 - number) <= 2 for number, count in enumerate(counts))
    eventually(lambda: demo_server.status()["requests"]["active"] == 0)
