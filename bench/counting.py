"""Streams whose whole text is known: the demo counts, so that every lost, repeated or crossed token shows.

Each stream has a thread that does little but wait, so that some dozens of them disturb what is measured only a little.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

LIMIT_S = 90
RESUMED = b": meshnode-resumed"


def counted(last: int) -> str:
    """What the demo answers to `count from 1 to LAST`."""
    return ", ".join(str(number) for number in range(1, last + 1))


def question(model: str, last: int) -> dict[str, Any]:
    """The body of a request for that, as a stream that ends with its token counts."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"count from 1 to {last}"}],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@dataclass
class Heard:
    """What came of one stream; `arrived_at` holds the moment of each piece of text (monotonic, seconds)."""

    model: str
    last: int
    node: str = ""
    pieces: list[str] = field(default_factory=list)
    arrived_at: list[float] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    roles: int = 0
    finish: str = ""
    tokens: int = 0
    resumed: bool = False
    ended: bool = False
    error: str = ""

    def take(self, chunk: dict[str, Any]) -> None:
        """One chunk of the stream."""
        now = time.monotonic()
        self.ids.add(chunk["id"])
        self.tokens += (chunk.get("usage") or {}).get("completion_tokens", 0)
        for choice in chunk["choices"]:
            self.roles += choice["delta"].get("role") is not None
            self.finish += choice["finish_reason"] or ""
            if piece := choice["delta"].get("content"):
                self.pieces.append(piece)
                self.arrived_at.append(now)

    def fault(self) -> str:
        """What is wrong with the answer; empty when it is whole, was given once, and ended as it should."""
        text = "".join(self.pieces)
        if self.error:
            return f"{self.error} after {text[-20:]!r}"
        if text != counted(self.last):
            return f"the text is {text!r}"
        if (len(self.ids), self.roles, self.finish, self.ended) != (1, 1, "stop", True):
            return f"ids {self.ids}, {self.roles} roles, finish {self.finish!r}, ended {self.ended}"
        return "" if self.tokens else "no token counts"

    def gap_s(self, since: float) -> float:
        """The longest pause between two pieces of which the later one came after `since`."""
        pairs = zip(self.arrived_at, self.arrived_at[1:], strict=False)
        return max((after - before for before, after in pairs if after > since), default=0.0)


Take = Callable[[dict[str, Any]], None]
Listen = Callable[[Heard, Take], None]
"""Asks for one stream and hands each of its chunks over; sets `ended` when it ends in due form."""


def by_socket(base_url: str) -> Listen:
    """Listens to a node without a client library. Raises RuntimeError for a refusal or an error within the stream."""

    def listen(heard: Heard, take: Take) -> None:
        target = urlsplit(base_url)
        with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=LIMIT_S)) as connection:
            body = json.dumps(question(heard.model, heard.last))
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {answer.read(500)!r}")
            heard.node = answer.getheader("x-meshnode-node", "")
            for line in answer:
                if line.startswith(RESUMED):
                    heard.resumed = True
                elif line.startswith(b"data: [DONE]"):
                    heard.ended = True
                elif line.startswith(b"data: "):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise RuntimeError(str(chunk["error"]))
                    take(chunk)

    return listen


class Streams:
    """Several streams at once, for pairs of a model and the last number. They are awaited at the end of the block."""

    def __init__(self, listen: Listen, asked: Sequence[tuple[str, int]]) -> None:
        self.heard = [Heard(model, last) for model, last in asked]
        self._listen = listen
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(heard,), daemon=True) for heard in self.heard]

    def _run(self, heard: Heard) -> None:
        def take(chunk: dict[str, Any]) -> None:
            with self._news:
                heard.take(chunk)
                self._news.notify_all()

        try:
            self._listen(heard, take)
        except Exception as reason:
            with self._news:
                heard.error = f"{type(reason).__name__}: {reason}"
                self._news.notify_all()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self) -> None:
        """Until every stream is over."""
        for thread in self._threads:
            thread.join()

    def until_all_run(self) -> list[Heard]:
        """Wait until all have brought some text and none is over; those streams.

        A stream that runs alone is fast: one that is over before the last one has begun is followed by another of its
        kind. Raises RuntimeError when one fails, and after LIMIT_S.
        """
        deadline = time.monotonic() + LIMIT_S
        running = list(self.heard)
        with self._news:
            while True:
                if failed := [heard.error for heard in running if heard.error]:
                    raise RuntimeError(f"{len(failed)} of {len(running)} streams do not run: {failed[0]}")
                running = [self._followed(heard) if heard.finish else heard for heard in running]
                silent = sum(not heard.pieces for heard in running)
                if not silent:
                    return running
                if not self._news.wait(deadline - time.monotonic()):
                    raise RuntimeError(f"{silent} of {len(running)} streams bring no text")

    def _followed(self, heard: Heard) -> Heard:
        follower = Heard(heard.model, heard.last)
        self.heard.append(follower)
        thread = threading.Thread(target=self._run, args=(follower,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return follower

    def faults(self) -> list[str]:
        """What is wrong with each answer that is not whole."""
        return [fault for heard in self.heard if (fault := heard.fault())]
