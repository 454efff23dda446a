"""A model that counts letters: each letter of a message is a token, and the template adds so many around each."""

from __future__ import annotations

from typing import Any

from meshnode.sdk.chat import CHAT
from meshnode.sdk.counting import COUNT
from tests.sdk.application import DONE, LAST, Scripted, piece, usage

AROUND = 4
"""Tokens of the template for each message."""
BEGIN = 3
"""Tokens at the end of a prompt, where the answer begins."""


def tokens_of(messages: list[dict[str, Any]]) -> int:
    return BEGIN + sum(AROUND + len(message["content"]) for message in messages)


def talker(answer: str = "yes", context: int = 100) -> Scripted:
    """Answers every question with `answer`, and counts tokens."""
    app = Scripted()

    def chat(body: dict[str, Any]) -> bytes:
        prompt = tokens_of(body["messages"])
        return piece(answer) + LAST + usage(prompt, len(answer)) + DONE

    app.answers[CHAT] = chat
    app.answers[COUNT] = lambda body: {"input_tokens": tokens_of(body["messages"])}
    entry = {"id": "demo", "context_length": context, "status": {"value": "loaded"}, "capabilities": ["chat"]}
    embedder = {**entry, "id": "e", "context_length": 9, "capabilities": ["embedding"]}
    app.answers["/v1/models/demo"] = entry
    app.answers["/v1/models"] = {"data": [entry, embedder, {**entry, "id": "far", "context_length": context + 5}]}
    return app
