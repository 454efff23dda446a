"""One model of this node, and how it is shown: to the gateway, in /api/status, by its names."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from meshnode.api.served import Served, ServedState
from meshnode.api.upstream import over_sockets
from meshnode.core.fair_queue import QueueSnapshot
from meshnode.core.placement import HOST, SoloPlan
from meshnode.core.split import SplitPlan
from meshnode.engine import client
from meshnode.engine.commands import Mode
from meshnode.engine.server import LlamaServer
from meshnode.errors import MeshnodeError
from meshnode.models.cache import LocalModel
from meshnode.models.header import Header
from meshnode.models.names import ModelRef
from meshnode.models.shapes import ModelShape
from meshnode.wire.statements import CONTENT_HASH_BYTES


class Learns(Protocol):
    """Takes in what an engine counted; see drafting.Learner."""

    async def look(self, server: LlamaServer) -> None: ...


class Hosted(Protocol):
    """A model that other machines help to run; see hosting.Hosting."""

    async def start(self) -> None: ...
    async def stop(self, grace_s: float = ...) -> None: ...
    def hold(self) -> None: ...
    def engine_ended(self, detail: str) -> None: ...
    async def waiting(self) -> None: ...
    def facts(self) -> dict[str, Any]: ...


@dataclass(slots=True)
class Unit:
    """One model of this node, from the moment it was asked for."""

    id: str
    ref: ModelRef
    asked_as: str
    since: float
    state: ServedState = "loading"
    detail: str = "waiting"
    local: LocalModel | None = None
    header: Header | None = None
    shape: ModelShape | None = None
    plan: SoloPlan | SplitPlan | None = None
    mode: Mode = "chat"
    draft: str = ""
    draft_bytes: Mapping[str, int] = field(default_factory=dict)
    """What the draft model takes beside the plan, by device."""
    content_hash: str = ""
    predicted: float | None = None
    error: MeshnodeError | None = None
    server: LlamaServer | None = None
    hosting: Hosted | None = None
    learner: Learns | None = None
    learning: asyncio.Task[None] | None = None
    reason: str = ""
    """Why it is served, where no person asked for it."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None
    hashing: asyncio.Task[None] | None = None

    def taken(self) -> dict[str, int]:
        """What it was planned to take of this machine, by device, its draft model included."""
        taken = bytes_by_device(self.plan) if self.plan else {}
        return {
            device: taken.get(device, 0) + self.draft_bytes.get(device, 0) for device in {**taken, **self.draft_bytes}
        }


def bytes_by_device(plan: SoloPlan | SplitPlan) -> dict[str, int]:
    """What a plan takes of this machine, by device (HOST: main memory)."""
    if isinstance(plan, SplitPlan):
        return {stage.device: stage.total_bytes for stage in plan.local_devices} | {HOST: plan.host_bytes}
    return {share.device: share.total_bytes for share in plan.shares}


def names_of(unit: Unit) -> set[str]:
    """What callers may call the model besides its id; may hold an empty text."""
    return {unit.asked_as, unit.ref.canonical, unit.ref.alias, unit.local.name if unit.local else ""}


def capabilities_of(unit: Unit) -> tuple[str, ...]:
    """What callers can use the model for, in the words of `GET /v1/models`."""
    if unit.mode != "chat":
        return (unit.mode,)
    properties = unit.server.snapshot().properties if unit.server else None
    found = ["completion"]
    if unit.header and unit.header.chat_template:
        found.append("chat")
    if properties:
        found += ["tools"] if "supports_tools" in properties.chat_capabilities else []
        found += sorted(name for name in properties.modalities if name in ("vision", "audio"))
    return tuple(found)


def context_of(unit: Unit) -> int:
    """Tokens of one conversation; 0 while unknown."""
    properties = unit.server.snapshot().properties if unit.server else None
    return properties.context if properties else unit.plan.context if unit.plan else 0


def served_of(unit: Unit, *, node: str) -> Served:
    """The model as the gateway sees it, with the engine of this node (its id in hex digits) as the host."""
    server, plan, shape = unit.server, unit.plan, unit.shape
    address = server.address if server else None
    return Served(
        id=unit.id,
        state=unit.state if unit.state != "ready" or address else "restarting",
        names=tuple(sorted(names_of(unit) - {unit.id, ""})),
        slots=plan.parallel if plan else 1,
        context_length=context_of(unit),
        capabilities=capabilities_of(unit),
        created=int(unit.since),
        size_bytes=unit.local.total_bytes if unit.local else 0,
        detail=unit.detail,
        facts={"n_params": shape.parameters, "n_vocab": shape.n_vocab, "n_ctx_train": shape.context_train}
        if shape
        else {},
    ).here(
        over_sockets(partial(client.connect, address)) if address else None,
        api_key=server.api_key if server else "",
        node=node,
        content_hash=unit.content_hash[: 2 * CONTENT_HASH_BYTES],
    )


def entry_of(unit: Unit, queue: QueueSnapshot) -> dict[str, Any]:
    """The model as /api/status shows it."""
    snapshot = unit.server.snapshot() if unit.server else None
    return {
        "id": unit.id,
        "canonical": unit.ref.canonical,
        "state": unit.state,
        "detail": unit.detail,
        "error": unit.error.as_dict() if unit.error else None,
        "since": round(unit.since, 3),
        "where": "here",
        "size_bytes": unit.local.total_bytes if unit.local else 0,
        "quantisation": unit.header.quantisation if unit.header else "",
        "context_length": context_of(unit),
        "parallel": unit.plan.parallel if unit.plan else 0,
        "busy": queue.busy,
        "waiting": queue.waiting,
        "capabilities": list(capabilities_of(unit)),
        "draft": unit.draft,
        "predicted_tokens_per_s": unit.predicted,
        "plan": dataclasses.asdict(unit.plan) if unit.plan else None,
        "split": unit.hosting.facts() if unit.hosting and not isinstance(unit.plan, SoloPlan) else None,
        "reason": unit.reason,
        "engine": {
            "pid": snapshot.pid,
            "state": snapshot.state,
            "restarts": snapshot.restarts,
            "load_s": snapshot.load_s,
        }
        if snapshot
        else None,
    }
