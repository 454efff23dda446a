"""Nostr events as facts, as far as listings need them: NIP-01 (events), NIP-13 (work), NIP-40 (expiration).

What a relay sends is JSON from a stranger: here it is checked and bounded, and the hash that names it made again. The
signature (BIP 340) is checked by whoever has the curve; `Genuine` is that callable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meshnode.wire.registry import LIMIT_LISTING_BYTES
from meshnode.wire.schema import MAX_U16, MAX_U63
from meshnode.wire.values import WireError

MAX_TAGS = 32
MAX_TAG_ITEMS = 8
MAX_TAG_CHARS = 256


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id` and `publisher` are 32 bytes, `signature` 64; `created_at` is wall time in seconds."""

    id: bytes
    publisher: bytes
    created_at: int
    kind: int
    tags: tuple[tuple[str, ...], ...]
    content: str
    signature: bytes

    def values(self, name: str) -> tuple[str, ...]:
        """The first value of each tag of this name."""
        return tuple(tag[1] for tag in self.tags if tag[0] == name and len(tag) > 1)

    @property
    def expires_at(self) -> int | None:
        """When it ends (NIP-40); None where it does not say, or says it twice."""
        found = self.values("expiration")
        if len(found) != 1 or not found[0].isascii() or not found[0].isdigit() or len(found[0]) > 12:
            return None
        return int(found[0])

    @property
    def work_bits(self) -> int:
        """How much work it shows (NIP-13): zero bits at the beginning of its id, no more than its nonce tag aimed at.

        *What was aimed at counts*: else the luck of many cheap events would pass for work.
        """
        aims = [tag[2] for tag in self.tags if tag[0] == "nonce" and len(tag) > 2]
        if len(aims) != 1 or not aims[0].isascii() or not aims[0].isdigit() or len(aims[0]) > 3:
            return 0
        return min(int(aims[0]), leading_zero_bits(self.id))


Genuine = Callable[[Event], bool]
"""Whether the publisher's key has signed the event, and its id is that of its content."""


def leading_zero_bits(data: bytes) -> int:
    """Of 32 bytes; 256 where there is no other bit."""
    return 8 * len(data) - int.from_bytes(data, "big").bit_length()


def event_id(publisher: bytes, created_at: int, kind: int, tags: tuple[tuple[str, ...], ...], content: str) -> bytes:
    """The SHA-256 of the array [0, publisher, created_at, kind, tags, content] as JSON without spaces (NIP-01).

    Raises UnicodeEncodeError for a text with half a surrogate pair, which has no UTF-8.
    """
    array = [0, publisher.hex(), created_at, kind, tags, content]
    return hashlib.sha256(json.dumps(array, separators=(",", ":"), ensure_ascii=False).encode("utf-8")).digest()


def read_event(raw: Any) -> Event:
    """An event from parsed JSON, every member checked; its id and signature have yet to be judged. Raises WireError.

    A content that is too long for a listing is cut off right behind the limit, so that nothing large is kept.
    """
    if not isinstance(raw, Mapping):
        raise WireError("an event is an object")
    tags = raw.get("tags")
    if not isinstance(tags, list) or len(tags) > MAX_TAGS:
        raise WireError(f"expected at most {MAX_TAGS} tags")
    content = raw.get("content")
    if not isinstance(content, str):
        raise WireError("expected a content that is a text")
    return Event(
        _hex(raw.get("id"), 32),
        _hex(raw.get("pubkey"), 32),
        _number(raw.get("created_at"), MAX_U63),
        _number(raw.get("kind"), MAX_U16),
        tuple(map(_tag, tags)),
        content[: LIMIT_LISTING_BYTES + 1],
        _hex(raw.get("sig"), 64),
    )


def to_json(event: Event) -> dict[str, Any]:
    """The event as NIP-01 writes it."""
    return {
        "id": event.id.hex(),
        "pubkey": event.publisher.hex(),
        "created_at": event.created_at,
        "kind": event.kind,
        "tags": [list(tag) for tag in event.tags],
        "content": event.content,
        "sig": event.signature.hex(),
    }


def _tag(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not 0 < len(raw) <= MAX_TAG_ITEMS:
        raise WireError(f"a tag has 1 to {MAX_TAG_ITEMS} items")
    if not all(isinstance(item, str) and len(item) <= MAX_TAG_CHARS for item in raw):
        raise WireError(f"a tag has texts of at most {MAX_TAG_CHARS} characters")
    return tuple(raw)


def _number(raw: Any, maximum: int) -> int:
    if type(raw) is not int or not 0 <= raw <= maximum:
        raise WireError(f"expected an integer from 0 to {maximum}")
    return raw


def _hex(raw: Any, length: int) -> bytes:
    """Lower-case hex digits of so many bytes."""
    if not isinstance(raw, str) or len(raw) != 2 * length or not set(raw) <= set("0123456789abcdef"):
        raise WireError(f"expected {2 * length} hex digits")
    return bytes.fromhex(raw)
