"""A web application for the tests of the in-process client: it answers as it is told to, and says what was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text: str, **more: Any) -> bytes:
    """The event of a chat stream that adds some text."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, **more}
    return event({"id": "c1", "object": "chat.completion.chunk", "model": "demo", "choices": [choice]})


def usage(prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event({"id": "c1", "model": "demo", "choices": [], "usage": counts})


LAST = piece("", finish_reason="stop", delta={})
DONE = b"data: [DONE]\n\n"


class Scripted:
    """Answers each path as `answers` says: a value is sent as JSON, bytes as a stream; `asked` is what came.

    `hold` keeps every stream open after its bytes until the caller leaves; `left` counts those who did.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.headers: dict[str, str] = {"x-meshnode-node": "ab" * 5}
        self.status = 200
        self.asked: list[tuple[str, Any]] = []
        self.hold = False
        self.left = 0
        self.finished = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = json.loads(message["body"]) if message["body"] else None
        self.asked.append((scope["path"], body))
        answer = self.answers[scope["path"]]
        if callable(answer):
            answer = answer(body)
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if not isinstance(answer, bytes):
            await send({"type": "http.response.body", "body": json.dumps(answer).encode(), "more_body": False})
            return
        await send({"type": "http.response.body", "body": answer, "more_body": True})
        if self.hold:
            assert (await receive())["type"] == "http.disconnect"
            self.left += 1
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.finished += 1


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)
