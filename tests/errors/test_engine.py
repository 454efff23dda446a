"""Errors of the engine: codes, statuses and exit codes are an interface, and do not change by accident."""

from __future__ import annotations

from meshnode.errors import engine
from tests.errors.families import table_of

CODES = {
    "EngineError": ("engine", 502, 6),
    "SourceUnavailable": ("engine-source", 502, 6),
    "ToolchainMissing": ("toolchain-missing", 502, 6),
    "BuildFailed": ("engine-build", 502, 6),
    "EngineNotBuilt": ("engine-not-built", 502, 6),
    "EngineIncompatible": ("engine-incompatible", 502, 6),
    "EngineCrashed": ("engine-crashed", 502, 6),
    "EngineStartTimeout": ("engine-start-timeout", 503, 6),
}


def test_codes_statuses_and_exit_codes() -> None:
    assert table_of(engine) == CODES
