"""The calls of the control API that concern strangers: the public mesh, what is listed, who offers a model, the audit
log.

Each checks its members here and hands plain values on; what they do is the node's. `/api/status` shows the results.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

from meshnode.errors import BadRequest, MeshnodeError
from meshnode.wire.registry import LIMIT_MODEL_NAME_CHARS, LIMIT_NAME_CHARS

Members = Mapping[str, object]
Answer = Awaitable[dict[str, Any]]

MOST_RECORDS = 1000


class PublicControls(Protocol):
    """What a node can be told and asked about strangers. Every method raises MeshnodeError for what cannot be done."""

    async def pause(self, paused: bool) -> dict[str, Any]: ...
    async def join_public(self, name: str | None) -> dict[str, Any]: ...
    async def leave_public(self) -> dict[str, Any]: ...
    async def discover(self, model: str, region: str) -> dict[str, Any]: ...
    async def providers(self, model: str) -> dict[str, Any]: ...
    async def audit(self, limit: int) -> dict[str, Any]: ...


def public_commands(controls: PublicControls) -> dict[str, Callable[[Members], Answer]]:
    """Path of a POST -> what to do with the members of the request's object."""

    def pause(members: Members) -> Answer:
        paused = members.get("paused")
        if not isinstance(paused, bool):
            raise BadRequest("`paused` must be true or false")
        return controls.pause(paused)

    def join(members: Members) -> Answer:
        name = members.get("name")
        if name is not None and (not isinstance(name, str) or not 0 < len(name) <= LIMIT_NAME_CHARS):
            raise BadRequest(f"`name` must be a text of at most {LIMIT_NAME_CHARS} characters")
        return controls.join_public(name)

    return {
        "/api/swarm/pause": pause,
        "/api/swarm/join": join,
        "/api/swarm/leave": lambda _: controls.leave_public(),
    }


def public_questions(controls: PublicControls) -> dict[str, Callable[[Mapping[str, str]], Answer]]:
    """Path of a GET -> what to answer to its query."""

    def discover(query: Mapping[str, str]) -> Answer:
        return controls.discover(
            _word(query, "model", LIMIT_MODEL_NAME_CHARS), _word(query, "region", LIMIT_NAME_CHARS)
        )

    def providers(query: Mapping[str, str]) -> Answer:
        model = _word(query, "model", LIMIT_MODEL_NAME_CHARS)
        if not model:
            raise BadRequest("`model` must be the name of a model, or the hash of its weights")
        return controls.providers(model)

    def audit(query: Mapping[str, str]) -> Answer:
        text = query.get("limit", "100")
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_RECORDS):
            raise BadRequest(f"`limit` must be a whole number from 1 to {MOST_RECORDS}")
        return controls.audit(int(text))

    return {"/api/discover": discover, "/api/providers": providers, "/api/audit": audit}


class _NothingPublic:
    def __init__(self, reason: Callable[[], MeshnodeError]) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Callable[..., Answer]:
        async def refuse(*_: object, **__: object) -> dict[str, Any]:
            raise self._reason()

        return refuse


def nothing_public(reason: Callable[[], MeshnodeError]) -> PublicControls:
    """The controls of a node that can meet no strangers: each of them raises `reason()`."""
    return cast(PublicControls, _NothingPublic(reason))


def _word(query: Mapping[str, str], name: str, longest: int) -> str:
    value = query.get(name, "").strip()
    if len(value) > longest:
        raise BadRequest(f"`{name}` must be a text of at most {longest} characters")
    return value
