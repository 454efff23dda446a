"""Runs of acknowledged packets: the same outcome as packet by packet."""

from random import Random
from typing import Any

import pytest
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStreamSender
from aioquic.tls import Epoch

from meshnode.net.fast_recovery import FastRecovery, StreamPacket

SIZE = 1000


class Sent:
    """A recovery with packets under way on two streams, some of them no stream data."""

    def __init__(self, kind: type[QuicPacketRecovery], random: Random, count: int, control: str = "mesh") -> None:
        self.told: list[tuple[str, int]] = []
        self.recovery = kind(
            congestion_control_algorithm=control,
            initial_rtt=0.1,
            max_datagram_size=SIZE,
            peer_completed_address_validation=True,
            send_probe=lambda: None,
        )
        self.space = QuicPacketSpace(is_application_data=True)
        self.recovery.spaces = [self.space]
        self.senders = [QuicStreamSender(number, True) for number in (0, 4)]
        for sender in self.senders:
            sender.write(bytes(count * SIZE), end_stream=True)
            sender._pending = RangeSet()
        # In the order of sending, but for what had to be sent again and so comes later.
        offsets = [[number * SIZE for number in range(count)] for _ in self.senders]
        for each in offsets:
            for _ in range(count // 10):
                each.insert(random.randrange(count), each.pop(random.randrange(count)))
        current = 0
        for number in range(count):
            if random.random() < 0.2:
                current = 1 - current
            packet: Any
            if random.random() < 0.1:
                packet = QuicSentPacket(
                    epoch=Epoch.ONE_RTT,
                    in_flight=True,
                    is_ack_eliciting=True,
                    is_crypto_packet=False,
                    packet_number=number,
                    packet_type=None,  # type: ignore[arg-type]
                    sent_time=number / 1e5,
                    sent_bytes=50,
                    delivery_handlers=[(lambda state, n: self.told.append((state.name, n)), (number,))],
                )
            else:
                start = offsets[current].pop(0)
                packet = StreamPacket(number, number / 1e5, SIZE, self.senders[current], start, start + SIZE, False)
            self.recovery.on_packet_sent(packet=packet, space=self.space)

    def acknowledge(self, ranges: list[tuple[int, int]], now: float) -> None:
        self.recovery.on_ack_received(
            ack_rangeset=RangeSet([range(start, stop) for start, stop in ranges]),
            ack_delay=0.0,
            now=now,
            space=self.space,
        )

    def outcome(self) -> dict[str, Any]:
        return {
            "left": list(self.space.sent_packets),
            "eliciting": self.space.ack_eliciting_in_flight,
            "largest": self.space.largest_acked_packet,
            "loss_time": self.space.loss_time,
            "flight": self.recovery.bytes_in_flight,
            "rtt": (self.recovery._rtt_latest, self.recovery._rtt_smoothed, self.recovery._rtt_min),
            "told": sorted(self.told),
            "senders": [
                (sender._buffer_start, list(sender._acked), list(sender._pending), sender.is_finished)
                for sender in self.senders
            ],
        }


@pytest.mark.parametrize("seed", range(40))
def test_the_outcome_is_that_of_aioquic(seed: int) -> None:
    found = []
    for kind in (FastRecovery, QuicPacketRecovery):
        random = Random(seed)
        count = random.choice((4, 20, 200))
        sent = Sent(kind, random, count)
        now = 0.01
        for _ in range(random.randint(1, 6)):
            # Nothing, everything, or anything in between; older than what is left, too.
            edges = sorted(random.sample(range(count + 1), k=min(count, 2 * random.randint(1, 4))))
            sent.acknowledge(list(zip(edges[::2], edges[1::2], strict=True)), now)
            now += 0.003
        found.append(sent.outcome())
    assert found[0] == found[1]


def test_neighbouring_packets_are_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Sent(FastRecovery, Random(3), 0)
    sender = sent.senders[0]
    sender.write = None  # type: ignore[method-assign, assignment]
    told = []
    monkeypatch.setattr(sender, "on_data_delivery", lambda *arguments: told.append(arguments))
    for number in range(50):
        packet: Any = StreamPacket(number, 0.0, SIZE, sender, number * 990, (number + 1) * 990, number == 49)
        sent.recovery.on_packet_sent(packet=packet, space=sent.space)
    sent.acknowledge([(0, 20), (21, 50)], 0.01)
    acked = QuicDeliveryState.ACKED
    assert told[:2] == [(acked, 0, 19800, False), (acked, 20790, 48510, False)]
    assert (acked, 48510, 49500, True) in told  # the newest one is aioquic's
    assert (QuicDeliveryState.LOST, 19800, 20790, False) in told
    assert not sent.space.sent_packets


def test_an_acknowledgement_of_other_packets_takes_nothing() -> None:
    """The newest packet acknowledged is older than all of ours."""
    sent = Sent(FastRecovery, Random(1), 0)
    for number in range(10, 40):
        packet: Any = StreamPacket(number, 0.0, SIZE, sent.senders[0], number * 10, number * 10 + 10, False)
        sent.recovery.on_packet_sent(packet=packet, space=sent.space)
    sent.acknowledge([(0, 10)], 0.01)
    assert len(sent.space.sent_packets) == 30
    assert sent.recovery.bytes_in_flight == 30 * SIZE


def test_other_controls_are_told_packet_by_packet() -> None:
    sent = Sent(FastRecovery, Random(5), 100, "reno")
    sent.acknowledge([(0, 100)], 0.01)
    assert sent.recovery.bytes_in_flight == 0
    assert sent.recovery.congestion_window > 10 * SIZE


def test_a_lost_packet_is_known_to_its_sender() -> None:
    sender = QuicStreamSender(0, True)
    sender.write(bytes(3000))
    sender._pending = RangeSet()
    packet = StreamPacket(7, 1.0, 1028, sender, 1000, 2000, False)
    ((handler, arguments),) = packet.delivery_handlers
    handler(QuicDeliveryState.LOST, *arguments)
    assert list(sender._pending) == [range(1000, 2000)]
