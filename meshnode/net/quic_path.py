"""The path of a connection: how large its datagrams are, and whether the peer really is where they go."""

from __future__ import annotations

from collections.abc import Callable

from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicFrameType, QuicPacketType, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.tls import Epoch

from meshnode.net import congestion

FIRST_DATAGRAM_BYTES = SMALLEST_MAX_DATAGRAM_SIZE
MOST_DATAGRAM_BYTES = 16384
"""aioquic writes the length of a STREAM frame in two bytes: above 16414 it would silently corrupt."""
DATAGRAM_FRAME_OVERHEAD_BYTES = 40
"""What a packet adds to the contents of a DATAGRAM frame, at most: header, frame header, tag."""


class QuicPath(QuicConnection):
    """A connection with one path, whose size can be probed and whose far end can be challenged, for either role."""

    path_failed = False
    """The path under validation did not answer; the owner returns to the one before."""

    # --- size ------------------------------------------------------------------------------------------------

    @property
    def datagram_bytes(self) -> int:
        """The largest datagram that is sent."""
        return self._max_datagram_size

    def set_datagram_bytes(self, size: int) -> None:
        """Send datagrams of up to `size` bytes from now on."""
        congestion.set_datagram_bytes(self, size)
        # One that fits no more would stand in the way of all others.
        for data in [data for data in self._datagrams_pending if len(data) > size - DATAGRAM_FRAME_OVERHEAD_BYTES]:
            self._datagrams_pending.remove(data)

    def size_probe(self, size: int, now: float, arrived: Callable[[bool], None]) -> list[bytes]:
        """A datagram of `size` bytes with nothing in it but a PING and padding (RFC 8899, 4.1).

        `arrived` is called once with whether it was acknowledged. Its loss says nothing about congestion, so that it
        is not counted as in flight.
        """
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            spin_bit=self._spin_bit,
            version=self._version or QuicProtocolVersion.VERSION_1,
        )

        def delivered(delivery: QuicDeliveryState) -> None:
            arrived(delivery is QuicDeliveryState.ACKED)

        try:
            builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[Epoch.ONE_RTT])
            buffer = builder.start_frame(QuicFrameType.PING, handler=delivered)
        except QuicPacketBuilderStop:
            return []
        buffer.push_bytes(bytes(builder.remaining_buffer_space))
        if builder._packet is not None:
            builder._packet.in_flight = False
        path = self._network_paths[0]
        sent = self._flush_builder(builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now)
        # aioquic does this for packets in flight only; without it the probe would count as late at once.
        self._loss._time_of_last_sent_ack_eliciting_packet = now
        return [data for data, _ in sent]

    # --- validation ------------------------------------------------------------------------------------------

    @property
    def is_path_valid(self) -> bool:
        """Whether the peer has answered from where datagrams go."""
        return self._network_paths[0].is_validated

    def begin_validation(self, received_bytes: int) -> None:
        """The peer seems to have moved: challenge the new path (RFC 9000, 8.2), and send no more than three times
        what came from it until it answers."""
        path = self._network_paths[0]
        path.is_validated = False
        path.local_challenge_sent = False
        path.local_challenges.clear()
        path.validation_deadline = None
        path.bytes_received, path.bytes_sent = received_bytes, 0
        self.path_failed = False

    def repeat_challenge(self) -> None:
        """The challenge, or its answer, may be lost. Answers to earlier ones still count."""
        self._network_paths[0].local_challenge_sent = False

    def challenge_again(self, allowed_bytes: int = 0) -> None:
        """The same, and begin to wait anew, whatever came of it. A third of what more may be sent there without an
        answer is `allowed_bytes`."""
        path = self._network_paths[0]
        path.is_validated = False
        path.local_challenge_sent = False
        path.validation_deadline = None
        path.bytes_received += allowed_bytes

    def uncount(self, received_bytes: int) -> None:
        """So much of what was received came from elsewhere, and allows nothing to be sent on the path."""
        self._network_paths[0].bytes_received -= received_bytes

    def end_validation(self) -> None:
        """The path is a known one after all."""
        self._network_paths[0].is_validated = True

    def _abandon_path_validation(self) -> None:
        # aioquic knows one path, as it sees one logical address; which real address is behind it is the owner's affair.
        self._network_paths[0].is_validated = True
        self.path_failed = True
