"""Errors in the words of whoever asked: the OpenAI, the Anthropic and the Responses form.

Client libraries decide by status and by the `type` and `code` fields whether to retry, so both follow the published
error tables of the two APIs. Nothing else of a dialect is known here: requests and answers pass unchanged.
"""

from __future__ import annotations

import json
import math
from typing import Literal

from meshnode.errors import MeshnodeError

Dialect = Literal["openai", "responses", "anthropic"]

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def dialect_of(path: str) -> Dialect:
    """The dialect that the callers of an endpoint expect."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "responses" if path == "/v1/responses" else "openai"


def error_body(error: MeshnodeError, dialect: Dialect, request_id: str = "") -> dict[str, object]:
    """The JSON value of an error answer. The sentence and its fix are one message: callers show only that."""
    message = f"{error.message}. {error.fix}".removesuffix(". ") if error.fix else error.message
    return foreign_error_body(message, error.http_status, error.code.replace("-", "_"), dialect, request_id)


def foreign_error_body(
    message: str, status: int, code: str, dialect: Dialect, request_id: str = ""
) -> dict[str, object]:
    """As `error_body`, for an error that llama-server reported in its own form."""
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        body: dict[str, object] = {"type": "error", "error": {"type": kind, "message": message}}
        return {**body, "request_id": request_id} if request_id else body
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


def error_headers(error: MeshnodeError) -> dict[str, str]:
    """Headers that belong to the error: Retry-After in whole seconds where waiting helps (RFC 9110, 10.2.3)."""
    if error.retry_after_s is not None:
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    return {"www-authenticate": "Bearer"} if error.http_status == 401 else {}


def error_event(error: MeshnodeError, dialect: Dialect, request_id: str = "") -> bytes:
    """The error as a last server-sent event, for a stream that has already begun with status 200."""
    body = error_body(error, dialect, request_id)
    if dialect == "openai":
        return b"data: " + json.dumps(body).encode() + b"\n\n"
    if dialect == "responses":
        inner = body["error"]
        body = {**inner, "type": "error"} if isinstance(inner, dict) else body
    return b"event: error\ndata: " + json.dumps(body).encode() + b"\n\n"
