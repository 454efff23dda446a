"""What the hot path keeps of a sent packet, and acknowledgements of many such packets at once.

A bulk transfer sends a thousand packets per acknowledgement of ten. aioquic calls back for each packet; here the
packets of one acknowledged range that carried neighbouring bytes of one stream are reported as one piece. The rest of
the acknowledgement (round-trip time, loss detection, all other packets) stays aioquic's: it is handed the
acknowledgement afterwards, with the newest packet still in place, from which it takes the round-trip time.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStreamSender
from aioquic.tls import Epoch

from meshnode.net.congestion import MeshCongestionControl
from meshnode.net.recovery import PatientRecovery

WORTH_MERGING = 8
"""Below so many packets in flight aioquic's own loop is as good."""


class StreamPacket:
    """A sent 1-RTT packet that holds one STREAM frame and nothing else. Has what aioquic reads of a QuicSentPacket."""

    __slots__ = ("packet_number", "sent_time", "sent_bytes", "sender", "start", "stop", "fin")

    epoch = Epoch.ONE_RTT
    packet_type = QuicPacketType.ONE_RTT
    in_flight = True
    is_ack_eliciting = True
    is_crypto_packet = False
    quic_logger_frames = None

    def __init__(
        self,
        packet_number: int,
        sent_time: float,
        sent_bytes: int,
        sender: QuicStreamSender,
        start: int,
        stop: int,
        fin: bool,
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.sender = sender
        self.start = start
        self.stop = stop
        self.fin = fin

    @property
    def delivery_handlers(self) -> list[tuple[Any, Any]]:
        """Whom aioquic tells what became of it."""
        return [(self.sender.on_data_delivery, (self.start, self.stop, self.fin))]


class FastRecovery(PatientRecovery):
    """Loss recovery, told of whole runs where that is the same."""

    def on_ack_received(self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        """An ACK frame has come in."""
        if len(space.sent_packets) > WORTH_MERGING and isinstance(self._cc, MeshCongestionControl):
            self._take_runs(ack_rangeset, space, self._cc)
        super().on_ack_received(ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space)

    def _take_runs(self, ack_rangeset: RangeSet, space: QuicPacketSpace, control: MeshCongestionControl) -> None:
        sent = space.sent_packets
        numbers = list(sent)
        # aioquic's loop takes the round-trip time from the newest packet, and counts a sample only if a packet that
        # asks for acknowledgement was among them; so the newest of all, and the newest of ours, are left to it.
        newest = bisect_left(numbers, ack_rangeset[-1].stop) - 1
        while newest >= 0 and not isinstance(sent[numbers[newest]], StreamPacket):
            newest -= 1
        if newest < 0:
            return
        for span in ack_rangeset:
            begin = bisect_left(numbers, span.start)
            end = min(bisect_left(numbers, span.stop), newest)
            run: list[StreamPacket] = []
            for number in numbers[begin:end]:
                packet = sent[number]
                if not isinstance(packet, StreamPacket):
                    continue
                if run and (packet.sender is not run[-1].sender or packet.start != run[-1].stop):
                    self._take_run(run, space, control)
                    run = []
                run.append(packet)
                del sent[number]
            if run:
                self._take_run(run, space, control)

    def _take_run(self, run: list[StreamPacket], space: QuicPacketSpace, control: MeshCongestionControl) -> None:
        first, last = run[0], run[-1]
        space.ack_eliciting_in_flight -= len(run)
        control.on_run_acked(len(run), sum(packet.sent_bytes for packet in run), first.sent_time, last.sent_time)
        first.sender.on_data_delivery(QuicDeliveryState.ACKED, first.start, last.stop, last.fin)
