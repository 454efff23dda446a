"""Kills a piece of work at every step that reaches the disk, one step further each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from meshnode import durable

STEPS = ("write", "rename", "remove")


class Killed(BaseException):
    """The end of the process."""


class _Countdown:
    """Stands before the steps, and kills before or after the one with the given number."""

    def __init__(self, step: int, *, after: bool) -> None:
        self.step = step
        self.after = after
        self.done = 0

    def __call__(self, real: Callable[..., None], *arguments: Any, **options: Any) -> None:
        self.done += 1
        if self.done == self.step and not self.after:
            raise Killed
        real(*arguments, **options)
        if self.done == self.step:
            raise Killed


@contextmanager
def _killed_at(step: int, *, after: bool) -> Iterator[_Countdown]:
    countdown = _Countdown(step, after=after)
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(durable, name, partial(countdown, getattr(durable, name)))
        yield countdown


def at_every_step(prepare: Callable[[], Any], work: Callable[[Any], object], check: Callable[[Any], object]) -> int:
    """Run `work(prepare())` with a kill before, then after, its first step, its second, and so on to the last.

    `check` then sees what `prepare` made, as a new process would find it. Returns the number of steps.
    """
    for step in range(1, 100):
        for after in (False, True):
            subject = prepare()
            with _killed_at(step, after=after) as countdown:
                try:
                    work(subject)
                except Killed:
                    pass
                else:
                    assert countdown.done == step - 1
                    return step - 1
            check(subject)
    raise AssertionError("the work never ends")
