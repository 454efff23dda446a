"""The two web applications of a node: the model API on :9337 and the control API on :3131.

Both check who is calling before anything else. What a route needs of the node is handed in as callables, so that
this package knows nothing of engines, models or peers.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from meshnode.api.access import Access
from meshnode.api.answer import SSE_HEADERS, CallerLeft
from meshnode.api.body import parse_object
from meshnode.api.dialects import dialect_of, error_body, error_headers
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.events import MAX_WATCHERS, Events
from meshnode.api.inference import Inference
from meshnode.api.mesh_control import MeshControls, mesh_commands
from meshnode.api.metrics import CONTENT_TYPE, Metrics
from meshnode.api.request import read_body
from meshnode.api.served import Served, find_served
from meshnode.errors import (
    BadRequest,
    EndpointNotFound,
    Forbidden,
    MeshnodeError,
    MethodNotAllowed,
    NodeStopping,
    TooManyRequests,
)
from meshnode.telemetry import LOG, new_request_id

ASGIApp = Callable[..., Awaitable[None]]
OPEN_PATHS = frozenset({"/health", "/livez"})
MAX_CONTROL_BODY_BYTES = 64 << 10
CONTROL_TOKEN_HEADER = "x-meshnode-token"
NO_HANDLERS: Mapping[str, ASGIApp] = MappingProxyType({})
CORS_HEADERS = {
    "access-control-allow-methods": "GET, POST, OPTIONS",
    "access-control-allow-headers": "authorization, content-type, x-api-key, anthropic-version, anthropic-beta",
    "access-control-max-age": "600",
}


class Door:
    """Runs an application only for callers that `access` lets in; answers the rest itself.

    `cors` allows pages of trusted origins to read the answers; the control API never does. A POST to one of the paths
    of `direct` goes straight to its handler, as routing and its layers take longer than all else here.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        *,
        cors: bool,
        stopping: Callable[[], bool],
        direct: Mapping[str, ASGIApp] = NO_HANDLERS,
    ) -> None:
        self._app = app
        self._direct = direct
        self._access = access
        self._cors = cors
        self._stopping = stopping

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope["meshnode.request_id"] = request_id = new_request_id()
        open_path = scope["path"] in OPEN_PATHS
        preflight = scope["method"] == "OPTIONS"
        try:
            origin = self._access.check(scope, needs_key=not (open_path or preflight))
            if self._stopping() and not open_path:
                raise NodeStopping(retry_after_s=5)
        except MeshnodeError as error:
            await error_response(error, scope["path"], request_id)(scope, receive, send)
            return
        scope["meshnode.origin"] = origin if self._cors else None
        if preflight and self._cors and origin:
            headers = {**CORS_HEADERS, "access-control-allow-origin": origin, "vary": "origin"}
            await Response(status_code=204, headers=headers)(scope, receive, send)
            return
        app = self._direct.get(scope["path"], self._app) if scope["method"] == "POST" else self._app
        await app(scope, receive, send)


def error_response(error: MeshnodeError, path: str, request_id: str) -> JSONResponse:
    """The error in the dialect of the endpoint; calls of our own have the fix beside the sentence."""
    ours = path.startswith("/api/")
    body = {"error": error.as_dict()} if ours else error_body(error, dialect_of(path), request_id)
    return JSONResponse(body, error.http_status, {**error_headers(error), "x-meshnode-request-id": request_id})


def _handlers() -> Mapping[Any, Any]:
    def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, MeshnodeError)
        return error_response(error, request.scope["path"], request.scope["meshnode.request_id"])

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.scope['path'][:200]}"
        found = MethodNotAllowed(what) if error.status_code == 405 else EndpointNotFound(what)
        return known(request, found)

    def left(_: Request, __: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it

    def unknown(request: Request, error: Exception) -> Response:
        request_id = request.scope["meshnode.request_id"]
        LOG.error("request %s failed", request_id, exc_info=error)
        fault = MeshnodeError("this is a fault of meshnode; its log has the details")
        return error_response(fault, request.scope["path"], request_id)

    return {MeshnodeError: known, HTTPException: http, CallerLeft: left, Exception: unknown}


# --- :9337 ----------------------------------------------------------------------------------------------------


def health(models: Sequence[Served]) -> tuple[int, dict[str, object]]:
    """llama-server's own contract: 200 when at least one model answers, 503 with a reason before."""
    if any(model.ready for model in models):
        return 200, {"status": "ok"}
    failed = [model for model in models if model.state == "failed"]
    message = "Loading model" if len(failed) < len(models) else "No model is being served"
    if failed and len(failed) == len(models):
        message = f"{failed[0].id}: {failed[0].detail}"
    return 503, {"error": {"code": 503, "message": message, "type": "unavailable_error"}}


def api_app(
    *,
    inference: Inference,
    models: Callable[[], Sequence[Served]],
    aliases: Mapping[str, str],
    access: Access,
    owner: str,
    stopping: Callable[[], bool],
) -> ASGIApp:
    """The application behind the API port."""

    async def forward(scope: Any, receive: Any, send: Any) -> None:
        await inference.handle(
            scope, receive, send, request_id=scope["meshnode.request_id"], origin=scope["meshnode.origin"]
        )

    async def post_only(_: Request) -> Response:
        raise HTTPException(405)  # a POST never comes here

    def with_cors(request: Request, response: Response) -> Response:
        origin = request.scope["meshnode.origin"]
        if origin:
            response.headers["access-control-allow-origin"] = origin
            response.headers["vary"] = "origin"
        return response

    async def list_models(request: Request) -> Response:
        entries = [model.as_openai(owner) for model in models()]
        return with_cors(request, JSONResponse({"object": "list", "data": entries}))

    async def one_model(request: Request) -> Response:
        wanted = aliases.get(request.path_params["name"], request.path_params["name"])
        exact = next((model for model in models() if wanted == model.id or wanted in model.names), None)
        model = exact or find_served(wanted, models(), aliases)
        return with_cors(request, JSONResponse(model.as_openai(owner)))

    async def get_health(_: Request) -> Response:
        status, body = health(models())
        return JSONResponse(body, status, {"retry-after": "2"} if status == 503 else None)

    async def livez(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    app = Starlette(
        routes=[
            *[Route(path, post_only) for path in ENDPOINTS],
            Route("/v1/models", list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", one_model, methods=["GET"]),
            Route("/health", get_health, methods=["GET"]),
            Route("/v1/health", get_health, methods=["GET"]),
            Route("/livez", livez, methods=["GET"]),
        ],
        exception_handlers=_handlers(),
    )
    return Door(app, access, cors=True, stopping=stopping, direct=dict.fromkeys(ENDPOINTS, forward))


# --- :3131 ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Controls:
    """What the control API can ask of the node. `token` must accompany every call that changes something."""

    status: Callable[[], dict[str, Any]]
    load: Callable[[str], Awaitable[dict[str, Any]]]
    unload: Callable[[str], Awaitable[dict[str, Any]]]
    plan: Callable[[str], Awaitable[dict[str, Any]]]
    stop: Callable[[bool], None]
    token: str
    mesh: MeshControls


def control_app(
    *,
    controls: Controls,
    events: Events,
    metrics: Metrics,
    models: Callable[[], Sequence[Served]],
    access: Access,
) -> ASGIApp:
    """The application behind the console port."""

    async def command(request: Request) -> dict[str, object]:
        given = request.headers.get(CONTROL_TOKEN_HEADER, "")
        if not hmac.compare_digest(given.encode(), controls.token.encode()):
            raise Forbidden(
                f"this call changes the node and needs its {CONTROL_TOKEN_HEADER}",
                fix="use the meshnode command of the user who runs the node",
            )
        raw = await read_body(request.receive, None, MAX_CONTROL_BODY_BYTES)  # type: ignore[arg-type]
        return (await parse_object(raw or b"{}")).members

    def model_of(members: dict[str, object]) -> str:
        name = members.get("model")
        if not isinstance(name, str) or not name:
            raise BadRequest("`model` must be the name of a model")
        return name

    async def status(_: Request) -> Response:
        return JSONResponse(controls.status())

    async def watch(_: Request) -> Response:
        if events.watchers >= MAX_WATCHERS:
            raise TooManyRequests(f"{MAX_WATCHERS} watchers are connected already", retry_after_s=30)

        async def body() -> Any:
            async with aclosing(events.stream()) as stream:  # type: ignore[type-var]
                async for event in stream:
                    yield event

        return StreamingResponse(body(), headers=SSE_HEADERS)

    async def scrape(_: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    async def get_health(_: Request) -> Response:
        code, body = health(models())
        return JSONResponse(body, code)

    async def load(request: Request) -> Response:
        return JSONResponse(await controls.load(model_of(await command(request))), 202)

    async def unload(request: Request) -> Response:
        return JSONResponse(await controls.unload(model_of(await command(request))))

    async def plan(request: Request) -> Response:
        return JSONResponse(await controls.plan(model_of(await command(request))))

    async def stop(request: Request) -> Response:
        members = await command(request)
        controls.stop(members.get("now") is True)
        return JSONResponse({"stopping": True}, 202)

    def mesh_route(path: str, act: Callable[[Mapping[str, object]], Awaitable[dict[str, Any]]]) -> Route:
        async def endpoint(request: Request) -> Response:
            return JSONResponse(await act(await command(request)))

        return Route(path, endpoint, methods=["POST"])

    async def root(_: Request) -> Response:
        return PlainTextResponse("meshnode: GET /api/status, /api/events, /metrics, /health\n")

    app = Starlette(
        routes=[
            Route("/", root, methods=["GET"]),
            Route("/api/status", status, methods=["GET"]),
            Route("/api/events", watch, methods=["GET"]),
            Route("/api/load", load, methods=["POST"]),
            Route("/api/unload", unload, methods=["POST"]),
            Route("/api/plan", plan, methods=["POST"]),
            Route("/api/stop", stop, methods=["POST"]),
            *[mesh_route(path, act) for path, act in mesh_commands(controls.mesh).items()],
            Route("/metrics", scrape, methods=["GET"]),
            Route("/health", get_health, methods=["GET"]),
        ],
        exception_handlers=_handlers(),
    )
    return Door(app, access, cors=False, stopping=lambda: False)
