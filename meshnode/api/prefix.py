"""What routing wants to know of a prompt without tokenising it: how long it is about, and where it was seen before.

A conversation comes back with every turn, and the host that answered the last one still holds its keys and values.
The cumulative hashes of its leading messages let the router recognise it: two conversations share the first n hashes
exactly when they share their first n messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b

BYTES_PER_TOKEN = 4
"""Rough, for English text and code. Used for time predictions only."""
TOKENS_PER_MEDIUM = 512
"""For an image or a piece of audio, whose bytes say nothing of its tokens."""
MAX_HASHED_BYTES = 256 << 10
"""About half a millisecond of work; what follows does not count."""
MAX_BODY_BYTES = 1 << 20
"""Larger bodies are mostly images, which cost too much to look at."""
MAX_MESSAGES = 64
TEXT_BLOCK_CHARACTERS = 1024
"""A bare prompt has no messages: it counts as blocks of this size."""


def prefix_hashes(members: Mapping[str, object], body_bytes: int) -> tuple[int, ...]:
    """Cumulative 64-bit hashes of what the prompt begins with, the longest prefix last; at most MAX_MESSAGES."""
    if body_bytes > MAX_BODY_BYTES:
        return ()
    state = blake2b(digest_size=8)
    hashes = []
    left = MAX_HASHED_BYTES
    for number, part in enumerate(_parts(members)):
        text = part.encode("utf-8", "surrogatepass")
        left -= len(text)
        if left < 0 or number == MAX_MESSAGES:
            break
        state.update(b"%d:" % len(text))
        state.update(text)
        hashes.append(int.from_bytes(state.digest(), "big"))
    return tuple(hashes)


def estimate_tokens(members: Mapping[str, object], body_bytes: int) -> int:
    """About how many tokens the prompt of a body of that size has."""
    media = _media_characters(members)
    tokens = sum(TOKENS_PER_MEDIUM for _ in media)
    return tokens + max(0, body_bytes - sum(media)) // BYTES_PER_TOKEN


def _parts(members: Mapping[str, object]) -> Iterator[str]:
    """The pieces of the prompt, in the order in which templates put them."""
    for name in ("tools", "system", "instructions"):
        if members.get(name):
            yield f"{name} {members[name]!r}"
    for name in ("messages", "input", "prompt"):
        value = members.get(name)
        if isinstance(value, list):
            yield from (repr(item) for item in value)
        elif isinstance(value, str):
            yield from (value[at : at + TEXT_BLOCK_CHARACTERS] for at in range(0, len(value), TEXT_BLOCK_CHARACTERS))


def _media_characters(members: Mapping[str, object]) -> list[int]:
    """How long each image or recording inside the messages is, as text."""
    found = []
    for name in ("messages", "input"):
        messages = members.get(name)
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                if isinstance(part, dict) and not isinstance(part.get("text"), str):
                    found += [len(text) for text in _long_texts(part)]
    return found


def _long_texts(part: Mapping[str, object]) -> Iterator[str]:
    for value in part.values():
        inner = value.values() if isinstance(value, dict) else (value,)
        yield from (text for text in inner if isinstance(text, str) and len(text) > TEXT_BLOCK_CHARACTERS)
