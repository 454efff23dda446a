"""What this node lends to splits that others host: memory, devices, an rpc-server for each lease, and weights for it.

`rpc/leases.py` keeps the leases; here is decided whether this node can grant one, and what a granted one works with: a
sandboxed rpc-server of its own (engine), the worker's end of the tunnels (rpc), and the tensors on this disk (models).
Memory is promised before anything starts, and a promise counts until all of it has been freed; nothing here waits in
the event loop for a disk or a process.

An rpc-server serves one lease and is ended with it (engine/rpc_pool.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from meshnode.config import Places, Settings
from meshnode.core.placement import HOST
from meshnode.core.promises import Promises, needs_of
from meshnode.engine.halves import Halves, load_halves
from meshnode.engine.installed import Engine
from meshnode.engine.rpc_pool import PoolParts, RpcPool, RunningServer, Server, Wanted
from meshnode.engine.rpc_server import RpcFacts, RpcServer, RpcServerParts
from meshnode.errors import MeshnodeError
from meshnode.hardware import Inventory
from meshnode.net.stream import MeshStream
from meshnode.planning import budget_of, threads_of
from meshnode.rpc.facts import DeviceFacts, References, WorkerFacts
from meshnode.rpc.leases import LeaseBook, LeaseView
from meshnode.rpc.work import LeaseLimits, LeaseRefusal, Progress
from meshnode.rpc.worker_end import WorkerEnd
from meshnode.telemetry import LOG
from meshnode.wire.registry import LeaseCode, Role, RpcKind
from meshnode.wire.splits import LeaseAsk, open_header, understands, version_number

PUSH_PRIORITY = 8
"""That of tunnels: a token waits for both."""
END_S = 0.5
"""How long a tunnel may take to say why it ends, so that a whole lease ends within a second."""
STARTING_RETRY_S = 5

OpenStream = Callable[[bytes, bytes, int], Awaitable[MeshStream]]
"""(node, header, priority) -> an `rpc` stream to that node. Raises NetworkError, OSError."""


class Held(References, Protocol):
    """References that know which tensors of the model there are, and which of them are whole on this disk."""

    @property
    def tensors(self) -> tuple[str, ...]: ...
    def is_whole(self, tensor: str) -> bool: ...


class End(Protocol):
    """What is needed of the worker's end of a lease."""

    async def serve_tunnel(self, stream: MeshStream) -> None: ...
    async def serve_push(self, stream: MeshStream, peer: bytes) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LendingParts:
    """What Lending is made of.

    `taken` gives what this node's own models hold, in bytes by device (HOST: main memory). `references` finds the
    tensors of a model on this disk by its SHA-256 and the digest of its manifest, blocking; `fetch` gets those of the
    layers that a lease is about, from `host` or elsewhere, and raises MeshnodeError. `name_of`: how a node is called.
    """

    node: bytes
    settings: Settings
    places: Places
    environ: Mapping[str, str]
    open_stream: OpenStream
    taken: Callable[[], Mapping[str, int]]
    references: Callable[[bytes, bytes], Held | None]
    fetch: Callable[[LeaseAsk, bytes, Progress], Awaitable[None]]
    name_of: Callable[[bytes], str] = lambda node: node.hex()[:10]
    changed: Callable[[], None] = lambda: None
    server: Callable[[RpcServerParts], Server] = RpcServer
    end: Callable[..., End] = WorkerEnd
    limits: LeaseLimits = LeaseLimits()


class Lending:
    """The worker's side of this node. All methods run in the event loop; `equip` first, `stop` last."""

    def __init__(self, parts: LendingParts) -> None:
        self.parts = parts
        self._engine: Engine | None = None
        self._inventory: Inventory | None = None
        self._halves: asyncio.Task[Halves | None] | None = None
        self._promises = Promises()
        self._stopping = False
        self._pool = RpcPool(
            PoolParts(
                run_dir=parts.places.home / "run",
                logs=parts.places.logs,
                environ=parts.environ,
                server=parts.server,
            )
        )
        self.book = LeaseBook(parts.node, self._grant, changed=parts.changed, limits=parts.limits)

    def equip(self, engine: Engine, inventory: Inventory) -> None:
        """The engine whose rpc-server is lent, and the devices of this machine."""
        self._engine, self._inventory = engine, inventory
        if self._halves is None:
            self._halves = asyncio.create_task(asyncio.to_thread(load_halves, engine.folder), name="load halves")

    async def serve(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """Serve an `rpc` stream of a peer: a handler of the mesh."""
        await self.book.serve(stream, header, role)

    async def stop(self, drain_s: float) -> None:
        """Ask the hosts to replace this node, wait for them at most `drain_s` seconds, and end what is left."""
        self._stopping = True
        self.book.announce_leaving()
        if drain_s > 0:
            await self.book.drained(drain_s)
        await self._pool.close()
        await self.book.close()
        if self._halves is not None:
            await asyncio.gather(self._halves, return_exceptions=True)

    # --- what others may know -----------------------------------------------------------------------------------

    @property
    def rpc_version(self) -> int:
        """What the dynamic statement says: the version of the engine's RPC, 0 while this node lends nothing."""
        return 0 if self.why_not() else self._version()

    def why_not(self) -> str:
        """Why this node lends nothing, in words; "" when it does."""
        engine = self._engine
        if not self.parts.settings.lend:
            return "this node does not lend its memory (--no-lend)"
        if self._stopping:
            return "this node is leaving"
        if engine is None or self._inventory is None:
            return "the engine of this node is not ready yet"
        if engine.rpc_server is None or not self._version():
            return "the engine of this node has no rpc-server"
        return ""

    def usable_bytes(self) -> dict[str, int]:
        """What could be promised now, by device (HOST: main memory), after this node's models and all leases."""
        if self._inventory is None:
            return {}
        unified = [device.id for device in self._inventory.accelerators if device.kind == "unified"]
        budget = budget_of(self._inventory, self.parts.settings)
        return self._promises.usable_bytes(budget, taken=self.parts.taken(), unified=unified)

    def taken_bytes(self) -> dict[str, int]:
        """What all leases were promised, by device: own models must do without it."""
        return self._promises.total_bytes()

    def facts(self) -> dict[str, Any]:
        """For /api/status."""
        version = self._version()
        return {
            "lends": not self.why_not(),
            "why_not": self.why_not(),
            "rpc_version": _version_words(version) if version else None,
            "leases": [self._lease_facts(view) for view in self.book.leases()],
        }

    def _lease_facts(self, view: LeaseView) -> dict[str, Any]:
        ask = view.ask
        return {
            "host": view.host.hex(),
            "host_name": self.parts.name_of(view.host),
            "plan": view.plan.hex(),
            "model": ask.model,
            "state": view.state,
            "stage": ask.stage,
            "stages": len(ask.workers),
            "first_layer": ask.first_layer,
            "layers": ask.layers,
            "bytes": ask.needed_bytes,
            "devices": self._promises.of(view.plan),
            "since": view.since,
            "have_bytes": view.have_bytes,
            "want_bytes": view.want_bytes,
            "tunnels": view.tunnels,
        }

    def _version(self) -> int:
        version = self._engine.rpc_version if self._engine else None
        return int.from_bytes(bytes(version), "big") if version else 0

    # --- granting -----------------------------------------------------------------------------------------------

    async def _grant(self, host: bytes, ask: LeaseAsk, plan: bytes) -> LentWork:
        """The work of a lease, begun. Raises LeaseRefusal, MeshnodeError; nothing is left then."""
        self._judge(ask)
        engine, inventory, settings = self._engine, self._inventory, self.parts.settings
        assert engine is not None and engine.rpc_server is not None and inventory is not None
        needs = self._needs(ask)
        self._promise(plan, needs)
        running: RunningServer | None = None
        try:
            gpus = tuple(name for name in needs if name != HOST)
            limit_bytes = None if gpus else ask.needed_bytes
            wanted = Wanted(engine.rpc_server, gpus, threads_of(inventory, settings), limit_bytes)
            running = await self._pool.take(host, wanted)
            _check_facts(running.server.facts, needs, self._version())
            held = await asyncio.to_thread(self.held, ask)
            return LentWork(self, host, ask, plan, running, held)
        except BaseException:
            await self.free(plan, host, running)
            raise

    def held(self, ask: LeaseAsk) -> Held | None:
        """The tensors of a model that are on this disk; None when there are none, or they cannot be read. Blocks."""
        try:
            return self.parts.references(ask.sha256, ask.manifest)
        except (MeshnodeError, OSError) as error:
            LOG.warning("the files of %s cannot be used: %s", ask.model, error)
            return None

    async def free(self, plan: bytes, host: bytes, running: RunningServer | None) -> None:
        """A lease is over: end its rpc-server; its memory may be promised again then."""
        try:
            if running is not None:
                await self._pool.end(running, host)
        finally:
            self._promises.end(plan)
            self.parts.changed()

    def _judge(self, ask: LeaseAsk) -> None:
        if not self.parts.settings.lend:
            raise LeaseRefusal(LeaseCode.NOT_LENT)
        if why := self.why_not():
            starting = self._engine is None or self._inventory is None
            raise LeaseRefusal(LeaseCode.NO_ENGINE, why, retry_after_s=STARTING_RETRY_S if starting else 0)
        mine = self._version()
        if not understands(mine, ask.rpc_version):
            words = (
                f"its engine speaks llama.cpp RPC {_version_words(mine)}, the host's {_version_words(ask.rpc_version)}"
            )
            raise LeaseRefusal(LeaseCode.OTHER_VERSION, words)

    def _needs(self, ask: LeaseAsk) -> dict[str, int]:
        """Bytes by device. Raises LeaseRefusal for what makes no sense."""
        # The order of the statement, by which hosts count devices: GPUs, or the processor where there is none.
        gpus = [name for name in self.usable_bytes() if name != HOST]
        needs = needs_of(ask.devices, ask.needed_bytes, gpus or [HOST])
        if needs is None:
            raise LeaseRefusal(LeaseCode.BAD_ASK, "it names devices that are not lent here, or more than it needs")
        return needs

    def _promise(self, plan: bytes, needs: Mapping[str, int]) -> None:
        """Keep the memory. Raises LeaseRefusal, which says how much there is."""
        shortage = self._promises.make(plan, needs, self.usable_bytes())
        if shortage is not None:
            raise _no_memory(shortage.device, shortage.needed_bytes, shortage.free_bytes, shortage.all_free_bytes)

    # --- what a work needs --------------------------------------------------------------------------------------

    async def make_end(self, work: LentWork) -> End:
        """The worker's end of a lease whose weights are as far as they will be."""
        server, ask = work.running.server, work.ask
        assert self._halves is not None
        halves = await asyncio.shield(self._halves)
        return self.parts.end(
            port=server.port,
            facts=work.facts,
            workers=ask.workers,
            stage=ask.stage,
            limit_bytes=ask.needed_bytes,
            references=work.held,
            open_push=partial(self._open_push, work.plan),
            working=server.working,
            to_half=halves.to_half if halves else None,
            from_half=halves.from_half if halves else None,
            failed=work.running.fail,
        )

    async def _open_push(self, plan: bytes, node: bytes) -> MeshStream:
        return await self.parts.open_stream(node, open_header(RpcKind.PUSH, plan), PUSH_PRIORITY)


class LentWork:
    """What one lease works with: a Work of rpc/work.py, made by Lending."""

    def __init__(
        self, lending: Lending, host: bytes, ask: LeaseAsk, plan: bytes, running: RunningServer, held: Held | None
    ) -> None:
        self.host = host
        self.ask = ask
        self.plan = plan
        self.running = running
        self.held = held
        self.has_weights = _has_layers(held, ask)
        self.facts = _facts(running.server.facts)
        self._lending = lending
        self._end: End | None = None

    async def prepare(self, progress: Progress) -> None:
        """Fetch what is missing. What cannot be had the host has to send."""
        ask = self.ask
        if not self.has_weights:
            try:
                await self._lending.parts.fetch(ask, self.host, progress)
            except (MeshnodeError, OSError) as error:
                LOG.info("the host has to send its layers of %s: %s", ask.model, error)
            self.held = await asyncio.to_thread(self._lending.held, ask)
            self.has_weights = _has_layers(self.held, ask)
        self._end = await self._lending.make_end(self)

    async def serve_tunnel(self, stream: MeshStream) -> None:
        """Serve a tunnel of the host."""
        assert self._end is not None, "streams come after prepare()"
        await self._end.serve_tunnel(stream)

    async def serve_push(self, stream: MeshStream, peer: bytes) -> None:
        """Take the pushes of an earlier worker."""
        assert self._end is not None, "streams come after prepare()"
        await self._end.serve_push(stream, peer)

    async def failure(self) -> str:
        """Wait until the rpc-server has broken."""
        return await self.running.failure()

    async def close(self) -> None:
        """End tunnels, then the process; the memory is free then."""
        try:
            if self._end is not None:
                async with asyncio.timeout(END_S):
                    await self._end.close()
        except TimeoutError:
            LOG.warning("a tunnel of %s did not end in time", self.ask.model)
        finally:
            self.held = None
            await self._lending.free(self.plan, self.host, self.running)


def _has_layers(held: Held | None, ask: LeaseAsk) -> bool:
    """Whether every tensor of the layers is whole on this disk (tensors of layer n are named blk.n.*)."""
    if held is None:
        return False
    layers = {str(layer) for layer in range(ask.first_layer, ask.first_layer + ask.layers)}
    wanted = [name for name in held.tensors if name.startswith("blk.") and name.split(".", 2)[1] in layers]
    return {name.split(".", 2)[1] for name in wanted} == layers and all(map(held.is_whole, wanted))


def _check_facts(facts: RpcFacts, needs: Mapping[str, int], version: int) -> None:
    """What was planned with, against what the rpc-server says. Raises LeaseRefusal."""
    if version_number(facts.hello) != version:
        raise LeaseRefusal(LeaseCode.OTHER_VERSION, "the rpc-server of this node is not the one of its engine")
    if len(facts.devices) != max(1, len([name for name in needs if name != HOST])):
        raise LeaseRefusal(LeaseCode.NO_ENGINE, "the rpc-server does not have the devices of this node")
    for (name, needed), device in zip(needs.items(), facts.devices, strict=True):
        # For the processor it reports what the machine has, whatever this node may take of it.
        if name != HOST and needed > device.free_bytes:
            raise _no_memory(name, needed, device.free_bytes, sum(each.free_bytes for each in facts.devices))


def _no_memory(device: str, needed_bytes: int, free_bytes: int, all_free_bytes: int) -> LeaseRefusal:
    where = "main memory" if device == HOST else device
    words = f"{_gigabytes(needed_bytes)} of {where} are needed, {_gigabytes(free_bytes)} are free"
    return LeaseRefusal(LeaseCode.NO_MEMORY, words, free_bytes=all_free_bytes)


def _facts(facts: RpcFacts) -> WorkerFacts:
    devices = (DeviceFacts(each.alignment, each.max_size, each.free_bytes, each.total_bytes) for each in facts.devices)
    return WorkerFacts(facts.hello, tuple(devices))


def _version_words(number: int) -> str:
    return ".".join(map(str, number.to_bytes(4, "big")[1:]))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
