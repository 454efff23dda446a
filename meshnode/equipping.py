"""What a node needs before it can run a model: the engine, the devices, and how fast they are.

It is found once, when it is first needed: a node that was started for a model builds a missing engine at once, one
that was only opened to look around builds none until somebody asks for a model.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial

from meshnode.config import Places, Settings
from meshnode.engine.installed import Engine, list_devices
from meshnode.engine.provision import ensure, find
from meshnode.errors import MeshnodeError
from meshnode.hardware import Inventory, probe_all
from meshnode.planning import Speeds, measure_speeds
from meshnode.status import devices_sentence, engine_sentence
from meshnode.tasks import TaskBoard
from meshnode.telemetry import LOG, ProblemBoard

TASKS = ("engine", "engine-source", "engine-tools", "benchmark")
"""What is reported under these names belongs to this work."""
Tell = Callable[[str, str], None]
Equipped = Callable[[Engine, Inventory, Speeds], None]


class Equipping:
    """Finds engine, devices and speeds, and hands them to `equipped`, once. All methods run in the event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        places: Places,
        problems: ProblemBoard,
        tasks: TaskBoard,
        tell: Tell,
        cancelled: threading.Event,
        equipped: Equipped,
    ) -> None:
        self._settings = settings
        self._places = places
        self._problems = problems
        self._tasks = tasks
        self._tell = tell
        self._cancelled = cancelled
        self._equipped = equipped
        self._running: asyncio.Task[None] | None = None
        self.engine: Engine | None = None
        self.inventory: Inventory | None = None

    @property
    def begun(self) -> bool:
        """Whether it is found, or being looked for."""
        return self._running is not None

    async def is_built(self) -> bool:
        """Whether the engine is on this disk, so that `equip` takes no minutes. Raises as `provision.find`."""
        if self._settings.engine is not None:
            return True
        return await asyncio.to_thread(find, self._places.cache, backend=self._settings.backend) is not None

    async def equip(self) -> None:
        """Return when the node has all of it; whoever calls meanwhile waits for the same work.

        Raises EngineError and what fetching and building an engine raise; the next call then tries again.
        """
        if self._running is None or (self._running.done() and self.engine is None):
            self._running = asyncio.create_task(self._equip(), name="equip")
        await asyncio.shield(self._running)

    def begin(self) -> None:
        """As `equip`, in the background; a failure becomes a Problem."""
        if not self.begun:
            self._running = asyncio.create_task(self._equip(), name="equip")
            self._running.add_done_callback(_seen)

    async def stop(self) -> None:
        """End what is under way; the thread that builds sees `cancelled`."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _equip(self) -> None:
        try:
            await self._find_all()
        except MeshnodeError as error:
            LOG.error("no engine: %s", error.message)
            self._problems.put("engine-missing", reason=error.message, fix=error.fix or "meshnode engine build")
            raise
        finally:
            for task in TASKS:
                self._tasks.forget(task)  # one that failed does not say so itself
        self._problems.clear("engine-missing")

    async def _find_all(self) -> None:
        settings, cache = self._settings, self._places.cache
        engine = await asyncio.to_thread(
            ensure,
            cache,
            given=settings.engine,
            backend=settings.backend,
            report=self._tasks,
            cancelled=self._cancelled,
        )
        self._note(engine)
        inventory = await asyncio.to_thread(probe_all, partial(list_devices, engine), settings.max_vram)
        for note in inventory.notes:
            self._problems.put("probe-failed", note.probe, probe=note.probe, reason=note.reason)
        self._tell("devices", devices_sentence(inventory))
        speeds = await asyncio.to_thread(measure_speeds, engine, inventory, settings, cache, os.environ, self._tasks)
        self.engine, self.inventory = engine, inventory
        self._equipped(engine, inventory, speeds)

    def _note(self, engine: Engine) -> None:
        self._tell("engine", engine_sentence(engine))
        if engine.losses:
            self._problems.put(
                "engine-foreign", str(engine.server), path=str(engine.server), losses="; ".join(engine.losses)
            )


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # it stands on the board of problems
