"""Errors of models: codes, statuses and exit codes are an interface, and do not change by accident."""

from __future__ import annotations

from meshnode.errors import models
from tests.errors.families import table_of

CODES = {
    "ModelError": ("model", 400, 4),
    "ModelNotFound": ("model-not-found", 404, 4),
    "ModelDoesNotFit": ("model-does-not-fit", 503, 4),
    "ModelFileInvalid": ("model-file-invalid", 400, 4),
    "ModelInUse": ("model-in-use", 409, 4),
}


def test_codes_statuses_and_exit_codes() -> None:
    assert table_of(models) == CODES
