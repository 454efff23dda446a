import asyncio
import time
from collections.abc import Hashable
from time import monotonic

import pytest

from meshnode.mesh.timers import HUSKS, LagMeter, Timers

pytestmark = pytest.mark.anyio


class Fired:
    """Timers that note what fires, and when."""

    def __init__(self) -> None:
        self.keys: list[Hashable] = []
        self.some = asyncio.Event()
        self.timers = Timers(self.fire)

    def fire(self, key: Hashable) -> None:
        self.keys.append(key)
        self.some.set()

    async def wait_for(self, count: int) -> list[Hashable]:
        async with asyncio.timeout(2):
            while len(self.keys) < count:
                self.some.clear()
                await self.some.wait()
        return self.keys


async def test_timers_fire_in_the_order_of_their_times() -> None:
    fired = Fired()
    now = monotonic()
    for key, after_s in [("c", 0.03), ("a", 0.01), ("b", 0.02), ("past", -5.0)]:
        fired.timers.set(key, now + after_s)
    assert await fired.wait_for(4) == ["past", "a", "b", "c"]
    assert monotonic() - now >= 0.03
    assert len(fired.timers) == 0


async def test_a_timer_is_moved_and_cancelled() -> None:
    fired = Fired()
    now = monotonic()
    fired.timers.set("a", now + 0.01)
    fired.timers.set("b", now + 0.01)
    fired.timers.set("a", now + 0.03)
    fired.timers.cancel("b")
    fired.timers.cancel("unknown")
    fired.timers.set("c", now + 0.02)
    assert await fired.wait_for(2) == ["c", "a"]


async def test_a_timer_may_set_the_next_one() -> None:
    fired = Fired()
    left = 5

    def again(key: Hashable) -> None:
        nonlocal left
        fired.fire(key)
        left -= 1
        if left:
            timers.set(key, monotonic())

    timers = Timers(again)
    timers.set("a", 0.0)
    assert await fired.wait_for(5) == ["a"] * 5


async def test_timers_that_are_moved_for_ever_stay_small() -> None:
    fired = Fired()
    for count in range(20_000):
        fired.timers.set(count % 3, monotonic() + 100)
    assert len(fired.timers._heap) <= HUSKS + 10
    fired.timers.close()
    assert len(fired.timers) == 0


async def test_a_loop_that_is_held_up_is_noticed() -> None:
    lags: list[float] = []
    seen = asyncio.Event()
    meter = LagMeter(lambda lag_s: (lags.append(lag_s), seen.set()), tick_s=0.01, least_s=0.05)  # type: ignore[func-returns-value]
    await asyncio.sleep(0.02)
    assert lags == []
    time.sleep(0.1)
    await asyncio.wait_for(seen.wait(), 1)
    meter.close()
    assert 0.05 < lags[0] < 1
