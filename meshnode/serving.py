"""From a name to a model that answers: resolve, fetch, plan, start; and the view of all that.

This is the part of the node that connects models, hardware, placement and engine. One model is brought up at a
time, so that each plan sees the memory that the ones before it left.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from meshnode.api.gate import Gates
from meshnode.api.served import Served, ServedState
from meshnode.config import Places, Settings
from meshnode.core.placement import Budget, Refusal, SoloPlan, plan_solo
from meshnode.core.split import SplitPlan
from meshnode.drafting import Drafting, DraftingNotes, Learner, choose_drafting, plan_with
from meshnode.engine.commands import SplitOptions
from meshnode.engine.installed import Engine
from meshnode.engine.server import LlamaServer, ServerParts, ServerSnapshot
from meshnode.errors import EngineError, MeshnodeError, ModelDoesNotFit, ModelInUse, ModelNotFound
from meshnode.fitting import SMALLER, Fitting, Looked, Splits
from meshnode.hardware import Inventory
from meshnode.launching import options_of
from meshnode.models.cache import LocalModel
from meshnode.models.digest import DigestStopped, content_sha256
from meshnode.models.names import ModelRef
from meshnode.models.shapes import shape_of
from meshnode.models.store import ModelStore
from meshnode.planning import (
    Speeds,
    budget_of,
    describe_plan,
    mode_of,
    predict,
    threads_of,
    usable_accelerators,
    wishes_of,
)
from meshnode.telemetry import LOG, ProblemBoard, Report
from meshnode.units import Hosted, Unit, bytes_by_device, entry_of, names_of, served_of

Tell = Callable[[str, str], None]
"""Hands a labelled sentence ("model", "demo fits here ...") to whoever looks on."""
Launch = Callable[[SoloPlan | SplitPlan, SplitOptions | None], Awaitable[LlamaServer]]
"""Starts an engine for a plan, and returns when it answers."""
Learn = Callable[[LocalModel, Callable[[], bool]], Awaitable[str]]
"""The hash of a model on this disk, in hex digits; the second argument says when to stop."""
Host = Callable[[Unit, Launch, Callable[[ServedState, str], None], ModelDoesNotFit], Hosted]
"""Hosts a model over several machines: the model, what starts engines, what is told of its state, and why this machine
alone does not."""

LEARN_EVERY_S = 60.0
STOP_GRACE_S = 5.0


async def no_engine() -> None:
    """For a node that nobody equips. Raises EngineError."""
    raise EngineError("the engine of this node is not ready yet", fix="try again in a moment")


class Serving:
    """The models that this node serves or tries to. All methods run in the event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        places: Places,
        problems: ProblemBoard,
        gates: Gates,
        report: Report,
        tell: Tell,
        changed: Callable[[], None],
        equipped: Callable[[], Awaitable[None]] = no_engine,
        task_ended: Callable[[str], None] = lambda task: None,
    ) -> None:
        """`equipped` returns when `equip` has been called, or raises why it will not be; `task_ended` is told of a task
        that reports no more, however it ended."""
        self._settings = settings
        self._places = places
        self._problems = problems
        self._equipped = equipped
        self._task_ended = task_ended
        self._gates = gates
        self._report = report
        self._tell = tell
        self._changed = changed
        self._notes = DraftingNotes(places.cache / "drafting.json")
        self._units: dict[str, Unit] = {}
        self._leaving: dict[str, Unit] = {}
        self._turn = asyncio.Lock()
        self._waits = asyncio.Event()
        self._store: ModelStore | None = None
        self._engine: Engine | None = None
        self._inventory: Inventory | None = None
        self._speeds: Speeds = {}
        self._host: Host | None = None
        self._learn: Learn | None = None
        self._fitting = Fitting(settings, self._budget)
        self.node = ""
        """The id of this node in hex digits, once it is known."""

    # --- what the node hands in once it is there -----------------------------------------------------------

    def equip(self, engine: Engine, inventory: Inventory, speeds: Speeds) -> None:
        """The engine, the devices to plan with, and how fast they are."""
        self._engine, self._inventory, self._speeds = engine, inventory, speeds
        self._fitting.equip(inventory, speeds)

    def split_with(self, host: Host, learn: Learn, splits: Splits) -> None:
        """What hosts a model that does not fit here alone, learns the hash of one for others, and plans a split."""
        self._host, self._learn = host, learn
        self._fitting.split_with(splits)

    # --- commands -------------------------------------------------------------------------------------------

    async def resolve(self, text: str) -> ModelRef:
        """What a person's text means. Raises ModelNotFound with the nearest names."""
        if self._store is None:
            self._store = await asyncio.to_thread(ModelStore.from_environment)
        return await asyncio.to_thread(self._store.resolve, text)

    async def add(self, text: str) -> Unit:
        """Take a model on; it is brought up by `bring_up`. Raises ModelInUse for one that is served."""
        ref = await self.resolve(text)
        if ref.short_name in self._leaving:
            raise ModelInUse(
                f"{ref.short_name} is still being unloaded", fix="try again when its last answer has ended"
            )
        known = self._units.get(ref.short_name)
        if known is not None and known.state != "failed":
            raise ModelInUse(f"{known.id} is {known.state} here", fix="meshnode ps shows what is served")
        if known is not None:
            await self._discard(known)
        unit = self._units[ref.short_name] = Unit(ref.short_name, ref, text, time.time())
        self._changed()
        return unit

    async def bring_up(self, unit: Unit) -> None:
        """Fetch, plan and start a model. On failure the unit keeps the reason, a Problem is shown, and it is raised."""
        try:
            started = time.monotonic()
            if self._engine is None:
                self._set(unit, "loading", "waiting for the engine")
                await self._equipped()
            async with self._turn:
                await self._prepare(unit)
                refusal = await self._start_alone(unit)
            if refusal is not None:
                # Outside of the turn: other models need not wait for machines to come.
                await self._start_hosted(unit, refusal)
            self._problems.clear("model-load-failed", unit.id)
            self._tell("ready", f"{unit.id} after {time.monotonic() - started:.1f} s")
        except MeshnodeError as error:
            if isinstance(error, ModelDoesNotFit) and self._store is not None:
                error.fix = await self._fitting.fix_of(self._store, unit) or error.fix
            unit.error = error
            self._set(unit, "failed", error.message)
            self._problems.put("model-load-failed", unit.id, model=unit.id, reason=error.message, fix=error.fix)
            raise
        except Exception as error:
            LOG.exception("bringing up %s failed", unit.id)
            self._set(unit, "failed", f"a fault of meshnode ({type(error).__name__}); see meshnode logs")
            raise

    def _one_waits(self, waiting: asyncio.Task[None]) -> None:
        if not waiting.cancelled():
            self._waits.set()

    async def waiting(self) -> None:
        """Return when a model waits for other machines to come."""
        await self._waits.wait()

    async def load(self, text: str, *, reason: str = "") -> dict[str, Any]:
        """Take a model on and bring it up in the background. `reason` says why, where no person asked for it."""
        unit = await self.add(text)
        unit.reason = reason

        async def run() -> None:
            try:
                await self.bring_up(unit)
            except MeshnodeError as error:
                LOG.warning("loading %s failed: %s", unit.id, error.message)

        unit.task = asyncio.create_task(run(), name=f"load {unit.id}")
        return {"model": unit.id, "state": unit.state}

    async def unload(self, text: str) -> dict[str, Any]:
        """Let running answers end, then stop the engine of a model. Raises ModelNotFound."""
        unit = self._units.get(text) or next((unit for unit in self._units.values() if text in names_of(unit)), None)
        if unit is None:
            try:
                unit = self._units.get((await self.resolve(text)).short_name)
            except ModelNotFound:
                unit = None
        if unit is None:
            raise ModelNotFound(f"{text!r} is not served here", fix="meshnode ps shows what is served")
        self._leaving[unit.id] = self._units.pop(unit.id)
        self._changed()
        try:
            await self._drain(unit)
        finally:
            await self._discard(unit)
        return {"model": unit.id, "state": "unloaded"}

    async def _drain(self, unit: Unit) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.drain_timeout
        while self._gates.snapshot(unit.id).busy and loop.time() < end:
            await asyncio.sleep(0.05)

    async def _discard(self, unit: Unit, grace_s: float = STOP_GRACE_S) -> None:
        unit.cancelled.set()
        if unit.task is not None and not unit.task.done():
            unit.task.cancel()
            await asyncio.wait({unit.task})
        if unit.hashing is not None:
            await asyncio.wait({unit.hashing})
        await self._end_learning(unit, last=grace_s > 0)
        if unit.hosting is not None:
            await unit.hosting.stop(grace_s)
        elif unit.server is not None:
            await unit.server.stop(grace_s)
        self._problems.clear("model-load-failed", unit.id)
        self._gates.forget(unit.id)
        for place in (self._units, self._leaving):
            if place.get(unit.id) is unit:
                del place[unit.id]
        self._changed()

    def hold(self) -> None:
        """The links to other machines are about to end: what runs over them is not put together again."""
        for unit in (*self._units.values(), *self._leaving.values()):
            if unit.hosting is not None:
                unit.hosting.hold()

    async def stop(self, *, now: bool = False) -> None:
        """Stop every engine, side by side: politely, or with `now` by force."""
        units = [*self._units.values(), *self._leaving.values()]
        grace_s = 0.0 if now else STOP_GRACE_S
        await asyncio.gather(*(self._discard(unit, grace_s) for unit in units), return_exceptions=True)

    # --- bringing up ----------------------------------------------------------------------------------------

    async def _prepare(self, unit: Unit) -> None:
        store = self._store
        assert store is not None
        # What the mesh asked for is the very model that others serve.
        if not unit.reason and (chosen := await self._fitting.choose(store, unit)):
            self._tell("model", f"{unit.id}  {chosen}")
        unit.local = await asyncio.to_thread(store.find, unit.ref)
        if unit.local is None or unit.local.incomplete:
            self._set(unit, "loading", "downloading")
            pull = partial(store.pull, unit.ref, self._report, unit.cancelled.is_set)
            try:
                unit.local = await asyncio.to_thread(pull)
            finally:
                self._task_ended("download")
        unit.header = await asyncio.to_thread(store.read, unit.local)
        unit.hashing = asyncio.create_task(self._hash(unit, unit.local), name=f"hash {unit.id}")
        unit.shape = shape_of(unit.header)
        unit.mode = mode_of(unit.header)

    async def _hash(self, unit: Unit, local: LocalModel) -> None:
        """Learn which weights these are. Until then no other node counts as a replica of this one."""
        notes = self._places.cache / "hashes.json"
        try:
            if self._learn is not None:
                if local.sha256:
                    # Known already: a replica counts from now on, while its file is read for those who lack it.
                    unit.content_hash = local.sha256
                    self._changed()
                unit.content_hash = await self._learn(local, unit.cancelled.is_set)
            else:
                unit.content_hash = local.sha256 or await asyncio.to_thread(
                    content_sha256, local.path, notes, unit.cancelled.is_set
                )
        except (OSError, MeshnodeError, DigestStopped) as reason:
            LOG.warning("the weights of %s have no hash: %s", unit.id, type(reason).__name__)
        self._changed()

    async def _start_alone(self, unit: Unit) -> ModelDoesNotFit | None:
        """Serve a model on this machine; else why not, where others may help. Raises ModelDoesNotFit where none can."""
        shape = unit.shape
        assert shape is not None
        may_split = self._host is not None and unit.mode == "chat"
        if self._settings.split and may_split:
            return ModelDoesNotFit("a split was asked for")
        drafting = await self._drafting_of(unit)
        try:
            plan, drafting = plan_with(drafting, partial(self._plan, unit))
        except ModelDoesNotFit as refusal:
            if may_split:
                return refusal
            raise
        self._tell("model", describe_plan(unit.id, shape, plan, predict(shape, plan, self._speeds)))
        self._set(unit, "loading", "loading into memory")
        await self._launch(unit, plan, None, drafting)
        self._set(unit, "ready", "")
        return None

    async def _start_hosted(self, unit: Unit, refusal: ModelDoesNotFit) -> None:
        """Serve a model with the help of other machines. Raises `refusal` where there are none."""
        assert self._host is not None

        async def launch(plan: SoloPlan | SplitPlan, split: SplitOptions | None) -> LlamaServer:
            drafting = await self._drafting_of(unit, plan) if isinstance(plan, SplitPlan) else Drafting()
            if not self._fits_beside(unit, plan, drafting):
                drafting = Drafting(key=drafting.key, reason="the draft model does not fit beside it")
            return await self._launch(unit, plan, split, drafting)

        unit.hosting = self._host(unit, launch, partial(self._set, unit), refusal)
        waiting = asyncio.create_task(unit.hosting.waiting())
        waiting.add_done_callback(self._one_waits)
        try:
            await unit.hosting.start()
        finally:
            waiting.cancel()

    def _fits_beside(self, unit: Unit, plan: SoloPlan | SplitPlan, drafting: Drafting) -> bool:
        """Whether this machine holds the draft model beside what a plan puts there."""
        if drafting.shape is None or drafting.asked:
            return True
        left = self._budget(unit).less(bytes_by_device(plan))
        return all(size <= left.room_bytes(device) for device, size in drafting.taken(plan).items())

    async def _launch(
        self, unit: Unit, plan: SoloPlan | SplitPlan, split: SplitOptions | None, drafting: Drafting
    ) -> LlamaServer:
        assert unit.local is not None and unit.shape is not None and self._inventory is not None
        unit.plan, unit.draft, unit.draft_bytes = plan, drafting.name, drafting.taken(plan)
        if isinstance(plan, SplitPlan):
            unit.predicted = plan.predicted_tokens_per_s
        else:
            unit.predicted = predict(unit.shape, plan, self._speeds)
        options = options_of(unit, plan, split, drafting, threads=threads_of(self._inventory, self._settings))
        unit.server = LlamaServer(options, self._parts(unit, unit.local))
        await unit.server.start()
        unit.learner = Learner(self._notes, drafting)
        unit.learning = asyncio.create_task(self._learn_from(unit), name=f"learn {unit.id}")
        return unit.server

    def taken(self, without: Unit | None = None) -> dict[str, int]:
        """What the models of this node, but for one, were planned to take, in bytes by device (HOST: main memory)."""
        taken: dict[str, int] = {}
        for unit in self._units.values():
            if unit is not without and unit.plan and unit.state != "failed":
                for device, size in unit.taken().items():
                    taken[device] = taken.get(device, 0) + size
        return taken

    def _budget(self, unit: Unit | None) -> Budget:
        """What this machine has left for a model, beside what others of this node take."""
        assert self._inventory is not None
        return budget_of(self._inventory, self._settings).less(self.taken(unit))

    def _plan(self, unit: Unit, taken: Mapping[str, int]) -> SoloPlan:
        """The plan for this machine alone, with so many bytes taken of its devices. Raises ModelDoesNotFit."""
        assert unit.shape is not None and unit.local is not None
        found = plan_solo(
            unit.shape,
            self._budget(unit).less(taken),
            wishes_of(self._settings),
            extra_host_bytes=_size(unit.local.mmproj),
        )
        if isinstance(found, Refusal):
            raise ModelDoesNotFit(
                found.reason + (" beside what is served already" if self.taken(unit) else ""),
                fix=SMALLER,
            )
        return found

    async def _drafting_of(self, unit: Unit, plan: SplitPlan | None = None) -> Drafting:
        """How the model guesses ahead: on this machine alone, or with what a pass of this split costs."""
        assert self._store is not None and self._inventory is not None
        legs_s = sum(stage.delay_s for stage in plan.stages) + plan.stages[-1].delay_s if plan else 0.0
        compute_s = sum(stage.compute_s for stage in (*plan.stages, *plan.local_devices)) if plan else None
        return await choose_drafting(
            self._settings,
            self._store,
            unit,
            self._speeds,
            notes=self._notes,
            report=self._report,
            delay_s=legs_s,
            token_s=compute_s,
            devices=[device.id for device in usable_accelerators(self._inventory, self._settings)],
        )

    async def _end_learning(self, unit: Unit, *, last: bool) -> None:
        learner, learning, unit.learner, unit.learning = unit.learner, unit.learning, None, None
        if learning is not None:
            learning.cancel()
            await asyncio.wait({learning})
        if last and learner is not None and unit.server is not None and unit.state == "ready":
            await learner.look(unit.server)

    async def _learn_from(self, unit: Unit) -> None:
        """Keep what the engine's guesses were worth, for its next start."""
        learner = unit.learner
        while learner is not None and unit.learner is learner:
            await asyncio.sleep(LEARN_EVERY_S)
            if unit.server is not None and unit.state == "ready":
                await learner.look(unit.server)

    def _parts(self, unit: Unit, local: LocalModel) -> ServerParts:
        assert self._engine is not None
        safe = "".join(letter if letter.isalnum() else "-" for letter in unit.id)[:40]
        return ServerParts(
            binary=self._engine.server,
            run_dir=self._places.home / "run" / f"{safe[:12]}-{zlib.crc32(unit.id.encode()):08x}",
            environ=os.environ,
            problems=self._problems,
            log_file=self._places.logs / f"engine-{safe}.log",
            model_bytes=local.total_bytes,
            on_change=partial(self._engine_changed, unit),
        )

    def _engine_changed(self, unit: Unit, snapshot: ServerSnapshot) -> None:
        if unit.hosting is not None:
            # What follows is decided there; the engine does not start again by itself.
            if snapshot.state == "failed":
                unit.hosting.engine_ended(snapshot.detail)
            self._changed()
            return
        words: dict[str, ServedState] = {"ready": "ready", "restarting": "restarting", "failed": "failed"}
        if snapshot.state in words and unit.state != "loading":
            self._set(unit, words[snapshot.state], snapshot.detail)
        else:
            self._changed()

    def _set(self, unit: Unit, state: ServedState, detail: str) -> None:
        if state != unit.state:
            unit.since = time.time()
        unit.state, unit.detail = state, detail
        self._changed()

    # --- for splits -----------------------------------------------------------------------------------------

    def is_quiet(self, unit: Unit) -> bool:
        """Whether nobody has an answer from this model under way, or waits for one."""
        queue = self._gates.snapshot(unit.id)
        return not queue.busy and not queue.waiting

    def reads(self, path: Path) -> bool:
        """Whether an engine of this node has the file open."""
        return any(unit.local is not None and path in unit.local.parts for unit in self._units.values())

    async def look_at(self, text: str) -> Looked:
        """A model that may not be here. Raises ModelNotFound, EngineError before `equip`, and what fetching a header
        raises.
        """
        if self._inventory is None:
            raise EngineError("the engine of this node is not ready yet", fix="try again in a moment")
        ref = await self.resolve(text)
        assert self._store is not None
        return await self._fitting.look_at(self._store, ref, self._units.get(ref.short_name))

    async def fix_for(self, looked: Looked) -> str:
        """What to do for a model that does not fit."""
        return await self._fitting.fix_for(looked, self._units.get(looked.name)) or SMALLER

    async def adopt(self, text: str) -> Unit | None:
        """Make a model that this node took on by itself one that a person asked for; None for any other."""
        unit = self._units.get((await self.resolve(text)).short_name)
        if unit is None or not unit.reason:
            return None
        unit.reason = ""
        self._changed()
        return unit

    def find(self, name: str) -> Unit | None:
        """The model of this node with this name."""
        return self._units.get(name)

    def split_of(self, name: str) -> SplitPlan | None:
        """The split in force for a model."""
        unit = self._units.get(name)
        return unit.plan if unit is not None and isinstance(unit.plan, SplitPlan) else None

    # --- views ----------------------------------------------------------------------------------------------

    def room(self) -> Budget | None:
        """The memory that is left for one more model; None before `equip`."""
        return self._budget(None) if self._inventory is not None else None

    @property
    def speeds(self) -> Speeds:
        """How fast the devices of this machine are; empty before `equip`."""
        return self._speeds

    def units(self) -> list[Unit]:
        """The models of this node."""
        return list(self._units.values())

    def served(self) -> list[Served]:
        """What the gateway needs to know, fresh."""
        return [served_of(unit, node=self.node) for unit in self._units.values()]

    def entries(self) -> list[dict[str, Any]]:
        """The models for /api/status."""
        return [entry_of(unit, self._gates.snapshot(unit.id)) for unit in self._units.values()]


def _size(file: Path | None) -> int:
    return file.stat().st_size if file else 0
