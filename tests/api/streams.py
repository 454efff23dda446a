"""Streams of llama-server: those that were recorded, and in its form those that the demo model does not give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
CHAT, COMPLETIONS, MESSAGES, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)


def events(stream: bytes) -> list[bytes]:
    """The events one by one."""
    return [event + b"\n\n" for event in stream.split(b"\n\n") if event.strip()]


def recorded(name: str) -> bytes:
    """A recorded stream."""
    return (DATA / f"{name}.sse").read_bytes()


def chat(*deltas: dict[str, Any], finish: str = "stop", name: str = "chatcmpl-1", usage: bool = True) -> bytes:
    """A chat stream of these deltas."""
    head = {"created": 7, "id": name, "model": "demo", "object": "chat.completion.chunk"}
    choices = [
        {"finish_reason": None, "index": 0, "delta": delta}
        for delta in ({"role": "assistant", "content": None}, *deltas)
    ]
    choices.append({"finish_reason": finish, "index": 0, "delta": {}})
    values: list[dict[str, Any]] = [{"choices": [choice], **head} for choice in choices]
    if usage:
        values.append(
            {"choices": [], **head, "usage": {"completion_tokens": 9, "prompt_tokens": 5, "total_tokens": 14}}
        )
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values) + b"data: [DONE]\n\n"


def thinking_and_tools(name: str = "chatcmpl-1", call: str = "call1") -> bytes:
    """A chat stream with reasoning, content, and two tool calls."""
    return chat(
        {"reasoning_content": "hm"},
        {"reasoning_content": ", é"},
        {"content": "Let me "},
        {"content": "see 🦙"},
        {"tool_calls": [{"index": 0, "id": call, "type": "function", "function": {"name": "add", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"a":1}'}}]},
        {
            "tool_calls": [
                {"index": 1, "id": call + "b", "type": "function", "function": {"name": "sub", "arguments": "{}"}}
            ]
        },
        finish="tool_calls",
        name=name,
    )


def named(*values: dict[str, Any]) -> bytes:
    """A stream whose events have names."""
    return b"".join(f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode() for value in values)


def message_with_tool(name: str = "msg1", call: str = "toolu1") -> bytes:
    """A /v1/messages stream with thinking, text and a tool use."""
    tool = {"type": "tool_use", "id": call, "name": "add"}
    return named(
        {"type": "message_start", "message": {"id": name, "role": "assistant", "usage": {"input_tokens": 5}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "yes "}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "é"}},
        {"type": "content_block_start", "index": 2, "content_block": tool},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ":1}"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": ""}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    )


def response_with_call(name: str = "resp_1", item: str = "1") -> bytes:
    """A /v1/responses stream with reasoning, a message and a function call."""
    response = {"id": name, "object": "response", "status": "in_progress"}
    thought = {"id": f"rs_{item}", "type": "reasoning", "content": []}
    message = {"id": f"msg_{item}", "type": "message", "role": "assistant", "content": []}
    call = {"id": f"fc_{item}", "type": "function_call", "call_id": f"call_{item}", "name": "add", "arguments": ""}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": "yes é"}
    usage = {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14}
    output = [thought, {**message, "content": [part]}, {**call, "arguments": '{"a":1}'}]
    return named(
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
        {"type": "response.output_item.added", "item": thought},
        {"type": "response.reasoning_text.delta", "delta": "hm", "item_id": thought["id"]},
        {"type": "response.output_item.added", "item": message},
        {"type": "response.content_part.added", "item_id": message["id"], "part": {"type": "output_text", "text": ""}},
        {"type": "response.output_text.delta", "item_id": message["id"], "delta": "yes "},
        {"type": "response.output_text.delta", "item_id": message["id"], "delta": "é"},
        {"type": "response.output_item.added", "item": call},
        {"type": "response.function_call_arguments.delta", "delta": '{"a"', "item_id": call["id"]},
        {"type": "response.function_call_arguments.delta", "delta": ":1}", "item_id": call["id"]},
        {"type": "response.output_item.done", "item": thought},
        {"type": "response.output_text.done", "item_id": message["id"], "text": "yes é"},
        {"type": "response.content_part.done", "item_id": message["id"], "part": part},
        {"type": "response.output_item.done", "item": output[1]},
        {"type": "response.output_item.done", "item": output[2]},
        {
            "type": "response.completed",
            "response": {**response, "status": "completed", "output": output, "usage": usage},
        },
    )


SAMPLES: dict[str, tuple[str, bytes, bytes]] = {
    "chat": (CHAT, recorded("chat"), recorded("chat").replace(b"chatcmpl-", b"chatcmpl-x")),
    "chat, two choices": (CHAT, recorded("chat_choices"), recorded("chat_choices")),
    "chat, thinking and tools": (CHAT, thinking_and_tools(), thinking_and_tools("chatcmpl-2", "call2")),
    "completion": (COMPLETIONS, recorded("completion"), recorded("completion")),
    "messages": (MESSAGES, recorded("messages"), recorded("messages")),
    "messages, thinking and a tool": (MESSAGES, message_with_tool(), message_with_tool("msg2", "toolu2")),
    "responses": (RESPONSES, recorded("responses"), recorded("responses")),
    "responses, thinking and a call": (RESPONSES, response_with_call(), response_with_call("resp_2", "2")),
}
"""Endpoint, a stream, and the same answer given by another host."""
