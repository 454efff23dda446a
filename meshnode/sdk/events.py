"""Server-sent events (HTML Living Standard, 9.2.6) out of pieces of bytes: data and comments, which is all there is."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.errors import EngineCrashed

MAX_EVENT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """The data of one event, or the text of a comment."""

    text: str
    comment: bool = False


class EventReader:
    """Cuts a stream into events; what is incomplete waits for more."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece completes. Raises EngineCrashed for one without end."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        found = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b":"):
                found.append(Event(_text(line[1:].removeprefix(b" ")), comment=True))
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._data_bytes += len(line)
            elif not line and self._data:
                found.append(Event(_text(b"\n".join(self._data))))
                self._data, self._data_bytes = [], 0
        if self._data_bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise EngineCrashed(f"an event of its answer has more than {MAX_EVENT_BYTES} bytes", fix="ask for less")
        return found


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")
