"""A streamed answer in a program: chunks or pieces of text as they come, and an end as soon as nobody reads on.

A loop over an answer that is left, by `break`, `return` or an exception, ends the answer there and then: the iterator
that the loop held is gone, and with it the request. The node that answered has its slot back in under a second.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

from meshnode.errors import EngineCrashed, NodeStopping, WrongUse
from meshnode.sdk.events import EventReader
from meshnode.sdk.exchange import Exchange, runs_here
from meshnode.sdk.refusals import refusal_in
from meshnode.sdk.values import ChatCompletion, ChatCompletionChunk, Message, Usage

RESUMED = "meshnode-resumed "
"""How the comment begins by which the gateway says that another node goes on; ` radius=public` may end it."""
RADIUS = "meshnode-radius "
"""How the comment begins by which it says how far the answer is from, where the head went out before that was known."""
RADII = ("local", "trusted", "public")
END = "[DONE]"

Item = TypeVar("Item")


class Reading(Generic[Item]):
    """The one pass over an answer. `take` gives the next item, None at the end; `stop` is called when it is dropped."""

    def __init__(self, take: Callable[[], Awaitable[Item | None]], stop: Callable[[], None]) -> None:
        self._take = take
        self._stop = stop

    def __aiter__(self) -> Reading[Item]:
        return self

    async def __anext__(self) -> Item:
        try:
            item = await self._take()
        except BaseException:
            self._stop()
            raise
        if item is None:
            self._stop()
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the answer now, for those who hold on to the iterator."""
        self._stop()

    def __del__(self) -> None:
        self._stop()


class Stream:
    """The chunks of one chat answer, as `create(stream=True)` gives them.

        stream = await mesh.chat.completions.create(model="demo", messages=messages, stream=True)
        async for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="")

    `node` begins the id of the node that began to answer; `resumed` counts the nodes that went on with it since;
    `radius` is that of the furthest of them all: local, trusted, public, or "" while it is not known.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._events = EventReader()
        self._ready: deque[ChatCompletionChunk] = deque()
        self._ended = False
        self.node = exchange.headers.get("x-meshnode-node", "")
        self.resumed = _count(exchange.headers.get("x-meshnode-resumed", ""))
        self.radius = _radius(exchange.headers.get("x-meshnode-radius", ""))

    def __aiter__(self) -> Reading[ChatCompletionChunk]:
        return Reading(self.next_chunk, self.stop)

    async def next_chunk(self) -> ChatCompletionChunk | None:
        """The next chunk, None at the end. Raises the error by which an answer breaks off."""
        while not self._ready:
            piece = await self._exchange.read()
            if not piece and self._ended:
                return None
            if not piece:
                raise EngineCrashed("the answer ended before it was complete", fix="ask again")
            self._read(piece)
        return self._ready.popleft()

    def _read(self, piece: bytes) -> None:
        for event in self._events.feed(piece):
            if event.comment:
                self._note(event.text)
            elif event.text == END:
                self._ended = True
            elif not self._ended:
                self._ready.append(self._chunk(event.text))

    def _note(self, comment: str) -> None:
        """What the gateway says beside the answer."""
        if comment.startswith(RESUMED):
            times, _, told = comment.removeprefix(RESUMED).partition(" radius=")
            self.resumed = _count(times)
            self.radius = _radius(told) or self.radius
        elif comment.startswith(RADIUS):
            self.radius = _radius(comment.removeprefix(RADIUS)) or self.radius

    def _chunk(self, text: str) -> ChatCompletionChunk:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise EngineCrashed("an event of its answer is not JSON", fix="ask again") from None
        if isinstance(value, dict) and "error" in value:
            raise refusal_in(value)
        return ChatCompletion.of(value, node=self.node, resumed=self.resumed)

    def stop(self) -> None:
        """End the answer. May be called again."""
        self._exchange.abandon()

    async def close(self) -> None:
        """End the answer, in the words of the OpenAI SDK."""
        self.stop()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        self.stop()


class Answer(str):
    """A whole answer: its text, which is a `str`, and what is known of it.

    `node` begins the id of the node that began it; `resumed` counts those that went on after it was lost; `radius` is
    that of the furthest of them.
    """

    node: str
    radius: str
    model: str
    usage: Usage | None
    resumed: int
    finish_reason: str | None
    reasoning: str

    @property
    def text(self) -> str:
        """The text alone."""
        return str.__str__(self)


class Reply:
    """An answer to come. `async for` gives its text in pieces, `await` all of it; nothing is asked before.

    The attributes are those of `Answer` and grow while it is read. After a loop was left they keep what came.
    """

    def __init__(
        self, begin: Callable[[], Awaitable[Stream]], ended: Callable[[Reply], None] = lambda reply: None
    ) -> None:
        """`begin` asks; `ended` is called once after that, whatever came of it."""
        self._begin = begin
        self._on_end = ended
        self._stream: Stream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = self._over = False
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self.model = ""
        self.usage: Usage | None = None
        self.finish_reason: str | None = None

    @property
    def text(self) -> str:
        """What came so far."""
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        """What the model thought aloud so far, where it does."""
        return "".join(self._reasonings)

    @property
    def node(self) -> str:
        """The beginning of the id of the node that began to answer, in hex digits."""
        return self._stream.node if self._stream is not None else ""

    @property
    def resumed(self) -> int:
        """How many nodes went on with the answer after the one before was lost."""
        return self._stream.resumed if self._stream is not None else 0

    @property
    def radius(self) -> str:
        """How far the furthest node that took part is: local, trusted, public, or "" while it is not known."""
        return self._stream.radius if self._stream is not None else ""

    def __aiter__(self) -> AsyncIterator[str]:
        if self._begun:
            raise WrongUse("an answer can be read once", fix="`text` has what came")
        self._begun = True
        return Reading(self._next_piece, self.stop)

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._whole().__await__()

    async def _whole(self) -> Answer:
        if self._begun and not self._over:
            raise WrongUse("the answer is being read already")
        if not self._over:
            async for _ in self:
                pass
        answer = Answer(self.text)
        answer.node, answer.model, answer.usage = self.node, self.model, self.usage
        answer.resumed, answer.finish_reason, answer.reasoning = self.resumed, self.finish_reason, self.reasoning
        answer.radius = self.radius
        return answer

    async def _next_piece(self) -> str | None:
        if self._over:
            return None
        try:
            if self._stream is None:
                self._loop = asyncio.get_running_loop()
                self._stream = await self._begin()
                if self._over:
                    self._stream.stop()
            while (chunk := await self._stream.next_chunk()) is not None:
                self.model = chunk.model or self.model
                self.usage = chunk.usage or self.usage
                for choice in chunk.choices:
                    if choice.index == 0:
                        self.finish_reason = choice.finish_reason or self.finish_reason
                        if text := self._take(choice.delta):
                            return text
        except NodeStopping:
            if not self._over:
                raise
        return None

    def _take(self, delta: Message) -> str:
        if delta.reasoning_content:
            self._reasonings.append(delta.reasoning_content)
        if delta.content:
            self._texts.append(delta.content)
        return delta.content or ""

    def stop(self) -> None:
        """End the answer now; its text stays, and who reads it comes to an end. May be called again, from a finaliser
        in any thread, and before anything was asked.
        """
        if self._over:
            return
        if self._loop is not None and not runs_here(self._loop):
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self.stop)
            return
        self._begun = self._over = True
        if self._stream is not None:
            self._stream.stop()
        self._on_end(self)


def _radius(text: str) -> str:
    return text if text in RADII else ""


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
