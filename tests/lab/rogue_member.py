"""A member that keeps to the rules of the mesh and breaks those of splits, as a worker or as a host.

It is made of the node's own parts and lives in the test's process: a real mesh, a real book of leases, and the worker's
end of a tunnel before a fake rpc-server. What it does otherwise than it should is its `conduct`:

    async with rogue_member(folder, token, rpc_version=version) as member:
        member.worker(Stalls)                          # and now it waits to be asked
        lease = await member.ask(node, plan)           # or it asks itself
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from meshnode.identity import NodeId, load_or_create, verify
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.options import MeshOptions
from meshnode.mesh.tunnel import TunnelReply
from meshnode.mesh.tunnel_request import TunnelRequest
from meshnode.mesh.vault import Vault
from meshnode.net.stream import MeshStream
from meshnode.rpc.facts import DeviceFacts, WorkerFacts
from meshnode.rpc.held_lease import HeldLease
from meshnode.rpc.leases import LeaseBook
from meshnode.rpc.work import LeaseLimits, Progress
from meshnode.wire import invites
from meshnode.wire.registry import Role, RpcKind, StreamType
from meshnode.wire.splits import LeaseAsk, open_header
from meshnode.wire.statements import Device, Dynamic

MUCH_BYTES = 64 << 30
FAST = Device("host", MUCH_BYTES, MUCH_BYTES, 100_000, 1)
"""What it boasts: much memory, and the fastest there is."""
ASK_S = 10.0


class Conduct:
    """What a rogue worker does under one lease: the work of rpc/work.py, honest but for what a subclass changes."""

    def __init__(self, member: RogueMember, ask: LeaseAsk) -> None:
        self.member = member
        self.ask = ask
        self.has_weights = True
        hello = member.rpc_version.to_bytes(3, "big") + bytes(25)
        self.facts = WorkerFacts(hello, (DeviceFacts(32, 1 << 62, MUCH_BYTES, MUCH_BYTES),))

    async def prepare(self, progress: Progress) -> None:
        """It has everything."""

    async def serve_tunnel(self, stream: MeshStream) -> None:
        """Take what comes, and answer nothing."""
        while await stream.read(1 << 16):
            pass

    async def serve_push(self, stream: MeshStream, peer: bytes) -> None:
        """As a tunnel."""
        await self.serve_tunnel(stream)

    async def failure(self) -> str:
        """Never."""
        await asyncio.Event().wait()
        return ""

    async def close(self) -> None:
        """There is nothing to free."""


class RogueMember:
    """See the module. `asked` are the leases that it was asked for."""

    def __init__(self, mesh: Mesh, node: bytes, rpc_version: int) -> None:
        self.mesh = mesh
        self.node = node
        self.rpc_version = rpc_version
        self.asked: list[LeaseAsk] = []
        self.book: LeaseBook
        self._conduct: Callable[[RogueMember, LeaseAsk], Conduct] = Conduct

    @property
    def short(self) -> str:
        """Its id as people see it."""
        return self.node.hex()[:10]

    def worker(self, conduct: Callable[[RogueMember, LeaseAsk], Conduct], *, device: Device = FAST) -> None:
        """Say that it lends this device; whoever asks for a lease gets one of this conduct."""
        self._conduct = conduct
        self.mesh.publish(Dynamic(devices=(device,), rpc=self.rpc_version))

    async def grant(self, host: bytes, ask: LeaseAsk, plan: bytes) -> Conduct:
        """Grant everything."""
        self.asked.append(ask)
        return self._conduct(self, ask)

    async def open(self, node: bytes, kind: RpcKind, plan: bytes) -> MeshStream:
        """A stream of a split to another node."""
        return await self.mesh.open_stream(node, StreamType.RPC, open_header(kind, plan))

    def ask_for(self, node: bytes, **changed: object) -> LeaseAsk:
        """What an honest host would ask of a worker, with changes."""
        ask = LeaseAsk(
            term=1,
            model="rogue",
            sha256=b"s" * 32,
            size_bytes=1 << 20,
            stage=0,
            first_layer=0,
            layers=2,
            needed_bytes=16 << 20,
            workers=(node,),
            rpc_version=self.rpc_version,
        )
        return replace(ask, **changed)  # type: ignore[arg-type]

    async def ask(self, node: bytes, plan: bytes, lost: Callable[[str], None], **changed: object) -> HeldLease:
        """A lease from that node, ready. Raises as HeldLease.ask."""
        lease = await HeldLease.ask(
            partial(self.open, node, RpcKind.LEASE, plan),
            plan,
            self.ask_for(node, **changed),
            lost=lost,
            leaving=lambda: None,
            timeout_s=ASK_S,
        )
        async with asyncio.timeout(ASK_S):
            await lease.ready()
        return lease


@asynccontextmanager
async def rogue_member(
    folder: Path, token: str, *, rpc_version: int, name: str = "rogue"
) -> AsyncIterator[RogueMember]:
    """A member with a key of its own, that came in with an invite; gone at the end."""
    home = folder / name
    identity = await asyncio.to_thread(load_or_create, home / "node.key")
    vault = await asyncio.to_thread(Vault, home / "mesh", identity)

    async def answer(request: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(404, [])
        await reply.finish()

    async def serve(stream: MeshStream, header: bytes, role: Role | None) -> None:
        await member.book.serve(stream, header, role)

    mesh = await Mesh.start(
        vault=vault,
        identity=identity,
        role=Role.MEMBER,
        options=MeshOptions("127.0.0.1", 0, name, "rogue"),
        answer=answer,
        admitted=(),
        handlers={StreamType.RPC: serve},
    )
    member = RogueMember(mesh, bytes(identity.node_id), rpc_version)
    limits = LeaseLimits(asks_burst=1000, asks_per_s=1000.0)
    member.book = LeaseBook(member.node, member.grant, limits=limits)
    try:
        raw = invites.to_bytes(token)
        await mesh.join(invites.read(raw, lambda key, signed, said: verify(NodeId(key), signed, said)), raw)
        yield member
    finally:
        await member.book.close()
        await mesh.close()
