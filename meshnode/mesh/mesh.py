"""A node in its mesh: one endpoint, the sessions over it, the part this node plays, and the tunnels in both directions.

    net.Endpoint ── links ──> Sessions ── admitted peers, messages ──> Part (MemberPart or ClientPart)
         └──────── streams ─> StreamDispatch ── HTTP ──> TunnelServer ──> answer
                                             └─ RELAY, PUNCH ──> Traversal, which finds ways where there is NAT
    api.upstream <── Mesh.http(peer) ── a session (Reach), and a stream over it

This module wires the parts and orders their beginning and their end; it decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from meshnode.core.effects import MembershipSnapshot
from meshnode.errors import AlreadyInMesh, MeshnodeError, NotInMesh, StateError
from meshnode.identity import Identity, NodeId, ephemeral
from meshnode.mesh.background import Background, News
from meshnode.mesh.favours import Favours
from meshnode.mesh.options import MeshLimits, MeshOptions
from meshnode.mesh.part import Part
from meshnode.mesh.presence import Presence
from meshnode.mesh.reach import Reach
from meshnode.mesh.sessions import Peer, Sessions
from meshnode.mesh.stranger import visit
from meshnode.mesh.streams import StreamDispatch, StreamHandler
from meshnode.mesh.taking_part import make_part
from meshnode.mesh.traversal import NatView, Path, Traversal
from meshnode.mesh.tunnel import Answer, TunnelServer, open_tunnel
from meshnode.mesh.upkeep import Upkeep
from meshnode.mesh.vault import Vault
from meshnode.mesh.views import Shown
from meshnode.net.address import is_virtual
from meshnode.net.endpoint import Endpoint
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.invites import Invite
from meshnode.wire.registry import CLOSE_TEXTS, Close, Role, StreamType
from meshnode.wire.statements import Dynamic, Wish

State = Literal["joining", "alone", "joined"]
PairStream = Callable[[MeshStream, bytes], Awaitable[None]]
"""Serves a pairing: the stream and its header."""

TUNNEL_DIAL_S = 3.0
FAREWELL_S = 0.3


class Mesh:
    """See the module. `await Mesh.start(...)`, and `close` at the end.

    `entered` counts how often this node has begun to take part: what it has published is forgotten each time.
    """

    def __init__(
        self,
        vault: Vault,
        identity: Identity,
        role: Role,
        options: MeshOptions,
        limits: MeshLimits,
        tunnel: TunnelServer,
        pair: PairStream | None,
        handlers: Mapping[StreamType, StreamHandler],
        changed: Callable[[], None],
        counters: Counter[str],
    ) -> None:
        self._vault = vault
        self._identity = identity
        self._node = identity.node_id
        self._role = role
        self._limits = limits
        self._tunnel = tunnel
        self._pair = pair
        self._changed = changed
        self._counters = counters
        self._presence = Presence(vault, role, options)
        self._sessions = Sessions(
            vault,
            self,
            hello=lambda: None if self._part is None else self._presence.hello(),
            kept=lambda node: self._endpoint.link(NodeId(node)),
            name=options.name,
            software=options.software,
            counters=counters,
            limits=limits.sessions,
        )
        self._reach = Reach(self._node, vault, self._sessions, lambda: self._presence.addresses)
        self._traversal = Traversal(
            self._node,
            role,
            sessions=self._sessions,
            reach=self._reach,
            presence=self._presence,
            options=options,
            renewed=self._place_changed,
            counters=counters,
            limits=limits.relay,
        )
        self._dispatch = StreamDispatch(
            {
                StreamType.CONTROL: self._sessions.control_opened,
                StreamType.HTTP: self._serve_http,
                **({StreamType.PAIR: self._serve_pairing} if pair is not None else {}),
                **self._traversal.handlers,
                **handlers,
            },
            admission=self._sessions.admitted,
            offend=self._sessions.offend,
            counters=counters,
            limits=limits.streams,
        )
        self._favours = Favours(vault, measure=self._measure, send=self._send, renewed=self.identify, counters=counters)
        self._part: Part | None = None
        self._has = Dynamic()
        self.entered = 0
        self._background = Background()
        self._news = News(self._say)
        self._endpoint: Endpoint

    # --- life -------------------------------------------------------------------------------------------------------

    @classmethod
    async def start(
        cls,
        *,
        vault: Vault,
        identity: Identity,
        role: Role,
        options: MeshOptions,
        answer: Answer,
        admitted: Collection[tuple[str, str]],
        changed: Callable[[], None] = lambda: None,
        pair: PairStream | None = None,
        handlers: Mapping[StreamType, StreamHandler] | None = None,
        limits: MeshLimits | None = None,
        enter: bool = True,
    ) -> Mesh:
        """Open the port, and return to the mesh of the vault, if it has one, unless `enter` says to wait.

        `answer` serves the HTTP requests of peers, of which only the (method, path) in `admitted` reach it. `changed`
        is called from the loop when members, links or addresses have changed. `handlers` serve further types of
        streams, which peers may open in the roles that the registry names. Raises PortInUse, StateError, NetworkError.
        """
        bounds = limits or MeshLimits()
        counters: Counter[str] = Counter()
        tunnel = TunnelServer(answer, admitted=admitted, limits=bounds.tunnel, counters=counters)
        mesh = cls(vault, identity, role, options, bounds, tunnel, pair, handlers or {}, changed, counters)
        mesh._endpoint = mesh._reach.endpoint = await Endpoint.open(
            identity, mesh, host=options.host, port=options.port, options=bounds.endpoint
        )
        mesh._traversal.open(mesh._endpoint)
        mesh._presence.bound = mesh._endpoint.address
        try:
            await mesh._presence.refresh()
            if enter and vault.credentials is not None:
                await mesh.enter()
        except BaseException:
            await mesh.close()
            raise
        return mesh

    async def enter(self) -> None:
        """Begin to take part in the mesh that the vault belongs to. Raises NotInMesh, StateError, HomeNotWritable."""
        credentials = self._vault.credentials
        if credentials is None:
            raise NotInMesh()
        if self._part is not None:
            return
        if credentials.role is Role.CLIENT and self._role is Role.MEMBER:
            raise StateError("this home belongs to its mesh as a client-only node", fix="add --client")
        self._tunnel.refuse_new(False)
        self._reach.open_book()
        self._part = self._reach.part = await make_part(
            self._role,
            vault=self._vault,
            identity=self._identity,
            sessions=self._sessions,
            reach=self._reach,
            changed=self._news.came,
            counters=self._counters,
            options=self._limits.membership,
        )
        self.entered += 1
        self._traversal.begin()
        self._place_changed()
        self._background.start(self._reach.run())
        self._background.start(self._upkeep(self._part).run())

    async def join(self, invite: Invite, token: bytes) -> None:
        """Become a member with an invite, and take part. Does nothing in the mesh of the invite.

        Raises InviteInvalid with the reason, PeerUnreachable naming the addresses that were tried, PeerRefused,
        WrongPeer, AlreadyInMesh, HomeNotWritable.
        """
        mine = self._vault.credentials
        if mine is not None and mine.mesh != invite.mesh:
            raise AlreadyInMesh(mine.mesh_name)
        if self._part is not None:
            return
        hello = self._presence.hello(mesh=invite.mesh, invite=token)
        assert hello is not None, "an invite is a proof"
        link = await self._reach.dial(invite.issuer, invite.addresses)
        session = await self._sessions.join(link, hello, invite.mesh_name)
        await self.enter()
        self._sessions.adopt(session)
        await self._sessions.admitted(link)

    async def leave(self) -> None:
        """Leave for good: a signed farewell, streams handed over, links closed. The vault is the caller's to clear."""
        await self._farewell(0.0)
        await self._stop_part()
        for peer in self._sessions.peers:
            peer.link.close(Close.DONE)

    async def close(self, *, drain_s: float = 0.0) -> None:
        """Stop, as a planned leave: nobody routes here any more, answers have `drain_s` to finish, the rest is handed
        over.
        """
        await self._farewell(drain_s)
        try:
            await self._reach.remember()
        except MeshnodeError as reason:
            LOG.warning("the address book could not be written: %s", reason)
        await self._stop_part()
        await self._favours.close()
        await self._traversal.close()
        await self._dispatch.close()
        await self._endpoint.close(Close.DONE)
        await self._sessions.close()
        self._news.close()

    async def _farewell(self, drain_s: float) -> None:
        self._tunnel.refuse_new()
        await self._background.stop()
        await self._traversal.leave()
        if self._part is not None:
            await self._part.leave()
        if drain_s > 0:
            await self._tunnel.drained(drain_s)
        if self._tunnel.running:
            self._tunnel.hand_over()
            await self._tunnel.drained(FAREWELL_S)
            await self._sessions.flush(FAREWELL_S)

    async def _stop_part(self) -> None:
        part, self._part, self._reach.part = self._part, None, None
        if part is not None:
            await part.close()

    # --- what the composer uses -------------------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What others can dial."""
        return self._presence.addresses

    @property
    def bound(self) -> Address:
        """Where the socket is."""
        return self._endpoint.address

    @property
    def state(self) -> State:
        """Whether peers are linked; if not, whether there is anybody to look for."""
        if self._part is not None and self._sessions.peers:
            return "joined"
        return "joining" if self._part is not None and self._reach.candidates() else "alone"

    @property
    def counters(self) -> dict[str, int]:
        """Sums since the start, of all parts."""
        traffic = dataclasses.asdict(self._endpoint.counters)
        return {**traffic, **self._counters, "http_running": self._tunnel.running, "links": len(self._sessions.peers)}

    def publish(self, has: Dynamic) -> None:
        """What this node has and serves. Where it is, how it is reached and who watches it is added."""
        self._has = has
        if self._part is not None:
            self._part.publish(self._traversal.told(has))

    def publish_demand(self, wishes: Sequence[Wish]) -> None:
        """What is asked for at this node."""
        if self._part is not None:
            self._part.publish_demand(wishes)

    def members(self) -> MembershipSnapshot:
        """The mesh as it is known here: the same object until something may have changed."""
        if self._part is None:
            return MembershipSnapshot(node=self._node, members={})
        return self._part.members()

    def clients(self) -> tuple[Peer, ...]:
        """The client-only nodes that are connected here. They are in no gossip: other members do not hear of them."""
        if self._role is Role.CLIENT:
            return ()
        return tuple(peer for peer in self._sessions.peers if peer.role is Role.CLIENT)

    def address_of(self, node: bytes) -> Address | None:
        """Where a linked peer is; None for others, and for one that is reached by a detour."""
        peer = self._sessions.get(node)
        return None if peer is None or is_virtual(peer.link.address) else peer.link.address

    def path_of(self, node: bytes) -> Path | None:
        """How a linked peer is reached; None for others."""
        return self._traversal.path_of(node)

    @property
    def nat(self) -> NatView:
        """What is between this node and the others."""
        return self._traversal.nat

    def http(self, peer: bytes) -> Callable[[], Awaitable[MeshStream]]:
        """What opens an HTTP stream to a peer, dialling it if there is no link. The result raises OSError."""

        async def connect() -> MeshStream:
            try:
                found = await self._reach.session(peer, timeout_s=TUNNEL_DIAL_S)
            except MeshnodeError as reason:
                raise ConnectionError(str(reason)) from None
            return open_tunnel(found.link)

        return connect

    async def open_stream(self, peer: bytes, kind: StreamType, header: bytes, *, priority: int = 0) -> MeshStream:
        """A stream of another type to a peer, its header written, dialling the peer if there is no link.

        Raises PeerUnreachable, PeerRefused, LinkLost.
        """
        found = await self._reach.session(peer, timeout_s=TUNNEL_DIAL_S)
        stream = found.link.open_stream(priority=priority)
        stream.write(encode_stream_header(kind, header))
        return stream

    async def session(self, peer: bytes, addresses: Sequence[Address] = ()) -> Peer:
        """The session to a peer, which may be found at further addresses. Raises PeerUnreachable, PeerRefused."""
        return await self._reach.session(peer, addresses)

    async def ping(self, peer: bytes, count: int) -> list[float]:
        """Round trips to a peer in seconds, dialling it if need be. Raises PeerUnreachable, PeerRefused."""
        found = await self._reach.session(peer)
        return [await found.link.echo() for _ in range(count)]

    async def rtt_between(self, peer: bytes, node: bytes) -> float | None:
        """The round trip between two others in seconds, measured now; None when either does not answer."""
        try:
            await self._reach.session(peer)
        except MeshnodeError:
            return None
        return await self._favours.measured_by(peer, node)

    async def call(self, peer: bytes, addresses: Sequence[Address] = ()) -> None:
        """Be linked with a peer that is at these addresses, or where it is known to be.

        Raises PeerUnreachable, PeerRefused, WrongPeer.
        """
        await self._reach.session(peer, addresses)

    def shown(self) -> list[Shown]:
        """The members that answer, with the statements that prove what they have; none from a client-only node."""
        return [] if self._part is None else self._part.shown()

    async def meet(self, addresses: Sequence[Address]) -> None:
        """Somebody at these addresses claims to be of this mesh. If it is a member, it will be dialled there as well.

        Who it is shows without a word of ours, so that a liar learns nothing. Raises PeerUnreachable, PeerRefused.
        """
        if self._part is None or any(self._sessions.is_at(address) for address in addresses):
            return
        async with visit(ephemeral(), addresses, host=self.bound.host) as link:
            node = link.peer
        if node in self._reach.candidates():
            self._reach.found(node, addresses)

    # --- net.Handler ------------------------------------------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """A link has proven keys."""
        self._reach.linked(link)
        if not self._traversal.link_up(link):
            self._sessions.link_up(link)

    def link_down(self, link: Link, code: int, reason: str) -> None:
        """A link has ended."""
        if code in (Close.CERTIFICATE_EXPIRED, Close.NOT_ADMITTED, Close.SUPERSEDED):
            LOG.warning("%s closed the connection: %s", link.peer.hex()[:10], CLOSE_TEXTS[code])
        self._dispatch.forget(link)
        self._traversal.link_down(link)
        self._sessions.link_down(link)

    def stream_opened(self, stream: MeshStream) -> None:
        """A peer opened a stream."""
        self._dispatch.opened(stream)

    def datagram(self, link: Link, data: bytes) -> None:
        """An unreliable message."""
        self._sessions.datagram(link, data)

    def link_silent(self, link: Link, silent: bool) -> None:
        """Nothing is heard of a peer any more, or something again."""
        peer = self._sessions.get(link.peer)
        if self._part is not None and peer is not None and peer.link is link:
            self._part.silent(link.peer, silent)
        if silent:
            self._traversal.link_silent(link)

    # --- sessions.Listener ------------------------------------------------------------------------------------------

    def peer_up(self, peer: Peer) -> None:
        """A peer was admitted."""
        self._reach.admitted(peer)
        self._traversal.peer_up(peer)
        if self._part is not None:
            self._part.peer_up(peer)
        self._news.came()

    def peer_down(self, peer: Peer) -> None:
        """Its session is over."""
        if self._part is not None:
            self._part.peer_down(peer)
        self._reach.wake()
        self._news.came()

    def received(self, peer: Peer, message: Any) -> None:
        """A message of an admitted peer. Raises WireError."""
        if self._part is not None and not self._favours.received(peer, message):
            self._part.received(peer, message)

    # --- what the parts need ----------------------------------------------------------------------------------------

    async def _serve_http(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        await self._tunnel.serve(stream, header)

    async def _serve_pairing(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        assert self._pair is not None, "without it the type has no handler"
        self._sessions.hold(stream.link, True)
        try:
            await self._pair(stream, header)
        finally:
            self._sessions.hold(stream.link, False)

    async def _measure(self, node: bytes) -> float:
        return await (await self._reach.session(node)).link.echo()

    def _send(self, node: bytes, message: Any) -> None:
        peer = self._sessions.get(node)
        if peer is not None:
            peer.send(message)

    def identify(self) -> None:
        """State anew who this node is: its certificates or its addresses have changed."""
        identity = self._presence.identity()
        if identity is not None and self._part is not None:
            self._part.identify(identity)

    def _place_changed(self) -> None:
        self.identify()
        self.publish(self._has)
        self._news.came()

    def _upkeep(self, part: Part) -> Upkeep:
        return Upkeep(
            part,
            vault=self._vault,
            sessions=self._sessions,
            presence=self._presence,
            reach=self._reach,
            favours=self._favours,
            identify=self.identify,
            changed=self._news.came,
            counters=self._counters,
        )

    def _say(self) -> None:
        self._reach.wake()
        self._changed()
