"""Errors of the HTTP API: codes, statuses and exit codes are an interface, and do not change by accident."""

from __future__ import annotations

from meshnode.errors import requests
from tests.errors.families import table_of

CODES = {
    "RequestError": ("request", 400, 1),
    "BadRequest": ("bad-request", 400, 1),
    "Unauthorized": ("unauthorized", 401, 1),
    "Forbidden": ("forbidden", 403, 1),
    "EndpointNotFound": ("endpoint-not-found", 404, 1),
    "MethodNotAllowed": ("method-not-allowed", 405, 1),
    "RequestTimeout": ("request-timeout", 408, 1),
    "BodyTooLarge": ("body-too-large", 413, 1),
    "TooManyRequests": ("too-many-requests", 429, 1),
    "StrangerLimit": ("stranger-limit", 429, 1),
    "OutOfRadius": ("out-of-radius", 403, 8),
    "ModelLoading": ("model-loading", 503, 1),
    "NoModelServed": ("no-model-served", 503, 1),
    "PublicPaused": ("public-paused", 503, 1),
    "NodeStopping": ("node-stopping", 503, 1),
}


def test_codes_statuses_and_exit_codes() -> None:
    assert table_of(requests) == CODES
