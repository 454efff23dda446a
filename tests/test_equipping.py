"""What a node needs before it runs models: found once, shared by all who wait, tried again after a failure."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from meshnode.config import Places, Settings, find_places
from meshnode.engine.installed import Engine
from meshnode.equipping import Equipping
from meshnode.errors import MeshnodeError
from meshnode.hardware import Inventory
from meshnode.planning import Speeds
from meshnode.tasks import TaskBoard
from meshnode.telemetry import ProblemBoard, Progress

pytestmark = [pytest.mark.anyio, pytest.mark.engine]


class Stage:
    """An Equipping with all it is given, and what it told and handed on."""

    def __init__(self, folder: Path, settings: Settings = Settings(), cache: Path | None = None) -> None:  # noqa: B008
        self.told: list[str] = []
        self.handed: list[tuple[Engine, Inventory, Speeds]] = []
        self.problems = ProblemBoard()
        self.tasks = TaskBoard()
        self.equipping = Equipping(
            settings=settings,
            places=Places(folder / "home", cache or find_places().cache, folder / "config.toml"),
            problems=self.problems,
            tasks=self.tasks,
            tell=lambda label, _: self.told.append(label),
            cancelled=threading.Event(),
            equipped=lambda *found: self.handed.append(found),
        )


async def test_all_who_wait_get_what_was_found_once(tmp_path: Path, engine_bin: Path) -> None:
    stage = Stage(tmp_path)
    assert not stage.equipping.begun and await stage.equipping.is_built()
    await asyncio.gather(*(stage.equipping.equip() for _ in range(5)))
    await stage.equipping.equip()
    ((engine, inventory, _),) = stage.handed
    assert engine.server.parent == engine_bin and inventory.memory.total_bytes > 0
    assert (stage.equipping.engine, stage.equipping.inventory) == (engine, inventory)
    assert stage.told == ["engine", "devices"] and list(stage.problems) == []


async def test_one_who_waits_no_longer_stops_nothing(tmp_path: Path, engine_bin: Path) -> None:
    stage = Stage(tmp_path)
    impatient = asyncio.create_task(stage.equipping.equip())
    await asyncio.sleep(0)
    impatient.cancel()
    await stage.equipping.equip()
    assert len(stage.handed) == 1


async def test_an_engine_that_is_not_built_is_known_not_to_be(tmp_path: Path) -> None:
    assert not await Stage(tmp_path, cache=tmp_path / "empty").equipping.is_built()


async def test_a_failure_is_a_problem_until_the_next_try_succeeds(tmp_path: Path, engine_bin: Path) -> None:
    binary = tmp_path / "llama-server"
    stage = Stage(tmp_path, Settings(engine=binary))
    assert await stage.equipping.is_built(), "one that was named is never built"
    stage.tasks(Progress("engine", "compiling", 3, 200))
    with pytest.raises(MeshnodeError):
        await stage.equipping.equip()
    assert stage.tasks.facts() == [], "what failed is under way no more"
    (problem,) = stage.problems
    assert problem.kind.code == "engine-missing" and "{" not in str(problem.as_dict()["text"])
    binary.symlink_to(engine_bin / "llama-server")
    await stage.equipping.equip()
    assert [each.kind.code for each in stage.problems if each.kind.code == "engine-missing"] == []
    assert len(stage.handed) == 1


async def test_in_the_background_a_failure_raises_nowhere(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Settings(engine=tmp_path / "nothing"))
    stage.equipping.begin()
    stage.equipping.begin()
    async with asyncio.timeout(10):
        while not list(stage.problems):
            await asyncio.sleep(0.01)
    await stage.equipping.stop()
    assert stage.handed == []
