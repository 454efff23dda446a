"""The door that every caller comes through, and the application behind it that answers for models.

The door checks who is calling before anything else; the port for models and that of the console (control.py) have one
each. What a route needs of the node is handed in as callables, so that this package knows nothing of engines, models
or peers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meshnode.api.access import Access, cors_headers
from meshnode.api.answer import CallerLeft
from meshnode.api.dialects import dialect_of, error_body, error_headers
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.inference import Inference
from meshnode.api.served import Served, find_served
from meshnode.errors import EndpointNotFound, MeshnodeError, MethodNotAllowed, NodeStopping
from meshnode.telemetry import LOG, new_request_id

ASGIApp = Callable[..., Awaitable[None]]
OPEN_PATHS = frozenset({"/health", "/livez"})
PREFLIGHT_HEADERS = {
    "access-control-allow-methods": "GET, POST, OPTIONS",
    # What a key travels in must be named; the star stands for all else that client libraries add.
    "access-control-allow-headers": "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, *",
    "access-control-max-age": "600",
}


class Door:
    """Runs an application only for callers that `access` lets in; answers the rest itself.

    `cors` allows pages of trusted origins to read the answers; the port of the console never does. What is let in
    carries `meshnode.request_id` and `meshnode.origin` in its scope.
    """

    def __init__(self, app: ASGIApp, access: Access, *, cors: bool) -> None:
        self._app = app
        self._access = access
        self._cors = cors

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope["meshnode.request_id"] = request_id = new_request_id()
        scope["meshnode.origin"] = None
        preflight = scope["method"] == "OPTIONS"
        try:
            origin = self._access.check(scope, needs_key=not (preflight or scope["path"] in OPEN_PATHS))
        except MeshnodeError as error:
            await error_response(error, scope["path"], request_id)(scope, receive, send)
            return
        if self._cors:
            scope["meshnode.origin"] = origin
        if preflight and self._cors and origin:
            headers = {**PREFLIGHT_HEADERS, **cors_headers(origin)}
            await Response(status_code=204, headers=headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def error_response(error: MeshnodeError, path: str, request_id: str, origin: str | None = None) -> JSONResponse:
    """The error in the dialect of the endpoint; calls of our own have the fix beside the sentence. `origin` is that of
    a page that may read it."""
    ours = path.startswith("/api/")
    body = {"error": error.as_dict()} if ours else error_body(error, dialect_of(path), request_id)
    headers = {**error_headers(error), **cors_headers(origin), "x-meshnode-request-id": request_id}
    return JSONResponse(body, error.http_status, headers)


def error_handlers() -> Mapping[Any, Any]:
    """What an application answers when a route raises: a MeshnodeError as it is, a fault without its particulars."""

    def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, MeshnodeError)
        scope = request.scope
        return error_response(error, scope["path"], scope["meshnode.request_id"], scope["meshnode.origin"])

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.scope['path'][:200]}"
        if error.status_code == 405:
            return known(request, MethodNotAllowed(what))
        ours = request.scope["path"].startswith("/api/")
        return known(request, EndpointNotFound(what, fix="GET /api/openapi.json lists the calls" if ours else ""))

    def left(_: Request, __: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it

    def unknown(request: Request, error: Exception) -> Response:
        LOG.error("request %s failed", request.scope["meshnode.request_id"], exc_info=error)
        return known(request, MeshnodeError("this is a fault of meshnode; its log has the details"))

    return {MeshnodeError: known, HTTPException: http, CallerLeft: left, Exception: unknown}


def health(models: Sequence[Served]) -> tuple[int, dict[str, object]]:
    """llama-server's own contract: 200 when at least one model answers, 503 with a reason before."""
    if any(model.ready for model in models):
        return 200, {"status": "ok"}
    failed = [model for model in models if model.state == "failed"]
    message = "Loading model" if len(failed) < len(models) else "No model is being served"
    if failed and len(failed) == len(models):
        message = f"{failed[0].id}: {failed[0].detail}"
    return 503, {"error": {"code": 503, "message": message, "type": "unavailable_error"}}


def gateway_app(
    *,
    inference: Inference,
    models: Callable[[], Sequence[Served]],
    aliases: Mapping[str, str],
    owner: str,
    stopping: Callable[[], bool],
) -> ASGIApp:
    """What answers for models, for whoever was let in by a Door: /v1/*, /health and /livez."""

    def with_cors(request: Request, response: Response) -> Response:
        response.headers.update(cors_headers(request.scope["meshnode.origin"]))
        return response

    async def post_only(_: Request) -> Response:
        raise HTTPException(405)  # a POST never comes here

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
        exception_handlers=error_handlers(),
    )

    async def gateway(scope: Any, receive: Any, send: Any) -> None:
        path, request_id, origin = scope["path"], scope["meshnode.request_id"], scope["meshnode.origin"]
        if stopping() and path not in OPEN_PATHS:
            await error_response(NodeStopping(retry_after_s=5), path, request_id, origin)(scope, receive, send)
        elif scope["method"] == "POST" and path in ENDPOINTS:
            # Not through the router: it and its layers take longer than all else that is done here.
            await inference.handle(scope, receive, send, request_id=request_id, origin=origin)
        else:
            await app(scope, receive, send)

    return gateway


def api_app(gateway: ASGIApp, access: Access) -> ASGIApp:
    """The application behind the API port."""
    return Door(gateway, access, cors=True)
