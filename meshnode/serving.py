"""From a name to a model that answers: resolve, fetch, plan, start; and the view of all that.

This is the part of the node that connects models, hardware, placement and engine. One model is brought up at a
time, so that each plan sees the memory that the ones before it left.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from meshnode.api.gate import Gates
from meshnode.api.served import Served, ServedState
from meshnode.config import Places, Settings
from meshnode.core.placement import Refusal, SoloPlan, plan_solo
from meshnode.engine.commands import Draft, ServerOptions
from meshnode.engine.installed import Engine
from meshnode.engine.server import LlamaServer, ServerParts, ServerSnapshot
from meshnode.errors import EngineError, MeshnodeError, ModelDoesNotFit, ModelError, ModelInUse, ModelNotFound
from meshnode.hardware import Inventory
from meshnode.models.cache import LocalModel
from meshnode.models.digest import DigestStopped, content_sha256
from meshnode.models.names import ModelRef
from meshnode.models.shapes import shape_of
from meshnode.models.store import ModelStore
from meshnode.planning import Speeds, budget_of, describe_plan, mode_of, predict, threads_of, wishes_of
from meshnode.telemetry import LOG, ProblemBoard, Report
from meshnode.units import Unit, entry_of, names_of, served_of

Tell = Callable[[str, str], None]
"""Hands a labelled sentence ("model", "demo fits here ...") to whoever looks on."""

DRAFT_PAYS_FROM_BYTES = 1 << 30
"""A draft costs a second pass of overhead per token; below this size the target is as quick alone (measured)."""
DRAFT_MAX_SHARE = 0.25
DRAFT_TOKENS = 8
STOP_GRACE_S = 5.0


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
    ) -> None:
        self._settings = settings
        self._places = places
        self._problems = problems
        self._gates = gates
        self._report = report
        self._tell = tell
        self._changed = changed
        self._units: dict[str, Unit] = {}
        self._leaving: dict[str, Unit] = {}
        self._turn = asyncio.Lock()
        self._store: ModelStore | None = None
        self._engine: Engine | None = None
        self._inventory: Inventory | None = None
        self._speeds: Speeds = {}
        self.node = ""
        """The id of this node in hex digits, once it is known."""

    # --- what the node hands in once it is there -----------------------------------------------------------

    def equip(self, engine: Engine, inventory: Inventory, speeds: Speeds) -> None:
        """The engine, the devices to plan with, and how fast they are."""
        self._engine, self._inventory, self._speeds = engine, inventory, speeds

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
            async with self._turn:
                await self._prepare(unit)
                await self._start(unit)
        except MeshnodeError as error:
            unit.error = error
            self._set(unit, "failed", error.message)
            self._problems.put("model-load-failed", unit.id, model=unit.id, reason=error.message, fix=error.fix)
            raise
        except Exception as error:
            LOG.exception("bringing up %s failed", unit.id)
            self._set(unit, "failed", f"a fault of meshnode ({type(error).__name__}); see meshnode logs")
            raise

    async def load(self, text: str) -> dict[str, Any]:
        """Take a model on and bring it up in the background."""
        if self._engine is None:
            raise EngineError("the engine of this node is not ready yet", fix="try again in a moment")
        unit = await self.add(text)

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
        if unit.server is not None:
            await unit.server.stop(grace_s)
        self._problems.clear("model-load-failed", unit.id)
        self._gates.forget(unit.id)
        for place in (self._units, self._leaving):
            if place.get(unit.id) is unit:
                del place[unit.id]
        self._changed()

    async def stop(self, *, now: bool = False) -> None:
        """Stop every engine, side by side: politely, or with `now` by force."""
        units = [*self._units.values(), *self._leaving.values()]
        grace_s = 0.0 if now else STOP_GRACE_S
        await asyncio.gather(*(self._discard(unit, grace_s) for unit in units), return_exceptions=True)

    # --- bringing up ----------------------------------------------------------------------------------------

    async def _prepare(self, unit: Unit) -> None:
        store = self._store
        assert store is not None
        unit.local = await asyncio.to_thread(store.find, unit.ref)
        if unit.local is None or unit.local.incomplete:
            self._set(unit, "loading", "downloading")
            pull = partial(store.pull, unit.ref, self._report, unit.cancelled.is_set)
            unit.local = await asyncio.to_thread(pull)
        unit.header = await asyncio.to_thread(store.read, unit.local)
        unit.hashing = asyncio.create_task(self._hash(unit, unit.local), name=f"hash {unit.id}")
        unit.shape = shape_of(unit.header)
        unit.mode = mode_of(unit.header)

    async def _hash(self, unit: Unit, local: LocalModel) -> None:
        """Learn which weights these are. Until then no other node counts as a replica of this one."""
        notes = self._places.cache / "hashes.json"
        try:
            unit.content_hash = local.sha256 or await asyncio.to_thread(
                content_sha256, local.path, notes, unit.cancelled.is_set
            )
        except (OSError, DigestStopped) as reason:
            LOG.warning("the weights of %s have no hash: %s", unit.id, type(reason).__name__)
        self._changed()

    async def _start(self, unit: Unit) -> None:
        local, shape = unit.local, unit.shape
        assert local is not None and shape is not None and self._engine is not None and self._inventory is not None
        draft = await self._draft_of(unit)
        plan = self._plan(unit, extra_host_bytes=_size(local.mmproj) + _size(draft))
        unit.plan, unit.draft = plan, draft.stem if draft else ""
        unit.predicted = predict(shape, plan, self._speeds)
        self._tell("model", describe_plan(unit.id, shape, plan, unit.predicted))
        self._set(unit, "loading", "loading into memory")
        unit.server = LlamaServer(self._options(unit, plan, draft), self._parts(unit, local))
        started = time.monotonic()
        await unit.server.start()
        self._problems.clear("model-load-failed", unit.id)
        self._set(unit, "ready", "")
        self._tell("ready", f"{unit.id} after {time.monotonic() - started:.1f} s")

    def _plan(self, unit: Unit, *, extra_host_bytes: int) -> SoloPlan:
        assert unit.shape is not None and self._inventory is not None
        taken = sum(
            share.total_bytes
            for other in self._units.values()
            if other.plan and other is not unit and other.state != "failed"
            for share in other.plan.shares
            if share.device == "host"
        )
        found = plan_solo(
            unit.shape,
            budget_of(self._inventory, self._settings, taken_host_bytes=taken),
            wishes_of(self._settings),
            extra_host_bytes=extra_host_bytes,
        )
        if isinstance(found, Refusal):
            others = " beside what is served already" if taken else ""
            raise ModelDoesNotFit(
                found.reason + others, fix="take a smaller quantisation or model: meshnode search shows sizes"
            )
        return found

    async def _draft_of(self, unit: Unit) -> Path | None:
        """The draft to guess with: the one that was asked for, else one that is on this disk and pays."""
        store, local, shape = self._store, unit.local, unit.shape
        assert store is not None and local is not None and shape is not None
        if self._settings.no_draft or unit.mode != "chat":
            return None
        if self._settings.draft:
            ref = await self.resolve(self._settings.draft)
            found = await asyncio.to_thread(store.find, ref)
            if found is None or found.incomplete:
                found = await asyncio.to_thread(store.pull, ref, self._report, unit.cancelled.is_set)
            await self._check_draft(unit, store, found)
            return found.path
        if shape.total_bytes < DRAFT_PAYS_FROM_BYTES:
            return None
        entry = store.catalog.find(unit.ref.alias)
        paired = store.catalog.find(entry.draft) if entry and entry.draft else None
        found = await asyncio.to_thread(lambda: store.find(store.resolve(paired.alias))) if paired else None
        if found and not found.incomplete and found.total_bytes < shape.total_bytes * DRAFT_MAX_SHARE:
            return found.path
        return None

    async def _check_draft(self, unit: Unit, store: ModelStore, draft: LocalModel) -> None:
        header = await asyncio.to_thread(store.read, draft)
        assert unit.header is not None
        if header.vocabulary_digest != unit.header.vocabulary_digest:
            raise ModelError(
                f"{draft.name} cannot draft for {unit.id}: their vocabularies differ",
                fix="choose a smaller model of the same family, or leave --draft out",
            )

    def _options(self, unit: Unit, plan: SoloPlan, draft: Path | None) -> ServerOptions:
        assert unit.local is not None and self._inventory is not None
        gpus = [share.device for share in plan.shares if share.device != "host" and share.layers]
        return ServerOptions(
            model=unit.local.path,
            alias=unit.id,
            context=plan.context * plan.parallel,
            parallel=plan.parallel,
            threads=threads_of(self._inventory, self._settings),
            mode=unit.mode,
            mmproj=unit.local.mmproj,
            draft=Draft(draft, tokens_max=DRAFT_TOKENS) if draft else None,
            devices=tuple(gpus) or ("none",),
            gpu_layers=plan.gpu_layers,
            tensor_split=tuple(float(count) for count in plan.tensor_split),
            kv_type_k=plan.kv_type,  # type: ignore[arg-type]
            kv_type_v=plan.kv_type,  # type: ignore[arg-type]
            flash_attention="on" if plan.kv_type != "f16" else "auto",
            prompt_cache_bytes=plan.prompt_cache_bytes,
        )

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

    # --- views ----------------------------------------------------------------------------------------------

    def served(self) -> list[Served]:
        """What the gateway needs to know, fresh."""
        return [served_of(unit, node=self.node) for unit in self._units.values()]

    def entries(self) -> list[dict[str, Any]]:
        """The models for /api/status."""
        return [entry_of(unit, self._gates.snapshot(unit.id)) for unit in self._units.values()]


def _size(file: Path | None) -> int:
    return file.stat().st_size if file else 0
