"""The connection to one peer: proven keys, streams, datagrams, round trips, liveness.

A link comes up once both ends have proven their keys. The server knows that with the client's last handshake message;
the client waits for the server's confirmation, so that a link that is up has been accepted by both. Nothing of the
peer reaches the handler before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Literal, Protocol

from aioquic.quic.events import (
    DatagramFrameReceived,
    HandshakeCompleted,
    PingAcknowledged,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from meshnode.errors import NetworkError, PeerRefused, PeerUnreachable, WrongPeer
from meshnode.identity import NodeId, short
from meshnode.net import congestion
from meshnode.net.address import Address, SocketAddress
from meshnode.net.channel import Carrier, Channel
from meshnode.net.credit import CONNECTION_MOST_BYTES
from meshnode.net.detours import is_relayed
from meshnode.net.liveness import IDLE_QUIET_S, QUIET_S
from meshnode.net.multiplexer import Multiplexer
from meshnode.net.quic import MeshQuic
from meshnode.net.rtt import ShortestRoundTrip
from meshnode.net.sizing import Sizing
from meshnode.net.stream import LinkLost, MeshStream
from meshnode.net.watch import Watch
from meshnode.wire.registry import CLOSE_TEXTS, Close

NEAR_S = 0.005
FIRST_ECHOES = 3
MOST_GAPS = 4096
"""What a tenth of the packets lost in the largest window may leave."""
ALPN_REFUSED = 0x178
"""TLS alert no_application_protocol as a QUIC error code (RFC 9001, 4.8)."""
REASON_CHARS = 200


class Owner(Carrier, Protocol):
    """What a link needs of the endpoint."""

    node_id: NodeId

    def established(self, link: Link) -> None:
        """The keys are proven and pinned. The owner calls `announce` once the handler should know."""

    def announced(self, link: Link) -> None:
        """The handler may be told of the link."""

    def lost(self, link: Link, code: int, reason: str) -> None:
        """The link has ended, whether or not it was ever up."""

    def opened(self, stream: MeshStream) -> None:
        """The peer opened a stream."""

    def refused_stream(self) -> None:
        """The peer opened more streams than it may."""

    def moved(self) -> None:
        """The peer of a link has answered from another address."""

    def arrived(self, link: Link, data: bytes) -> None:
        """A datagram of the peer."""

    def silence(self, link: Link, silent: bool) -> None:
        """Nothing is heard of the peer any more, or something again."""

    def name_of(self, address: Address) -> SocketAddress | None:
        """The address as the socket names it; None where it cannot be reached from here."""

    def sizes(self, link: Link) -> Iterable[int]:
        """Datagram sizes worth a try on the path of the link."""

    def read(self) -> None:
        """Take in what has arrived at the socket."""


class Link(Channel):
    """See the module. Made by the endpoint, for handshakes of both roles."""

    def __init__(
        self,
        owner: Owner,
        quic: MeshQuic,
        destination: SocketAddress,
        *,
        dialled: bool,
        expected: NodeId | None = None,
        keepalive_s: float = 5.0,
    ) -> None:
        super().__init__(owner, quic, destination)
        now = monotonic()
        self.peer = expected or NodeId(b"")
        self.dialled = dialled
        self.opened_at = now
        self.ready: asyncio.Future[Link | NetworkError] = self.loop.create_future()
        """The link once it is up, or why it did not come up."""
        self.hinted: asyncio.Future[None] = self.loop.create_future()
        """Done when the address was called unreachable before the link was up."""
        self.superseded = False
        """Another link to the same peer is kept, and this one closes soon."""
        self.is_announced = False
        self._owner = owner
        self._expected = expected
        self._keepalive_s = keepalive_s
        self._proven = False
        self._up = False
        self._streams = Multiplexer(self, quic, self.flush_soon, owner.refused_stream)
        self._round_trip = ShortestRoundTrip()
        self._echoes: dict[int, tuple[float, asyncio.Future[float] | None]] = {}
        self._echo_count = 0
        self._echoed_at = now
        self._sizing = Sizing(self.loop, quic, sizes=lambda: owner.sizes(self), send=self._send_probe)
        self._asked_to_watch = False
        self._watch = Watch(
            self.loop,
            quiet=self._watched_quiet_s,
            probe=self._probe,
            read=owner.read,
            rtt=lambda: quic.smoothed_rtt_s,
            verdict=self._judge,
        )

    def __repr__(self) -> str:
        return f"Link({short(self.peer)} at {self.address}{'' if self.alive else ', closed'})"

    # --- what the mesh uses ----------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the link is up."""
        return self._up and not self.has_ended

    @property
    def silent(self) -> bool:
        """Whether nothing is heard of the peer although it was probed."""
        return self._watch.silent

    @property
    def destinations(self) -> tuple[SocketAddress, SocketAddress]:
        """Where datagrams go, and where they would go again if nothing answers there."""
        return self.destination, self.proven_destination

    @property
    def path(self) -> Literal["direct", "relayed"]:
        """How the peer has last been reached."""
        return "relayed" if is_relayed(self.proven_destination) else "direct"

    @property
    def rtt_s(self) -> float | None:
        """The shortest round trip of the last 30 s, in seconds; None before the first."""
        return self._round_trip.at(monotonic())

    @property
    def datagram_bytes(self) -> int:
        """The size of the UDP datagrams that are sent."""
        return self.quic.datagram_bytes

    @property
    def streams(self) -> int:
        """How many streams are open, of both sides."""
        return len(self._streams)

    def exporter(self, label: str, length: int) -> bytes:
        """`length` bytes that only the two ends know, bound to this connection and `label` (RFC 8446, 7.5)."""
        return self.quic.exporter(label, length)

    def open_stream(self, *, priority: int = 0) -> MeshStream:
        """A new stream; the peer hears of it with the first byte. Lower priorities are served first.

        Raises LinkLost. Beyond what the peer allows, bytes wait until one of the other streams ends.
        """
        if not self.alive:
            raise LinkLost(f"no connection to {short(self.peer)}")
        stream = self._streams.open(priority)
        self.watch_changed()
        return stream

    def send_datagram(self, data: bytes) -> bool:
        """Send `data` unreliably. False when it is too large for the path, or too many wait."""
        if not self.alive or not self.quic.queue_datagram(data):
            return False
        self.flush_soon()
        return True

    async def echo(self, timeout_s: float = 2.0) -> float:
        """One round trip in seconds, measured now. Raises PeerUnreachable after `timeout_s`, or when the link ends."""
        if self.alive:
            answer: asyncio.Future[float] = self.loop.create_future()
            number = self._ask(answer)
            try:
                return await asyncio.wait_for(answer, timeout_s)
            except TimeoutError:
                pass
            finally:
                self._echoes.pop(number, None)
        raise PeerUnreachable(short(self.peer))

    async def redirect(self, address: Address) -> bool:
        """Go on at another address of the same peer, real or virtual; the peer follows by itself.

        No stream notices, whatever is under way. False when nothing has answered there after a second or so: the link
        is where it was then. Only one redirection at a time.
        """
        target = self._owner.name_of(address)
        return self.alive and target is not None and await self.go_on_at(target)

    def watch(self, on: bool) -> None:
        """Watch the liveness of the peer even while no stream is open, though less closely than while one is."""
        self._asked_to_watch = on
        self.watch_changed()

    def close(self, code: int, reason: str = "") -> None:
        """End the link; the peer is told the code. Streams are lost. The handler hears of it as of any other end."""
        self.end(code, (reason or CLOSE_TEXTS.get(code, ""))[:REASON_CHARS])

    # --- handshake -------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        peer = self.quic.peer_id()
        if peer is None:
            self._refuse(Close.NO_CERTIFICATE)
        elif peer == self._owner.node_id or self._expected not in (None, peer):
            self.peer = peer
            self._refuse(Close.WRONG_PEER)
        else:
            self.peer = peer
            self._proven = True

    def _refuse(self, code: Close) -> None:
        # The end of the handshake first: without it the peer could not read the code.
        self.flush()
        self.close(code)

    def process(self) -> None:
        """React to what was received, and send."""
        self._dispatch()
        if self._proven and not self._up and self.quic.is_confirmed:
            self._come_up()
        super().process()

    def _come_up(self) -> None:
        if self._up or self.has_ended:
            return
        self._up = True
        self.opened_at = monotonic()
        self._owner.established(self)
        if not self.ready.done():
            self.ready.set_result(self)
        if self.alive:
            self._ask()
            self._sizing.begin()

    def announce(self) -> None:
        """Let the handler know of the link, once."""
        if not self.is_announced:
            self.is_announced = True
            self._owner.announced(self)

    def _over(self, code: int, reason: str) -> None:
        self._watch.stop()
        self._sizing.stop()
        if not self.ready.done():
            self.ready.set_result(self._why(code, reason))
        self._streams.break_all(f"the connection to {short(self.peer)} is lost: {reason or hex(code)}", code)
        for _, answer in self._echoes.values():
            if answer is not None and not answer.done():
                answer.set_exception(PeerUnreachable(short(self.peer)))
        self._echoes.clear()
        self.loop.call_soon(self._owner.lost, self, code, reason)

    def _why(self, code: int, reason: str) -> NetworkError:
        text = f"{self.address} ({CLOSE_TEXTS.get(code, reason) or hex(code)})"
        if code == ALPN_REFUSED:
            return PeerRefused(text, close_code=Close.BAD_VERSION)
        if code == Close.WRONG_PEER:
            return WrongPeer(text, close_code=code)
        return PeerRefused(text, close_code=code) if code in CLOSE_TEXTS else PeerUnreachable(text)

    # --- events ----------------------------------------------------------------------------------------------

    def _handle(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self._stream_data(event)
        elif isinstance(event, PingAcknowledged):
            self._echoed(event.uid)
        elif isinstance(event, StreamReset | StopSendingReceived):
            self._streams.ended_by_peer(event.stream_id, event.error_code)
        elif isinstance(event, DatagramFrameReceived):
            if self._is_open_for_data():
                self._owner.arrived(self, event.data)
        elif isinstance(event, HandshakeCompleted):
            self._prove()

    def _is_open_for_data(self) -> bool:
        """Whether what the peer sends may reach the handler. Data of a proven server is itself a confirmation."""
        if not self._proven or self.has_ended:
            return False
        self._come_up()
        self.announce()
        return self.alive

    def _stream_data(self, event: StreamDataReceived) -> None:
        stream = self._streams.known(event.stream_id)
        if stream is not None:
            self._streams.arrived(stream, event.data, event.end_stream)
        elif self._streams.is_new(event.stream_id) and self._is_open_for_data():
            stream = self._streams.accept(event.stream_id)
            if stream is not None:
                self._streams.arrived(stream, event.data, event.end_stream)
                self.watch_changed()
                self._owner.opened(stream)

    def _sent(self) -> None:
        self._streams.sent()

    # --- round trips -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Called about once a second: keep the link alive, and what is known of its path fresh."""
        if not self.alive:
            return
        if self.quic.most_gaps > MOST_GAPS:
            self.close(Close.FLOOD, "data in crumbs")
            return
        if now - self._echoed_at >= self._keepalive_s or self._echo_count < FIRST_ECHOES:
            self._echoes = {
                each: entry for each, entry in self._echoes.items() if now - entry[0] < 4 * self._keepalive_s
            }
            self._ask()
        self._sizing.probe(now)

    def ask_soon(self) -> None:
        """Have the peer hear from this end, and so from where it is."""
        if self.alive:
            self._ask()

    def _ask(self, answer: asyncio.Future[float] | None = None) -> int:
        self._echo_count += 1
        self._echoed_at = monotonic()
        self._echoes[self._echo_count] = self._echoed_at, answer
        self.quic.send_ping(self._echo_count)
        self.flush_soon()
        return self._echo_count

    def _echoed(self, number: int) -> None:
        asked_at, answer = self._echoes.pop(number, (0.0, None))
        if not asked_at:
            return
        now = monotonic()
        self._round_trip.add(now - asked_at, now)
        if answer is not None and not answer.done():
            answer.set_result(now - asked_at)

    # --- the path --------------------------------------------------------------------------------------------

    def limit_window(self, buffer_bytes: int) -> None:
        """Keep no more than half a socket buffer in flight on a near link; a far one spreads it over its length."""
        near = self.quic.nearest_rtt_s < NEAR_S
        congestion.cap_window(self.quic, buffer_bytes // 2 if near else CONNECTION_MOST_BYTES)

    def _send_probe(self, probe: list[bytes]) -> None:
        self._carrier.transmit(probe, self._destination)
        self._arm()

    def _timed_out(self, now: float) -> None:
        self._sizing.timed_out(now)

    def _left(self) -> None:
        self._sizing.leave()

    def _returned(self) -> None:
        self._sizing.come_back()

    def _moved(self, before: SocketAddress) -> None:
        self._owner.moved()
        self._round_trip.forget()
        if before[0] != self.destination[0]:
            congestion.begin_path(self.quic)
        self._ask()
        self._sizing.begin()

    # --- liveness --------------------------------------------------------------------------------------------

    def _heard(self, now: float) -> None:
        self._watch.heard(now)

    def unreachable(self) -> None:
        """The address of the peer was called unreachable by somebody: a reason to look, no proof."""
        if self._up:
            self._watch.hint()
        elif not self.hinted.done():
            self.hinted.set_result(None)

    def watch_changed(self) -> None:
        """A stream was opened, or what is to be watched has changed."""
        if self.alive:
            self._watch.consider()

    def _watched_quiet_s(self) -> float | None:
        if any(stream.watched for stream in self._streams):
            return QUIET_S
        return IDLE_QUIET_S if self._asked_to_watch else None

    def _probe(self) -> None:
        self.quic.probe()
        self.flush()

    def _judge(self, silent: bool) -> None:
        if self.is_announced:
            self._owner.silence(self, silent)
