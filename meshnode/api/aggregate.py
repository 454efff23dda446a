"""From the events of a streamed answer to the one JSON body that a plain caller expects.

llama-server goes on with a plain request after its caller has left, for as long as anyone else streams; a streamed
one it stops at once. So the gateway always streams from it and puts the pieces together here. The result is what
llama-server itself would have answered (`server_task_result_cmpl_final` in tools/server/server-task.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from meshnode.api.upstream import UpstreamBroken

Json = dict[str, Any]


class StreamFailed(Exception):
    """llama-server reported an error inside the stream: `error` is its error object, `event` the event as it came."""

    def __init__(self, error: Json, event: bytes = b"") -> None:
        super().__init__(str(error.get("message", "")))
        self.error = error
        self.event = event

    @property
    def status(self) -> int:
        """The status that the error would have had as an answer of its own."""
        code = self.error.get("code")
        return code if isinstance(code, int) and 400 <= code < 600 else 500


class Aggregate(Protocol):
    """Takes the data of each event in order; `result()` is the body, once all were taken."""

    def take(self, event: Json) -> None: ...
    def result(self) -> Json: ...


class ChatAggregate:
    """/v1/chat/completions: deltas of content, reasoning, tool calls and log-probabilities, by choice."""

    def __init__(self) -> None:
        self._head: Json = {}
        self._choices: dict[int, Json] = {}
        self._usage: Json | None = None
        self._timings: Json | None = None
        self._last_index = 0

    def take(self, event: Json) -> None:
        """One chat.completion.chunk."""
        self._head = self._head or {key: event.get(key) for key in ("created", "id", "model", "system_fingerprint")}
        for part in event.get("choices", ()):
            self._last_index = part["index"]
            choice = self._choices.setdefault(
                part["index"], {"finish_reason": None, "index": part["index"], "message": {"role": "assistant"}}
            )
            _add_delta(choice["message"], part.get("delta") or {})
            _add_logprobs(choice, part.get("logprobs"))
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
        # With n > 1 llama-server's plain answer carries the usage and timings of the first choice.
        if self._last_index == 0 or self._usage is None:
            self._usage = event.get("usage") or self._usage
            self._timings = event.get("timings") or self._timings

    def result(self) -> Json:
        """The chat.completion. Raises UpstreamBroken when the stream ended before every choice did."""
        choices = _finished(self._choices)
        for choice in choices:
            message = choice["message"]
            message["content"] = message.get("content") or ""
            calls = message.pop("tool_calls", None)
            if calls:
                message["tool_calls"] = [calls[index] for index in sorted(calls)]
        body = {"choices": choices, **self._head, "object": "chat.completion", "usage": self._usage}
        return {**body, "timings": self._timings} if self._timings else body


def _add_delta(message: Json, delta: Json) -> None:
    for field in ("content", "reasoning_content"):
        if delta.get(field):
            message[field] = message.get(field, "") + delta[field]
    for part in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", {})
        call = calls.setdefault(part["index"], {"type": "function", "function": {"name": "", "arguments": ""}})
        if part.get("id"):
            call["id"] = part["id"]
        for field, text in part.get("function", {}).items():
            call["function"][field] = call["function"].get(field, "") + text


def _add_logprobs(choice: Json, logprobs: Json | None) -> None:
    if logprobs and logprobs.get("content"):
        choice.setdefault("logprobs", {"content": []})["content"].extend(logprobs["content"])


def _finished(choices: dict[int, Json]) -> list[Json]:
    """The choices in order. A stopping llama-server ends its streams in form, but without a reason to finish."""
    if not choices or not all(choice["finish_reason"] for choice in choices.values()):
        raise UpstreamBroken("the stream ended before the answer was complete")
    return [choices[index] for index in sorted(choices)]


class CompletionAggregate:
    """/v1/completions: pieces of text, by choice."""

    def __init__(self) -> None:
        self._last: Json = {}
        self._choices: dict[int, Json] = {}

    def take(self, event: Json) -> None:
        """One text_completion chunk."""
        for part in event.get("choices", ()):
            choice = self._choices.setdefault(
                part["index"], {"text": "", "index": part["index"], "logprobs": None, "finish_reason": None}
            )
            choice["text"] += part.get("text", "")
            logprobs = part.get("logprobs")
            if logprobs and logprobs.get("content"):
                choice["logprobs"] = choice["logprobs"] or {"content": []}
                choice["logprobs"]["content"].extend(logprobs["content"])
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
        first = event.get("choices") and event["choices"][0]["index"] == 0
        if first or not self._last:
            self._last = event

    def result(self) -> Json:
        """The text_completion. Raises UpstreamBroken when the stream ended before every choice did."""
        return {**self._last, "choices": _finished(self._choices)}


class ResponseAggregate:
    """/v1/responses: the last event carries the whole response."""

    def __init__(self) -> None:
        self._response: Json | None = None

    def take(self, event: Json) -> None:
        """One event of the Responses API."""
        if event.get("type") == "response.completed":
            self._response = {**event["response"]}
            self._response.setdefault("completed_at", self._response.get("created_at"))

    def result(self) -> Json:
        """The response. Raises UpstreamBroken when the stream ended without one."""
        if self._response is None:
            raise UpstreamBroken("the stream ended before the response was complete")
        return self._response


class MessageAggregate:
    """/v1/messages: blocks of text, thinking and tool use."""

    def __init__(self) -> None:
        self._message: Json | None = None
        self._blocks: dict[int, Json] = {}
        self._arguments: dict[int, str] = {}

    def take(self, event: Json) -> None:
        """One event of the Messages API."""
        match event.get("type"):
            case "message_start":
                self._message = {**event["message"]}
            case "content_block_start":
                self._blocks[event["index"]] = {**event["content_block"]}
            case "content_block_delta":
                self._add(event["index"], event["delta"])
            case "message_delta" if self._message is not None:
                self._message.update(event.get("delta", {}))
                self._message["usage"] = {**self._message.get("usage", {}), **event.get("usage", {})}

    def _add(self, index: int, delta: Json) -> None:
        block = self._blocks.setdefault(index, {})
        match delta.get("type"):
            case "text_delta":
                block["text"] = block.get("text", "") + delta["text"]
            case "thinking_delta":
                block["thinking"] = block.get("thinking", "") + delta["thinking"]
            case "signature_delta":
                block["signature"] = block.get("signature", "") + delta["signature"]
            case "input_json_delta":
                self._arguments[index] = self._arguments.get(index, "") + delta["partial_json"]

    def result(self) -> Json:
        """The message. Raises UpstreamBroken when the stream ended before it was complete."""
        if self._message is None or not self._message.get("stop_reason"):
            raise UpstreamBroken("the stream ended before the message was complete")
        for index, text in self._arguments.items():
            try:
                self._blocks[index]["input"] = json.loads(text)
            except (ValueError, RecursionError):
                self._blocks[index]["input"] = {}
        for block in self._blocks.values():
            if block.get("type") == "thinking":
                block.setdefault("signature", "")
            elif block.get("type") == "tool_use":
                block.setdefault("input", {})
        return {**self._message, "content": [self._blocks[index] for index in sorted(self._blocks)]}


AGGREGATES: dict[str, Callable[[], Aggregate]] = {
    "/v1/chat/completions": ChatAggregate,
    "/v1/completions": CompletionAggregate,
    "/v1/responses": ResponseAggregate,
    "/v1/messages": MessageAggregate,
}


class EventReader:
    """Cuts a byte stream into the JSON data of server-sent events (WHATWG HTML, 9.2). Comments are passed over."""

    def __init__(self, limit_bytes: int) -> None:
        self._rest = b""
        self._limit_bytes = limit_bytes

    def feed(self, piece: bytes) -> Iterator[Json]:
        """The events that are complete with this piece.

        Raises StreamFailed for an error event, UpstreamBroken for one that is not JSON or too large.
        """
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        if len(self._rest) > self._limit_bytes:
            raise UpstreamBroken("an event of the stream is too large")
        for event in events:
            lines = event.split(b"\n")
            data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
            if not data or data == b"[DONE]":
                continue
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                raise UpstreamBroken("an event of the stream is not JSON") from None
            if not isinstance(value, dict):
                continue
            if isinstance(value.get("error"), dict):
                raise StreamFailed(value["error"])
            if b"event: error" in lines:  # llama-server's form on /v1/messages: the bare error object
                raise StreamFailed(value)
            yield value
