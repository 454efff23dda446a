"""From the body of an error answer (the OpenAI dialect) back to the exception that it tells of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from meshnode.errors import (
    BadRequest,
    EngineCrashed,
    Forbidden,
    MeshnodeError,
    ModelLoading,
    TooManyRequests,
    Unauthorized,
)

BY_STATUS: dict[int, type[MeshnodeError]] = {
    401: Unauthorized,
    403: Forbidden,
    429: TooManyRequests,
    503: ModelLoading,
}
"""For codes that are no ours: those of an engine."""
MOST_CHARS = 4000


def refusal_of(status: int, body: bytes, headers: Mapping[str, str]) -> MeshnodeError:
    """The exception for an answer with an error status. Its `retry_after_s` is what the answer says."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    error = refusal_in(value, status)
    after = headers.get("retry-after", "")
    if after.isascii() and after.isdigit() and len(after) < 10:
        error.retry_after_s = float(after)
    return error


def refusal_in(value: object, status: int = 500) -> MeshnodeError:
    """The exception for the value of an error body, or of an error event in a stream."""
    inner = value.get("error") if isinstance(value, dict) else None
    facts: Mapping[str, Any] = inner if isinstance(inner, dict) else {}
    code = str(facts.get("code", ""))[:80].replace("_", "-")
    message = str(facts.get("message", f"status {status}"))[:MOST_CHARS]
    kind = next((kind for kind in _kinds(MeshnodeError) if kind.code == code), None)
    known = kind is not None
    kind = kind or BY_STATUS.get(status, EngineCrashed if status >= 500 else BadRequest)
    error = kind()
    error.detail, error.fix = _parts(message, kind(), known=known)
    error.http_status = status if not known else error.http_status
    if not known and code and not code.isdigit():
        error.code = code
    return error


def _parts(message: str, plain: MeshnodeError, *, known: bool) -> tuple[str, str]:
    """Particulars and fix of a sentence that api/dialects.error_body made of summary, particulars and fix.

    Where the fix begins can only be told by the habit of errors.py: after the last full stop, with a small letter.
    """
    if not known:
        return message, ""
    before, _, last = message.rpartition(". ")
    if plain.fix and message.endswith(f". {plain.fix}"):
        message, fix = message.removesuffix(f". {plain.fix}"), plain.fix
    elif before and last[:1].islower():
        message, fix = before, last
    else:
        fix = ""
    return message.removeprefix(plain.summary).removeprefix(": "), fix


def _kinds(kind: type[MeshnodeError]) -> Iterator[type[MeshnodeError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)
