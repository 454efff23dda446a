"""One plan put into force: leases from its workers, a tunnel to each, and what the engine must be told.

Everything here belongs to one plan and ends with it. A worker that refuses, goes away or stalls ends the whole: what
comes after is decided in hosting.py. The order of the end is that of safety: first the engine (its owner stops it),
then the tunnels, then the leases.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from meshnode.core.split import SplitPlan, Stage
from meshnode.engine.commands import SplitOptions
from meshnode.errors import MeshnodeError, WorkerLost
from meshnode.net.stream import MeshStream
from meshnode.rpc.facts import References, TunnelOptions
from meshnode.rpc.held_lease import HeldLease
from meshnode.rpc.host_end import HostEnd
from meshnode.wire.registry import RpcKind
from meshnode.wire.splits import PLAN_BYTES, DeviceNeed, LeaseAsk, LeaseReady, open_header

Result = TypeVar("Result")

ASK_S = 10.0
"""A worker starts its rpc-server before it grants: a second on a slow machine, more with a GPU."""
LEASE_PRIORITY = 0
TUNNEL_PRIORITY = 8
PAUSE_S = 660.0
"""A worker ends a lease itself for which it could fetch nothing for ten minutes (rpc/work.py)."""
COMPRESS_FROM_S = 0.001
"""Below this round trip the time for packing is longer than that for the bytes."""

OpenStream = Callable[[bytes, bytes, int], Awaitable[MeshStream]]
"""(node, header, priority) -> an RPC stream to that node. Raises PeerUnreachable, PeerRefused, LinkLost."""
Lost = Callable[[str, str], None]
"""(node, words): a worker is gone. Called in the event loop, at most once for each worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitModel:
    """What the workers must know of a model. `manifest` is the digest of its list of chunks, or empty."""

    name: str
    sha256: bytes
    size_bytes: int
    manifest: bytes
    references: References


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """How workers are reached: streams, and the round trip to a node in seconds where it is known."""

    open_stream: OpenStream
    rtt_s: Callable[[str], float | None]
    rpc_version: int


@dataclass(frozen=True, slots=True)
class _Part:
    """The stages of one worker, which stand side by side in a plan."""

    node: str
    stages: tuple[Stage, ...]

    @property
    def layers(self) -> int:
        return sum(stage.layers for stage in self.stages)

    @property
    def needs(self) -> tuple[DeviceNeed, ...]:
        """The memory of each device."""
        return tuple(DeviceNeed(stage.device_index, stage.lease_bytes) for stage in self.stages)

    @property
    def needed_bytes(self) -> int:
        """All of it together."""
        return sum(need.needed_bytes for need in self.needs)


class Assembly:
    """The workers of one plan, ready for the engine. Made by `of`, ended by `close`."""

    def __init__(self, plan: SplitPlan, plan_id: bytes) -> None:
        self.plan = plan
        self.plan_id = plan_id
        self.options: SplitOptions
        self._leases: list[HeldLease] = []
        self._ends: list[HostEnd] = []
        self._ports: dict[int, int] = {}
        self._closed = False

    @classmethod
    async def of(
        cls,
        plan: SplitPlan,
        model: SplitModel,
        links: Links,
        *,
        term: int,
        half: bool,
        patched: bool,
        lost: Lost,
        leaving: Callable[[str], None],
        progress: Callable[[str], None],
    ) -> Assembly:
        """Ask every worker, wait for its weights, open the tunnels.

        `progress` gets a sentence while weights are fetched. Raises WorkerLost, which names the worker, when one
        refuses or cannot be reached; nothing is left then.
        """
        self = cls(plan, secrets.token_bytes(PLAN_BYTES))
        parts = _parts(plan.stages)
        try:
            asked = [
                self._ask(index, parts, model, links, term=term, lost=lost, leaving=leaving)
                for index in range(len(parts))
            ]
            leases = await _all(asked)
            ready = await _all([_ready(part.node, lease, progress) for part, lease in zip(parts, leases, strict=True)])
            for index, part in enumerate(parts):
                rtt_s = links.rtt_s(part.node)
                options = TunnelOptions(
                    stage=index,
                    stages=len(parts),
                    push="patched" if patched else "placeholder",
                    worker_has_weights=ready[index].has_weights,
                    compress=rtt_s is None or rtt_s >= COMPRESS_FROM_S,
                    half=half,
                    limit_bytes=part.needed_bytes,
                )
                opening = HostEnd.open(
                    facts=leases[index].granted.facts,
                    connect=partial(self._connect, part.node, links),
                    route=self._ports.get,
                    options=options,
                    references=model.references,
                    lost=partial(lost, part.node),
                )
                end = await _named(part.node, opening)
                self._ends.append(end)
                self._ports[end.port] = index
        except BaseException:
            await self.close()
            raise
        self.options = SplitOptions(
            servers=tuple(f"127.0.0.1:{end.port}" for end in self._ends),
            reference_sha256=model.sha256.hex() if patched else "",
            push=patched,
            output_on_host=plan.output_on_host,
        )
        return self

    async def close(self) -> None:
        """End the tunnels and give the workers back. The engine has been stopped before."""
        self._closed = True
        await asyncio.gather(*(end.close() for end in self._ends), return_exceptions=True)
        await asyncio.gather(*(lease.release() for lease in self._leases), return_exceptions=True)

    def counters(self) -> list[dict[str, int]]:
        """What went through each tunnel, in the order of the stages."""
        return [asdict(end.counters) for end in self._ends]

    def stingy(self) -> str:
        """A worker that did not give the memory that it had granted; "" when all did."""
        nodes = self.plan.workers
        return next((nodes[index] for index, end in enumerate(self._ends) if end.counters.refused), "")

    async def _ask(
        self,
        index: int,
        parts: Sequence[_Part],
        model: SplitModel,
        links: Links,
        *,
        term: int,
        lost: Lost,
        leaving: Callable[[str], None],
    ) -> HeldLease:
        part = parts[index]
        ask = LeaseAsk(
            term=term,
            model=model.name,
            sha256=model.sha256,
            size_bytes=model.size_bytes,
            manifest=model.manifest,
            stage=index,
            first_layer=part.stages[0].first_layer,
            layers=part.layers,
            needed_bytes=part.needed_bytes,
            workers=tuple(bytes.fromhex(each.node) for each in parts),
            rpc_version=links.rpc_version,
            devices=part.needs,
        )
        header = open_header(RpcKind.LEASE, self.plan_id)
        lease = await _named(
            part.node,
            HeldLease.ask(
                partial(links.open_stream, bytes.fromhex(part.node), header, LEASE_PRIORITY),
                self.plan_id,
                ask,
                lost=partial(lost, part.node),
                leaving=partial(leaving, part.node),
                timeout_s=ASK_S,
            ),
        )
        # Held from here on, whatever the others answer.
        self._leases.append(lease)
        return lease

    async def _connect(self, node: str, links: Links) -> MeshStream:
        header = open_header(RpcKind.TUNNEL, self.plan_id)
        return await links.open_stream(bytes.fromhex(node), header, TUNNEL_PRIORITY)


def _parts(stages: Sequence[Stage]) -> list[_Part]:
    """The stages by worker, in the order of the pipeline."""
    parts: list[_Part] = []
    for stage in stages:
        if parts and parts[-1].node == stage.node:
            parts[-1] = _Part(stage.node, (*parts[-1].stages, stage))
        else:
            parts.append(_Part(stage.node, (stage,)))
    return parts


async def _ready(node: str, lease: HeldLease, progress: Callable[[str], None]) -> LeaseReady:
    """Wait for the weights of a worker, for as long as there come more of them. Raises WorkerLost."""
    loop = asyncio.get_running_loop()
    most_bytes = 0
    try:
        async with asyncio.timeout(PAUSE_S) as limit:

            def fetching(have_bytes: int, want_bytes: int) -> None:
                nonlocal most_bytes
                if have_bytes > most_bytes:
                    most_bytes = have_bytes
                    limit.reschedule(loop.time() + PAUSE_S)
                progress(f"{node[:10]} fetches its layers: {have_bytes / 1e6:.0f} of {want_bytes / 1e6:.0f} MB")

            return await _named(node, lease.ready(fetching))
    except TimeoutError:
        raise WorkerLost(f"it is not ready, and fetched nothing for {PAUSE_S:.0f} s", node=node) from None


async def _named(node: str, work: Awaitable[Result]) -> Result:
    """The result, or the error with the worker's name."""
    try:
        return await work
    except (MeshnodeError, OSError) as reason:
        words = reason.message if isinstance(reason, MeshnodeError) else str(reason)
        raise WorkerLost(words, node=node) from reason


async def _all(works: Sequence[Awaitable[Result]]) -> list[Result]:
    """All results side by side. The first failure cancels the others and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
