"""Errors of this machine: codes, statuses and exit codes are an interface, and do not change by accident."""

from __future__ import annotations

from meshnode.errors import state
from tests.errors.families import table_of

CODES = {
    "SettingsError": ("bad-setting", 400, 2),
    "StateError": ("state", 500, 1),
    "HomeNotWritable": ("home-not-writable", 500, 1),
    "CacheNotWritable": ("cache-not-writable", 500, 1),
    "DiskFull": ("disk-full", 507, 1),
    "PortInUse": ("port-in-use", 500, 1),
    "AlreadyRunning": ("already-running", 409, 1),
    "AuditBroken": ("audit-broken", 500, 1),
    "WrongUse": ("wrong-use", 500, 1),
    "NodeNotRunning": ("no-node", 500, 3),
}


def test_codes_statuses_and_exit_codes() -> None:
    assert table_of(state) == CODES


def test_a_wrong_use_is_a_runtime_error_for_programs() -> None:
    assert issubclass(state.WrongUse, RuntimeError)
