"""What a program asks: chats, models and embeddings, under the names of the OpenAI SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from meshnode.sdk.exchange import Api
from meshnode.sdk.streams import Reply, Stream
from meshnode.sdk.values import ChatCompletion, Embeddings, Message, Model, ModelList

CHAT = "/v1/chat/completions"
ANY_MODEL = "auto"
"""The gateway's word for whichever model suits the request."""

Content = str | Sequence[Mapping[str, Any]]
"""The content of a message: a text, or parts such as texts and images."""
Messages = Sequence[Mapping[str, Any] | Message]
"""Messages as the API has them; one that was an answer can be given back as it came."""


class Completions:
    """`mesh.chat.completions`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @overload
    async def create(
        self, *, model: str, messages: Messages, stream: Literal[False] = False, **parameters: Any
    ) -> ChatCompletion: ...

    @overload
    async def create(self, *, model: str, messages: Messages, stream: Literal[True], **parameters: Any) -> Stream: ...

    @overload
    async def create(
        self, *, model: str, messages: Messages, stream: bool, **parameters: Any
    ) -> ChatCompletion | Stream: ...

    async def create(
        self, *, model: str, messages: Messages, stream: bool = False, **parameters: Any
    ) -> ChatCompletion | Stream:
        """Ask a model. `parameters` are those of the API: max_tokens, temperature, stop, tools, response_format ...

            answer = await mesh.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "count from 1 to 20"}]
            )
            print(answer.choices[0].message.content, answer.usage.completion_tokens)

        A parameter that is None is left out. Raises what the node or the model refuses with: ModelNotFound, BadRequest,
        TooManyRequests ...
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        body = {"model": model, "messages": [_plain(message) for message in messages], "stream": stream, **given}
        if stream:
            return Stream(await self._api.open("POST", CHAT, body))
        value, headers = await self._api.json("POST", CHAT, body)
        resumed = headers.get("x-meshnode-resumed", "")
        return ChatCompletion.of(
            value, node=headers.get("x-meshnode-node", ""), resumed=int(resumed) if resumed.isdigit() else 0
        )


def _plain(message: Mapping[str, Any] | Message) -> dict[str, Any]:
    return message.to_dict() if isinstance(message, Message) else dict(message)


class Chat:
    """`mesh.chat`: call it for text, or use `completions` as in the OpenAI SDK."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.completions = Completions(api)

    def __call__(
        self,
        prompt: Content,
        *,
        model: str = ANY_MODEL,
        system: str | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        **parameters: Any,
    ) -> Reply:
        """Ask one question.

            async for piece in mesh.chat("count from 1 to 20", model="demo"):
                print(piece, end="", flush=True)
            answer = await mesh.chat("hello")
            print(answer, answer.node, answer.usage)

        `prompt` is a text or the parts of a message (see `conversation` for more than one question). The answer ends
        at one of the texts of `stop`, after `max_tokens`, or when the loop over it is left. Raises as
        `completions.create`, when it is read.
        """
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        given = {"max_tokens": max_tokens, "stop": stop, **parameters}

        async def begin() -> Stream:
            return await self.ask(model, messages, given)

        return Reply(begin)

    async def ask(self, model: str, messages: Messages, given: Mapping[str, Any]) -> Stream:
        """A stream that ends with its token counts."""
        options = {"include_usage": True, **(given.get("stream_options") or {})}
        parameters: dict[str, Any] = {**given, "stream_options": options}
        return await self.completions.create(model=model, messages=messages, stream=True, **parameters)


class Models:
    """`mesh.models`: what can be asked for now."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def list(self) -> ModelList:
        """Every model of the mesh."""
        value, _ = await self._api.json("GET", "/v1/models")
        data = value.get("data") if isinstance(value, dict) else None
        return ModelList(Model.of(entry) for entry in (data if isinstance(data, list) else ()))

    async def retrieve(self, model: str) -> Model:
        """One model by its name or one of its aliases. Raises ModelNotFound with the nearest names."""
        value, _ = await self._api.json("GET", f"/v1/models/{model}")
        return Model.of(value)


class EmbeddingRequests:
    """`mesh.embeddings`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(self, *, model: str, input: str | Sequence[str], **parameters: Any) -> Embeddings:
        """The vectors of one or several texts, from a model that embeds. Raises as `chat.completions.create`."""
        texts = input if isinstance(input, str) else list(input)
        value, _ = await self._api.json("POST", "/v1/embeddings", {"model": model, "input": texts, **parameters})
        return Embeddings.of(value)
