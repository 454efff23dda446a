"""The node on the network: one UDP socket that accepts and dials, and one link to each peer.

Datagrams find their connection by its id, whatever their source; those that are not QUIC's, by their first byte
(RFC 9443): punches, and what relays carry. Of two links to the same peer that come up at the
same time, both ends keep the one that was dialled by the smaller NodeId; of two with the same dialler the newer one,
as after a restart. The other is closed after a moment, so that streams already begun can finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from time import monotonic

from meshnode.errors import PeerUnreachable
from meshnode.identity import Identity, NodeId
from meshnode.net import tls
from meshnode.net.acceptance import Acceptance, Accepted, Challenged, parse_long
from meshnode.net.address import Address, SocketAddress, for_socket, from_socket, is_virtual_name
from meshnode.net.channel import Channel
from meshnode.net.detours import HEAD_BYTES, NOT_QUIC_BELOW, RELAYED, Detours, FlowEnd
from meshnode.net.dialling import race
from meshnode.net.duplicates import LinkTable
from meshnode.net.handler import Counters, EndpointOptions, Handler
from meshnode.net.link import Link
from meshnode.net.path import candidates, detour_candidates
from meshnode.net.punching import ANSWER, PUNCH, Puncher
from meshnode.net.quic import MeshQuic, configuration, connection_type
from meshnode.net.relay import Flow, Forwarder
from meshnode.net.selftest import verify_authentication
from meshnode.net.sides import SideSockets
from meshnode.net.stream import MeshStream
from meshnode.net.udp import Traffic, UdpSocket, route_to
from meshnode.wire.registry import LIMIT_LINKS, Close

__all__ = ["Counters", "Endpoint", "EndpointOptions", "Handler"]

TICK_S = 1.0
GRACE_S = 1.0
RETIRE_S = 60.0
"""How long an answer that was begun on a link that is not kept may go on there."""
CLOSE_LIMIT_S = 1.0
LONG_HEADER_FROM = 0x80

Receiver = Channel | Flow | FlowEnd | Puncher
"""Who takes datagrams that came together from one address."""


class Endpoint:
    """See the module. `await Endpoint.open(...)`."""

    def __init__(self, identity: Identity, handler: Handler, options: EndpointOptions) -> None:
        self.node_id = identity.node_id
        self._handler = handler
        self._options = options
        self._type = connection_type(options.fast)
        certificate = tls.certificate(identity)
        self._configurations = {
            is_client: configuration(
                certificate,
                identity.private_key,
                is_client=is_client,
                idle_timeout_s=options.idle_timeout_s,
                congestion_control=options.congestion,
            )
            for is_client in (True, False)
        }
        self._acceptance = Acceptance(always_retry=options.always_retry)
        self._channels: dict[bytes, Channel] = {}
        self._links: LinkTable[Link] = LinkTable(self.node_id)
        self._unfinished: dict[Link, float] = {}
        self._dials: dict[NodeId, asyncio.Task[Link]] = {}
        self._touched: dict[Channel, None] = {}
        self._counters = Counters()
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._ticker: asyncio.TimerHandle | None = None
        self._socket: UdpSocket
        self._detours = Detours()
        self.forwarder = Forwarder(self.transmit)
        self.puncher: Puncher

    @classmethod
    async def open(
        cls,
        identity: Identity,
        handler: Handler,
        *,
        host: str = "::",
        port: int = 0,
        options: EndpointOptions | None = None,
    ) -> Endpoint:
        """Bind the socket. "::" serves both families. Raises PortInUse, StateError, NetworkError."""
        verify_authentication()
        endpoint = cls(identity, handler, options or EndpointOptions())
        endpoint._socket = UdpSocket.open(
            host, port, received=endpoint._received, unreachable=endpoint._unreachable, drained=endpoint._drained
        )
        sides = SideSockets(
            endpoint._detours,
            host=endpoint.address.host,
            received=endpoint._received,
            unreachable=endpoint._unreachable,
            drained=endpoint._drained,
            traffic=endpoint._socket.traffic,
        )
        endpoint.puncher = Puncher(transmit=endpoint.transmit, name_of=endpoint.name_of, sides=sides)
        endpoint._ticker = endpoint._loop.call_later(TICK_S, endpoint._tick)
        return endpoint

    # --- for the mesh ----------------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """What is bound."""
        return self._socket.address

    @property
    def links(self) -> Iterable[Link]:
        """The link to each peer."""
        return tuple(link for link in self._links.kept() if link.alive)

    @property
    def counters(self) -> Counters:
        """Sums since the start."""
        for name in Traffic.__slots__:
            setattr(self._counters, name, getattr(self._socket.traffic, name))
        self._counters.flow_hijacks = self._detours.counters.hijacks
        self._counters.relayed_in, self._counters.relayed_out = (
            self._detours.counters.relayed_in,
            self._detours.counters.relayed_out,
        )
        return self._counters

    def link(self, peer: NodeId) -> Link | None:
        """The link to `peer`, if there is one."""
        links = self._links.get(peer)
        return links[0] if links and links[0].alive else None

    async def dial(self, addresses: Sequence[Address], *, expected: NodeId | None, timeout_s: float = 5.0) -> Link:
        """A link to the peer at one of `addresses`: the present one to `expected`, or a new one.

        Callers that want the same peer share one attempt. Raises PeerUnreachable when nothing answers, PeerRefused
        (with `close_code`) when the peer closes, WrongPeer when it is not `expected`.
        """
        if expected is None:
            return self._current(await self._reach(addresses, None, timeout_s))
        present = self.link(expected)
        if present is not None and not present.silent:
            return present
        task = self._dials.get(expected)
        if task is None:
            task = self._dials[expected] = asyncio.create_task(self._reach(addresses, expected, timeout_s))
            task.add_done_callback(lambda done: self._dialled(expected, done))
        try:
            # Others may wait for the same attempt, so that a caller who gives up does not end it.
            return self._current(await asyncio.shield(task))
        except asyncio.CancelledError:
            if task.cancelled():
                raise PeerUnreachable("this node is leaving") from None
            raise

    def _dialled(self, expected: NodeId, task: asyncio.Task[Link]) -> None:
        del self._dials[expected]
        if not task.cancelled():
            task.exception()  # all callers may be gone: then nobody else looks at it

    def _current(self, link: Link) -> Link:
        """The link that is kept, which may be another one that came up meanwhile."""
        return self.link(link.peer) or link

    async def _reach(self, addresses: Sequence[Address], expected: NodeId | None, timeout_s: float) -> Link:
        return await race(lambda address: self._begin(address, expected), addresses, timeout_s)

    def _begin(self, address: Address, expected: NodeId | None) -> Link | None:
        destination = self.name_of(address)
        if destination is None or self._closing:
            return None
        quic = self._type(configuration=self._configurations[True])
        link = self._new_link(quic, destination, dialled=True, expected=expected)
        quic.connect(destination, now=monotonic())
        link.flush()
        return link

    def open_flow(self, flow: bytes, relay: Link) -> Address:
        """The virtual address of the peer at the other end of a flow that `relay` carries.

        It leads there until `close_flow`, or until the link to the relay ends. Raises ValueError for an id that is in
        use or has not 8 bytes, for a relay that is not reached directly, and for too many flows.
        """
        end = self._detours.open_flow(flow, relay, transmit=self.transmit, received=self._received)
        return from_socket(end.name)

    def close_flow(self, flow: bytes) -> None:
        """Give up a flow. Links over it lose their way, not their state."""
        self._detours.close_flow(flow)

    async def close(self, code: int = Close.DONE, reason: str = "") -> None:
        """Tell every peer, wait until that is sent (a second at most), and give the port back."""
        if self._closing:
            return
        self._closing = True
        self.puncher.close()
        if self._ticker is not None:
            self._ticker.cancel()
        for task in list(self._dials.values()):
            task.cancel()
        for channel in set(self._channels.values()):
            channel.end(code, reason)
        deadline = monotonic() + CLOSE_LIMIT_S
        await asyncio.sleep(0)
        while self._socket.has_unsent and monotonic() < deadline:
            await asyncio.sleep(0.01)
        for detour in self._detours:
            self._detours.remove(detour.name)
        self._socket.close()

    # --- datagrams -------------------------------------------------------------------------------------------

    def _received(self, datagrams: list[bytes], source: SocketAddress) -> None:
        now = monotonic()
        receiver: Receiver | None = None
        run: list[bytes] = []
        for datagram in datagrams:
            first = datagram[0]
            if NOT_QUIC_BELOW <= first < LONG_HEADER_FROM:
                target: Receiver | None = self._known(datagram)
            elif first < NOT_QUIC_BELOW:
                target = self._apart(datagram)
            else:
                target = self._find(datagram, source, now)
            if target is not receiver:
                if receiver is not None and run:
                    self._deliver(receiver, run, source, now)
                receiver, run = target, []
            if target is not None:
                run.append(datagram)
        if receiver is not None and run:
            self._deliver(receiver, run, source, now)

    def _deliver(self, receiver: Receiver, run: list[bytes], source: SocketAddress, now: float) -> None:
        receiver.receive(run, source, now)
        if isinstance(receiver, Channel):
            self._touched[receiver] = None

    def _apart(self, datagram: bytes) -> Receiver | None:
        """Who takes a datagram that is not QUIC's."""
        kind = datagram[0]
        if kind == RELAYED:
            flow = datagram[1:HEAD_BYTES]
            carried = self.forwarder.get(flow) or self._detours.flow(flow)
            self.forwarder.counters.unknown += carried is None
            return carried
        if kind in (PUNCH, ANSWER):
            return self.puncher
        self._counters.junk += 1
        return None

    def _drained(self) -> None:
        touched, self._touched = self._touched, {}
        for channel in touched:
            channel.process()

    def _known(self, datagram: bytes) -> Channel | None:
        """The connection of a datagram with a short header."""
        channel = self._channels.get(datagram[1:9])
        self._counters.junk += channel is None
        return channel

    def _find(self, datagram: bytes, source: SocketAddress, now: float) -> Channel | None:
        """The connection of a datagram with a long header; a new one for a first packet that is welcome."""
        header = parse_long(datagram)
        known = None if header is None else self._channels.get(header.destination_cid)
        if header is None or known is not None or self._closing:
            self._counters.junk += header is None
            return known
        verdict = self._acceptance.judge(header, len(datagram), source, len(self._unfinished), now)
        if isinstance(verdict, Accepted):
            self._accept(datagram, header.destination_cid, verdict, source, now)
        elif isinstance(verdict, Challenged):
            self._counters.retries_sent += 1
            self.transmit([verdict.datagram], source)
        else:
            self._counters.junk += verdict.junk
            self._counters.handshakes_refused += not verdict.junk
        return None

    def _accept(
        self, datagram: bytes, destination_id: bytes, accepted: Accepted, source: SocketAddress, now: float
    ) -> None:
        quic = self._type(
            configuration=self._configurations[False],
            original_destination_connection_id=accepted.original_destination,
            retry_source_connection_id=accepted.retry_source,
        )
        link = self._new_link(quic, source, dialled=False, expected=None)
        link.receive([datagram], source, now)
        if not quic.is_begun:
            self._counters.junk += 1
            link.vanish("not a first packet")
            return
        self._counters.handshakes_begun += 1
        link.claim(destination_id)
        self._touched[link] = None

    def _unreachable(self, destination: SocketAddress) -> None:
        self._counters.unreachable_hints += 1
        for link in self._all_links():
            if link.destination[:2] == destination[:2]:
                link.unreachable()

    def _all_links(self) -> list[Link]:
        return [*self._unfinished, *(link for links in self._links.values() for link in links)]

    def _tick(self) -> None:
        now = monotonic()
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        for link, begun_at in list(self._unfinished.items()):
            if now - begun_at > self._options.handshake_timeout_s and not link.dialled:
                link.vanish("no handshake in time")
        buffer_bytes = min(self._socket.receive_buffer_bytes, self._socket.send_buffer_bytes)
        for links in list(self._links.values()):
            for link in list(links):
                link.tick(now)
                link.limit_window(buffer_bytes)
        self.forwarder.tick(now)
        self.puncher.tick(now, {name for link in self._all_links() for name in link.destinations})

    # --- what links need -------------------------------------------------------------------------------------

    def _new_link(self, quic: MeshQuic, destination: SocketAddress, *, dialled: bool, expected: NodeId | None) -> Link:
        link = Link(self, quic, destination, dialled=dialled, expected=expected, keepalive_s=self._options.keepalive_s)
        self._unfinished[link] = monotonic()
        return link

    def transmit(self, datagrams: Sequence[bytes], destination: SocketAddress) -> None:
        """Send datagrams."""
        if is_virtual_name(destination):
            self._detours.send(datagrams, destination)
        else:
            self._socket.send(datagrams, destination)

    def name_of(self, address: Address) -> SocketAddress | None:
        """The address as the socket names it; None where it cannot be reached from here."""
        name = for_socket(address, self._socket.family)
        return None if name is None or (is_virtual_name(name) and self._detours.get(name) is None) else name

    def read(self) -> None:
        """Take in what has arrived at the socket."""
        if not self._closing and self._socket.read():
            self._drained()

    def register(self, connection_id: bytes, channel: Channel) -> None:
        """Datagrams to this connection id are for `channel`."""
        self._channels[connection_id] = channel

    def forget(self, connection_id: bytes) -> None:
        """This connection id is not in use any more."""
        self._channels.pop(connection_id, None)

    def sizes(self, link: Link) -> Iterable[int]:
        """Datagram sizes worth a try on the path of a link."""
        detour = self._detours.get(link.destination)
        if detour is None:
            return candidates(route_to(link.address), link.address, self._options.most_datagram_bytes)
        real, most_bytes = detour.real, self._options.most_datagram_bytes
        return detour_candidates(route_to(real), real, detour.overhead_bytes, most_bytes)

    def established(self, link: Link) -> None:
        """The keys of a link are proven."""
        self._unfinished.pop(link, None)
        if len(self._links) >= LIMIT_LINKS and link.peer not in self._links:
            self._counters.links_refused += 1
            link.close(Close.FLOOD, "too many links")
            return
        self._counters.links_up += 1
        self._links.add(link)
        for other in self._links[link.peer]:
            if other.superseded:
                self._loop.call_later(GRACE_S, self._retire, other)
        # A link that is not kept is announced only if the peer uses it before it closes.
        if not link.superseded:
            link.announce()

    def _retire(self, link: Link, patience_s: float = RETIRE_S) -> None:
        """Close a link that is not kept. Where both ends have dialled, what was begun on it may end first; of its
        streams the one for control stays. Where one of them has dialled twice it has restarted, and nothing will come.
        """
        if not link.superseded or not link.alive:
            return
        kept = self.link(link.peer)
        both_dialled = kept is not None and kept.dialled is not link.dialled
        if both_dialled and link.streams > 1 and not link.silent and patience_s > 0:
            self._loop.call_later(GRACE_S, self._retire, link, patience_s - GRACE_S)
        else:
            link.close(Close.DUPLICATE)

    def announced(self, link: Link) -> None:
        """Tell the handler of a link."""
        self._handler.link_up(link)

    def lost(self, link: Link, code: int, reason: str) -> None:
        """A link has ended, whether or not it was ever up."""
        if self._unfinished.pop(link, None) is not None and not link.dialled:
            self._counters.handshakes_failed += 1
        self.forwarder.lost(link)
        for end in self._detours.flows_over(link):
            self.close_flow(end.flow)
            self._unreachable(end.name)
        kept_before = self.link(link.peer)
        self._links.remove(link)
        kept = self.link(link.peer)
        if kept is not None and kept is not kept_before:
            kept.announce()
        if link.is_announced:
            self._handler.link_down(link, 0 if code == Close.DONE else code, reason)

    def opened(self, stream: MeshStream) -> None:
        """A peer opened a stream."""
        self._handler.stream_opened(stream)

    def refused_stream(self) -> None:
        """A peer opened more streams than it may."""
        self._counters.streams_refused += 1

    def moved(self) -> None:
        """A peer has answered from another address."""
        self._counters.moves += 1

    def arrived(self, link: Link, data: bytes) -> None:
        """A datagram of a peer."""
        self._handler.datagram(link, data)

    def silence(self, link: Link, silent: bool) -> None:
        """Nothing is heard of a peer any more, or something again."""
        self._handler.link_silent(link, silent)
