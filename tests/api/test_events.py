import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from meshnode.api import events as events_module
from meshnode.api.events import Events

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "SETTLE_S", 0.01)
    monkeypatch.setattr(events_module, "REFRESH_S", 0.02)
    monkeypatch.setattr(events_module, "KEEP_ALIVE_S", 0.05)


async def take(stream: AsyncIterator[bytes]) -> tuple[str, Any]:
    async with asyncio.timeout(2):
        lines = (await anext(stream)).decode().splitlines()
    if lines[0].startswith(":"):
        return "comment", None
    return lines[1].removeprefix("event: "), json.loads(lines[2].removeprefix("data: "))


async def test_snapshot_then_only_what_differs_with_changes_that_come_together_in_one() -> None:
    status = {"a": 1, "b": 2, "c": 3}
    events = Events(lambda: dict(status))
    async with aclosing(events.stream()) as stream:
        assert await take(stream) == ("snapshot", {"a": 1, "b": 2, "c": 3})
        for value in range(10):
            status["a"] = value + 10
            events.touch()
        status["b"] = 20
        assert await take(stream) == ("change", {"a": 19, "b": 20})
    assert events.watchers == 0


async def test_drift_without_an_event_is_seen_and_silence_is_filled() -> None:
    status = {"memory": 1}
    events = Events(lambda: dict(status))
    async with aclosing(events.stream()) as stream:
        await take(stream)
        status["memory"] = 2  # nobody touches
        assert await take(stream) == ("change", {"memory": 2})
        assert await take(stream) == ("comment", None)
        events.touch()  # touched, but nothing differs
        assert await take(stream) == ("comment", None)


async def test_every_watcher_sees_every_state_that_lasts() -> None:
    status = {"n": 0}
    events = Events(lambda: dict(status))
    streams = [events.stream() for _ in range(5)]
    assert [await take(stream) for stream in streams] == [("snapshot", {"n": 0})] * 5
    assert events.watchers == 5
    for number in range(1, 4):
        status["n"] = number
        events.touch()
        assert await asyncio.gather(*(take(stream) for stream in streams)) == [("change", {"n": number})] * 5
    for stream in streams:
        await stream.aclose()
    assert events.watchers == 0


async def test_a_status_that_fails_ends_the_stream_and_the_count() -> None:
    def broken() -> dict[str, Any]:
        raise ZeroDivisionError

    events = Events(broken)
    with pytest.raises(ZeroDivisionError):
        await anext(events.stream())
    assert events.watchers == 0
