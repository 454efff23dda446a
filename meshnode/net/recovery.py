"""Round trips where the peer takes its time with acknowledgements (RFC 9002, 5.3): what it held them back for is no
part of the path.

aioquic takes the peer's word for its delay only in part: what it tells the congestion control contains the delay, and
on a path shorter than a millisecond, the least it knows, its own estimate does as well. A delay on purpose would look
like a queue.

And handshakes where much is lost: aioquic doubles the time between its tries without end (RFC 9002, 6.2.1), and a
handshake of five seconds is over after five of them. Behind a relay and on a line that loses a fifth, that is too few.
As a handshake ends soon whatever happens, the time is not doubled beyond HANDSHAKE_MOST_S.
"""

from __future__ import annotations

from math import log2
from typing import TypeVar

from aioquic.quic.connection import QuicConnection
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

HANDSHAKE_MOST_S = 0.4


class PatientRecovery(QuicPacketRecovery):
    """aioquic's loss recovery, for which an acknowledgement has come when its newest packet had arrived."""

    def on_ack_received(self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        """An ACK frame has come in. Its delay counts up to what the peer may take, and never makes a round trip
        shorter than the shortest one seen: whoever lies about it gains nothing.
        """
        newest = space.sent_packets.get(ack_rangeset[-1].stop - 1)
        if newest is not None and newest.sent_time is not None:
            spare = now - newest.sent_time - self._rtt_min
            now -= max(min(ack_delay, self.max_ack_delay, spare), 0.0)
        super().on_ack_received(ack_rangeset=ack_rangeset, ack_delay=0.0, now=now, space=space)

    def get_loss_detection_time(self, *, amplification_limited: bool = False) -> float | None:
        """When the next try is due."""
        count = self._pto_count
        if self.handshake_confirmed or not count:
            return super().get_loss_detection_time(amplification_limited=amplification_limited)
        doublings = int(log2(max(HANDSHAKE_MOST_S / self.get_probe_timeout(), 1.0)))
        self._pto_count = min(count, doublings)
        try:
            return super().get_loss_detection_time(amplification_limited=amplification_limited)
        finally:
            self._pto_count = count


Kind = TypeVar("Kind", bound=QuicPacketRecovery)


def recover(connection: QuicConnection, kind: type[Kind]) -> Kind:
    """Give a new connection another loss recovery, with the arguments that aioquic's has."""
    made = connection._loss = kind(
        congestion_control_algorithm=connection._configuration.congestion_control_algorithm,
        initial_rtt=connection._configuration.initial_rtt,
        max_datagram_size=connection._max_datagram_size,
        peer_completed_address_validation=not connection._is_client,
        quic_logger=connection._quic_logger,
        send_probe=connection._send_probe,
        logger=connection._logger,
    )
    return made
