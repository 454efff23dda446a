"""Error bodies of the gateway become the exceptions that they were made of."""

from __future__ import annotations

import json

import pytest

from meshnode.api.dialects import error_body, error_headers, foreign_error_body
from meshnode.errors import (
    BadRequest,
    EngineCrashed,
    Forbidden,
    LeaseDenied,
    MeshnodeError,
    ModelLoading,
    ModelNotFound,
    TooManyRequests,
    WorkerLost,
    WrongPeer,
)
from meshnode.sdk.refusals import refusal_in, refusal_of

ERRORS = [
    ModelNotFound("'nope' is not served here", fix="did you mean demo?"),
    ModelNotFound(),
    ModelLoading("demo is loading", retry_after_s=2),
    EngineCrashed("it closed the connection"),
    BadRequest("`model` must be a text"),
    BadRequest("the body is not valid JSON: at 3. Really", fix="add a comma"),
    LeaseDenied("no room"),
    WorkerLost("silent"),
    WrongPeer("another"),
    MeshnodeError("this is a fault"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{error.code} {error.detail}")
def test_there_and_back(error: MeshnodeError) -> None:
    body = json.dumps(error_body(error, "openai")).encode()
    found = refusal_of(error.http_status, body, error_headers(error))
    assert type(found) is type(error)
    assert (found.message, found.fix, found.code) == (error.message, error.fix, error.code)
    assert (found.http_status, found.retry_after_s) == (error.http_status, error.retry_after_s)


def test_errors_of_an_engine_keep_their_code() -> None:
    body = foreign_error_body("request (9013 tokens) exceeds 4096", 400, "exceed_context_size_error", "openai")
    found = refusal_of(400, json.dumps(body).encode(), {})
    assert type(found) is BadRequest and found.code == "exceed-context-size-error"
    assert "9013 tokens" in found.message and BadRequest.code == "bad-request"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, BadRequest), (403, Forbidden), (429, TooManyRequests), (500, EngineCrashed)]
)
def test_bodies_that_say_nothing(status: int, kind: type[MeshnodeError]) -> None:
    for body in (b"", b"<html>", b"[1]", b'{"error": "no"}', b'{"error": {"code": 7, "message": [1]}}', b"[" * 9999):
        assert type(refusal_of(status, body, {"retry-after": "soon"})) is kind


def test_an_error_event_without_a_status_is_one_of_the_engine() -> None:
    found = refusal_in({"error": {"message": "out of memory", "type": "server_error", "code": 500}})
    assert type(found) is EngineCrashed and "out of memory" in str(found)
