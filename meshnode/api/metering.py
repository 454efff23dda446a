"""How many tokens an answer of the own engine has come to, event by event: what a provider charges by.

llama-server is asked to say its counts with every piece (`timings_per_token`, tools/server/README.md). They are read
here and taken out again, so that who pays gets the bytes that anyone else gets. Where a dialect has no place for them
(/v1/messages) each piece of text counts as a token until the usage at the end says it exactly. An answer never counts
for more tokens than were asked for: nobody pays for those, and it would stand still at its end.

Pure. The engine is this node's own: its events are trusted for their form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from meshnode.api.record import token_counts
from meshnode.api.upstream import UpstreamBroken

MAX_EVENT_BYTES = 16 << 20
COUNTS = b'"timings":'
PIECE_OF_TEXT = b'delta"'
"""In every event that carries text, in each dialect but /v1/completions, which has counts."""
ASKED = {"timings_per_token": True}
"""Members that a metered request to the engine has."""
_COUNTS = re.compile(rb'"timings":\s*\{[^{}]*\},|,\s*"timings":\s*\{[^{}]*\}')
_LENGTH = (b'"finish_reason":"length"', b'"stop_reason":"max_tokens"', b'"status":"incomplete"')
"""What engines write where the limit ended an answer. It cannot stand in a text: JSON escapes quotes."""


def metered(members: Mapping[str, object]) -> dict[str, object]:
    """The members of a request, so that its answer can be metered."""
    return {**members, **ASKED}


@dataclass(frozen=True, slots=True)
class Piece:
    """A whole event as it may go out, and the tokens of the request up to and with it."""

    data: bytes
    tokens_in: int
    tokens_out: int


class Meter:
    """Takes the stream of events as it comes, of an answer of `most_out` tokens at most."""

    def __init__(self, most_out: int) -> None:
        self._most_out = most_out
        self._rest = b""
        self._tokens_in = 0
        self._said = 0
        self._since = 0
        self._has_counts = False
        self._is_cut = False

    @property
    def finish(self) -> str:
        """Why the answer has ended: "length" or "stop"."""
        return "length" if self._is_cut or self._said >= self._most_out else "stop"

    def take(self, data: bytes) -> Iterator[Piece]:
        """The events that are whole now. Raises UpstreamBroken for one that is too large."""
        events, end, self._rest = (self._rest + data).rpartition(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise UpstreamBroken("an event of the stream is too large")
        if end:
            for event in events.split(b"\n\n"):
                yield self._piece(event + end)

    def rest(self) -> Piece | None:
        """What came last and is no event, at the end of the stream."""
        return self._piece(self._rest) if self._rest else None

    def _piece(self, event: bytes) -> Piece:
        tokens_in, tokens_out = token_counts(event)
        self._tokens_in = tokens_in or self._tokens_in
        if tokens_out:
            self._said, self._since = tokens_out, 0
        elif not self._has_counts:
            self._since += PIECE_OF_TEXT in event
        self._is_cut = self._is_cut or any(mark in event for mark in _LENGTH)
        if COUNTS in event:
            self._has_counts = True
            if _is_partial(event):
                event = _COUNTS.sub(b"", event, count=1)
        return Piece(event, self._tokens_in, min(self._said + self._since, self._most_out))


def _is_partial(event: bytes) -> bool:
    """Whether the answer goes on after this event: the counts of the last one are there for everybody."""
    if b'"type":"response.' in event:
        return b'"type":"response.completed"' not in event
    return b'"finish_reason":null' in event
