"""Reading a request: its body within the cap, which model it means, and in which form it is sent on.

A plain request for text is sent on as a stream (see aggregate.py for the reason), with as few bytes changed as that
takes. What routing needs to know is read off the same parsed body.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from meshnode.api.aggregate import AGGREGATES
from meshnode.api.answer import CallerLeft
from meshnode.api.body import JsonObject, parse_object
from meshnode.api.endpoints import Endpoint
from meshnode.api.multipart import model_field
from meshnode.api.paying import ONLY_FREE, Affording
from meshnode.api.prefix import estimate_tokens, prefix_hashes
from meshnode.api.reaching import find_reachable
from meshnode.api.served import ANY_MODEL, Host, Served, any_ready
from meshnode.core.radius import TRUSTED, Radius
from meshnode.core.routing import Wanted, choose_model
from meshnode.errors import (
    BodyTooLarge,
    EngineCrashed,
    ModelLoading,
    ModelNotFound,
    NoModelServed,
    OutOfRadius,
    PaymentError,
    RequestTimeout,
)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Scope = dict[str, Any]

BODY_PAUSE_S = 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,63}")
"""What a model may be called when others are to hear that it is wanted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the gateway; see the settings of the same names. After `stall_s` seconds without a byte an answer that
    has begun is continued by another host, if there is one.
    """

    max_body_bytes: int
    ping_interval_s: float
    aliases: Mapping[str, str] = field(default_factory=dict)
    stall_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was read. `rebuild` says that a plain answer is put together from a stream; `parsed` is the body
    as it is sent on, None for a form. `radius` is how far it may go, in every attempt.
    """

    endpoint: Endpoint
    model: Served
    caller: str
    body: bytes
    content_type: str
    stream: bool
    rebuild: bool
    parsed: JsonObject | None = None
    radius: Radius = TRUSTED

    @property
    def streams(self) -> bool:
        """llama-server is asked for a stream of events."""
        return self.stream or self.rebuild

    @property
    def members(self) -> Mapping[str, object]:
        """The top-level members of the body; empty for a form."""
        return self.parsed.members if self.parsed else {}

    @property
    def needs(self) -> frozenset[str]:
        """What a host must be able to do for it, in the words of its capabilities."""
        return _needs(self.endpoint, self.members)

    def body_for(self, host: Host) -> bytes:
        """What is sent to a host: a peer knows the model by its id, and not the aliases of this node."""
        if host.here or self.parsed is None or self.members.get("model") == self.model.id:
            return self.body
        return JsonObject.parse(self.body).replaced(model=self.model.id)

    def prompt_tokens(self) -> int:
        """About how many tokens the prompt has."""
        return estimate_tokens(self.members, len(self.body))

    def prefix(self) -> tuple[int, ...]:
        """Where this conversation may have been before; see prefix.py."""
        return prefix_hashes(self.members, len(self.body))


async def read_request(
    endpoint: Endpoint,
    scope: Scope,
    receive: Receive,
    *,
    models: Callable[[], Sequence[Served]],
    limits: Limits,
    missed: Callable[[str], None] = lambda name: None,
    radius: Radius = TRUSTED,
    affording: Affording = ONLY_FREE,
) -> Request:
    """Read the body and find the model, among hosts within `radius` at prices that are paid. `missed` gets the name of
    one that none of them can answer for.

    Raises CallerLeft, BodyTooLarge, RequestTimeout, BadRequest, and whatever find_reachable raises.
    """
    headers = dict(scope["headers"])
    raw = await read_body(receive, headers.get(b"content-length"), limits.max_body_bytes)
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    caller = f"{(scope.get('client') or ('',))[0]} {hash(headers.get(b'authorization', headers.get(b'x-api-key')))}"
    find = partial(
        _find,
        models=models(),
        aliases=limits.aliases,
        missed=missed,
        endpoint=endpoint,
        radius=radius,
        affording=affording,
    )
    if endpoint.multipart:
        model = find(model_field(raw, content_type), choose=any_ready)
        return Request(endpoint, model, caller, raw, content_type, stream=False, rebuild=False, radius=radius)
    found = await parse_object(raw)
    choose = partial(choose_served, members=found.members, endpoint=endpoint, body_bytes=len(raw), radius=radius)
    model = find(found.members.get("model"), choose=choose)
    stream = found.members.get("stream") is True
    rebuild = not stream and endpoint.path in AGGREGATES
    body = as_stream(found, endpoint) if rebuild else raw
    return Request(endpoint, model, caller, body, "application/json", stream, rebuild, found, radius)


def _needs(endpoint: Endpoint, members: Mapping[str, object]) -> frozenset[str]:
    wanted = {endpoint.needs} if endpoint.needs else set()
    if members.get("tools") and members.get("tool_choice") != "none":
        wanted.add("tools")
    return frozenset(wanted)


def choose_served(
    models: Sequence[Served],
    *,
    members: Mapping[str, object],
    endpoint: Endpoint,
    body_bytes: int,
    radius: Radius = TRUSTED,
) -> Served:
    """The model that "auto" means for a request; see core.routing.choose_model."""
    wanted = Wanted(ANY_MODEL, _needs(endpoint, members), estimate_tokens(members, body_bytes), radius=radius)
    views = {model.id: [host.view(model.size_bytes) for host in model.hosts] for model in models}
    chosen = choose_model(views, wanted)
    return next(model for model in models if model.id == chosen)


def _find(
    name: object,
    *,
    models: Sequence[Served],
    aliases: Mapping[str, str],
    missed: Callable[[str], None],
    choose: Callable[[Sequence[Served]], Served],
    endpoint: Endpoint,
    radius: Radius,
    affording: Affording,
) -> Served:
    try:
        return find_reachable(name, models, aliases, choose, endpoint=endpoint, radius=radius, affording=affording)
    except (ModelNotFound, NoModelServed, ModelLoading, EngineCrashed, OutOfRadius, PaymentError):
        wanted = aliases.get(name, name) if isinstance(name, str) else ""
        # What is no name may be a prompt that strayed; a path means something here alone, and "auto" anything.
        if wanted != ANY_MODEL and _NAME.fullmatch(wanted):
            missed(wanted)
        raise


async def read_body(receive: Receive, announced: bytes | None, limit_bytes: int) -> bytes:
    """The whole body of a request.

    Raises BodyTooLarge beyond the limit, before reading when the length was announced; RequestTimeout when the
    caller pauses for too long; CallerLeft when the connection ends.
    """
    too_large = announced is not None and announced.isdigit() and int(announced) > limit_bytes
    pieces: list[bytes] = []
    size = 0
    while not too_large:
        try:
            async with asyncio.timeout(BODY_PAUSE_S):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(f"{size} bytes came, then nothing for {BODY_PAUSE_S} s") from None
        if message["type"] == "http.disconnect":
            raise CallerLeft
        pieces.append(message["body"])
        size += len(message["body"])
        too_large = size > limit_bytes
        if not message["more_body"]:
            break
    if too_large:
        raise BodyTooLarge(f"at most {limit_bytes} bytes", fix="send less, or raise MESHNODE_MAX_BODY on the node")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def unless_caller_leaves(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; cancel it and raise CallerLeft as soon as the caller's connection ends."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CallerLeft
        task.result()
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def as_stream(found: JsonObject, endpoint: Endpoint) -> bytes:
    """The body with the two members changed that ask for a stream which reports its token counts."""
    changes: dict[str, object] = {"stream": True}
    if endpoint.path == "/v1/chat/completions":
        given = found.members.get("stream_options")
        changes["stream_options"] = {**(given if isinstance(given, dict) else {}), "include_usage": True}
    return found.replaced(**changes)
