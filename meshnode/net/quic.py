"""One QUIC connection (RFC 9000, 9001) between two nodes: aioquic's state machine with what a mesh needs added.

Added: mutual authentication by raw keys, the TLS exporter, credit by consumption (`quic_credit.py`), bursts
(`congestion.py`), key updates, a datagram size that can be tested and raised and path validation for either role
(`quic_path.py`), acknowledgements that ride on data (`quic_acks.py`), and PINGs that are answered at once, so that
their round trip is the path's. Left out: session tickets and 0-RTT (early data would arrive before its sender is
known), unidirectional streams, version negotiation.

aioquic offers no public way to most of this, so private names are used; all of them are in the modules named here and
in the `fast_*` ones, and `selftest.py` tries at start-up what security rests on. No IO and no clock here: datagrams
and `now` (monotonic seconds) come in, datagrams and events go out.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from functools import cache
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionError, QuicConnectionState, QuicReceiveContext
from aioquic.quic.events import ConnectionTerminated, QuicEvent
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.quic.stream import QuicStream
from aioquic.tls import CipherSuite, Direction, Epoch, Group
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.identity import NodeId
from meshnode.net import congestion, tls
from meshnode.net.credit import CONNECTION_FIRST_BYTES, STREAM_FIRST_BYTES
from meshnode.net.fast import FastQuic, connection_class
from meshnode.net.quic_acks import QuicAcks
from meshnode.net.quic_credit import QuicCredit
from meshnode.net.quic_path import DATAGRAM_FRAME_OVERHEAD_BYTES, FIRST_DATAGRAM_BYTES, QuicPath
from meshnode.wire.registry import ALPN, LIMIT_STREAMS_A_LINK

MOST_DATAGRAMS_QUEUED = 64
STREAMS_ADVERTISED = LIMIT_STREAMS_A_LINK + 64
"""More than are accepted, so that the excess is refused with a code instead of waiting without a word."""
MOST_HANDSHAKE_BYTES = 16384
"""Ours has less than two thousand in each direction."""
KEY_UPDATE_PACKETS = 1 << 22
"""Half of what AES-GCM allows under one key (RFC 9001, 6.6)."""
_END_STATES = frozenset({QuicConnectionState.CLOSING, QuicConnectionState.DRAINING, QuicConnectionState.TERMINATED})


class _Quiet:
    """Takes the place of aioquic's log: what a hostile peer makes it say is not for our log, and it costs time."""

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    debug = info = warning = error = _nothing


_QUIET: Any = _Quiet()


def configuration(
    certificate: x509.Certificate,
    private_key: Ed25519PrivateKey,
    *,
    is_client: bool,
    idle_timeout_s: float = 20.0,
    congestion_control: str = congestion.NAME,
    alpn: str = ALPN,
) -> QuicConfiguration:
    """What both ends of every connection agree on."""
    return QuicConfiguration(
        alpn_protocols=[alpn],
        certificate=certificate,
        cipher_suites=[CipherSuite.AES_128_GCM_SHA256, CipherSuite.CHACHA20_POLY1305_SHA256],
        congestion_control_algorithm=congestion_control,
        idle_timeout=idle_timeout_s,
        is_client=is_client,
        max_data=CONNECTION_FIRST_BYTES,
        max_datagram_frame_size=65535,
        max_datagram_size=FIRST_DATAGRAM_BYTES,
        max_stream_data=STREAM_FIRST_BYTES,
        private_key=private_key,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        # Names and chains say nothing here: the key is compared by `Link`, and its possession is always checked.
        verify_mode=ssl.CERT_NONE,
    )


class MeshQuic(QuicPath, QuicCredit, QuicAcks):
    """See the module. Works on aioquic's QuicConnection and on our faster one alike: see `connection_type`."""

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._logger = _QUIET
        self._loss._logger = None
        for limit, value in ((self._local_max_streams_bidi, STREAMS_ADVERTISED), (self._local_max_streams_uni, 0)):
            limit.value = limit.sent = value
        self._local_max_stream_data_uni = 0
        congestion.pace(self)
        self._exporter: tuple[hashes.HashAlgorithm, bytes] | None = None
        self._update_keys_at = KEY_UPDATE_PACKETS
        self._ranked: dict[int, tuple[int, QuicStream]] = {}
        self._abandoned: dict[int, int] = {}

    # --- handshake ------------------------------------------------------------------------------------------

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._supported_groups = [Group.X25519]
        if not self._is_client:
            self.tls._request_client_certificate = True

    def _update_traffic_key(self, direction: Direction, epoch: Epoch, cipher_suite: CipherSuite, secret: bytes) -> None:
        # At this call, and only here, the transcript ends with the server's Finished, as the exporter wants it
        # (RFC 8446, 7.5): the server is about to encrypt, the client to decrypt.
        if epoch is Epoch.ONE_RTT and self._exporter is None and (direction is Direction.DECRYPT) == self._is_client:
            schedule = self.tls.key_schedule
            assert schedule is not None
            self._exporter = schedule.algorithm, schedule.derive_secret(b"exp master")
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        # aioquic keeps half a megabyte for whoever sends the end of a handshake first, known to us or not.
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > MOST_HANDSHAKE_BYTES:
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "handshake too long")
        super()._handle_crypto_frame(context, frame_type, buf)

    def peer_id(self) -> NodeId | None:
        """The key that the peer has proven, once the handshake is complete; None where it has shown none."""
        return tls.node_id(self.tls._peer_certificate)

    def exporter(self, label: str, length: int) -> bytes:
        """Keying material that only the two ends know, bound to this connection (RFC 8446, 7.5)."""
        assert self._exporter is not None, "before the handshake"
        return tls.exported(*self._exporter, label, length)

    @property
    def is_begun(self) -> bool:
        """Whether one valid packet of the peer has come."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def is_handshaken(self) -> bool:
        """Whether the handshake is complete on this side."""
        return self._handshake_complete

    @property
    def is_confirmed(self) -> bool:
        """Whether the peer is known to have completed the handshake as well (RFC 9001, 4.1.2)."""
        return self._handshake_confirmed

    @property
    def ending(self) -> ConnectionTerminated | None:
        """Why the connection ends, known as soon as either side wants it; aioquic's own event comes much later."""
        return self._close_event

    @property
    def is_over(self) -> bool:
        """Whether nothing will be sent any more."""
        return self._state in _END_STATES

    # --- receiving ------------------------------------------------------------------------------------------

    def feed(self, datagrams: Sequence[bytes], source: Any, now: float) -> None:
        """Handle datagrams that came together."""
        self.brace()
        if isinstance(self, FastQuic):
            self.receive_datagrams(datagrams, source, now)
        else:
            for datagram in datagrams:
                self.receive_datagram(datagram, source, now)
        self.hasten(now)

    def _handle_ping_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        super()._handle_ping_frame(context, frame_type, buf)
        self._spaces[context.epoch].ack_at = context.time

    @property
    def newest_received(self) -> int:
        """The number of the newest packet received under the final keys; -1 before the first."""
        space = self._spaces.get(Epoch.ONE_RTT)
        return -1 if space is None else space.largest_received_packet

    @property
    def expires_at(self) -> float | None:
        """When the idle timeout ends the connection. It moves with every packet that proves to be the peer's."""
        return self._close_at

    def take_event(self) -> QuicEvent | None:
        """The next thing that happened."""
        return self._events.popleft() if self._events else None

    # --- streams --------------------------------------------------------------------------------------------

    def open_stream(self) -> int:
        """A new bidirectional stream; the peer hears of it with its first byte."""
        stream_id = self.get_next_available_stream_id()
        self.send_stream_data(stream_id, b"")
        return stream_id

    @property
    def most_gaps(self) -> int:
        """The most pieces that the data of one stream has arrived in, with gaps between them.

        Losses make some. Thousands are made on purpose, since each piece costs time in proportion to their number.
        """
        return max((len(stream.receiver._ranges) for stream in self._streams.values()), default=0)

    def rank_stream(self, stream_id: int, priority: int) -> None:
        """Serve a stream before (below 0) or after (above 0) the others."""
        self._ranked.pop(stream_id, None)
        if priority and stream_id in self._streams:
            self._ranked[stream_id] = priority, self._streams[stream_id]

    def unsent_bytes(self, stream_id: int) -> int:
        """What was written and has not been sent once."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def has_stream(self, stream_id: int) -> bool:
        """Whether frames about this stream can still come."""
        return stream_id in self._streams

    def abandon_stream(self, stream_id: int, code: int) -> None:
        """End both directions with `code` and free what waits to be sent."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.is_blocked:
            # The peer has not allowed this id yet, and would take a frame about it for a violation. It must hear of it
            # some time, though, as ids are used in order.
            self._abandoned[stream_id] = code
            stream.sender._buffer = bytearray()
            return
        if not stream.sender.is_finished:
            self.reset_stream(stream_id, code)
            stream.sender._buffer = bytearray()
        if not stream.receiver.is_finished:
            self.stop_stream(stream_id, code)

    def _unblock_streams(self, is_unidirectional: bool) -> None:
        super()._unblock_streams(is_unidirectional)
        for stream_id in [each for each in self._abandoned if not self._streams[each].is_blocked]:
            self.abandon_stream(stream_id, self._abandoned.pop(stream_id))

    def queue_datagram(self, data: bytes) -> bool:
        """Send `data` unreliably. False when it does not fit into a packet, or too much waits already.

        The size is checked here since aioquic would never get past a frame that is too large.
        """
        most = min(self._max_datagram_size, self._remote_max_datagram_frame_size or 0) - DATAGRAM_FRAME_OVERHEAD_BYTES
        if len(data) > most or len(self._datagrams_pending) >= MOST_DATAGRAMS_QUEUED:
            return False
        self.send_datagram_frame(data)
        return True

    # --- sending --------------------------------------------------------------------------------------------

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """What is to be sent now: a burst at most. `take_turn` tells whether there is more."""
        if self._packet_number >= self._update_keys_at:
            self._update_keys_at = self._packet_number + KEY_UPDATE_PACKETS
            self.request_key_update()
        if self._ranked:
            self._rank_streams()
        return super().datagrams_to_send(now)

    def take_turn(self, now: float) -> bool:
        """Whether the last burst ended before everything was sent: the rest may go after a turn of the event loop."""
        if self._pacing_at is None or self._pacing_at > now:
            return False
        self._pacing_at = None  # else get_timer() would ask for the same once more
        return True

    def _rank_streams(self) -> None:
        queue = self._streams_queue
        for stream_id, (priority, stream) in list(self._ranked.items()):
            if stream_id not in self._streams:
                del self._ranked[stream_id]
            elif not stream.sender.buffer_is_empty:
                queue.remove(stream)
                queue.insert(0 if priority < 0 else len(queue), stream)

    def probe(self) -> None:
        """Send a PING even if the congestion window is full (RFC 9002, 6.2.4)."""
        self._send_probe()

    @property
    def smoothed_rtt_s(self) -> float:
        """aioquic's estimate: never below a millisecond, with the peer's delays in it; for timers."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else self._configuration.initial_rtt

    @property
    def nearest_rtt_s(self) -> float:
        """The shortest round trip that acknowledgements showed, at least a millisecond; inf before the first."""
        return self._loss._rtt_min

    @property
    def lost_probes(self) -> int:
        """How many times in a row the retransmission timer has fired without an answer."""
        return self._loss._pto_count


@cache
def connection_type(fast: bool) -> type[MeshQuic]:
    """MeshQuic over aioquic's connection, or over the one with the faster paths where it can be used."""
    chosen = connection_class(fast)
    return MeshQuic if chosen is QuicConnection else type("FastMeshQuic", (MeshQuic, chosen), {})
