"""The live view of a node: one snapshot, then only what changed, for any number of watchers.

The status is made once a tick, however many look on, and each of its top-level members is written as JSON once: the
bytes tell whether it changed, and go out as they are. A member carries the number of the tick that changed it last, so
a watcher needs to know nothing but the number it was sent last. It holds no queue: a slow one costs nothing and misses
only states that are past, and one that was cut off names its number (Last-Event-ID) and gets what changed since.
Numbers belong to one run of the node, so the run stands before them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

Status = dict[str, Any]

SETTLE_S = 0.1
"""Changes that come together are sent together."""
REFRESH_S = 2.0
"""Memory, rates and queues drift without an event; they are looked at this often."""
KEEP_ALIVE_S = 15.0
MAX_WATCHERS = 64
COMMENT = b": here\n\n"
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
_ID = re.compile(r"([0-9a-f]{1,32})-([0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of the status, as `"name":value`, and the number of the look at which it became so."""

    text: bytes
    number: int


class Events:
    """Tells watchers of changes. `touch()` may be called at any moment from the event loop.

    `run` names this run of the node in lower-case hex digits; it is drawn by lot unless given.
    """

    def __init__(self, status: Callable[[], Status], *, run: str = "") -> None:
        self._status = status
        self._run = run or secrets.token_hex(6)
        self._touched = asyncio.Event()
        self._news = asyncio.Event()
        self._number = 0
        self._members: dict[str, _Member] = {}
        self._made: tuple[tuple[str, int, int], bytes] = (("", 0, 0), b"")
        self._ticking: asyncio.Task[None] | None = None
        self.watchers = 0

    def touch(self) -> None:
        """Something has changed."""
        self._touched.set()

    def whole(self) -> bytes:
        """The status of this moment as a JSON object. Watchers are told what it brings to light."""
        self._look()
        return self._object(-1)

    async def stream(self, last_event_id: str = "") -> AsyncIterator[bytes]:
        """Server-sent events for one watcher: `snapshot`, then `change` with the top-level members that differ.

        Whoever has seen an event of this run begins with the changes since. Raises whatever making the status raises.
        """
        with self._watched():
            self._look()
            sent = self._number_of(last_event_id)
            event = self._event("snapshot", -1) if sent is None else self._change(sent)
            while True:
                # Both are of this moment: while the event goes out there may be news.
                sent = self._number
                yield event
                event = self._change(sent) if await self._news_after(sent) else COMMENT

    # --- looking --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Make the status and note which members differ; wake the watchers if one does."""
        number = self._number + 1
        with _no_collection():
            texts = {name: _encode(name) + b":" + _encode(value) for name, value in self._status().items()}
        # A member that a later status lacks is told as null, once.
        texts |= {name: _encode(name) + b":null" for name in self._members if name not in texts}
        changed = {
            name: _Member(text, number)
            for name, text in texts.items()
            if name not in self._members or self._members[name].text != text
        }
        if changed:
            self._members |= changed
            self._number = number
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Count a watcher; the first starts the ticks, the last ends them."""
        self.watchers += 1
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.get_running_loop().create_task(self._tick(), name="events")
        try:
            yield
        finally:
            self.watchers -= 1
            if not self.watchers:
                self._ticking.cancel()
                self._ticking = None

    async def _tick(self) -> None:
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_S):
                        await self._touched.wait()
                if self._touched.is_set():
                    await asyncio.sleep(SETTLE_S)
                    self._touched.clear()
                self._look()
        except Exception:
            self._wake()  # nobody waits for a tick that will never come
            raise

    async def _news_after(self, number: int) -> bool:
        """Wait until something changed after that number; False when nothing did for KEEP_ALIVE_S."""
        ticking = self._ticking
        assert ticking is not None
        if self._number == number and not ticking.done():
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await self._news.wait()
            except TimeoutError:
                return False
        if ticking.done():
            ticking.result()
        return True

    # --- writing --------------------------------------------------------------------------------------------

    def _number_of(self, last_event_id: str) -> int | None:
        """The number that a watcher has seen last; None where it is of no use."""
        match = _ID.fullmatch(last_event_id)
        if match is None or match[1] != self._run or int(match[2]) > self._number:
            return None
        return int(match[2])

    def _object(self, after: int) -> bytes:
        return b"{" + b",".join(member.text for member in self._members.values() if member.number > after) + b"}"

    def _change(self, after: int) -> bytes:
        return self._event("change", after) if after < self._number else COMMENT

    def _event(self, kind: str, after: int) -> bytes:
        """Watchers that have seen the same share the bytes of what is new."""
        made = (kind, after, self._number)
        if self._made[0] != made:
            head = f"id: {self._run}-{self._number}\nevent: {kind}\ndata: ".encode()
            self._made = made, head + self._object(after) + b"\n\n"
        return self._made[1]


@contextmanager
def _no_collection() -> Iterator[None]:
    """The thousands of values of a status hold no circle and are gone as soon as it is written. To the collector they
    look like growth: it would walk through all that the node has, for tens of milliseconds in a large mesh."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _encode(value: object) -> bytes:
    """JSON in UTF-8. Raises ValueError for what JSON has no form for, such as a number that is none."""
    # A file name may hold half a surrogate pair, which UTF-8 has no form for and JSON has.
    return _JSON.encode(value).encode("utf-8", "backslashreplace")
