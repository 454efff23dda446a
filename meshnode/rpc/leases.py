"""The worker's side of leases: who this node works for, and what belongs to whom (protocol/09-splits.md).

Theory of operation. A lease is a stream, and everything of it hangs on two tasks: one reads the stream, so that the
host's end or loss is known at once; the other asks for the work, prepares it, and watches over it. Whichever ends first
ends the lease, and always in one order: no new streams, then tunnels and pushes, then the work itself, then FIN, by
which the host knows that the memory is free. A plan is known here from the ask to that moment, and its place counts for
as long.

What the work is (an rpc-server, memory, weights) is `grant`'s business; it is handed in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from meshnode.core.budget import Bucket
from meshnode.errors import MeshnodeError
from meshnode.net.stream import MeshStream
from meshnode.rpc.lease_stream import LeaseStream
from meshnode.rpc.work import Grant, LeaseLimits, LeaseRefusal, Work, ended, granted, refused
from meshnode.telemetry import LOG
from meshnode.wire.registry import LeaseCode, Reset, Role, RpcKind
from meshnode.wire.splits import (
    LeaseAsk,
    LeaseEnd,
    LeaseLeaving,
    LeaseReady,
    LeaseRefused,
    LeaseWeights,
    read_header,
)
from meshnode.wire.values import WireError

State = Literal["starting", "fetching", "ready", "ending"]


@dataclass(frozen=True, slots=True)
class LeaseView:
    """One lease, as it is shown. `since` is wall time in seconds; bytes are those of the weights that are fetched."""

    host: bytes
    plan: bytes
    ask: LeaseAsk
    state: State
    since: float
    have_bytes: int
    want_bytes: int
    tunnels: int


class _Lease:
    """One lease from its ask to its end."""

    def __init__(self, host: bytes, plan: bytes, ask: LeaseAsk, messages: LeaseStream, now: float) -> None:
        self.host = host
        self.plan = plan
        self.ask = ask
        self.messages = messages
        self.work: Work | None = None
        self.state: State = "starting"
        self.since = time.time()
        self.have_bytes = self.want_bytes = 0
        self.idle_since = now
        self.streams: dict[asyncio.Task[None], tuple[RpcKind, bytes]] = {}
        self.stop = asyncio.Event()
        """Set when this side wants the lease to end without a fault of the work."""
        self.stop_reason = LeaseEnd()
        self.over = asyncio.Event()

    def open(self, kind: RpcKind, peer: bytes | None = None) -> int:
        """How many streams of a kind are open or waiting."""
        return sum(1 for known, other in self.streams.values() if known is kind and peer in (None, other))

    def end(self, code: LeaseCode, words: str = "") -> None:
        """End it from this side."""
        self.stop_reason = ended(code, words)
        self.stop.set()

    def earlier(self, peer: bytes) -> bool:
        """Whether a node stands before this one in the pipeline."""
        return peer in self.ask.workers[: self.ask.stage]

    def view(self) -> LeaseView:
        return LeaseView(
            self.host,
            self.plan,
            self.ask,
            self.state,
            self.since,
            self.have_bytes,
            self.want_bytes,
            self.open(RpcKind.TUNNEL),
        )


class LeaseBook:
    """All leases of this node. `serve` takes every stream of the type `rpc`; `changed` is called when `leases` has."""

    def __init__(
        self,
        node: bytes,
        grant: Grant,
        *,
        changed: Callable[[], None] = lambda: None,
        limits: LeaseLimits | None = None,
    ) -> None:
        self._node = node
        self._grant = grant
        self._changed = changed
        self._limits = limits or LeaseLimits()
        self._leases: dict[bytes, _Lease] = {}
        self._asks: dict[bytes, Bucket] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._empty = asyncio.Event()
        self._empty.set()

    # --- what the node asks and tells ---------------------------------------------------------------------------

    def leases(self) -> tuple[LeaseView, ...]:
        """Every lease that holds a place, the oldest first."""
        return tuple(lease.view() for lease in self._leases.values())

    def announce_leaving(self) -> None:
        """Ask every host to replace this node, and refuse new leases. What runs goes on."""
        self._leaving = True
        for lease in self._leases.values():
            if lease.work is not None:
                lease.messages.send(LeaseLeaving())

    async def drained(self, timeout_s: float) -> bool:
        """Wait until the hosts have ended their leases. False when they have not in that time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End every lease, in order, and refuse what comes. Idempotent."""
        self._leaving = True
        for lease in self._leases.values():
            lease.end(LeaseCode.LEAVING)
        while self._leases or self._endings:
            await asyncio.gather(*(lease.over.wait() for lease in self._leases.values()), *self._endings)

    # --- streams ------------------------------------------------------------------------------------------------

    async def serve(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """Serve one `rpc` stream until it ends."""
        if role is not Role.MEMBER:
            stream.reset(Reset.REFUSED)
            return
        try:
            kind, plan = read_header(header)
        except WireError:
            stream.reset(Reset.MALFORMED)
            return
        if kind == RpcKind.LEASE:
            await self._serve_lease(stream, plan)
        elif kind in (RpcKind.TUNNEL, RpcKind.PUSH):
            await self._serve_stream(stream, RpcKind(kind), plan)
        else:
            stream.reset(Reset.UNKNOWN_TYPE)

    async def _serve_stream(self, stream: MeshStream, kind: RpcKind, plan: bytes) -> None:
        """A tunnel or a push of a plan in force."""
        peer, lease = bytes(stream.link.peer), self._leases.get(plan)
        if lease is None or lease.work is None or lease.state != "ready":
            stream.reset(Reset.REFUSED)
            return
        if peer != lease.host if kind is RpcKind.TUNNEL else not lease.earlier(peer):
            stream.reset(Reset.REFUSED)
            return
        tunnel = kind is RpcKind.TUNNEL
        if lease.open(kind, peer) >= (self._limits.tunnels if tunnel else self._limits.pushes):
            stream.reset(Reset.OVERLOAD)
            return
        serving = lease.work.serve_tunnel(stream) if tunnel else lease.work.serve_push(stream, peer)
        # A task of its own: it is cancelled with the lease, however it waits.
        task = asyncio.ensure_future(serving)
        lease.streams[task] = kind, peer
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            lease.streams.pop(task, None)
            lease.idle_since = asyncio.get_running_loop().time()
            if task.cancelled() or not task.done():
                stream.reset(Reset.CANCELLED)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    # --- leases -------------------------------------------------------------------------------------------------

    async def _serve_lease(self, stream: MeshStream, plan: bytes) -> None:
        messages, host = LeaseStream(stream), bytes(stream.link.peer)
        try:
            async with asyncio.timeout(self._limits.ask_s):
                ask = await messages.receive()
            if not isinstance(ask, LeaseAsk):
                raise WireError("a lease stream without an ask")
        except TimeoutError:
            stream.reset(Reset.TOO_SLOW)
            return
        except WireError as error:
            LOG.debug("the lease stream of %s: %s", host.hex()[:10], error.reason)
            stream.reset(Reset.MALFORMED)
            return
        try:
            await self._judge(host, plan, ask)
        except LeaseRefusal as refusal:
            messages.send(refused(refusal))
            messages.finish()
            return
        lease = _Lease(host, plan, ask, messages, asyncio.get_running_loop().time())
        self._leases[plan] = lease
        self._empty.clear()
        self._changed()
        try:
            await self._run(lease)
        finally:
            ending = asyncio.create_task(self._close_lease(lease), name="end of a lease")
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            await asyncio.shield(ending)

    async def _judge(self, host: bytes, plan: bytes, ask: LeaseAsk) -> None:
        """Whether a lease may be granted at all. Raises LeaseRefusal."""
        limits, now = self._limits, asyncio.get_running_loop().time()
        if self._leaving:
            raise LeaseRefusal(LeaseCode.LEAVING)
        if not self._bucket(host, now).take(1, now):
            wait_s = round(1 / limits.asks_per_s)
            raise LeaseRefusal(
                LeaseCode.TOO_OFTEN, f"more asks than one in {wait_s} s: try again later", retry_after_s=wait_s
            )
        if ask.stage >= len(ask.workers) or ask.workers[ask.stage] != self._node:
            raise LeaseRefusal(LeaseCode.BAD_ASK, "this node does not stand at that place of the plan")
        if not ask.layers or len(set(ask.workers)) < len(ask.workers) or host in ask.workers:
            raise LeaseRefusal(LeaseCode.BAD_ASK, "a plan without layers, or with a node in two places")
        former = self._leases.get(plan)
        if former is not None and former.host != host:
            raise LeaseRefusal(LeaseCode.TAKEN)
        if former is not None:
            former.end(LeaseCode.RELEASED, "the host has asked anew")
            await former.over.wait()
            if plan in self._leases:
                raise LeaseRefusal(LeaseCode.TAKEN)
        if sum(lease.host == host for lease in self._leases.values()) >= limits.leases_a_host:
            raise LeaseRefusal(LeaseCode.TOO_MANY, f"it holds {limits.leases_a_host} leases for this host already")
        if len(self._leases) >= limits.leases:
            raise LeaseRefusal(LeaseCode.TOO_MANY)

    def _bucket(self, host: bytes, now: float) -> Bucket:
        found = self._asks.pop(host, None) or Bucket(self._limits.asks_per_s, self._limits.asks_burst, now)
        self._asks[host] = found
        while len(self._asks) > self._limits.hosts:
            del self._asks[next(iter(self._asks))]
        return found

    async def _run(self, lease: _Lease) -> None:
        """Until one side ends the lease. What this side ends it with is said before anything is closed."""
        host = asyncio.create_task(self._until_released(lease), name="lease of a host")
        work = asyncio.create_task(self._until_broken(lease), name="work of a lease")
        stop = asyncio.create_task(lease.stop.wait(), name="stop of a lease")
        tasks = (host, work, stop)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not host.cancelled():
            if isinstance(host.exception(), WireError):
                lease.messages.stream.reset(Reset.MALFORMED)
        elif not work.cancelled():
            said = work.result()
            lease.messages.send(said)
            LOG.info("the lease for %s ends: %s", lease.ask.model, said.text or said.code)
        else:
            end = lease.stop_reason
            lease.messages.send(end if lease.work else LeaseRefused(end.code, end.text))

    async def _until_released(self, lease: _Lease) -> None:
        """Read the host's side to its end: nothing but an end may come. Raises WireError, OSError."""
        message = await lease.messages.receive()
        if not isinstance(message, LeaseEnd | None):
            raise WireError(f"a {type(message).__name__} of a host that has a lease")

    async def _until_broken(self, lease: _Lease) -> LeaseEnd | LeaseRefused:
        """Begin the work, prepare it, watch it. Returns what is to be said to the host."""
        limits = self._limits
        try:
            async with asyncio.timeout(limits.grant_s):
                lease.work = work = await self._grant(lease.host, lease.ask, lease.plan)
        except LeaseRefusal as refusal:
            return refused(refusal)
        except TimeoutError:
            return refused(LeaseRefusal(LeaseCode.TOO_SLOW, f"the rpc-server took longer than {limits.grant_s:.0f} s"))
        except MeshnodeError as error:
            return refused(LeaseRefusal(LeaseCode.NO_ENGINE, error.message))
        except Exception as error:
            LOG.exception("a lease for %s failed", lease.ask.model)
            return refused(LeaseRefusal(LeaseCode.NO_ENGINE, f"a fault of the node ({type(error).__name__})"))
        lease.state = "fetching"
        lease.messages.send(granted(work))
        if self._leaving:
            lease.messages.send(LeaseLeaving())
        self._changed()
        failure = asyncio.create_task(work.failure(), name="failure of a lease")
        ready = asyncio.create_task(self._prepare(lease, work), name="preparation of a lease")
        try:
            await asyncio.wait({failure, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not failure.done():
                if (end := ready.result()) is not None:
                    return end
                lease.state = "ready"
                lease.idle_since = asyncio.get_running_loop().time()
                lease.messages.send(LeaseReady(work.has_weights))
                self._changed()
                if await self._is_idle(lease, failure):
                    return ended(LeaseCode.IDLE)
            return ended(LeaseCode.CRASHED, failure.result())
        except Exception as error:
            LOG.exception("the work of a lease for %s failed", lease.ask.model)
            return ended(LeaseCode.CRASHED, f"a fault of the node ({type(error).__name__})")
        finally:
            failure.cancel()
            ready.cancel()
            await asyncio.gather(failure, ready, return_exceptions=True)

    async def _prepare(self, lease: _Lease, work: Work) -> LeaseEnd | None:
        """Get the weights, and tell the host how far that is. None when all is there."""
        loop, limits = asyncio.get_running_loop(), self._limits
        told_at = -limits.news_s
        try:
            async with asyncio.timeout(limits.prepare_pause_s) as limit:

                def progress(have_bytes: int, want_bytes: int) -> None:
                    nonlocal told_at
                    if have_bytes > lease.have_bytes:
                        limit.reschedule(loop.time() + limits.prepare_pause_s)
                    lease.have_bytes, lease.want_bytes = have_bytes, want_bytes
                    if loop.time() - told_at >= limits.news_s:
                        told_at = loop.time()
                        lease.messages.send(LeaseWeights(have_bytes, want_bytes))
                        self._changed()

                await work.prepare(progress)
        except TimeoutError:
            return ended(LeaseCode.TOO_SLOW, f"no byte of the weights came for {limits.prepare_pause_s:.0f} s")
        except MeshnodeError as error:
            return ended(LeaseCode.NO_WEIGHTS, error.message)
        return None

    async def _is_idle(self, lease: _Lease, failure: asyncio.Task[str]) -> bool:
        """Wait for the failure of the work (False), or until no tunnel was open for too long (True)."""
        loop, idle_s = asyncio.get_running_loop(), self._limits.idle_s
        while True:
            since = loop.time() if lease.open(RpcKind.TUNNEL) else lease.idle_since
            if (left_s := since + idle_s - loop.time()) <= 0:
                return True
            await asyncio.wait({failure}, timeout=left_s)
            if failure.done():
                return False

    async def _close_lease(self, lease: _Lease) -> None:
        """The one order in which everything ends. `state` keeps new streams out."""
        lease.state = "ending"
        tasks = list(lease.streams)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if lease.work is not None:
            try:
                await lease.work.close()
            except Exception:
                LOG.exception("what a lease for %s held may not be free", lease.ask.model)
        lease.messages.finish()
        del self._leases[lease.plan]
        lease.over.set()
        if not self._leases:
            self._empty.set()
        self._changed()
