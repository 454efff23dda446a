"""Reading the JSON object of a request without losing a byte of it.

`JsonObject.parse` checks the whole text and remembers where each top-level member stands, so that one member can be
replaced while the rest is forwarded exactly as it came. A name that appears twice at the top is refused: two parsers
could disagree on which one counts (RFC 8259, section 4).
"""

from __future__ import annotations

import asyncio
import json
import re
from json.decoder import JSONDecodeError, JSONDecoder

from meshnode.errors import BadRequest

LARGE_BODY_BYTES = 64 << 10
"""From here on parsing goes to a thread: 20 MB take 40-120 ms."""

_SPACE = re.compile(r"[ \t\n\r]*")


def _refuse_constant(name: str) -> object:
    raise BadRequest(f"{name} is not JSON")


_DECODER = JSONDecoder(parse_constant=_refuse_constant)


class JsonObject:
    """A parsed JSON object together with its text."""

    __slots__ = ("members", "text", "_spans")

    def __init__(self, text: str, members: dict[str, object], spans: dict[str, tuple[int, int]]) -> None:
        self.text = text
        self.members = members
        self._spans = spans

    @classmethod
    def parse(cls, raw: bytes) -> JsonObject:
        """Parse `raw` as one JSON object. Raises BadRequest with the position of the first fault."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as fault:
            raise BadRequest(f"the body is not UTF-8 at byte {fault.start}") from None
        try:
            return cls(text, *_members(text))
        except JSONDecodeError as fault:
            raise BadRequest(f"the body is not valid JSON: {fault.msg} at character {fault.pos}") from None
        except RecursionError:
            raise BadRequest("the JSON of the body is nested too deeply") from None
        except ValueError:  # Python refuses to read numbers of more than 4300 digits
            raise BadRequest("a number in the body has too many digits") from None

    def replaced(self, **changes: object) -> bytes:
        """The text with some top-level members set to other values; all else stays as it was received."""
        pieces = []
        at = 0
        for name, (start, end) in self._spans.items():
            if name in changes:
                pieces += [self.text[at:start], json.dumps(changes[name])]
                at = end
        pieces.append(self.text[at:])
        text = "".join(pieces).rstrip(" \t\n\r")
        added = ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in changes.items() if k not in self._spans)
        if added:
            text = f"{text[:-1]}{',' if self._spans else ''}{added}}}"
        return text.encode("utf-8")


async def parse_object(raw: bytes) -> JsonObject:
    """`JsonObject.parse`, in a thread when the body is large enough to hold up the event loop."""
    if len(raw) < LARGE_BODY_BYTES:
        return JsonObject.parse(raw)
    return await asyncio.to_thread(JsonObject.parse, raw)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _members(text: str) -> tuple[dict[str, object], dict[str, tuple[int, int]]]:
    members: dict[str, object] = {}
    spans: dict[str, tuple[int, int]] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise JSONDecodeError("expected an object", text, at)
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            if text[at : at + 1] != '"':
                raise JSONDecodeError("expected a member name", text, at)
            name, at = _DECODER.raw_decode(text, at)
            if name in members:
                raise BadRequest(f"the member {name[:80]!r} appears twice")
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise JSONDecodeError("expected ':'", text, at)
            start = _skip(text, at + 1)
            members[name], at = _value(text, start)
            spans[name] = (start, at)
            at = _skip(text, at)
            following = text[at : at + 1]
            at += 1
            if following == "}":
                break
            if following != ",":
                raise JSONDecodeError("expected ',' or '}'", text, at - 1)
            at = _skip(text, at)
    if _skip(text, at) != len(text):
        raise JSONDecodeError("more text after the object", text, at)
    return members, spans


def _value(text: str, at: int) -> tuple[object, int]:
    """One value. The items of a list are parsed one by one: between them another thread may take the interpreter."""
    if text[at : at + 1] != "[":
        return _DECODER.raw_decode(text, at)
    items: list[object] = []
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return items, at + 1
    while True:
        item, at = _DECODER.raw_decode(text, at)
        items.append(item)
        at = _skip(text, at)
        following = text[at : at + 1]
        at += 1
        if following == "]":
            return items, at
        if following != ",":
            raise JSONDecodeError("expected ',' or ']'", text, at - 1)
        at = _skip(text, at)
