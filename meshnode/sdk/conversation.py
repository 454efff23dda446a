"""A conversation that never outgrows its model: the oldest turns are dropped, the system prompt stays.

A turn is a message of the user with all that follows until the next one, so that no answer loses its question. What is
dropped is gone: a program that wants the whole transcript keeps it beside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from meshnode.errors import BadRequest, WrongUse
from meshnode.sdk.chat import ANY_MODEL, Chat, Content, Models
from meshnode.sdk.counting import TokenCounts
from meshnode.sdk.streams import Reply, Stream
from meshnode.sdk.values import Model

ANSWER_SHARE = 4
"""One part in so many of the context is kept free for an answer whose length nobody limits."""
TOO_LONG = "exceed-context-size-error"
"""llama-server's code for a prompt that does not fit, which no count foresaw."""
Turn = list[dict[str, Any]]


class Conversation:
    """Questions and answers that build on each other; see `Client.conversation`.

        talk = mesh.conversation(model="demo", system="Answer in one line.")
        async for piece in talk.say("count from 1 to 20"):
            print(piece, end="", flush=True)
        print(await talk.say("and backwards"))

    One answer comes at a time: a second `say` waits for the first. An answer that is left early is kept as far as it
    came, as that is what was read.
    """

    def __init__(
        self,
        chat: Chat,
        models: Models,
        counts: TokenCounts,
        *,
        model: str = ANY_MODEL,
        system: str | None = None,
        keep_tokens: int | None = None,
        max_tokens: int | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        parameters: Mapping[str, Any],
    ) -> None:
        self._chat = chat
        self._models = models
        self._counts = counts
        self._turns: list[Turn] = _turns_of(messages)
        self._lock = asyncio.Lock()
        self._speaker: asyncio.Task[Any] | None = None
        self.model = model
        self.system = system
        self.keep_tokens = keep_tokens
        self.max_tokens = max_tokens
        self.parameters = dict(parameters)
        self.dropped = 0
        """How many turns were dropped so far."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What would be sent before the next question, the system prompt first."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *(dict(message) for turn in self._turns for message in turn)]

    def forget(self) -> None:
        """Begin anew, with the same system prompt."""
        self._turns.clear()

    def say(self, content: Content, **parameters: Any) -> Reply:
        """Ask the next question; read the answer as that of `mesh.chat`. `parameters` are for this question alone.

        The question is part of the conversation once something of its answer has come. Raises, when it is read, what
        `chat` raises, and BadRequest where the question and the system prompt alone do not fit.
        """
        question = {"role": "user", "content": content}
        held = False

        async def begin() -> Stream:
            nonlocal held
            if self._lock.locked() and self._speaker is asyncio.current_task():
                raise WrongUse("the answer before is still being read", fix="end its loop first")
            await self._lock.acquire()
            held, self._speaker = True, asyncio.current_task()
            return await self._ask(question, {"max_tokens": self.max_tokens, **self.parameters, **parameters})

        def ended(reply: Reply) -> None:
            nonlocal held
            if held:
                held, self._speaker = False, None
                self._keep(question, reply)
                self._lock.release()

        return Reply(begin, ended)

    def _keep(self, question: dict[str, Any], reply: Reply) -> None:
        if not reply.text:
            return
        self._turns.append([question, {"role": "assistant", "content": reply.text}])
        if reply.usage is not None and reply.finish_reason == "stop" and not reply.reasoning:
            self._counts.learn(self.model, reply.text, reply.usage.completion_tokens)

    async def _ask(self, question: dict[str, Any], given: Mapping[str, Any]) -> Stream:
        await self._make_room(question, given.get("max_tokens"))
        while True:
            try:
                return await self._chat.ask(self.model, [*self.messages, question], given)
            except BadRequest as refusal:
                if refusal.code != TOO_LONG or not self._turns:
                    raise
                self._drop()

    async def _make_room(self, question: dict[str, Any], answer_tokens: int | None) -> None:
        """Drop the oldest turns until the prompt and its answer fit."""
        context = await self._context_length()
        if not context and self.keep_tokens is None:
            return
        room = context - (answer_tokens or context // ANSWER_SHARE) if context else self.keep_tokens or 0
        if self.keep_tokens is not None:
            room = min(room, self.keep_tokens)
        while self._turns:
            messages = [*(message for turn in self._turns for message in turn), question]
            if await self._counts.prompt(self.model, self.system, messages) <= room:
                return
            self._drop()

    def _drop(self) -> None:
        del self._turns[0]
        self.dropped += 1

    async def _context_length(self) -> int:
        """That of the model; for "auto" the smallest that may be chosen. 0 where nobody says."""
        if self.model != ANY_MODEL:
            return (await self._models.retrieve(self.model)).context_length
        return min((model.context_length for model in await self._models.list() if _may_answer(model)), default=0)


def _may_answer(model: Model) -> bool:
    return model.ready and model.context_length > 0 and (not model.capabilities or "chat" in model.capabilities)


def _turns_of(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Messages of an earlier conversation, cut before each one of the user. Raises BadRequest for a system message."""
    turns: list[Turn] = []
    for message in messages:
        if message.get("role") == "system":
            raise BadRequest("the system prompt of a conversation is its `system`")
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(dict(message))
    return turns
