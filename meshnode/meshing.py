"""This node's part in its mesh: found or join it, offer the models of this node, use those of others, and leave.

The mesh itself lives in mesh/, models in serving.py; here they meet. Everything a person can do with a mesh is a
method of `Meshing`, which is also what the control API calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from meshnode import __version__
from meshnode.api.endpoints import PEER_ENDPOINTS
from meshnode.api.record import Record
from meshnode.api.served import Served
from meshnode.config import Places, Settings
from meshnode.core.demand import DemandMeter, total
from meshnode.core.effects import Member, MembershipSnapshot
from meshnode.core.speed import SpeedMeter
from meshnode.errors import (
    AlreadyInMesh,
    InviteInvalid,
    MeshnodeError,
    NodeNotFound,
    NotInMesh,
    PortInUse,
    StateError,
)
from meshnode.identity import Identity, NodeId, short, verify
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.options import MeshOptions
from meshnode.mesh.streams import StreamHandler
from meshnode.mesh.tunnel import Answer
from meshnode.mesh.vault import Vault
from meshnode.neighbours import Neighbours
from meshnode.net.portmap import PortMapper
from meshnode.offers import (
    client_facts,
    has_replica,
    invite_facts,
    nat_facts,
    offers_of,
    peer_facts,
    served_over_mesh,
)
from meshnode.serving import Serving, Tell
from meshnode.telemetry import ProblemBoard
from meshnode.trust import Trust
from meshnode.wire import invites
from meshnode.wire.invites import Invite
from meshnode.wire.registry import LIMIT_INVITE_TTL_S, LIMIT_NAME_CHARS, Role, StreamType
from meshnode.wire.schema import showable
from meshnode.wire.statements import Dynamic, Offer
from meshnode.wire.values import WireError

SHOWN_INVITE_USES = 5
PUBLISH_PAUSE_S = 1.0
PAUSE_PER_MEMBER_S = 0.1
"""News of load are told less often in a larger mesh, so that what a node hears does not grow with it."""
REFRESH_S = 10.0


class Meshing:
    """The mesh as this node sees it. `start` before all else; methods of a node in no mesh raise NotInMesh."""

    def __init__(
        self,
        *,
        settings: Settings,
        places: Places,
        identity: Identity,
        serving: Serving,
        problems: ProblemBoard,
        tell: Tell,
        changed: Callable[[], None],
        handlers: Mapping[StreamType, StreamHandler],
        has: Callable[[], Dynamic],
        trust: Trust,
    ) -> None:
        """`handlers` serve streams of peers beside HTTP; `has` says what this node has, but for its models; `trust`
        who of the members are this node's own.
        """
        self._settings = settings
        self._identity = identity
        self._folder = places.home / "mesh"
        self._serving = serving
        self._problems = problems
        self._tell = tell
        self._changed = changed
        self._role = Role.CLIENT if settings.client else Role.MEMBER
        self._name = node_name(settings)
        self._vault: Vault | None = None
        self._mesh: Mesh | None = None
        self._neighbours: Neighbours | None = None
        self._handlers = handlers
        self._has = has
        self._trust = trust
        # A port for friends is asked for only where the owner says so: strangers' port is the public mesh's affair.
        self._mapper = PortMapper(changed=changed) if settings.port_map == "on" else None
        self._answer: Answer | None = None
        self._publisher: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._served: tuple[MembershipSnapshot, int, list[Served]] | None = None
        self.speeds = SpeedMeter()
        self.demand = DemandMeter()

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def has_where_to_go(self) -> bool:
        """Whether there is a private mesh for this node: a client that goes public alone has none."""
        settings = self._settings
        known = (self._folder / "membership").exists()
        return not settings.client or settings.join is not None or known or not settings.goes_public

    async def start(self, answer: Answer) -> None:
        """Open the UDP port and join, found, or return to a mesh.

        `answer` serves the requests of peers. Raises InviteInvalid, PeerUnreachable, PeerRefused, AlreadyInMesh,
        NotInMesh (a client without an invite), PortInUse, StateError.
        """
        self._answer = answer
        self._vault = await asyncio.to_thread(Vault, self._folder, self._identity)
        invite = self._invite_of(self._settings.join) if self._settings.join else None
        if invite is not None:
            await self._make_room(invite[0])
        elif self._vault.credentials is None:
            if self._role is Role.CLIENT:
                raise NotInMesh(
                    "--client uses the models of a mesh, and this home belongs to none",
                    fix="meshnode --client --join TOKEN; `meshnode invite` on a machine of the mesh prints one",
                )
            await asyncio.to_thread(self._vault.found, self._mesh_name())
        self._neighbours = Neighbours(
            node=self._identity.node_id,
            vault=self._vault,
            lan=self._settings.lan,
            join=self._join_by,
            changed=self._changed,
        )
        self._mesh = await self._open()
        if invite is not None:
            await self._mesh.join(*invite)
        if self._mapper is not None:
            await self._mapper.start(self._mesh.bound.port)
        self._neighbours.open(self._mesh)
        self._publisher = asyncio.create_task(self._publish(), name="publish")
        self._say_where()

    async def _open(self) -> Mesh:
        settings = self._settings
        try:
            return await self._open_at(settings.bind_port)
        except PortInUse:
            if "bind_port" in settings.sources:
                raise
        # Nobody asked for this very port: a second node on one machine takes another.
        return await self._open_at(0)

    async def _open_at(self, port: int) -> Mesh:
        assert self._vault is not None and self._answer is not None and self._neighbours is not None
        options = MeshOptions(
            host=self._settings.bind_host,
            port=port,
            name=self._name,
            software=f"meshnode {__version__}",
            relay=self._settings.relay != "off",
            guess_ports=self._settings.guess_ports,
            mapped=lambda: self._mapper.mapped if self._mapper is not None else (),
            owner=lambda: self._trust.certificate,
        )
        return await Mesh.start(
            vault=self._vault,
            identity=self._identity,
            role=self._role,
            options=options,
            answer=self._answer,
            admitted=[("POST", path) for path in PEER_ENDPOINTS],
            changed=self._changed,
            pair=self._neighbours.serve,
            handlers=self._handlers,
        )

    async def _make_room(self, invite: Invite) -> None:
        """Part with the mesh that this node founded for itself. Raises AlreadyInMesh when others are in it, too."""
        vault = self._vault
        assert vault is not None
        known = vault.credentials
        if known is None or known.mesh == invite.mesh:
            return
        if not self._never_shared():
            raise AlreadyInMesh(f"it belongs to {known.mesh_name!r}")
        if self._mesh is not None:
            await self._mesh.leave()
        await asyncio.to_thread(vault.forget)

    def _never_shared(self) -> bool:
        """The mesh was founded here and nobody has ever joined it: nothing is lost when another one is joined."""
        vault = self._vault
        assert vault is not None and vault.credentials is not None
        used = any(entry.uses_left < entry.uses for entry in vault.invites())
        return vault.credentials.may_invite and not used and not vault.peers()

    async def stop(self, *, now: bool = False) -> None:
        """Say goodbye to the peers. Answers for them that no one else could go on with are finished first."""
        await self._close(drain_s=0.0 if now or self._all_have_replicas() else self._settings.drain_timeout)

    async def _close(self, drain_s: float) -> None:
        if self._publisher is not None:
            self._publisher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._publisher
        if self._neighbours is not None:
            await self._neighbours.close()
        if self._mapper is not None:
            await self._mapper.close()
        if self._mesh is not None:
            mesh, self._mesh = self._mesh, None
            await mesh.close(drain_s=drain_s)

    def _all_have_replicas(self) -> bool:
        return all(has_replica(model) for model in self.served() if model.local is not None)

    # --- models both ways -----------------------------------------------------------------------------------

    def offers(self) -> tuple[Offer, ...]:
        """The models of this node as others hear of them."""
        return offers_of(self._serving.served(), self._serving.entries(), self.speeds.of)

    def touch(self) -> None:
        """Something about this node's models has changed. Called from the event loop."""
        self._served = None
        self._news.set()

    def learn(self, record: Record, *, asked_here: bool) -> None:
        """Take a finished request into account: who asks for what, and how fast our own engine answers."""
        if asked_here and (wanted := record.model or record.wanted):
            self.demand.record(wanted, time.monotonic())
        by_us = not asked_here or record.node in ("", self._identity.node_id.hex())
        if by_us and not (record.resumed or record.error):
            self.speeds.record(
                record.model,
                tokens_in=record.tokens_in,
                tokens_out=record.tokens_out,
                first_byte_s=None if record.first_byte_s is None else record.first_byte_s - record.queued_s,
                total_s=record.total_s - record.queued_s,
            )

    def served(self) -> list[Served]:
        """Every model that can be asked for here: of this node and of the mesh. Made anew when either has changed."""
        if self._mesh is None:
            return self._serving.served()
        members, epoch = self._mesh.members(), self._trust.epoch
        if self._served is None or self._served[0] is not members or self._served[1] != epoch:
            models = served_over_mesh(
                self._serving.served(),
                self._members(),
                self._mesh.http,
                radius=self._trust.of_member,
                claims=self._has().claims,
            )
            self._served = members, epoch, models
        return self._served[2]

    @property
    def mesh(self) -> Mesh | None:
        """The mesh itself, while this node takes part in one."""
        return self._mesh

    def snapshot(self) -> MembershipSnapshot:
        """Who is in the mesh, as this node sees it."""
        if self._mesh is None:
            return MembershipSnapshot(node=self._identity.node_id, members={})
        return self._mesh.members()

    def alive(self) -> list[bytes]:
        """The ids of the members that can be asked."""
        return [member.node for member in self._members() if member.state == "alive" and member.reachable]

    def _members(self) -> list[Member]:
        if self._mesh is None:
            return []
        own = self._identity.node_id
        return [member for node, member in self._mesh.members().members.items() if node != own]

    async def _publish(self) -> None:
        """Tell the mesh what this node has, when it has changed, but not too often."""
        told, shown = None, self._trust.certificate
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._news.wait()
            self._news.clear()
            mesh = self._mesh
            if mesh is None:
                return
            has = dataclasses.replace(self._has(), models=self.offers())
            if (mesh.entered, has) != told:
                told = mesh.entered, has
                mesh.publish(has)
            if (certificate := self._trust.certificate) != shown:
                shown = certificate
                mesh.identify()
            if (wishes := self.demand.to_publish(time.monotonic())) is not None:
                mesh.publish_demand(wishes)
            await asyncio.sleep(PUBLISH_PAUSE_S + PAUSE_PER_MEMBER_S * len(mesh.members().members))

    # --- what a person can do -------------------------------------------------------------------------------

    async def invite(self, *, role: str, ttl_s: int, uses: int, may_invite: bool) -> dict[str, Any]:
        """A new invite: its token once, here, and nowhere else."""
        vault, mesh = self._in_mesh()
        if not mesh.addresses:
            raise StateError("this node has no address that others could reach", fix="see --bind-host")
        token, entry = await asyncio.to_thread(
            vault.create_invite,
            role=Role[role.upper()],
            ttl_s=ttl_s,
            uses=uses,
            may_invite=may_invite,
            addresses=mesh.addresses,
        )
        self._changed()
        return {"token": token, **invite_facts(entry)}

    async def first_invite(self) -> str | None:
        """The token that a starting node shows; None for one that may not invite."""
        vault = self._vault
        if vault is None or vault.credentials is None or not vault.credentials.may_invite:
            return None
        made = await self.invite(role="member", ttl_s=LIMIT_INVITE_TTL_S, uses=SHOWN_INVITE_USES, may_invite=False)
        return str(made["token"])

    async def revoke(self, invite_id: str) -> dict[str, Any]:
        """End an invite. Raises InviteInvalid for one that is not known."""
        vault, _ = self._in_mesh()
        entry = await asyncio.to_thread(vault.revoke, invite_id)
        self._changed()
        return invite_facts(entry)

    async def join(self, token: str) -> dict[str, Any]:
        """Become a member of another mesh, while the node runs."""
        await self._join_with(self._invite_of(token))
        assert self._vault is not None and self._vault.credentials is not None
        mine = self._vault.credentials
        return {"mesh": mine.mesh.hex(), "name": mine.mesh_name, "state": "joined"}

    async def _join_by(self, token: bytes) -> None:
        await self._join_with(self._invite_in(token))

    async def _join_with(self, invite: tuple[Invite, bytes]) -> None:
        if self._vault is None or self._mesh is None or self._neighbours is None:
            if not self.has_where_to_go:
                raise NotInMesh(
                    "this client was started for the public swarm alone",
                    fix="stop it, and start it with the invite: meshnode --client --auto --join TOKEN",
                )
            raise NotInMesh("the node is still starting", fix="try again in a moment")
        await self._make_room(invite[0])
        try:
            await self._mesh.join(*invite)
        except MeshnodeError:
            await self._found_again()
            raise
        finally:
            self._neighbours.wake()
            self.touch()
        self._changed()

    async def pair(self, code: str | None, at: str | None = None) -> dict[str, Any]:
        """Show a code for another machine, or, with the code that another one shows, become members of one mesh.

        `at` is the address of the other machine; without it the local network is searched.
        """
        vault, neighbours = self._vault, self._neighbours
        if vault is None or neighbours is None:
            raise NotInMesh("the node is still starting", fix="try again in a moment")
        if code is None:
            return await neighbours.show()
        if vault.credentials is not None and not self._never_shared():
            raise AlreadyInMesh(
                f"it belongs to {vault.credentials.mesh_name!r}",
                fix="run `meshnode pair` here, and type its code at the other machine; or first: meshnode leave",
            )
        joined = await neighbours.type(code, at)
        mine = vault.credentials
        return {"mesh": mine.mesh.hex() if mine else "", "name": mine.mesh_name if mine else "", "joined": joined}

    async def _found_again(self) -> None:
        """The mesh that was given up for another is replaced, so that this node can still invite."""
        vault, mesh = self._vault, self._mesh
        if vault is not None and mesh is not None and vault.credentials is None and self._role is Role.MEMBER:
            await asyncio.to_thread(vault.found, self._mesh_name())
            await mesh.enter()

    def _mesh_name(self) -> str:
        return showable(self._settings.private_mesh_name or f"{self._name}'s mesh", LIMIT_NAME_CHARS) or "mesh"

    async def leave(self) -> dict[str, Any]:
        """Leave the mesh for good: its certificate and invites are forgotten. The node goes on in one of its own."""
        vault, mesh = self._in_mesh()
        left = vault.credentials
        await mesh.leave()
        await asyncio.to_thread(vault.forget)
        await self._found_again()
        if self._neighbours is not None:
            self._neighbours.wake()
        self.touch()
        self._changed()
        return {"left": left.mesh_name if left else ""}

    async def ping(self, node: str, count: int) -> dict[str, Any]:
        """Round trips to a peer that is named by its name, or by the beginning of its id."""
        _, mesh = self._in_mesh()
        member = self._find(node)
        rtts_s = await mesh.ping(member.node, count)
        return {
            "node": member.node.hex(),
            "name": member.identity.name if member.identity else "",
            "address": _text(mesh.address_of(member.node)),
            "rtts_ms": [round(rtt_s * 1e3, 3) for rtt_s in rtts_s],
        }

    def _find(self, node: str) -> Member:
        wanted = node.casefold()
        members = self._members()
        # A whole id means that very node, whatever another one calls itself.
        exact = [member for member in members if member.node.hex() == wanted]
        named = [member for member in members if member.identity and member.identity.name.casefold() == wanted]
        found = (
            exact or named or [member for member in members if len(node) >= 4 and member.node.hex().startswith(wanted)]
        )
        if len(found) == 1:
            return found[0]
        if found:
            raise NodeNotFound(f"{node!r} means {len(found)} nodes", fix="use its id: meshnode peers shows it")
        raise NodeNotFound(f"none is called {node!r}")

    def _in_mesh(self) -> tuple[Vault, Mesh]:
        if self._vault is None or self._mesh is None or self._vault.credentials is None:
            raise NotInMesh(fix="join one: meshnode join TOKEN")
        return self._vault, self._mesh

    def _invite_of(self, text: str) -> tuple[Invite, bytes]:
        try:
            token = invites.to_bytes(text)
        except WireError as error:
            raise InviteInvalid(error.reason) from None
        return self._invite_in(token)

    def _invite_in(self, token: bytes) -> tuple[Invite, bytes]:
        try:
            invite = invites.read(token, lambda key, signature, message: verify(NodeId(key), signature, message))
        except WireError as error:
            raise InviteInvalid(error.reason) from None
        if invite.expires_at < time.time():
            raise InviteInvalid("it has expired")
        if invite.role == Role.CLIENT and self._role is Role.MEMBER:
            raise InviteInvalid("it is for client-only nodes", fix="add --client, or ask for an invite without it")
        return invite, token

    # --- what is shown --------------------------------------------------------------------------------------

    def _say_where(self) -> None:
        vault, mesh = self._vault, self._mesh
        assert vault is not None and vault.credentials is not None and mesh is not None
        company = {"joined": "connected", "joining": "looking for its other nodes", "alone": "no other node yet"}
        self._tell("mesh", f'"{vault.credentials.mesh_name}" as {self._role.name.lower()}; {company[mesh.state]}')

    def facts(self) -> dict[str, Any] | None:
        """The `mesh` member of /api/status."""
        vault, mesh = self._vault, self._mesh
        if vault is None or mesh is None or vault.credentials is None:
            return None
        credentials = vault.credentials
        now = time.monotonic()
        members = self._members()
        demand = total(((member.demand, member.demand_at) for member in members if member.demand), now)
        for wish in self.demand.wishes(now):
            demand[wish.model] = demand.get(wish.model, 0.0) + wish.rate / 1000
        return {
            "id": credentials.mesh.hex(),
            "name": credentials.mesh_name,
            "role": self._role.name.lower(),
            "may_invite": credentials.may_invite,
            "state": mesh.state,
            "node": short(self._identity.node_id),
            "addresses": [str(address) for address in mesh.addresses],
            "nat": nat_facts(mesh.nat),
            "peers": [
                *(
                    peer_facts(
                        member,
                        _text(mesh.address_of(member.node)),
                        radius=self._trust.of_member(member),
                        path=mesh.path_of(member.node),
                    )
                    for member in members
                ),
                *(client_facts(client, radius=self._trust.of_node(client.node)) for client in mesh.clients()),
            ],
            "demand": [
                {"model": model, "per_minute": round(rate, 3)}
                for model, rate in sorted(demand.items(), key=lambda item: -item[1])
            ],
            "pairing": self._neighbours.facts() if self._neighbours is not None else None,
            "invites": [invite_facts(entry) for entry in vault.invites()] if credentials.may_invite else [],
            "counters": dict(mesh.counters),
        }


def node_name(settings: Settings) -> str:
    """What this node is called: as its owner says, or as its machine is."""
    return showable(settings.name or socket.gethostname(), LIMIT_NAME_CHARS) or "node"


def _text(address: object) -> str | None:
    return None if address is None else str(address)
