"""Round trips of acknowledgements that the peer held back."""

from typing import Any

import pytest
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.tls import Epoch

from meshnode.net.congestion import NAME, MeshCongestionControl
from meshnode.net.recovery import PatientRecovery

TRIP_S = 0.002


class Path:
    """A sender and the acknowledgements of what it sends, one packet at a time."""

    def __init__(self) -> None:
        self.recovery = PatientRecovery(
            congestion_control_algorithm=NAME,
            initial_rtt=0.1,
            max_datagram_size=1200,
            peer_completed_address_validation=True,
            send_probe=lambda: None,
        )
        self.space = QuicPacketSpace()
        self.recovery.spaces = [self.space]
        self.now = 10.0
        self.number = 0

    @property
    def control(self) -> MeshCongestionControl:
        found: Any = self.recovery._cc
        assert isinstance(found, MeshCongestionControl)
        return found

    def exchange(self, trip_s: float, said_s: float = 0.0) -> None:
        """Send one packet; its acknowledgement comes after `trip_s` and says that it waited for `said_s`."""
        packet = QuicSentPacket(
            epoch=Epoch.ONE_RTT,
            in_flight=True,
            is_ack_eliciting=True,
            is_crypto_packet=False,
            packet_number=self.number,
            packet_type=QuicPacketType.ONE_RTT,
            sent_time=self.now,
            sent_bytes=1200,
        )
        self.recovery.on_packet_sent(packet=packet, space=self.space)
        self.now += trip_s
        self.recovery.on_ack_received(
            ack_rangeset=RangeSet([range(self.number, self.number + 1)]),
            ack_delay=said_s,
            now=self.now,
            space=self.space,
        )
        self.number += 1


@pytest.fixture
def path() -> Path:
    made = Path()
    made.exchange(TRIP_S)
    return made


def test_what_the_peer_held_back_is_no_part_of_the_round_trip(path: Path) -> None:
    for _ in range(50):
        path.exchange(TRIP_S + 0.010, 0.010)
    assert path.recovery._rtt_smoothed == pytest.approx(TRIP_S)
    assert path.control.queue_s == pytest.approx(0.0, abs=1e-9)


def test_what_the_path_adds_is(path: Path) -> None:
    for _ in range(50):
        path.exchange(TRIP_S + 0.010 + 0.003, 0.010)
    assert path.recovery._rtt_smoothed == pytest.approx(TRIP_S + 0.003, rel=0.01)
    assert path.control.queue_s == pytest.approx(0.003)


def test_a_lie_makes_no_round_trip_shorter_than_the_shortest_seen(path: Path) -> None:
    for said_s in (0.002, 0.020, 1e9):
        path.exchange(TRIP_S + 0.001, said_s)
    assert path.recovery._rtt_min == pytest.approx(TRIP_S)
    assert path.control.base_rtt_s == pytest.approx(TRIP_S)


def test_no_more_is_believed_than_the_peer_may_take(path: Path) -> None:
    path.exchange(TRIP_S + 0.100, 0.100)
    assert path.recovery._rtt_latest == pytest.approx(TRIP_S + 0.100 - path.recovery.max_ack_delay)


def test_the_first_round_trip_is_taken_as_it_is() -> None:
    path = Path()
    path.exchange(0.012, 0.010)
    assert path.recovery._rtt_smoothed == pytest.approx(0.012)


def test_nothing_new_in_an_acknowledgement_is_no_sample(path: Path) -> None:
    before = path.recovery._rtt_smoothed
    path.now += 1.0
    path.recovery.on_ack_received(ack_rangeset=RangeSet([range(1)]), ack_delay=0.0, now=path.now, space=path.space)
    assert path.recovery._rtt_smoothed == before


def test_a_handshake_is_tried_often_enough_where_much_is_lost() -> None:
    """Only until it is confirmed; then the time between tries doubles as ever."""
    path = Path()
    path.recovery._time_of_last_sent_ack_eliciting_packet = 10.0
    path.space.ack_eliciting_in_flight = 1
    waits = []
    for count in range(8):
        path.recovery._pto_count = count
        at = path.recovery.get_loss_detection_time(amplification_limited=False)
        assert at is not None and path.recovery._pto_count == count
        waits.append(at - 10.0)
    assert waits == pytest.approx([0.2, *[0.4] * 7])
    path.recovery.handshake_confirmed = True
    at = path.recovery.get_loss_detection_time(amplification_limited=False)
    assert at == pytest.approx(10.0 + 0.2 * 2**7)
