"""Waiting for something that will be true soon: by asking again, with a deadline, never by a fixed pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

Value = TypeVar("Value")

EVERY_S = 0.01


def eventually(check: Callable[[], Value], within_s: float = 20.0) -> Value:
    """The first true value of `check`; fails the test with its last value when `within_s` seconds have passed."""
    deadline = time.monotonic() + within_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"after {within_s} s it is still {value!r}")
        time.sleep(EVERY_S)
