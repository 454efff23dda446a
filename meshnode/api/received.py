"""What has come of a paid answer, as who pays counts it: bytes of text, events, and the hash of the whole.

No answer has more tokens than its text has bytes, whatever its provider says (core/counting.py draws the line). So the
text is what is counted here, and nothing of the form around it: names of fields, ids and empty events are no tokens.

Pure. The bytes are those of HTTP as they came through the stream, from a node that may lie in any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any

from meshnode.wire.values import WireError

END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD_BYTES = 64 << 10
MAX_EVENT_BYTES = 1 << 20

Json = dict[str, Any]


class Received:
    """Takes the bytes of one HTTP answer, whose body ends with its stream, for the endpoint `path`.

    `text_bytes` are UTF-8 bytes of text so far, `events` those that carried any.
    """

    def __init__(self, path: str) -> None:
        self._texts = TEXTS.get(path)
        self._head: bytearray | None = bytearray()
        self._rest = b""
        self._hash = sha256()
        self.text_bytes = 0
        self.events = 0

    @property
    def sha256(self) -> str:
        """Of the body so far, in hex digits."""
        return self._hash.hexdigest()

    def take(self, data: bytes) -> None:
        """The next bytes. Raises WireError for a head or an event that is too large."""
        if self._head is not None:
            self._head += data
            head, end, body = bytes(self._head).partition(END_OF_HEAD)
            if not end:
                if len(self._head) > MAX_HEAD_BYTES:
                    raise WireError("an answer with a head without end")
                return
            self._head, data = None, body
        self._hash.update(data)
        if self._texts is not None:
            self._count(self._texts, data)

    def _count(self, texts: Callable[[Json], Iterator[object]], data: bytes) -> None:
        events, end, self._rest = (self._rest + data).rpartition(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise WireError("an event that is too large to be paid for")
        if not end:
            return
        for event in events.split(b"\n\n"):
            size = sum(_bytes_of(text) for text in _texts_of(event, texts))
            self.text_bytes += size
            self.events += size > 0


def _texts_of(event: bytes, texts: Callable[[Json], Iterator[object]]) -> list[object]:
    """What an event says; nothing of one that cannot be read: what is no text for the caller is not paid for."""
    data = b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))
    try:
        value = json.loads(data)
        return list(texts(value)) if isinstance(value, dict) else []
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []


def _bytes_of(text: object) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0


def _chat(event: Json) -> Iterator[object]:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        yield from (delta.get("content"), delta.get("reasoning_content"))
        for call in delta.get("tool_calls") or ():
            yield from _call(call.get("function") or {})


def _completion(event: Json) -> Iterator[object]:
    for choice in event.get("choices") or ():
        yield choice.get("text")


def _message(event: Json) -> Iterator[object]:
    for part in (event.get("delta") or {}, event.get("content_block") or {}):
        yield from (part.get(name) for name in ("text", "thinking", "partial_json", "name"))


def _response(event: Json) -> Iterator[object]:
    if str(event.get("type")).endswith(".delta"):
        yield event.get("delta")
    if event.get("type") == "response.output_item.added":
        yield (event.get("item") or {}).get("name")


def _call(function: Json) -> Iterator[object]:
    yield from (function.get("name"), function.get("arguments"))


TEXTS: Mapping[str, Callable[[Json], Iterator[object]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/messages": _message,
    "/v1/responses": _response,
}
"""Where the text of an answer stands, by endpoint. Other endpoints give none."""
