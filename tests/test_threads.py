"""Work that nobody waits for at the end: its result, its error, and a caller who has gone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from meshnode.errors import HubUnreachable
from meshnode.threads import aside

pytestmark = pytest.mark.anyio


async def test_the_result_comes_from_a_thread_of_its_own() -> None:
    here = threading.current_thread()
    found = await aside(threading.current_thread, name="look")
    assert found is not here and found.daemon and found.name == "look"
    nothing: Callable[[], int | None] = lambda: None  # noqa: E731
    assert await aside(nothing, name="nothing") is None


async def test_an_error_is_raised_here() -> None:
    def fail() -> None:
        raise HubUnreachable("gone")

    with pytest.raises(HubUnreachable, match="gone"):
        await aside(fail, name="fail")


async def test_who_is_cancelled_waits_no_longer() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        go.wait(10)
        ended.set()

    waiting = asyncio.create_task(aside(hang, name="hang"))
    await asyncio.to_thread(begun.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not ended.is_set()
    go.set()
    assert await asyncio.to_thread(ended.wait, 10)
    await asyncio.sleep(0)  # what it hands back finds nobody, and nobody complains


def test_the_process_ends_while_the_work_hangs() -> None:
    code = """
import asyncio, threading
from meshnode.threads import aside

async def main():
    task = asyncio.create_task(aside(threading.Event().wait, name="for ever"))
    await asyncio.sleep(0)
    task.cancel()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
