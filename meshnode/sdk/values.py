"""Answers of the model API as typed values, with the attribute names of the OpenAI SDK.

A peer wrote them: a member of another type than its name promises counts as missing. `to_dict` gives all members, also
those that have no attribute here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def _members(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


@dataclass(frozen=True, kw_only=True)
class Value:
    """What all answers have: the JSON they were read from."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All members, as they came."""
        return dict(self.raw)


@dataclass(frozen=True, kw_only=True)
class Usage(Value):
    """Tokens of a request and its answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    @classmethod
    def of(cls, value: object) -> Usage | None:
        """None where the answer does not say."""
        raw = _members(value)
        if not raw:
            return None
        counts = (_whole(raw.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
        return cls(**dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=True)), raw=raw)


@dataclass(frozen=True, kw_only=True)
class Function(Value):
    """The function that a tool call names, with its arguments as JSON text."""

    name: str | None = None
    arguments: str | None = None


@dataclass(frozen=True, kw_only=True)
class ToolCall(Value):
    """A call of a tool, or in a stream the next piece of one: `index` says of which."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: Function = field(default_factory=Function)

    @classmethod
    def of(cls, value: object) -> ToolCall:
        """One entry of `tool_calls`."""
        raw = _members(value)
        inner = _members(raw.get("function"))
        function = Function(name=_text(inner.get("name")), arguments=_text(inner.get("arguments")), raw=inner)
        kind, number = _text(raw.get("type")), _text(raw.get("id"))
        return cls(index=_whole(raw.get("index")), id=number, type=kind, function=function, raw=raw)


@dataclass(frozen=True, kw_only=True)
class Message(Value):
    """A message of the assistant, or in a stream the next piece of one."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None

    @classmethod
    def of(cls, value: object) -> Message:
        """A `message` or `delta`."""
        raw = _members(value)
        calls = tuple(ToolCall.of(call) for call in _list(raw.get("tool_calls")))
        return cls(
            role=_text(raw.get("role")),
            content=_text(raw.get("content")),
            reasoning_content=_text(raw.get("reasoning_content")),
            tool_calls=calls or None,
            raw=raw,
        )


@dataclass(frozen=True, kw_only=True)
class Choice(Value):
    """One of the answers to a request. A whole one has a `message`, a piece of one a `delta`: the same value."""

    index: int = 0
    finish_reason: str | None = None
    message: Message = field(default_factory=Message)

    @property
    def delta(self) -> Message:
        """What a chunk adds."""
        return self.message

    @classmethod
    def of(cls, value: object) -> Choice:
        """One entry of `choices`."""
        raw = _members(value)
        message = Message.of(raw.get("message", raw.get("delta")))
        return cls(
            index=_whole(raw.get("index")), finish_reason=_text(raw.get("finish_reason")), message=message, raw=raw
        )


@dataclass(frozen=True, kw_only=True)
class ChatCompletion(Value):
    """An answer to a chat. `node` begins the id of the node that gave it, and is "" where that is not known;
    `resumed` is how often another node went on with it.
    """

    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    node: str = ""
    resumed: int = 0

    @classmethod
    def of(cls, value: Any, *, node: str = "", resumed: int = 0) -> ChatCompletion:
        """A whole answer, or a chunk of a stream."""
        raw = _members(value)
        return cls(
            id=_text(raw.get("id")) or "",
            object=_text(raw.get("object")) or "",
            created=_whole(raw.get("created")),
            model=_text(raw.get("model")) or "",
            choices=tuple(Choice.of(choice) for choice in _list(raw.get("choices"))),
            usage=Usage.of(raw.get("usage")),
            node=node,
            resumed=resumed,
            raw=raw,
        )


ChatCompletionChunk = ChatCompletion
"""A piece of a streamed answer: the same members, with `choices[i].delta` for what is new."""


@dataclass(frozen=True, kw_only=True)
class Model(Value):
    """A model that can be asked for. `nodes` are the ids of the nodes that run it, in hex digits."""

    id: str = ""
    created: int = 0
    owned_by: str = ""
    context_length: int = 0
    capabilities: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    ready: bool = False
    nodes: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: object) -> Model:
        """One entry of GET /v1/models."""
        raw = _members(value)
        hosts = [_members(host) for host in _list(_members(raw.get("meshnode")).get("hosts"))]
        return cls(
            id=_text(raw.get("id")) or "",
            created=_whole(raw.get("created")),
            owned_by=_text(raw.get("owned_by")) or "",
            context_length=_whole(raw.get("context_length")),
            capabilities=tuple(str(item) for item in _list(raw.get("capabilities"))),
            aliases=tuple(str(item) for item in _list(raw.get("aliases"))),
            ready=_members(raw.get("status")).get("value") == "loaded",
            nodes=tuple(str(host.get("node", "")) for host in hosts),
            raw=raw,
        )


class ModelList(list[Model]):
    """The models, in a list. `data` is the list again, as in the OpenAI SDK."""

    @property
    def data(self) -> list[Model]:
        """The same models."""
        return self


@dataclass(frozen=True, kw_only=True)
class Embedding(Value):
    """The vector of one input."""

    index: int = 0
    embedding: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Embeddings(Value):
    """An answer to an embedding request: one entry an input, in their order."""

    model: str = ""
    data: tuple[Embedding, ...] = ()
    usage: Usage | None = None

    @classmethod
    def of(cls, value: object) -> Embeddings:
        """The answer of POST /v1/embeddings."""
        raw = _members(value)
        data = []
        for entry in map(_members, _list(raw.get("data"))):
            vector = tuple(float(part) for part in _list(entry.get("embedding")) if isinstance(part, int | float))
            data.append(Embedding(index=_whole(entry.get("index")), embedding=vector, raw=entry))
        return cls(model=_text(raw.get("model")) or "", data=tuple(data), usage=Usage.of(raw.get("usage")), raw=raw)
