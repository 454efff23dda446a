"""When a connection acknowledges (RFC 9000, 13.2): with the answer, where one is to be expected soon.

A question and its answer are a datagram each way. If each is acknowledged at once, there are two more, which cost both
ends a system call and a wakeup, and carry nothing. So a few packets in order wait up to PATIENCE_S for something that
an ACK frame can ride on; many, or packets around a gap, do not, as the congestion window and the retransmission of
what is missing depend on them; nor does a PING (`quic.py`), which measures the path.
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import ACK_FRAME_CAPACITY, QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from meshnode.net.recovery import PatientRecovery, recover

PATIENCE_S = 0.01
"""Well below the 25 ms that aioquic announces as max_ack_delay: event loops are late."""
PROMPT_S = 0.001
PATIENT_PACKETS = 8
"""From so many packets on, acknowledgements are prompt."""
LEAST_DATA_BYTES = 64
"""A packet that has no room for so much data besides an ACK frame takes none."""


class QuicAcks(QuicConnection):
    """A connection whose acknowledgements ride on data."""

    _settled = -1
    """The newest packet when nothing was owed."""
    _had_gaps = False
    _sending_at = 0.0

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._ack_delay = PATIENCE_S
        if not isinstance(self._loss, PatientRecovery):
            recover(self, PatientRecovery)

    def brace(self) -> None:
        """Call before packets are handed in."""
        space = self._spaces.get(Epoch.ONE_RTT)
        if space is not None:
            self._had_gaps = len(space.ack_queue) > 1
            if space.ack_at is None:
                self._settled = space.largest_received_packet

    def hasten(self, now: float) -> None:
        """Call after packets have come in: see whether their acknowledgement may wait."""
        space = self._spaces.get(Epoch.ONE_RTT)
        if space is None or space.ack_at is None:
            return
        many = space.largest_received_packet - self._settled >= PATIENT_PACKETS
        if many or self._had_gaps or len(space.ack_queue) > 1 or not self._handshake_confirmed:
            space.ack_at = min(space.ack_at, now + PROMPT_S)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """What is to be sent now."""
        self._sending_at = now
        return super().datagrams_to_send(now)

    def _write_stream_frame(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream, max_offset: int
    ) -> int:
        if (
            space.ack_at is not None
            and stream.sender.next_offset < max_offset
            and builder.remaining_flight_space >= ACK_FRAME_CAPACITY + LEAST_DATA_BYTES
        ):
            self._write_ack_frame(builder=builder, space=space, now=self._sending_at)
        return super()._write_stream_frame(builder, space, stream, max_offset)
