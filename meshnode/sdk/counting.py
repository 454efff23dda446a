"""How many tokens messages have for a model, asked of the model itself and remembered for each message.

A message is counted as the only one of a prompt, in the role of the user, because every template takes that. What the
template adds is counted once: around the first message, and for each further one. The sum is exact where a template
treats messages alike, as almost all do, and off by a few tokens otherwise; SLACK_TOKENS covers those.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from meshnode.errors import EngineCrashed
from meshnode.sdk.exchange import Api

COUNT = "/v1/chat/completions/input_tokens"
MOST_REMEMBERED = 4096
SLACK_TOKENS = 8
LETTER = "a"
"""Stands for a message with hardly any content: some templates leave empty ones out. It is one token."""
USER: Mapping[str, Any] = {"role": "user", "content": LETTER}
ASSISTANT: Mapping[str, Any] = {"role": "assistant", "content": LETTER}


class TokenCounts:
    """Token counts of one program, for any number of models and conversations. Bounded; what was used last stays."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self.asked = 0
        """How often a model was asked: what memory did not answer."""

    async def prompt(self, model: str, system: str | None, messages: Sequence[Mapping[str, Any]]) -> int:
        """About how many tokens a prompt of these messages has. Raises what the model refuses with."""
        first = [{"role": "system", "content": system}, USER] if system else [USER]
        around, one, three = await asyncio.gather(
            self._prompt(model, first), self._prompt(model, [USER]), self._prompt(model, [USER, ASSISTANT, USER])
        )
        contents = await asyncio.gather(*(self._content(model, message, one) for message in messages))
        # A letter stands for the content in each of these counts, and is taken off again.
        further = max(0, (three - one + 1) // 2 - 1)
        return around - 1 + sum(contents) + further * max(0, len(messages) - 1) + SLACK_TOKENS

    async def _prompt(self, model: str, messages: Sequence[Mapping[str, Any]]) -> int:
        key = _key("prompt", model, [dict(message) for message in messages])
        known = self._look_up(key)
        return known if known is not None else self._remember(key, await self._ask(model, messages))

    async def _content(self, model: str, message: Mapping[str, Any], one: int) -> int:
        content = [message.get("content"), message.get("tool_calls")]
        key = _key("content", model, content)
        if (known := self._look_up(key)) is not None:
            return known
        counted = content[0] if content[1] is None else json.dumps(content)
        if not counted:
            return 0
        count = await self._ask(model, [{"role": "user", "content": counted}])
        return self._remember(key, max(0, count - one + 1))

    def learn(self, model: str, content: Any, tokens: int) -> None:
        """Note how many tokens a message without tool calls has, where an answer has told."""
        self._remember(_key("content", model, [content, None]), tokens)

    async def _ask(self, model: str, messages: Sequence[Mapping[str, Any]]) -> int:
        self.asked += 1
        body = {"model": model, "messages": [dict(message) for message in messages]}
        value, _ = await self._api.json("POST", COUNT, body)
        count = value.get("input_tokens") if isinstance(value, dict) else None
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise EngineCrashed("it does not say how many tokens a prompt has", fix="ask again")
        return count

    def _look_up(self, key: bytes) -> int | None:
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def _remember(self, key: bytes, count: int) -> int:
        self._known[key] = count
        self._known.move_to_end(key)
        while len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
        return count


def _key(*parts: Any) -> bytes:
    """A short name for any JSON: a prompt itself is not kept."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
