"""The official `anthropic` client against real nodes: what its users do, and the error classes they catch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.conftest import NodeProcess, StartNode

pytestmark = pytest.mark.engine

COUNT = ", ".join(str(number) for number in range(1, 21))
QUESTION: Any = [{"role": "user", "content": "count from 1 to 20"}]
BEGUN: Any = [*QUESTION, {"role": "assistant", "content": "{"}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
TOOLS: Any = [{"name": "add", "description": "adds", "input_schema": PARAMETERS}]
EXACT: Any = {"temperature": 0}


def client_of(node: NodeProcess, key: str = "unused") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=node.base_url, api_key=key, max_retries=0)


def text_of(message: anthropic.types.Message) -> str:
    (block,) = message.content
    assert block.type == "text"
    return block.text


def error_of(error: anthropic.APIStatusError) -> str:
    body: Any = error.body
    assert body["type"] == "error" and body["error"]["message"]
    return str(body["error"]["type"])


@pytest.fixture
def client(demo_server: NodeProcess) -> Iterator[anthropic.Anthropic]:
    with client_of(demo_server) as opened:
        yield opened


def test_message_counts(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="demo", max_tokens=400, messages=QUESTION, extra_body=EXACT)
    (block,) = answer.content
    assert block.type == "text" and block.text == COUNT
    assert answer.stop_reason == "end_turn" and answer.role == "assistant" and answer.model == "demo"
    assert answer.usage.output_tokens > 20


def test_streamed_message_is_the_plain_one_in_pieces(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 30, "messages": QUESTION, "extra_body": EXACT}
    plain = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        whole = stream.get_final_message()
    assert len(pieces) > 20
    assert "".join(pieces) == text_of(plain) == text_of(whole)
    assert whole.stop_reason == plain.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == plain.usage.output_tokens == 30


def test_system_prompt_and_blocks_are_read(client: anthropic.Anthropic) -> None:
    blocks: Any = [{"role": "user", "content": [{"type": "text", "text": "count from 1 to 20"}]}]
    plain = client.messages.count_tokens(model="demo", messages=QUESTION)
    assert client.messages.count_tokens(model="demo", messages=blocks).input_tokens == plain.input_tokens
    told = client.messages.count_tokens(model="demo", messages=QUESTION, system="Answer in one word.")
    assert told.input_tokens > plain.input_tokens > 5
    answer = client.messages.create(model="demo", max_tokens=4, messages=QUESTION, system="Answer in one word.")
    cached = answer.usage.cache_read_input_tokens or 0
    assert answer.usage.input_tokens + cached == told.input_tokens


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 30, "messages": QUESTION, "extra_body": EXACT}
    text = text_of(client.messages.create(**asked))
    stop = text[6:10]
    answer = client.messages.create(**asked, stop_sequences=[stop])
    assert text_of(answer) == text[: text.index(stop)]
    # llama-server says "end_turn" here where Anthropic says "stop_sequence"; the sequence itself it does name.
    assert answer.stop_sequence == stop and answer.stop_reason in ("end_turn", "stop_sequence")


def test_tool_use(several_server: NodeProcess) -> None:
    asked: dict[str, Any] = {
        "model": "tools",
        "max_tokens": 60,
        "messages": BEGUN,
        "tools": TOOLS,
        "tool_choice": {"type": "any"},
        "extra_body": EXACT,
    }
    with client_of(several_server) as client:
        plain = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
    for message in (plain, streamed):
        assert message.content
        for block in message.content:
            assert block.type == "tool_use" and block.name == "add" and block.id
            assert isinstance(block.input, dict)


def test_unknown_model(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as refusal:
        client.messages.create(model="demi", max_tokens=4, messages=QUESTION)
    assert error_of(refusal.value) == "not_found_error"
    assert "did you mean demo" in str(refusal.value)
    with (
        pytest.raises(anthropic.NotFoundError),
        client.messages.stream(model="demi", max_tokens=4, messages=QUESTION) as stream,
    ):
        stream.until_done()


def test_prompt_beyond_the_context(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": " ".join(map(str, range(6000)))}]
    with pytest.raises(anthropic.BadRequestError) as refusal:
        client.messages.create(model="demo", max_tokens=4, messages=messages)
    assert "4096" in str(refusal.value) and error_of(refusal.value) == "invalid_request_error"


def test_message_without_content(client: anthropic.Anthropic) -> None:
    nothing: Any = [{"role": "user"}]
    with pytest.raises(anthropic.BadRequestError) as refusal:
        client.messages.create(model="demo", max_tokens=4, messages=nothing)
    assert error_of(refusal.value) == "invalid_request_error"


def test_keyed_node(start_node: StartNode) -> None:
    node = start_node("--model", "demo", environment={"MESHNODE_API_KEY": "correct horse"})
    with client_of(node, "battery staple") as stranger, pytest.raises(anthropic.AuthenticationError) as refusal:
        stranger.messages.create(model="demo", max_tokens=4, messages=QUESTION)
    assert error_of(refusal.value) == "authentication_error"
    with client_of(node, "correct horse") as friend:
        assert friend.messages.create(model="demo", max_tokens=4, messages=QUESTION).usage.output_tokens == 4
