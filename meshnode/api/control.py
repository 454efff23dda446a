"""The application behind the console port: the page, the control API, and the gateway for the page's own chat.

Whatever changes the node, or shows more of it than its status, needs the token that the node makes at each start: the
command line reads it from runtime.json, the page from its own head. What moves money needs a second value as well,
which the page does not have (spending_control.py). Both are asked for after the Door has judged the caller and before
anything of a body is read. What a call needs of the node is handed in as callables.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meshnode.api.access import Access
from meshnode.api.answer import SSE_HEADERS
from meshnode.api.app import ASGIApp, Door, error_handlers, error_response, health
from meshnode.api.body import parse_object
from meshnode.api.events import MAX_WATCHERS, Events
from meshnode.api.mesh_control import MeshControls, mesh_commands
from meshnode.api.metrics import CONTENT_TYPE, Metrics
from meshnode.api.openapi import document
from meshnode.api.public_control import PublicControls, public_commands, public_questions
from meshnode.api.radius_control import RadiusControl, radius_commands
from meshnode.api.reaching import OF_OWNER
from meshnode.api.request import read_body
from meshnode.api.served import Served
from meshnode.api.spending_control import (
    TERMINAL_HEADER,
    SpendingControl,
    no_spending,
    spending_commands,
    spending_questions,
)
from meshnode.errors import BadRequest, Forbidden, TooManyRequests

MAX_CONTROL_BODY_BYTES = 64 << 10
MAX_QUERY_CHARS = 200
PIECE_BYTES = 64 << 10
MOST_REQUESTS = 500
MOST_LINES = 1000
TOKEN_HEADER = b"x-meshnode-token"
ANSWER_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
"""No page but our own can load an answer, not even as a script or an image; no cache keeps one."""

Members = Mapping[str, object]
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Controls:
    """What the control API can ask of the node. `token` must accompany every call that is marked so (see Call)."""

    load: Callable[[str], Awaitable[Answer]]
    unload: Callable[[str], Awaitable[Answer]]
    plan: Callable[[str], Awaitable[Answer]]
    stop: Callable[[bool], None]
    token: str
    mesh: MeshControls
    public: PublicControls
    radius: RadiusControl
    models: Callable[[], Awaitable[Answer]]
    search: Callable[[str], Awaitable[Answer]]
    pull: Callable[[str], Awaitable[Answer]]
    stop_pull: Callable[[str], Awaitable[Answer]]
    remove: Callable[[str], Awaitable[Answer]]
    requests: Callable[[int], list[Answer]]
    settings: Callable[[], Answer]
    logs: Callable[[str, int], Awaitable[Answer]]
    agents: Callable[[str], Answer]
    spending: SpendingControl = field(default_factory=no_spending)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the console port; `token` says that it needs the token of the node, `terminal` that it moves money
    and so needs the terminal value as well."""

    method: Literal["GET", "POST"]
    path: str
    answer: Callable[[Request], Awaitable[Response]]
    token: bool = False
    terminal: bool = False


def control_calls(
    *, controls: Controls, events: Events, metrics: Metrics, models: Callable[[], Sequence[Served]]
) -> list[Call]:
    """Every call of the console port but the page and /v1."""

    async def status(_: Request) -> Response:
        return Response(events.whole(), media_type="application/json")

    async def watch(request: Request) -> Response:
        if events.watchers >= MAX_WATCHERS:
            raise TooManyRequests(f"{MAX_WATCHERS} watchers are connected already", retry_after_s=30)

        seen = request.headers.get("last-event-id", "")

        async def body() -> Any:
            async with aclosing(events.stream(seen)) as stream:  # type: ignore[type-var]
                async for event in stream:
                    # The status of a large mesh, to many at once, would hold the event loop up.
                    for begin in range(0, len(event), PIECE_BYTES):
                        yield event[begin : begin + PIECE_BYTES]
                        await asyncio.sleep(0)

        return StreamingResponse(body(), headers=SSE_HEADERS)

    async def scrape(_: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    async def get_health(_: Request) -> Response:
        code, body = health(models())
        return JSONResponse(body, code)

    async def openapi(_: Request) -> Response:
        return Response(await asyncio.to_thread(document), media_type="application/json")

    async def list_models(_: Request) -> Response:
        return JSONResponse(await controls.models())

    async def agents(request: Request) -> Response:
        model = request.query_params.get("model", "")
        if len(model) > MAX_QUERY_CHARS:
            raise BadRequest(f"`model` must be a text of at most {MAX_QUERY_CHARS} characters")
        return JSONResponse(controls.agents(model))

    async def search(request: Request) -> Response:
        words = request.query_params.get("q", "").strip()
        if not 0 < len(words) <= MAX_QUERY_CHARS:
            raise BadRequest(f"`q` must be a text of at most {MAX_QUERY_CHARS} characters")
        return JSONResponse(await controls.search(words))

    async def requests(request: Request) -> Response:
        return JSONResponse({"requests": controls.requests(_number(request, "limit", 50, MOST_REQUESTS))})

    async def settings(_: Request) -> Response:
        return JSONResponse(controls.settings())

    async def logs(request: Request) -> Response:
        source = request.query_params.get("source", "node")
        if source not in ("node", "engine"):
            raise BadRequest("`source` must be node or engine")
        return JSONResponse(await controls.logs(source, _number(request, "lines", 200, MOST_LINES)))

    async def stop(request: Request) -> Response:
        controls.stop((await _members(request)).get("now") is True)
        return JSONResponse({"stopping": True}, 202)

    def of_model(path: str, act: Callable[[str], Awaitable[Answer]], code: int = 200) -> Call:
        async def answer(request: Request) -> Response:
            name = (await _members(request)).get("model")
            if not isinstance(name, str) or not name:
                raise BadRequest("`model` must be the name of a model")
            return JSONResponse(await act(name), code)

        return Call("POST", path, answer, token=True)

    def of_members(path: str, act: Callable[[Members], Awaitable[Answer]], *, terminal: bool = False) -> Call:
        async def answer(request: Request) -> Response:
            return JSONResponse(await act(await _members(request)))

        return Call("POST", path, answer, token=True, terminal=terminal)

    def of_query(path: str, act: Callable[[Mapping[str, str]], Awaitable[Answer]]) -> Call:
        async def answer(request: Request) -> Response:
            return JSONResponse(await act(request.query_params))

        return Call("GET", path, answer, token=True)

    return [
        Call("GET", "/api/status", status),
        Call("GET", "/api/events", watch),
        Call("GET", "/api/openapi.json", openapi),
        Call("GET", "/api/models", list_models),
        Call("GET", "/api/search", search),
        Call("GET", "/api/agents", agents),
        Call("GET", "/api/requests", requests, token=True),
        Call("GET", "/api/settings", settings, token=True),
        Call("GET", "/api/logs", logs, token=True),
        of_model("/api/pull", controls.pull, 202),
        of_model("/api/pull/stop", controls.stop_pull),
        of_model("/api/remove", controls.remove),
        of_model("/api/load", controls.load, 202),
        of_model("/api/unload", controls.unload),
        of_model("/api/plan", controls.plan),
        Call("POST", "/api/stop", stop, token=True),
        *[of_members(path, act) for path, act in mesh_commands(controls.mesh).items()],
        *[of_members(path, act) for path, act in public_commands(controls.public).items()],
        *[of_members(path, act) for path, act in radius_commands(controls.radius).items()],
        *[of_members(path, act, terminal=True) for path, act in spending_commands(controls.spending).items()],
        *[of_query(path, act) for path, act in public_questions(controls.public).items()],
        *[of_query(path, act) for path, act in spending_questions(controls.spending).items()],
        Call("GET", "/metrics", scrape),
        Call("GET", "/health", get_health),
    ]


def control_app(
    *,
    controls: Controls,
    events: Events,
    metrics: Metrics,
    models: Callable[[], Sequence[Served]],
    access: Access,
    site: ASGIApp,
    gateway: ASGIApp,
) -> ASGIApp:
    """The application behind the console port. `site` has the page and its files, `gateway` answers /v1/* for whoever
    has the token."""

    def given(scope: Mapping[str, Any], header: bytes) -> bytes:
        return next((value for name, value in scope["headers"] if name == header), b"")

    def check_token(scope: Mapping[str, Any]) -> None:
        if not hmac.compare_digest(given(scope, TOKEN_HEADER), controls.token.encode()):
            raise Forbidden(
                f"this call needs the {TOKEN_HEADER.decode()} of the node",
                fix="use the console, or the meshnode command of the user who runs the node",
            )

    def route(call: Call) -> Route:
        async def endpoint(request: Request) -> Response:
            if call.token:
                check_token(request.scope)
            if call.terminal:
                controls.spending.check_terminal(given(request.scope, TERMINAL_HEADER.encode()))
            response = await call.answer(request)
            for name, value in ANSWER_HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return Route(call.path, endpoint, methods=[call.method])

    calls = control_calls(controls=controls, events=events, metrics=metrics, models=models)
    own = Starlette(routes=[route(call) for call in calls], exception_handlers=error_handlers())
    paths = {call.path for call in calls}

    async def console(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path.startswith("/v1/"):
            try:
                check_token(scope)
            except Forbidden as error:
                await error_response(error, path, scope["meshnode.request_id"])(scope, receive, send)
                return
            # Whoever has the token may change the default for all requests, so also that of one.
            await gateway({**scope, OF_OWNER: True}, receive, send)
        elif path.startswith("/api/") or path in paths:
            await own(scope, receive, send)
        else:
            await site(scope, receive, send)

    return Door(console, access, cors=False)


async def _members(request: Request) -> Members:
    """The members of the object in the body; nothing at all is an empty one."""
    raw = await read_body(request.receive, None, MAX_CONTROL_BODY_BYTES)  # type: ignore[arg-type]
    return (await parse_object(raw or b"{}")).members


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise BadRequest(f"`{name}` must be a whole number from 1 to {most}")
    return int(text)
