import json
from typing import Any

import pytest

from meshnode.api.aggregate import (
    AGGREGATES,
    ChatAggregate,
    CompletionAggregate,
    EventReader,
    MessageAggregate,
    ResponseAggregate,
    StreamFailed,
)
from meshnode.api.upstream import UpstreamBroken


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "created": 5, "model": "demo", "choices": [choice], **more}


def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments, **more.pop("function", {})}, **more}]}


def aggregated(kind: str, *events: dict[str, Any]) -> dict[str, Any]:
    aggregate = AGGREGATES[kind]()
    for event in events:
        aggregate.take(event)
    return aggregate.result()


def test_reasoning_and_several_tool_calls_are_put_together() -> None:
    body = aggregated(
        "/v1/chat/completions",
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "let me "}),
        chunk({"reasoning_content": "see"}),
        chunk(call(0, "", id="a", type="function", function={"name": "look_up"})),
        chunk(call(0, '{"city":')),
        chunk(call(0, '"Bern"}')),
        chunk(call(1, "{}", id="b", type="function", function={"name": "other"})),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": {"completion_tokens": 9}, "timings": {"predicted_n": 9}},
    )
    assert body["object"] == "chat.completion"
    assert (body["id"], body["created"], body["model"]) == ("c1", 5, "demo")
    assert (body["usage"], body["timings"]) == ({"completion_tokens": 9}, {"predicted_n": 9})
    [choice] = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "reasoning_content": "let me see",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "a", "function": {"name": "look_up", "arguments": '{"city":"Bern"}'}},
            {"type": "function", "id": "b", "function": {"name": "other", "arguments": "{}"}},
        ],
    }


def test_choices_may_come_in_any_order() -> None:
    body = aggregated(
        "/v1/chat/completions",
        chunk({"content": "B"}, index=1),
        chunk({"content": "A"}),
        chunk({}, "stop"),
        chunk({"content": "b"}, index=1),
        chunk({}, "length", index=1),
    )
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "A", "stop"),
        (1, "Bb", "length"),
    ]


def test_a_message_with_thinking_text_and_a_tool() -> None:
    def block(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
        begin = {"type": "content_block_start", "index": index, "content_block": block}
        parts = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        return [begin, *parts, {"type": "content_block_stop", "index": index}]

    usage = {"cache_read_input_tokens": 3, "input_tokens": 2, "output_tokens": 0}
    body = aggregated(
        "/v1/messages",
        {"type": "message_start", "message": {"id": "m", "content": [], "stop_reason": None, "usage": usage}},
        *block(
            0,
            {"type": "thinking", "thinking": ""},
            {"type": "thinking_delta", "thinking": "let me "},
            {"type": "thinking_delta", "thinking": "see"},
            {"type": "signature_delta", "signature": ""},
        ),
        {"type": "ping"},
        *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "hi"}),
        *block(
            2,
            {"type": "tool_use", "id": "t", "name": "look_up"},
            {"type": "input_json_delta", "partial_json": '{"a":'},
            {"type": "input_json_delta", "partial_json": "1}"},
        ),
        *block(3, {"type": "tool_use", "id": "u", "name": "none"}),
        *block(4, {"type": "tool_use", "id": "v", "name": "cut"}, {"type": "input_json_delta", "partial_json": '{"a'}),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    )
    assert body == {
        "id": "m",
        "content": [
            {"type": "thinking", "thinking": "let me see", "signature": ""},
            {"type": "text", "text": "hi"},
            {"type": "tool_use", "id": "t", "name": "look_up", "input": {"a": 1}},
            {"type": "tool_use", "id": "u", "name": "none", "input": {}},
            {"type": "tool_use", "id": "v", "name": "cut", "input": {}},
        ],
        "stop_reason": "tool_use",
        "usage": {"cache_read_input_tokens": 3, "input_tokens": 2, "output_tokens": 7},
    }


@pytest.mark.parametrize(
    ("kind", "events"),
    [
        (ChatAggregate, []),
        (ChatAggregate, [chunk({"content": "a"})]),
        (ChatAggregate, [chunk({}, "stop"), chunk({"content": "a"}, index=1)]),
        (CompletionAggregate, []),
        (CompletionAggregate, [{"choices": [{"index": 0, "text": "a", "finish_reason": None}]}]),
        (ResponseAggregate, [{"type": "response.created", "response": {}}]),
        (MessageAggregate, []),
        (MessageAggregate, [{"type": "message_start", "message": {"stop_reason": None}}]),
    ],
)
def test_an_answer_that_never_ended_is_not_passed_off_as_whole(kind: type, events: list[dict[str, Any]]) -> None:
    aggregate = kind()
    for event in events:
        aggregate.take(event)
    with pytest.raises(UpstreamBroken, match="before"):
        aggregate.result()


def test_events_are_the_same_however_the_bytes_are_cut() -> None:
    stream = (
        b': ping\n\ndata: {"a":1}\n\nevent: x\ndata: {"b":\ndata: 2}\n\ndata: [DONE]\n\ndata: 7\n\ndata:{"c":3}\n\n'
    )
    wanted = [{"a": 1}, {"b": 2}, {"c": 3}]
    for size in (1, 2, 3, 7, len(stream)):
        reader = EventReader(1000)
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [event for piece in pieces for event in reader.feed(piece)] == wanted


def test_events_that_tell_of_failure_or_make_no_sense() -> None:
    error = {"message": "no", "code": 500}
    for event in (
        b"data: " + json.dumps({"error": error}).encode(),
        b"event: error\ndata: " + json.dumps({"type": "error", "error": error}).encode(),
        b"event: error\ndata: " + json.dumps(error).encode(),
    ):
        with pytest.raises(StreamFailed) as caught:
            list(EventReader(1000).feed(event + b"\n\n"))
        assert caught.value.error == error
    for event in (b"data: {\n\n", b"data: \xff\n\n", b"data: " + b"[" * 100_000 + b"\n\n"):
        with pytest.raises(UpstreamBroken, match="not JSON"):
            list(EventReader(1000).feed(event))
    reader = EventReader(1000)
    with pytest.raises(UpstreamBroken, match="too large"):
        for _ in range(20):
            list(reader.feed(b"data: " + b"x" * 100))
