"""The second host's stream made to fit behind what the first one sent: no word twice, no name changed, counts whole.

The new stream repeats what went out: a replayed request does by its nature, and llama-server begins the answer to a
continued message with that message. What is repeated is compared with what was sent, letter by letter, and left out;
where it differs nothing more goes out and `Differs` is raised. Only a continued /v1/completions repeats nothing.
Each joiner takes the events of one dialect; they know the form of their dialect and nothing else.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from meshnode.api.sent import CALL, CONTENT, REASONING, Channel, Sent, item_name, item_number
from meshnode.errors import EngineCrashed

Json = dict[str, Any]


class Differs(EngineCrashed):
    """Another node would have given another answer, so it cannot end this one."""

    code = "answer-not-continued"
    fix = "send the request again"


@dataclass(frozen=True, slots=True)
class Seam:
    """How the new stream continues the old one. `repeats`: it begins with what was sent. Its prompt then held `counted`
    tokens of the answer, which are the answer's and not the prompt's (0 for a replay, whose counts are right).
    """

    sent: Sent
    repeats: bool = True
    counted: int = 0


class Joiner(ABC):
    """Takes the new stream in pieces of whole events, and gives what is to go out."""

    named_events = False
    """Whether the dialect has `event:` lines."""
    by_choice = False
    """Whether the number of a channel is that of its choice: choices go on side by side, all else in order."""

    def __init__(self, seam: Seam) -> None:
        self.sent = seam.sent
        self.counted = seam.counted
        self._left = {channel: self.sent.text(channel) for channel in self.sent.texts} if seam.repeats else {}
        self._calls = set(self.sent.calls) if seam.repeats else set()

    def take(self, events: bytes) -> bytes:
        """What of these events goes out. Raises Differs."""
        out = []
        for event in events.split(b"\n\n"):
            data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
            if data == b"[DONE]":
                self.require_all_repeated()
                out.append(b"data: [DONE]\n\n")
            elif data:
                try:
                    value = json.loads(data)
                    if isinstance(value, dict):
                        out += [self._encode(joined) for joined in self.event(value)]
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    raise Differs("an event of an unknown shape") from None
        return b"".join(out)

    def _encode(self, event: Json) -> bytes:
        name = f"event: {event['type']}\n" if self.named_events else ""
        return f"{name}data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode(
            "utf-8", "surrogatepass"
        )

    @abstractmethod
    def event(self, event: Json) -> Iterator[Json]:
        """What becomes of one event."""

    def new_part(self, channel: Channel, text: str) -> str:
        """The part of a piece that has not gone out yet."""
        left = self._left.get(channel, "")
        count = min(len(left), len(text))
        if left[:count] != text[:count]:
            raise Differs(f"it differs after {len(self.sent.text(channel)) - len(left)} characters")
        if count:
            self._left[channel] = left[count:]
        if len(text) > count:
            self._require_in_order(channel)
        return text[count:]

    def _require_in_order(self, channel: Channel) -> None:
        """New text or a new call, before all that was sent has come again: it would stand in the wrong place."""
        if self.repeating(channel[0] if self.by_choice else None):
            raise Differs("it goes on at another place than the one where the first one broke off")

    def repeating(self, number: int | None = None) -> bool:
        """Whether something of what was sent has still to come again, of one choice or of all."""
        return any(left and number in (None, channel[0]) for channel, left in self._left.items()) or any(
            number in (None, channel[0]) for channel in self._calls
        )

    def met(self, channel: Channel, call: Json) -> bool:
        """A tool call begins in the new stream; whether it had begun before. Raises Differs for another tool."""
        self._calls.discard(channel)
        known = self.sent.calls.get(channel)
        if known is not None and call.get("name") not in (None, "", known.get("name")):
            raise Differs("it calls another tool")
        if known is None:
            self._require_in_order(channel)
        return known is not None

    def require_all_repeated(self, number: int | None = None) -> None:
        """The new answer, or one choice of it, is at its end: everything that was sent must have come again."""
        if self.repeating(number):
            raise Differs("it ends before the place where the first one broke off")

    def once(self, kind: str, name: object = 0) -> bool:
        """Whether an event that comes once has still to go out."""
        return (kind, name) not in self.sent.form

    def corrected(self, event: Json) -> Json:
        """Token counts of the whole answer, where the event has any."""
        counted = self.counted
        usage = event.get("usage")
        if counted and isinstance(usage, dict):
            for name, sign in (("prompt", -1), ("completion", 1), ("input", -1), ("output", 1)):
                if f"{name}_tokens" in usage:
                    usage[f"{name}_tokens"] += sign * counted
        timings = event.get("timings")
        if counted and isinstance(timings, dict) and "predicted_n" in timings:
            timings["predicted_n"] += counted
            from_cache = min(counted, timings.get("cache_n", 0))
            timings["cache_n"] = timings.get("cache_n", 0) - from_cache
            timings["prompt_n"] = timings.get("prompt_n", 0) - (counted - from_cache)
        return event


class ChatJoiner(Joiner):
    """/v1/chat/completions."""

    by_choice = True

    def __init__(self, seam: Seam) -> None:
        super().__init__(seam)
        self._usages_left = self.sent.usages

    def event(self, event: Json) -> Iterator[Json]:
        """One chat.completion.chunk."""
        had_choices = bool(event.get("choices"))
        choices = [part for part in event.get("choices", ()) if self._joined(part)]
        if event.get("usage") and self._usages_left:
            self._usages_left -= 1
        elif choices or not had_choices:
            yield self.corrected({**event, **self.sent.head, "choices": choices})

    def _joined(self, part: Json) -> bool:
        """Leave out of a choice what went out; whether something is left."""
        number, delta = part["index"], part.get("delta") or {}
        if not self.once("role", number):
            for name in ("role", "content"):
                if name == "role" or delta.get(name) is None:
                    delta.pop(name, None)
        for name, kind in (("content", CONTENT), ("reasoning_content", REASONING)):
            if delta.get(name) and not self._keep(delta, name, (number, kind)):
                del delta[name]
        if "tool_calls" in delta:
            delta["tool_calls"] = [call for call in delta["tool_calls"] if self._joined_call(number, call)]
            if not delta["tool_calls"]:
                del delta["tool_calls"]
        if part.get("finish_reason"):
            self.require_all_repeated(number)
            return number not in self.sent.finish
        return bool(delta)

    def _keep(self, holder: Json, name: str, channel: Channel) -> bool:
        holder[name] = self.new_part(channel, holder[name])
        return bool(holder[name])

    def _joined_call(self, number: int, call: Json) -> bool:
        channel = (number, f"{CALL}-{call['index']}")
        function = call.get("function", {})
        if known := self.met(channel, function):
            for holder, names in ((call, ("id", "type")), (function, ("name",))):
                for name in names:
                    holder.pop(name, None)
        if function.get("arguments"):
            function["arguments"] = self.new_part(channel, function["arguments"])
        return not known or bool(function.get("arguments"))


class CompletionJoiner(Joiner):
    """/v1/completions."""

    by_choice = True

    def event(self, event: Json) -> Iterator[Json]:
        """One text_completion chunk."""
        choices = []
        for part in event.get("choices", ()):
            number, text = part["index"], part.get("text") or ""
            part["text"] = self.new_part((number, CONTENT), text)
            if part.get("finish_reason"):
                self.require_all_repeated(number)
                if number not in self.sent.finish:
                    choices.append(part)
            elif part["text"] or not (text or self.repeating(number)):
                choices.append(part)
        if choices:
            yield self.corrected({**event, **self.sent.head, "choices": choices})


class MessageJoiner(Joiner):
    """/v1/messages."""

    named_events = True

    def event(self, event: Json) -> Iterator[Json]:
        """One event of the Messages API."""
        kind, number = event["type"], event.get("index", 0)
        if kind == "content_block_start" and event["content_block"]["type"] == "tool_use":
            self.met((number, CALL), event["content_block"])
        if kind == "content_block_delta":
            delta = event["delta"]
            for name, text_kind, channel in (
                ("text_delta", "text", CONTENT),
                ("thinking_delta", "thinking", REASONING),
                ("input_json_delta", "partial_json", CALL),
            ):
                if delta["type"] == name:
                    delta[text_kind] = self.new_part((number, channel), delta[text_kind])
                    if delta[text_kind]:
                        yield event
                    return
            kind = delta["type"]
        if kind in ("message_delta", "message_stop"):
            self.require_all_repeated()
        if self.once(kind, number):
            yield self.corrected(event) if kind == "message_delta" else event


class ResponseJoiner(Joiner):
    """/v1/responses. Its events name the items they belong to; the names of the first host stay."""

    named_events = True

    def __init__(self, seam: Seam) -> None:
        super().__init__(seam)
        self._names: dict[str, str] = {}
        self._items: list[Json] = []

    def event(self, event: Json) -> Iterator[Json]:
        """One event of the Responses API."""
        kind = event["type"]
        if kind == "response.created" and self.sent.head:
            self._names[event["response"]["id"]] = self.sent.head["id"]
        if kind == "response.output_item.added":
            self._meet(event["item"])
        event = self._renamed(event)
        channel = {
            "response.output_text.delta": CONTENT,
            "response.reasoning_text.delta": REASONING,
            "response.function_call_arguments.delta": CALL,
        }.get(kind)
        if channel is not None:
            number = item_number(self._items, event["item_id"])
            event["delta"] = self.new_part((number, channel), event["delta"])
            if event["delta"]:
                yield event
            return
        if kind == "response.completed":
            self.require_all_repeated()
            self.corrected(event["response"])
            yield self.corrected(event)
        elif self.once(kind, item_name(event)):
            yield event

    def _meet(self, item: Json) -> None:
        """An item begins: it is the next one of those that were begun already, or new."""
        number = len(self._items)
        if number < len(self.sent.items):
            known = self.sent.items[number]
            if known["type"] != item["type"]:
                raise Differs("it goes on with another kind of item")
            for name in ("id", "call_id"):
                if name in known and name in item:
                    self._names[item[name]] = known[name]
        if item["type"] == "function_call":
            self.met((number, CALL), item)
        self._items.append({**item, "id": self._names.get(item["id"], item["id"])})

    def _renamed(self, value: Any) -> Any:
        """The event with the names of the first host."""
        if isinstance(value, dict):
            return {
                key: self._names.get(inner, inner)
                if key in ("id", "item_id", "call_id") and isinstance(inner, str)
                else self._renamed(inner)
                for key, inner in value.items()
            }
        return [self._renamed(inner) for inner in value] if isinstance(value, list) else value


JOINERS: dict[str, type[Joiner]] = {
    "/v1/chat/completions": ChatJoiner,
    "/v1/completions": CompletionJoiner,
    "/v1/messages": MessageJoiner,
    "/v1/responses": ResponseJoiner,
}
