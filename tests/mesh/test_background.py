import asyncio

import pytest

from meshnode.mesh import background
from meshnode.mesh.background import Background, News

pytestmark = pytest.mark.anyio


async def test_tasks_end_together() -> None:
    tasks, ended = Background(), []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    for number in range(3):
        tasks.start(work(number))
    await asyncio.sleep(0)
    await tasks.stop()
    assert sorted(ended) == [0, 1, 2]
    await tasks.ended()
    await tasks.stop()


async def test_what_ends_by_itself_can_be_waited_for() -> None:
    tasks, go = Background(), asyncio.Event()
    done = []

    async def work() -> None:
        await go.wait()
        done.append(True)

    tasks.start(work())
    asyncio.get_running_loop().call_soon(go.set)
    await tasks.ended()
    assert done == [True]


async def test_news_are_told_at_once_and_then_in_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "NEWS_S", 0.05)
    told = []
    news = News(lambda: told.append(asyncio.get_running_loop().time()))
    for _ in range(10):
        news.came()
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.06)
    assert 2 <= len(told) <= 4
    assert all(later - earlier >= 0.045 for earlier, later in zip(told, told[1:], strict=False))


async def test_nothing_is_told_after_the_end() -> None:
    told: list[None] = []
    news = News(lambda: told.append(None))
    news.came()
    news.close()
    news.came()
    await asyncio.sleep(0.02)
    assert told == []
