import json

import pytest

from meshnode.api.dialects import dialect_of, error_body, error_event, error_headers, foreign_error_body
from meshnode.errors import (
    BadRequest,
    BodyTooLarge,
    EngineCrashed,
    Forbidden,
    MeshnodeError,
    MethodNotAllowed,
    ModelLoading,
    ModelNotFound,
    TooManyRequests,
    Unauthorized,
)


def test_the_path_tells_the_dialect() -> None:
    for path, dialect in (
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/responses", "responses"),
        ("/v1/chat/completions", "openai"),
        ("/anything", "openai"),
    ):
        assert dialect_of(path) == dialect


@pytest.mark.parametrize(
    ("error", "openai", "anthropic"),
    [
        (BadRequest(), "invalid_request_error", "invalid_request_error"),
        (Unauthorized(), "authentication_error", "authentication_error"),
        (Forbidden(), "permission_error", "permission_error"),
        (ModelNotFound(), "invalid_request_error", "not_found_error"),
        (MethodNotAllowed(), "invalid_request_error", "invalid_request_error"),
        (BodyTooLarge(), "invalid_request_error", "request_too_large"),
        (TooManyRequests(), "rate_limit_error", "rate_limit_error"),
        (ModelLoading(), "unavailable_error", "overloaded_error"),
        (EngineCrashed(), "server_error", "api_error"),
        (MeshnodeError(), "server_error", "api_error"),
    ],
)
def test_the_published_error_tables(error: MeshnodeError, openai: str, anthropic: str) -> None:
    body = error_body(error, "openai", "req_1")
    assert body["error"]["type"] == openai  # type: ignore[index]
    assert set(body["error"]) == {"message", "type", "code", "param"}  # type: ignore[call-overload]
    body = error_body(error, "anthropic", "req_1")
    assert (body["type"], body["request_id"], body["error"]["type"]) == ("error", "req_1", anthropic)  # type: ignore[index]


def test_the_code_and_the_sentence() -> None:
    body = error_body(ModelNotFound("'x'", fix="did you mean y?"), "openai")
    assert body == {
        "error": {
            "message": "No such model: 'x'. did you mean y?",
            "type": "invalid_request_error",
            "code": "model_not_found",
            "param": None,
        }
    }
    assert error_body(BadRequest("x"), "anthropic") == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "The request is not valid: x"},
    }
    assert foreign_error_body("x", 501, "c", "openai")["error"]["type"] == "server_error"  # type: ignore[index]


def test_waiting_is_given_in_whole_seconds_and_never_as_zero() -> None:
    assert error_headers(ModelLoading(retry_after_s=0.1)) == {"retry-after": "1"}
    assert error_headers(ModelLoading(retry_after_s=2.1)) == {"retry-after": "3"}
    assert error_headers(ModelLoading()) == {}
    assert error_headers(Unauthorized()) == {"www-authenticate": "Bearer"}


def test_events_are_whole_and_in_the_form_of_each_stream() -> None:
    event = error_event(EngineCrashed("gone\n\nx"), "openai", "r")
    assert (event.startswith(b"data: "), event.count(b"\n\n"), event.endswith(b"\n\n")) == (True, 1, True)
    assert json.loads(event[6:])["error"]["code"] == "engine_crashed"
    event = error_event(EngineCrashed("gone"), "anthropic", "r")
    assert event.startswith(b"event: error\ndata: ")
    assert json.loads(event[19:])["error"]["type"] == "api_error"
    # https://platform.openai.com/docs/api-reference/responses-streaming/error
    event = error_event(EngineCrashed("gone"), "responses", "r")
    assert event.startswith(b"event: error\ndata: ")
    value = json.loads(event[19:])
    assert (value["type"], value["code"], value["param"]) == ("error", "engine_crashed", None)
    assert value["message"].startswith("The engine stopped unexpectedly: gone")
