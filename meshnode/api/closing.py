"""The end of an answer, written here: its text is complete, and only the host that could have closed it is gone.

The events are those of llama-server (`server_task_result_cmpl_final` in tools/server/server-task.cpp), as far as they
have not gone out. Token counts are added where the caller expects them and they are known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from meshnode.api.sent import CONTENT, REASONING, Sent

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known of the end: the model, the wall time, whether the limit of new tokens is used up, and counts (None
    where unknown).
    """

    model: str
    at: int
    limited: bool = False
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    wants_usage: bool = False


def usage_told(path: str, sent: Sent, *, wanted: bool) -> bool:
    """Whether no token counts are missing of what has gone out."""
    match path:
        case "/v1/chat/completions":
            return not wanted or bool(sent.usages)
        case "/v1/completions":
            return bool(sent.finish)
        case "/v1/messages":
            return ("message_delta", 0) in sent.form
    return False


def closing_events(path: str, sent: Sent, ending: Ending) -> bytes:
    """What is missing of the answer at the endpoint `path`."""
    match path:
        case "/v1/messages":
            return b"".join(_named(event) for event in _message(sent, ending))
        case "/v1/responses":
            return b"".join(_named(event) for event in _response(sent, ending))
        case "/v1/completions":
            return b"".join(_plain(event) for event in _completion(sent, ending)) + DONE
    return b"".join(_plain(event) for event in _chat(sent, ending)) + DONE


def _plain(event: Json) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _named(event: Json) -> bytes:
    return f"event: {event['type']}\n".encode() + _plain(event)


def _openai_usage(ending: Ending) -> Json | None:
    if ending.prompt_tokens is None or ending.answer_tokens is None:
        return None
    total = ending.prompt_tokens + ending.answer_tokens
    counts = {"completion_tokens": ending.answer_tokens, "prompt_tokens": ending.prompt_tokens, "total_tokens": total}
    return {**counts, "prompt_tokens_details": {"cached_tokens": 0}}


def _chat(sent: Sent, ending: Ending) -> Iterator[Json]:
    frame = {**sent.head, "object": "chat.completion.chunk"}
    if not sent.finish:
        reason = "length" if ending.limited else "tool_calls" if sent.calls else "stop"
        yield {"choices": [{"finish_reason": reason, "index": 0, "delta": {}}], **frame}
    usage = _openai_usage(ending)
    if ending.wants_usage and usage and not sent.usages:
        yield {"choices": [], **frame, "usage": usage}


def _completion(sent: Sent, ending: Ending) -> Iterator[Json]:
    if not sent.finish:
        reason = "length" if ending.limited else "stop"
        choice = {"text": "", "index": 0, "logprobs": None, "finish_reason": reason}
        usage = _openai_usage(ending)
        yield {"choices": [choice], **sent.head, "object": "text_completion", **({"usage": usage} if usage else {})}


def _message(sent: Sent, ending: Ending) -> Iterator[Json]:
    begun = {number for kind, number in sent.form if kind == "content_block_start"}
    ended = {number for kind, number in sent.form if kind == "content_block_stop"}
    for number in sorted(begun - ended, key=str):
        yield {"type": "content_block_stop", "index": number}
    if ("message_delta", 0) not in sent.form:
        reason = "max_tokens" if ending.limited else "tool_use" if sent.calls else "end_turn"
        usage = {} if ending.answer_tokens is None else {"usage": {"output_tokens": ending.answer_tokens}}
        yield {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, **usage}
    yield {"type": "message_stop"}


def _response(sent: Sent, ending: Ending) -> Iterator[Json]:
    output = []
    for number, begun in enumerate(sent.items):
        item = _whole_item(sent, number, begun)
        output.append(item)
        if item["type"] == "message":
            part, name = item["content"][0], item["id"]
            yield from (
                {"type": kind, "item_id": name, **more}
                for kind, more in (
                    ("response.output_text.done", {"text": part["text"]}),
                    ("response.content_part.done", {"part": part}),
                )
                if (kind, name) not in sent.form
            )
        if ("response.output_item.done", item["id"]) not in sent.form:
            yield {"type": "response.output_item.done", "item": item}
    told = {"created_at": ending.at, "model": ending.model}
    response = {**sent.head, **told, "status": "completed", "output": output}
    if ending.prompt_tokens is not None and ending.answer_tokens is not None:
        total = ending.prompt_tokens + ending.answer_tokens
        response["usage"] = {
            "input_tokens": ending.prompt_tokens,
            "output_tokens": ending.answer_tokens,
            "total_tokens": total,
            "input_tokens_details": {"cached_tokens": 0},
        }
    yield {"type": "response.completed", "response": response}


def _whole_item(sent: Sent, number: int, begun: Json) -> Json:
    match begun["type"]:
        case "message":
            text = {"type": "output_text", "annotations": [], "logprobs": [], "text": sent.text((number, CONTENT))}
            return {**begun, "status": "completed", "content": [text]}
        case "reasoning":
            text = {"text": sent.text((number, REASONING)), "type": "reasoning_text"}
            return {**begun, "status": "completed", "content": [text]}
    return {**begun, "status": "completed", "arguments": "".join(sent.texts.get((number, "call"), ()))}
