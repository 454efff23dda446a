"""What a caller already has of a streamed answer, read from the very bytes that went out.

Read only when a host fails, so that a healthy stream costs nothing. Four dialects, one result: the texts by channel in
the pieces in which they came (one piece is one token, but for characters and stop strings that span several), which
events of the form have gone, and the names (ids) under which they went.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Channel = tuple[int, str]
"""Of a text: the number of its choice or block, and what it is: content, reasoning, call-N, tool arguments."""

CONTENT, REASONING = "content", "reasoning"
CALL = "call"


@dataclass(slots=True)
class Sent:
    """What has gone out.

    `head` keeps what every event of the answer repeats (id, created, model); `form` the events that come once, as
    (kind, number or name); `texts` the pieces by channel; `calls` tool calls that have begun, by channel; `finish` the
    reason to finish, by choice; `items` the named items of /v1/responses in order; `held_back` how many tokens of
    /v1/completions came without text before each piece, as a stop string might have begun; `usages` how many token
    counts (llama-server sends one for each choice).
    """

    head: Json = field(default_factory=dict)
    form: set[tuple[str, object]] = field(default_factory=set)
    texts: dict[Channel, list[str]] = field(default_factory=dict)
    calls: dict[Channel, Json] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    items: list[Json] = field(default_factory=list)
    held_back: list[int] = field(default_factory=lambda: [0])
    usages: int = 0

    def text(self, channel: Channel) -> str:
        """The text of a channel so far."""
        return "".join(self.texts.get(channel, ()))

    def add(self, channel: Channel, text: str) -> None:
        """One more piece of a text."""
        self.texts.setdefault(channel, []).append(text)

    @property
    def visible(self) -> bool:
        """Something of the answer itself has gone, not only its form."""
        return bool(self.calls or self.finish or any(self.text(channel) for channel in self.texts))

    @property
    def closing(self) -> bool:
        """The end of the answer has begun: no more text will come."""
        return bool(self.finish) or any(kind in _CLOSING for kind, _ in self.form)


_CLOSING = {
    "content_block_stop",
    "message_delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
}


def read_sent(path: str, stream: bytes) -> Sent:
    """What `stream` (whole events of the endpoint `path`) contains. Raises ValueError when it cannot be understood."""
    sent = Sent()
    take = _READERS[path]
    try:
        for event in events_of(stream):
            take(sent, event)
    except (KeyError, TypeError, AttributeError) as fault:
        raise ValueError(f"an event of an unknown shape ({fault!r})") from None
    return sent


def events_of(stream: bytes) -> Iterator[Json]:
    """The JSON objects of server-sent events. Comments, [DONE] and other values are passed over."""
    for event in stream.split(b"\n\n"):
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if data and data != b"[DONE]":
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                raise ValueError("an event that is not JSON") from None
            if isinstance(value, dict):
                yield value


def _take_chat(sent: Sent, event: Json) -> None:
    _take_head(sent, event)
    for part in event.get("choices", ()):
        number, delta = part["index"], part.get("delta") or {}
        if "role" in delta:
            sent.form.add(("role", number))
        for name, kind in (("content", CONTENT), ("reasoning_content", REASONING)):
            if delta.get(name):
                sent.add((number, kind), delta[name])
        for call in delta.get("tool_calls", ()):
            channel = (number, f"{CALL}-{call['index']}")
            function = call.get("function", {})
            known = sent.calls.setdefault(channel, {})
            known.update({key: call[key] for key in ("id",) if call.get(key)})
            known.update({key: function[key] for key in ("name",) if function.get(key)})
            if function.get("arguments"):
                sent.add(channel, function["arguments"])
        if part.get("finish_reason"):
            sent.finish[number] = part["finish_reason"]


def _take_head(sent: Sent, event: Json) -> None:
    if not sent.head:
        sent.head = {key: event[key] for key in ("id", "created", "model", "system_fingerprint") if key in event}
    if event.get("usage"):
        sent.usages += 1


def _take_completion(sent: Sent, event: Json) -> None:
    _take_head(sent, event)
    for part in event.get("choices", ()):
        number = part["index"]
        if part.get("text"):
            sent.add((number, CONTENT), part["text"])
            sent.held_back.append(0)
        elif not part.get("finish_reason"):
            sent.held_back[-1] += 1
        if part.get("finish_reason"):
            sent.finish[number] = part["finish_reason"]


_BLOCK_TEXTS = {
    "text_delta": ("text", CONTENT),
    "thinking_delta": ("thinking", REASONING),
    "input_json_delta": ("partial_json", CALL),
}


def _take_message(sent: Sent, event: Json) -> None:
    kind, number = event.get("type"), event.get("index", 0)
    match kind:
        case "message_start":
            sent.head = event["message"]
        case "content_block_start" if event["content_block"]["type"] == "tool_use":
            sent.calls[number, CALL] = event["content_block"]
        case "content_block_delta":
            delta = event["delta"]
            if delta["type"] in _BLOCK_TEXTS:
                name, channel = _BLOCK_TEXTS[delta["type"]]
                sent.add((number, channel), delta[name])
                return
            kind = delta["type"]
    sent.form.add((str(kind), number))


_ITEM_TEXTS = {
    "response.output_text.delta": CONTENT,
    "response.reasoning_text.delta": REASONING,
    "response.function_call_arguments.delta": CALL,
}


def _take_response(sent: Sent, event: Json) -> None:
    kind = event["type"]
    if kind == "response.created":
        sent.head = event["response"]
    elif kind == "response.output_item.added":
        item = event["item"]
        if item["type"] == "function_call":
            sent.calls[len(sent.items), CALL] = item
        sent.items.append(item)
    if kind in _ITEM_TEXTS:
        sent.add((item_number(sent.items, event["item_id"]), _ITEM_TEXTS[kind]), event["delta"])
    else:
        sent.form.add((kind, item_name(event)))


def item_number(items: list[Json], name: str) -> int:
    """The place of an item of /v1/responses. Raises KeyError for one that never began."""
    for number, item in enumerate(items):
        if item["id"] == name:
            return number
    raise KeyError(name)


def item_name(event: Json) -> str:
    """The item that an event of /v1/responses is about; empty for the response as a whole."""
    return str(event.get("item_id") or event.get("item", {}).get("id", ""))


_READERS: dict[str, Callable[[Sent, Json], None]] = {
    "/v1/chat/completions": _take_chat,
    "/v1/completions": _take_completion,
    "/v1/messages": _take_message,
    "/v1/responses": _take_response,
}
