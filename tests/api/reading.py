"""A streamed answer as its caller understands it, so that two of them can be compared."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Read:
    """Texts by channel, how often each event of the form came, token counts, names, and errors."""

    texts: dict[object, str] = field(default_factory=dict)
    form: Counter[str] = field(default_factory=Counter)
    usages: list[tuple[int, int]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    errors: list[Any] = field(default_factory=list)
    logprobs: int = 0

    @property
    def told(self) -> tuple[object, ...]:
        """All that must be the same in an answer that was never broken: the names differ, their number does not."""
        return self.texts, self.form, sorted(self.usages), len(self.names), self.errors, self.logprobs

    def add(self, channel: object, text: str | None) -> None:
        if text:
            self.texts[channel] = self.texts.get(channel, "") + text


def read(path: str, body: bytes) -> Read:
    """Read the whole stream of an endpoint."""
    found = Read()
    for event in body.split(b"\n\n"):
        data = b"".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data:
            continue
        if data == b"[DONE]":
            found.form["DONE"] += 1
            continue
        value = json.loads(data)
        if not isinstance(value, dict):
            continue
        if "error" in value or value.get("type") == "error":
            found.errors.append(value)
        elif "completions" in path:
            _openai(found, value)
        else:
            _named(found, value)
    return found


def _openai(found: Read, event: dict[str, Any]) -> None:
    found.names.add(event["id"])
    for choice in event["choices"]:
        delta = choice.get("delta", choice)
        found.add(choice["index"], delta.get("content") or delta.get("text"))
        found.add((choice["index"], "reasoning"), delta.get("reasoning_content"))
        for call in delta.get("tool_calls", ()):
            found.add((choice["index"], call["index"]), call["function"].get("arguments"))
            found.form[f"call {call['function'].get('name')}"] += 1 if call["function"].get("name") else 0
        found.form["role"] += "role" in delta
        found.form[str(choice["finish_reason"])] += choice["finish_reason"] is not None
        found.logprobs += len((choice.get("logprobs") or {}).get("content", ()))
    if event.get("usage"):
        found.usages.append((event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"]))


def _named(found: Read, event: dict[str, Any]) -> None:
    found.names |= set(re.findall(r'"(?:id|item_id|call_id)": "(\w+)"', json.dumps(event)))
    delta = event.get("delta")
    if event["type"] == "response.output_text.delta":
        found.add(event["item_id"][:3], delta)
    elif event["type"] == "content_block_delta":
        found.add((event["index"], delta["type"]), "".join(value for key, value in delta.items() if key != "type"))
    else:
        stop = delta.get("stop_reason") if isinstance(delta, dict) else None
        found.form[f"{event['type']} {event.get('text')} {stop}"] += 1
    usage = event.get("usage") or event.get("response", {}).get("usage")
    if usage:
        found.usages.append((usage.get("input_tokens", 0), usage["output_tokens"]))
