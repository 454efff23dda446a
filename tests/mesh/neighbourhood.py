"""Several whole meshes in one event loop, over real sockets on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from meshnode.api.upstream import Exchange
from meshnode.core.effects import Member
from meshnode.identity import NodeId, load_or_create, verify
from meshnode.mesh.mesh import Mesh, MeshLimits, MeshOptions, PairStream
from meshnode.mesh.tunnel import Answer, TunnelReply
from meshnode.mesh.tunnel_request import TunnelRequest
from meshnode.mesh.vault import Vault
from meshnode.wire import invites
from meshnode.wire.invites import Invite
from meshnode.wire.registry import LIMIT_INVITE_TTL_S, Role
from meshnode.wire.statements import ModelState, Offer

PATH = "/v1/chat/completions"
ADMITTED = frozenset({("POST", PATH)})
PATIENCE_S = 15.0


def offer(name: str) -> Offer:
    """A model that is ready."""
    return Offer(name=name, content_hash=bytes(16), state=ModelState.READY, context=4096, slots=4)


def check(key: bytes, signature: bytes, message: bytes) -> bool:
    """`identity.verify` for plain bytes."""
    return verify(NodeId(key), signature, message)


class Resident:
    """One node: a home folder, and a Mesh while it is started. By default it answers with its name and the body."""

    def __init__(self, home: Path, name: str, role: Role, limits: MeshLimits | None = None) -> None:
        self.name = name
        self.role = role
        self.limits = limits
        self.identity = load_or_create(home / "node.key")
        self.id = self.identity.node_id
        self.vault = Vault(home / "mesh", self.identity)
        self.home = home
        self.requests: list[TunnelRequest] = []
        self.answer: Answer = self.echo
        self.pair: PairStream | None = None
        self.relay = False
        self.changes = asyncio.Event()
        self._mesh: Mesh | None = None

    @property
    def mesh(self) -> Mesh:
        assert self._mesh is not None
        return self._mesh

    async def echo(self, request: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [("content-type", "text/plain")])
        await reply.body(self.name.encode() + b":")
        await reply.body(request.body)
        await reply.finish()

    async def _answer(self, request: TunnelRequest, reply: TunnelReply) -> None:
        self.requests.append(request)
        await self.answer(request, reply)

    async def start(self, port: int = 0) -> Resident:
        self._mesh = await Mesh.start(
            vault=self.vault,
            identity=self.identity,
            role=self.role,
            options=MeshOptions("127.0.0.1", port, self.name, "test", relay=self.relay),
            answer=self._answer,
            admitted=ADMITTED,
            changed=self.changes.set,
            pair=self.pair,
            limits=self.limits,
        )
        return self

    async def stop(self, drain_s: float = 0.0) -> None:
        if self._mesh is not None:
            mesh, self._mesh = self._mesh, None
            await mesh.close(drain_s=drain_s)

    async def crash(self) -> None:
        """Fall silent without a goodbye, as after `kill -9`."""
        mesh, self._mesh = self.mesh, None
        mesh._endpoint._socket.close()
        mesh._endpoint._closing = True
        await mesh.close()

    async def restart(self) -> Resident:
        """The same home after the end of the process."""
        self.vault = Vault(self.home / "mesh", self.identity)
        return await self.start()

    def invite(self, role: Role = Role.MEMBER, **more: object) -> tuple[Invite, bytes]:
        values = {"role": role, "ttl_s": LIMIT_INVITE_TTL_S, "uses": 50, "addresses": self.mesh.addresses} | more
        text, _ = self.vault.create_invite(**values)  # type: ignore[arg-type]
        token = invites.to_bytes(text)
        return invites.read(token, check), token

    async def join(self, other: Resident) -> Resident:
        await self.mesh.join(*other.invite(self.role))
        return self

    def sees(self, other: Resident) -> Member | None:
        return self.mesh.members().members.get(other.id)

    def models_of(self, other: Resident) -> list[str]:
        member = self.sees(other)
        return [] if member is None or member.dynamic is None else [found.name for found in member.dynamic.models]

    async def ask(self, other: Resident, body: bytes = b"hello", path: str = PATH) -> tuple[int, bytes]:
        """Status and body of one request through the tunnel."""
        exchange = await self.send(other, body, path)
        try:
            return exchange.status, await exchange.read_all(1 << 26)
        finally:
            exchange.close()

    async def send(self, other: Resident, body: bytes = b"hello", path: str = PATH) -> Exchange:
        return await Exchange.send(
            self.mesh.http(other.id), "POST", path, api_key="secret", body=body, content_type="text/plain"
        )

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds, looking whenever something has changed and now and then."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.changes.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changes.wait(), 0.1)


class Neighbourhood:
    """Nodes of one test; the first founds the mesh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.residents: list[Resident] = []

    def resident(self, role: Role = Role.MEMBER, limits: MeshLimits | None = None) -> Resident:
        name = f"{role.name.lower()}{len(self.residents)}"
        found = Resident(self.folder / name, name, role, limits)
        self.residents.append(found)
        return found

    async def founder(self, limits: MeshLimits | None = None) -> Resident:
        first = self.resident(limits=limits)
        first.vault.found("home")
        return await first.start()

    async def joined(self, inviter: Resident, role: Role = Role.MEMBER, limits: MeshLimits | None = None) -> Resident:
        return await (await self.resident(role, limits).start()).join(inviter)

    async def members(self, count: int) -> list[Resident]:
        """So many members that all see each other."""
        found = [await self.founder()]
        while len(found) < count:
            found.append(await self.joined(found[0]))
        await self.acquainted(found)
        return found

    async def acquainted(self, residents: Iterable[Resident]) -> None:
        everybody = list(residents)
        for one in everybody:
            others = [other for other in everybody if other is not one]
            await one.until(lambda one=one, others=others: all(_up(one.sees(other)) for other in others))


def _up(member: Member | None) -> bool:
    return member is not None and member.state == "alive" and member.linked


@asynccontextmanager
async def neighbourhood(folder: Path) -> AsyncIterator[Neighbourhood]:
    """Everybody is stopped at the end."""
    found = Neighbourhood(folder)
    try:
        yield found
    finally:
        await asyncio.gather(*(resident.stop() for resident in found.residents))


def slowly(pieces: int, pause: Callable[[], Awaitable[object]], size_bytes: int = 100) -> Answer:
    """Answers with so many pieces, and waits for `pause()` before each."""

    async def answer(_: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [("content-type", "text/plain")])
        for number in range(pieces):
            await pause()
            await reply.body(f"{number};".encode().ljust(size_bytes, b"."))
        await reply.finish()

    return answer
