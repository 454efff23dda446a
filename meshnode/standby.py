"""A node without models of its own follows what the mesh asks for: the shell around core/rebalancing.

Every few seconds it hands the members, what this node serves and what lies on its disk to the pure part, and carries
out what comes back: `load` and `unload` of serving, one change at a time; a model goes only after its last answer has
ended. What was chosen here is remembered with its reason, so that it is never confused with what a person asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshnode.api.record import Record
from meshnode.core.chance import jittered
from meshnode.core.demand import total
from meshnode.core.effects import Member
from meshnode.core.needs import ROOM_BYTES, ROOM_SHARE, Hosted, Known, NodeView
from meshnode.core.placement import Budget, Refusal, Wishes, plan_solo
from meshnode.core.rebalancing import Decision, Holding, Nothing, Own, Promote, Rebalancer, StepDown
from meshnode.errors import MeshnodeError
from meshnode.models.cache import LocalModel
from meshnode.models.digest import DigestStopped
from meshnode.models.header import Header
from meshnode.models.shapes import ModelShape, shape_of
from meshnode.telemetry import LOG
from meshnode.wire.registry import LIMIT_MODEL_NAME_CHARS, Role
from meshnode.wire.schema import showable
from meshnode.wire.statements import CONTENT_HASH_BYTES, Device, ModelState, Offer, Wish

TICK_S = 3.0
SETTLE_S = 10.0
"""After the start: a node that has just joined does not know everybody yet."""
LOOK_S = 60.0
"""How often the disk is looked at."""
MOST_MODELS = 64
CHANGES_SHOWN = 10
LIVING = ("alive", "unreachable")
"""Who is silent for a moment still serves what it served: only the dead are replaced."""
HOST = "host"


class Disk:
    """The models on this disk, with their hashes and shapes. `look` blocks, for the time of reading a new file.

    `models` lists them, `read` gives the header of one, `digest` its content hash in hex digits; the last two raise
    MeshnodeError or OSError, and `digest` DigestStopped once what it is given says so.
    """

    def __init__(
        self,
        *,
        models: Callable[[], Sequence[LocalModel]],
        read: Callable[[LocalModel], Header],
        digest: Callable[[LocalModel, Callable[[], bool]], str],
    ) -> None:
        self._models = models
        self._header = read
        self._digest = digest
        self._shapes: dict[str, ModelShape] = {}
        self._read: dict[Path, tuple[float, ModelShape]] = {}
        self.known: tuple[Known, ...] = ()

    def look(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Learn what is there. A model that cannot be read is passed over; its own command tells why."""
        known, shapes, read = [], {}, {}
        for local in self._models()[:MOST_MODELS]:
            if local.incomplete:
                continue
            try:
                before = self._read.get(local.path)
                fresh = before is not None and before[0] == local.modified_s
                shape = before[1] if before and fresh else shape_of(self._header(local))
                sha256 = self._digest(local, stopped)
            except DigestStopped:
                return
            except (MeshnodeError, OSError) as reason:
                LOG.debug("%s is passed over: %s", local.name, type(reason).__name__)
                continue
            content_hash = sha256[: 2 * CONTENT_HASH_BYTES]
            known.append(Known(local.ref.short_name, content_hash, local.total_bytes, _names(local)))
            shapes[content_hash] = shape
            read[local.path] = local.modified_s, shape
        self.known, self._shapes, self._read = tuple(known), shapes, read

    def shape(self, model: Known) -> ModelShape | None:
        """What it takes, as far as it is on this disk."""
        return self._shapes.get(model.content_hash)


def _names(local: LocalModel) -> tuple[str, ...]:
    names = {local.ref.canonical, local.name, _on_wire(local.ref.short_name)}
    return tuple(sorted(names - {local.ref.short_name, ""}))


def _on_wire(name: str) -> str:
    return showable(name, LIMIT_MODEL_NAME_CHARS) or "model"


@dataclass(frozen=True, kw_only=True)
class StandbyParts:
    """What a Standby is given. Callables give a fresh view and are called in the event loop.

    `members` are those of the mesh with this node, `wishes` the rates at which callers of this node ask, `offers` and
    `entries` its models as others and as /api/status see them. `budget` is the memory for a new model, with the model
    of that name ("" for none) thought away; `splits` says whether one that is too large for that can be split now, and
    `may_fetch` whether weights may come from peers. `load` gets the name and the reason, begins, and returns the id of
    the model in `entries`; it and `unload`, which returns when the model is gone, raise MeshnodeError.
    """

    node: str
    members: Callable[[], Iterable[Member]]
    wishes: Callable[[], Sequence[Wish]]
    offers: Callable[[], Sequence[Offer]]
    entries: Callable[[], Sequence[Mapping[str, Any]]]
    budget: Callable[[str], Budget | None]
    plan_wishes: Wishes
    disk: Disk
    load: Callable[[str, str], Awaitable[str]]
    unload: Callable[[str], Awaitable[object]]
    changed: Callable[[], None]
    splits: Callable[[Known], bool] = lambda model: False
    may_fetch: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.Random)


class Standby:
    """Takes models on and lets them go, as the mesh needs. `start` once, `stop` once."""

    def __init__(self, parts: StandbyParts) -> None:
        self._parts = parts
        self._rebalancer = Rebalancer(parts.rng)
        self._taken: dict[str, str] = {}
        self._used_at: dict[str, float] = {}
        self._held_since: dict[str, float] = {}
        self._changes: deque[dict[str, Any]] = deque(maxlen=CHANGES_SHOWN)
        self._why = "waiting for news of the mesh"
        self._task: asyncio.Task[None] | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to follow the mesh."""
        self._task = asyncio.create_task(self._run(), name="standby")

    async def stop(self) -> None:
        """Decide nothing any more. Models that were taken on are left to the end of serving."""
        self._stopped.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def finished(self, record: Record) -> None:
        """A request has ended: a model of this node that answered it is not cold."""
        if record.model in self._held_since and (record.peer or record.node in ("", self._parts.node)):
            self._used_at[record.model] = self._parts.clock()

    def asked_for(self, name: str) -> None:
        """A person wants this model here: it is not let go any more."""
        self._taken.pop(name, None)

    def facts(self) -> dict[str, Any]:
        """The `standby` member of /api/status: what was taken on and why, the last changes, and what is waited for."""
        return {
            "models": [{"model": name, "reason": reason} for name, reason in self._taken.items()],
            "changes": list(self._changes),
            "why": self._why,
        }

    # --- the loop -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        looked_at = float("-inf")
        await asyncio.sleep(SETTLE_S)
        while True:
            if self._parts.clock() - looked_at >= LOOK_S:
                await asyncio.to_thread(self._parts.disk.look, self._stopped.is_set)
                looked_at = self._parts.clock()
            try:
                await self.step()
            except Exception:
                LOG.exception("a look at what the mesh needs failed")
            await asyncio.sleep(jittered(self._parts.rng, TICK_S))

    async def step(self) -> Decision:
        """Look once, and do what is to be done. Returns what was decided."""
        now = self._parts.clock()
        offers = self._notice(now)
        parts, holdings = self._parts, self._holdings(offers, now)
        decision: Decision
        if holdings and not any(holding.unasked for holding in holdings):
            decision = Nothing("it serves what a person asked for")  # known without a look at all members
        else:
            own = Own(parts.node, parts.disk.known, holdings, self._fits, may_fetch=parts.may_fetch())
            decision = self._rebalancer.decide(self._view(offers, now), own, now)
        match decision:
            case Promote():
                await self._take_on(decision)
            case StepDown():
                await self._let_go(decision)
            case Nothing():
                self._why = decision.reason
        return decision

    def _notice(self, now: float) -> Sequence[Offer]:
        """What became of the models since the last look; the offers of this node."""
        offers, entries = self._parts.offers(), {entry["id"]: entry for entry in self._parts.entries()}
        for name in list(self._taken):
            if name not in entries:
                self._rebalancer.unloaded_by_person(name, now)
                self._note("gone", name, "a person unloaded it")
                del self._taken[name]
            elif entries[name]["state"] == "failed":
                self._rebalancer.failed(name, now)
                self._note("failed", name, str(entries[name].get("detail", "")))
                del self._taken[name]
        self._held_since = {name: self._held_since.get(name, now) for name in entries}
        for offer in offers:
            if offer.busy or offer.waiting:
                self._used_at[self._id_of(offer)] = now
        self._used_at = {name: at for name, at in self._used_at.items() if name in entries}
        return offers

    def _holdings(self, offers: Sequence[Offer], now: float) -> list[Holding]:
        found = []
        for offer in offers:
            name = self._id_of(offer)
            since = self._held_since.get(name, now)
            used_at = self._used_at.get(name, since)
            ready = offer.state == ModelState.READY
            found.append(Holding(name, name in self._taken, ready, now - used_at, now - since))
        return found

    def _id_of(self, offer: Offer) -> str:
        """The id here of a model that is offered: the name on the wire may be shortened."""
        return next((name for name in self._held_since if _on_wire(name) == offer.name), offer.name)

    async def _take_on(self, decision: Promote) -> None:
        name = decision.model.name
        self._note("taken on", name, decision.reason)
        try:
            self._taken[await self._parts.load(name, decision.reason)] = decision.reason
        except MeshnodeError as error:
            self._rebalancer.failed(name, self._parts.clock())
            self._note("failed", name, error.message)

    async def _let_go(self, decision: StepDown) -> None:
        self._note("let go", decision.name, decision.reason)
        self._taken.pop(decision.name, None)
        try:
            await self._parts.unload(decision.name)
        except MeshnodeError as error:
            LOG.warning("letting %s go failed: %s", decision.name, error.message)

    def _note(self, action: str, name: str, reason: str) -> None:
        self._why = reason
        self._changes.append({"at": round(time.time(), 3), "action": action, "model": name, "reason": reason})
        LOG.info("standby: %s %s: %s", name, action, reason)
        self._parts.changed()

    # --- views ----------------------------------------------------------------------------------------------

    def _fits(self, model: Known, without: str) -> bool:
        budget = self._parts.budget(without)
        if budget is None:
            return False
        shape = self._parts.disk.shape(model)
        if shape is None:
            room_bytes = max(budget.host_bytes, sum(device.usable_bytes for device in budget.devices))
            alone = model.size_bytes * ROOM_SHARE + ROOM_BYTES <= room_bytes
        else:
            alone = not isinstance(plan_solo(shape, budget, self._parts.plan_wishes), Refusal)
        return alone or self._parts.splits(model)

    def _view(self, offers: Sequence[Offer], now: float) -> list[NodeView]:
        """All members as the others see them too; of this node what it would say now."""
        found = []
        for member in self._parts.members():
            name = member.node.hex()
            if name == self._parts.node:
                found.append(_seen(member, offers, {wish.model: wish.rate / 1000 for wish in self._parts.wishes()}))
            elif member.state in LIVING and member.role != Role.CLIENT and member.dynamic:
                asks = total([(member.demand, member.demand_at)], now) if member.demand else {}
                found.append(_seen(member, member.dynamic.models, asks))
        return found


def _seen(member: Member, offers: Sequence[Offer], asks: Mapping[str, float]) -> NodeView:
    dynamic = member.dynamic
    return NodeView(
        member.node.hex(),
        tuple(_hosted(offer) for offer in offers if offer.state != ModelState.FAILED),
        asks,
        frozenset(digest.hex() for digest in dynamic.weights) if dynamic else frozenset(),
        frozenset(claim.content_hash.hex() for claim in dynamic.claims) if dynamic else frozenset(),
        room_of(dynamic.devices) if dynamic else 0,
        dynamic.coordinate if dynamic else None,
    )


def _hosted(offer: Offer) -> Hosted:
    return Hosted(
        offer.name,
        offer.names,
        offer.content_hash.hex() if any(offer.content_hash) else "",
        offer.size_bytes,
        offer.state == ModelState.READY,
        offer.slots,
        offer.busy,
        offer.waiting,
        offer.decode_speed / 10 or None,
    )


def room_of(devices: Sequence[Device]) -> int:
    """Free memory for a model, roughly: that of the GPUs together or that of the machine, whichever is more."""
    gpus = sum(device.free_bytes for device in devices if device.name != HOST)
    return max([gpus, *(device.free_bytes for device in devices if device.name == HOST)])
