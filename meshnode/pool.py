"""This node's part in splits: it plans them, hosts its own, lends its devices to those of others, and shares weights.

Here the parts meet that know nothing of each other: the planner's facts (splitting), the life of a hosted model
(hosting), the worker's side (lending), weights among peers (sharing), who may host (rpc/claims), and what this node
says of all that in its statements.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from meshnode.api.record import Record
from meshnode.api.served import ServedState
from meshnode.assembly import Links, SplitModel
from meshnode.capacity import Lender, lenders_of
from meshnode.config import Places, Settings
from meshnode.core.effects import MembershipSnapshot
from meshnode.core.election import Elections
from meshnode.core.placement import HOST, Budget
from meshnode.core.split import Decision, SplitPlan
from meshnode.engine.installed import Engine
from meshnode.errors import MeshnodeError, ModelDoesNotFit, PeerUnreachable, WeightsUnavailable
from meshnode.hardware import Inventory
from meshnode.hosting import Hosting, HostingParts
from meshnode.lending import Lending, LendingParts
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.streams import StreamHandler
from meshnode.models.cache import LocalModel
from meshnode.models.digest import content_sha256
from meshnode.models.header import Header
from meshnode.models.references import References
from meshnode.models.shapes import ModelShape, shape_of
from meshnode.models.store import ModelStore
from meshnode.models.wanted import Wanted
from meshnode.net.stream import MeshStream
from meshnode.offers import devices_of
from meshnode.planning import Speeds, budget_of, mode_of, wishes_of
from meshnode.rpc.claims import Claims
from meshnode.serving import Launch, Serving, Tell
from meshnode.sharing import FetchProgress, Sharing, SharingParts
from meshnode.splitting import Splitting, plan_facts
from meshnode.standby import Disk, Standby, StandbyParts
from meshnode.telemetry import LOG
from meshnode.units import Unit
from meshnode.wire.registry import LIMIT_WEIGHTS, StreamType
from meshnode.wire.splits import LeaseAsk
from meshnode.wire.statements import CONTENT_HASH_BYTES, SHORT_ID_BYTES, ClaimState, Dynamic, Offer, Wish

SETTLE_S = 5.0
"""A node that has just joined hears within this time what the other members have."""


class Pool:
    """See the module. Methods run in the event loop; `start` before the mesh opens, `stop` before its links end.

    `mesh` gives the mesh while there is one, `snapshot` its members. `has` and `handlers` are for the mesh.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        places: Places,
        node: bytes,
        name: str,
        serving: Serving,
        tell: Tell,
        changed: Callable[[], None],
        mesh: Callable[[], Mesh | None],
        snapshot: Callable[[], MembershipSnapshot],
        wishes: Callable[[], Sequence[Wish]],
        offers: Callable[[], Sequence[Offer]],
    ) -> None:
        """`wishes` is how often callers of this node ask for what, `offers` its models as others hear of them."""
        self._settings = settings
        self._node = node
        self._serving = serving
        self._tell = tell
        self._changed = changed
        self._mesh = mesh
        self._snapshot = snapshot
        self._engine: Engine | None = None
        self._inventory: Inventory | None = None
        self._speeds: Speeds = {}
        self._wishes = wishes
        self._offers = offers
        self._places = places
        self._store: ModelStore | None = None
        self._standby: Standby | None = None
        self._news = asyncio.Event()
        self._settled_at = 0.0
        self._stops: dict[bytes, Callable[[str], None]] = {}
        self._splitting = Splitting(settings=settings, node=node, name=name, members=snapshot)
        self._claims = Claims(Elections(node, random=random.Random()), changed=changed, stop=self._must_stop)
        self._sharing = Sharing(
            SharingParts(
                share=settings.share,
                most_bytes=settings.max_disk,
                cache=places.cache,
                open_stream=partial(self._open_stream, StreamType.BULK),
                in_use=serving.reads,
                name_of=self._name_of,
                changed=changed,
            )
        )
        self._lending = Lending(
            LendingParts(
                node=node,
                settings=settings,
                places=places,
                environ=os.environ,
                open_stream=partial(self._open_stream, StreamType.RPC),
                taken=serving.taken,
                references=self._sharing.references,
                fetch=self._fetch_for_lease,
                name_of=self._name_of,
                changed=changed,
            )
        )

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Learn what weights are here."""
        await self._sharing.open()

    def equip(self, engine: Engine, inventory: Inventory, speeds: Speeds) -> None:
        """The engine and the devices of this machine, and how fast they are."""
        self._engine, self._inventory, self._speeds = engine, inventory, speeds
        self._splitting.equip(engine, inventory, speeds)
        self._lending.equip(engine, inventory)
        self._settled_at = time.monotonic() + SETTLE_S
        self._serving.split_with(self._host, self.learn, self._split_of)
        if self._settings.standby and not self._settings.client:
            self._standby = self._make_standby()
            self._standby.start()
        self._changed()

    async def leave(self, drain_s: float) -> None:
        """Ask the hosts of leases to do without this node, and wait for that, at most so long."""
        if self._standby is not None:
            await self._standby.stop()
        await self._lending.stop(drain_s)

    async def stop(self) -> None:
        """After the models of this node have ended."""
        self._claims.close()
        await self._sharing.close()

    def mesh_changed(self) -> None:
        """Members, or what they say of themselves, have changed."""
        self._claims.observe(self._snapshot().members)
        self._news.set()

    @property
    def handlers(self) -> Mapping[StreamType, StreamHandler]:
        """What serves the streams of peers."""
        return {StreamType.RPC: self._lending.serve, StreamType.BULK: self._sharing.serve}

    def has(self) -> Dynamic:
        """What this node says of itself, but for its models."""
        if self._settings.client or self._inventory is None:
            return Dynamic()
        return Dynamic(
            devices=devices_of(self._inventory, usable=self._lending.usable_bytes(), speeds=self._speeds),
            claims=self._claims.mine(),
            weights=tuple(digest[:CONTENT_HASH_BYTES] for digest in self._sharing.models()[:LIMIT_WEIGHTS]),
            rpc=self._lending.rpc_version,
        )

    def _taken_bytes(self, without: Unit | None = None) -> int:
        """Main memory that is not free for another model."""
        return self._serving.taken(without).get(HOST, 0) + self._lending.taken_bytes().get(HOST, 0)

    # --- planning -------------------------------------------------------------------------------------------

    async def plan(self, text: str) -> dict[str, Any]:
        """What the mesh could do with a model, for `meshnode plan`. Raises ModelNotFound, EngineError."""
        looked = await self._serving.look_at(text)
        decision = await self._splitting.decide(
            shape_of(looked.header),
            looked.content_hash,
            taken_bytes=self._taken_bytes(without=self._serving.find(looked.name)),
            current=self._serving.split_of(looked.name),
            whole=mode_of(looked.header) != "chat",
        )
        facts = plan_facts(looked.name, decision, self._node.hex(), looked.selection)
        facts["fix"] = await self._serving.fix_for(looked) if decision.refusal is not None else ""
        return facts

    async def _split_of(self, shape: ModelShape, unit: Unit | None) -> SplitPlan | None:
        """The plan over several machines for a model that this one does not hold.

        Members that were just met are given the time to say what they have.
        """
        while True:
            taken_bytes = self._taken_bytes(without=unit)
            decision = await self._splitting.decide(shape, "", taken_bytes=taken_bytes, alone=True, here=True)
            left_s = self._settled_at - time.monotonic()
            if decision.split is not None or self._is_alone() or left_s <= 0:
                return decision.split
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._news.wait()

    # --- models that the mesh asks for ----------------------------------------------------------------------

    def _make_standby(self) -> Standby:
        assert self._inventory is not None
        inventory = self._inventory

        def budget(without: str) -> Budget:
            taken_bytes = self._taken_bytes(without=self._serving.find(without))
            return budget_of(inventory, self._settings, taken_host_bytes=taken_bytes)

        async def load(name: str, reason: str) -> str:
            return str((await self._serving.load(name, reason=reason))["model"])

        return Standby(
            StandbyParts(
                node=self._node.hex(),
                members=lambda: self._snapshot().members.values(),
                wishes=self._wishes,
                offers=self._offers,
                entries=self._serving.entries,
                budget=budget,
                plan_wishes=wishes_of(self._settings),
                disk=Disk(models=self._local_models, read=self._read, digest=self._digest),
                load=load,
                unload=self._serving.unload,
                changed=self._changed,
                splits=lambda model: False,
                may_fetch=lambda: False,
            )
        )

    def finished(self, record: Record) -> None:
        """A request has ended."""
        if self._standby is not None:
            self._standby.finished(record)

    def asked_for(self, model: str) -> None:
        """A person wants the model on this node."""
        if self._standby is not None:
            self._standby.asked_for(model)

    def _local_models(self) -> list[LocalModel]:
        """Whole models of this disk. Blocks."""
        return [*self._known_store().list_local(), *self._sharing.local_models()]

    def _read(self, local: LocalModel) -> Header:
        return self._known_store().read(local)

    def _digest(self, local: LocalModel, stopped: Callable[[], bool]) -> str:
        """The hash of a model, as others know it. Blocks, for the time of reading it if nobody has told."""
        return local.sha256 or content_sha256(local.path, self._places.cache / "hashes.json", stopped)

    def _known_store(self) -> ModelStore:
        if self._store is None:
            self._store = ModelStore.from_environment()
        return self._store

    # --- hosting --------------------------------------------------------------------------------------------

    def _host(
        self, unit: Unit, launch: Launch, state: Callable[[ServedState, str], None], refusal: ModelDoesNotFit
    ) -> Hosting:
        assert unit.shape is not None
        shape = unit.shape

        async def decide(
            current: SplitPlan | None, ended: SplitPlan | None, without: frozenset[str], alone: bool
        ) -> Decision:
            taken_bytes = self._taken_bytes(without=unit)
            return await self._splitting.decide(
                shape,
                unit.content_hash,
                taken_bytes=taken_bytes,
                current=current,
                ended=ended,
                without=without,
                alone=alone,
                here=True,
            )

        async def claim(sha256: bytes, stop: Callable[[str], None]) -> int:
            self._stops[sha256[:CONTENT_HASH_BYTES]] = stop
            return await self._claims.claim(sha256)

        def disclaim(sha256: bytes) -> None:
            self._stops.pop(sha256[:CONTENT_HASH_BYTES], None)
            self._claims.disclaim(sha256)

        return Hosting(
            HostingParts(
                name=unit.id,
                model=partial(self._model_of, unit),
                links=Links(
                    open_stream=partial(self._open_stream, StreamType.RPC),
                    rtt_s=self._rtt_s,
                    rpc_version=self._splitting.rpc_version,
                ),
                decide=decide,
                launch=launch,
                claim=claim,
                disclaim=disclaim,
                told=self._told,
                quiet=partial(self._serving.is_quiet, unit),
                news=self._news,
                state=state,
                tell=self._tell,
                half=self._settings.half_activations,
                patched=bool(self._engine and self._engine.patched),
                wait=self._settings.split,
                settle_s=0.0 if self._is_alone() else SETTLE_S,
                here=self._node.hex(),
                refusal=refusal,
            )
        )

    async def _model_of(self, unit: Unit) -> SplitModel:
        """What workers must know of a model. Its file is read once for that, if it never was."""
        local = unit.local
        assert local is not None
        if unit.hashing is not None:
            await asyncio.shield(unit.hashing)
        if not unit.content_hash:
            raise ModelDoesNotFit("its file cannot be read, so no other machine can know which model it is")
        sha256 = bytes.fromhex(unit.content_hash)
        manifest = self._sharing.manifest_of(sha256)
        references = await asyncio.to_thread(References.open, sha256, local.path)
        return SplitModel(
            name=unit.id,
            sha256=sha256,
            size_bytes=local.total_bytes,
            manifest=manifest.digest if manifest else b"",
            references=references,
        )

    def _told(self, sha256: bytes, plan: SplitPlan, plan_id: bytes, serving: bool) -> None:
        workers = tuple(bytes.fromhex(node)[:SHORT_ID_BYTES] for node in plan.workers)
        self._claims.advance(sha256, ClaimState.SERVING if serving else ClaimState.LOADING, plan_id, workers)

    def _must_stop(self, model: bytes, winner: bytes) -> None:
        if model in self._stops:
            self._stops[model](f"{self._name_of(winner)} hosts it")

    async def learn(self, local: LocalModel, stopped: Callable[[], bool]) -> str:
        """The hash of a model on this disk, in hex digits. It can be shared from then on. Raises as Sharing.learn."""
        manifest = await self._sharing.learn(local, stopped)
        return manifest.sha256.hex()

    # --- weights of a lease ---------------------------------------------------------------------------------

    async def _fetch_for_lease(self, ask: LeaseAsk, host: bytes, progress: FetchProgress) -> None:
        """Have the layers of a lease on this disk: read what may be that model, else fetch them from the mesh.

        Raises WeightsUnavailable when nobody has them, and what the disk raises.
        """
        if await self._is_on_disk(ask):
            return
        if not ask.manifest:
            raise WeightsUnavailable("its host has no list of its chunks")
        holders = [
            member.node
            for member in self._splitting.others()
            if member.dynamic and ask.sha256[:CONTENT_HASH_BYTES] in member.dynamic.weights
        ]
        layers = range(ask.first_layer, ask.first_layer + ask.layers)
        wanted = Wanted(sha256=ask.sha256, manifest=ask.manifest, name=ask.model, layers=layers)
        sources = tuple(dict.fromkeys((*holders, host)))
        await self._sharing.fetch(wanted, sources, progress)
        # Layers beside its own are those that this node would inherit from a worker that is lost.
        inherited = range(max(0, ask.first_layer - ask.layers), ask.first_layer + 2 * ask.layers)
        self._sharing.prefetch(dataclasses.replace(wanted, layers=inherited), sources)

    async def _is_on_disk(self, ask: LeaseAsk) -> bool:
        """Whether a model of this disk that nobody has looked at yet is the one: those of its size are read."""
        for local in await asyncio.to_thread(lambda: self._known_store().list_local()):
            if local.incomplete or local.total_bytes != ask.size_bytes:
                continue
            try:
                if (await self._sharing.learn(local)).sha256 == ask.sha256:
                    return True
            except (MeshnodeError, OSError) as reason:
                LOG.info("%s cannot be read: %s", local.name, type(reason).__name__)
        return False

    # --- the mesh -------------------------------------------------------------------------------------------

    async def _open_stream(self, kind: StreamType, node: bytes, header: bytes, priority: int) -> MeshStream:
        mesh = self._mesh()
        if mesh is None:
            raise PeerUnreachable("this node is in no mesh")
        return await mesh.open_stream(node, kind, header, priority=priority)

    def _is_alone(self) -> bool:
        mesh = self._mesh()
        return mesh is None or mesh.state == "alone"

    def _rtt_s(self, node: str) -> float | None:
        member = self._snapshot().members.get(bytes.fromhex(node))
        return member.rtt_s if member else None

    def _name_of(self, node: bytes) -> str:
        member = self._snapshot().members.get(node)
        return member.identity.name if member and member.identity and member.identity.name else node.hex()[:10]

    # --- views ----------------------------------------------------------------------------------------------

    def lenders(self) -> tuple[Lender, ...]:
        """The members that state memory which a split of this node could use."""
        return lenders_of(self._snapshot().members.values(), self._node, self._lending.rpc_version)

    def facts(self) -> dict[str, Any]:
        """For /api/status: the leases of this node, and the weights that come and go."""
        return {"lending": self._lending.facts(), "weights": self._sharing.facts()}

    def standby_facts(self) -> dict[str, Any] | None:
        """For /api/status: what this node took on by itself; None where it does not."""
        return self._standby.facts() if self._standby is not None else None
