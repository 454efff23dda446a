"""Windows and pacing against numbers worked out by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import QuicConnection

from meshnode.net.congestion import (
    INITIAL_DATAGRAMS,
    MeshCongestionControl,
    cap_window,
    pace,
    set_datagram_bytes,
)
from meshnode.net.pacing import BurstPacer
from tests.net.quic_pair import configuration

SIZE = 1000


def packet(sent_time: float, sent_bytes: int = SIZE) -> Any:
    return SimpleNamespace(sent_time=sent_time, sent_bytes=sent_bytes)


class Path:
    """A control and what has been sent with it. Rounds are played: send a number of packets, then acknowledge them."""

    def __init__(self, window: int | None = None, *, slow_start: bool = True) -> None:
        self.control = MeshCongestionControl(max_datagram_size=SIZE)
        self.now = 10.0
        if window is not None:
            self.control.congestion_window = window
        if not slow_start:
            self.control.ssthresh = self.control.congestion_window

    @property
    def window(self) -> int:
        return self.control.congestion_window

    def send(self, count: int) -> list[Any]:
        self.now += 1e-6
        packets = [packet(self.now) for _ in range(count)]
        for item in packets:
            self.control.on_packet_sent(packet=item)
        return packets

    def acknowledge(self, packets: list[Any], rtt_s: float) -> None:
        self.now = packets[-1].sent_time + rtt_s
        for item in packets:
            self.control.on_packet_acked(now=self.now, packet=item)
        self.control.on_rtt_measurement(now=self.now, rtt=rtt_s)

    def lose(self, packets: list[Any]) -> None:
        self.control.on_packets_lost(now=self.now, packets=packets)

    def round(self, rtt_s: float = 0.010, lost: int = 0, count: int | None = None) -> None:
        """One window's worth of packets (or `count`); the first `lost` of them do not arrive."""
        packets = self.send(self.window // SIZE if count is None else count)
        self.acknowledge(packets[lost:], rtt_s)
        if lost:
            self.lose(packets[:lost])


def test_it_goes_by_its_name() -> None:
    control = create_congestion_control("mesh", max_datagram_size=1200)
    assert isinstance(control, MeshCongestionControl)
    assert control.congestion_window == 32 * 1200


# --- growth ---------------------------------------------------------------------------------------------------


def test_slow_start_doubles_each_round_trip() -> None:
    path = Path()
    windows = [path.window]
    for _ in range(3):
        path.round()
        windows.append(path.window)
    assert windows == [32_000, 64_000, 128_000, 256_000]


def test_after_slow_start_a_quiet_path_gains_four_datagrams_and_a_sixteenth() -> None:
    path = Path(160_000, slow_start=False)
    path.round()  # the first acknowledgement also yields the base
    # step = 4000 + window // 16 for each window acknowledged; the window grows meanwhile, so a little less than a step
    assert 160_000 + 13_000 < path.window <= 160_000 + 14_000


def test_a_path_with_some_queue_gains_four_datagrams() -> None:
    path = Path(160_000, slow_start=False)
    path.round(0.010, count=1)
    path.round(0.012, count=1)  # 2 ms of queue: more than a quarter of the limit, less than half
    before = path.window
    path.round(0.012)
    assert before + 3_800 < path.window <= before + 4_000


@pytest.mark.parametrize(
    "slow_start, used, grows", [(True, 15, False), (True, 16, True), (False, 31, False), (False, 32, True)]
)
def test_only_a_window_that_is_in_use_grows(slow_start: bool, used: int, grows: bool) -> None:
    """32 datagrams: slow start wants half of them in flight, later all."""
    path = Path(32_000, slow_start=slow_start)
    path.round(count=used)
    path.round(count=used)
    assert (path.window > 32_000) is grows


def test_an_idle_sender_keeps_its_window() -> None:
    path = Path()
    for _ in range(1000):
        path.round(count=3)
    assert path.window == 32_000


def test_a_run_counts_as_its_packets() -> None:
    one, other = Path(64_000), Path(64_000)
    packets = one.send(64)
    one.acknowledge(packets, 0.01)
    other.control.on_bytes_sent(64_000)
    other.control.on_run_acked(64, 64_000, other.now, other.now)
    assert one.window == other.window == 128_000
    assert one.control.bytes_in_flight == other.control.bytes_in_flight == 0


# --- delay ----------------------------------------------------------------------------------------------------


def test_queueing_delay_cuts_by_15_percent_once_per_round_trip() -> None:
    path = Path(100_000, slow_start=False)
    path.round(0.001, count=1)
    first, second = path.send(50), path.send(50)
    path.control._last_full = path.control._full = False  # so that it does not grow before it is cut
    path.acknowledge(first, 0.006)  # 5 ms above the base, 4 are allowed
    assert path.window == 85_000
    cut_at = path.now
    path.acknowledge(second, 0.0061)  # sent before the cut, so no new evidence
    assert path.window == 85_000
    path.now = cut_at + 0.001
    path.acknowledge(path.send(10), 0.006)
    assert path.window == 72_250


def test_one_slow_sample_among_fast_ones_is_nothing() -> None:
    path = Path(100_000, slow_start=False)
    path.round(0.001, count=1)
    packets = path.send(3)
    for index, rtt in enumerate((0.050, 0.002, 0.030)):
        path.control.on_packet_acked(now=path.now, packet=packets[index])
        path.control._round_over = index == 2
        path.control.on_rtt_measurement(now=packets[index].sent_time + rtt, rtt=rtt)
    assert path.window == 100_000
    assert path.control.queue_s == pytest.approx(0.001)


@pytest.mark.parametrize("base_s, limit_s", [(0.001, 0.004), (0.016, 0.004), (0.020, 0.005), (0.200, 0.050)])
def test_long_paths_may_queue_a_quarter_of_their_length(base_s: float, limit_s: float) -> None:
    path = Path(100_000, slow_start=False)
    path.round(base_s, count=1)
    assert path.control.queue_limit_s == pytest.approx(limit_s)
    path.round(base_s + 0.99 * limit_s, count=1)
    assert path.window == 100_000
    path.round(base_s + 1.01 * limit_s, count=1)
    assert path.window == 85_000


def test_delay_ends_slow_start() -> None:
    path = Path()
    path.round(0.001)
    path.round(0.020)
    assert path.window == 64_000  # what the second round grew to, and half of it again
    assert path.control.ssthresh == path.window


def test_delay_alone_stops_at_sixteen_datagrams_and_then_learns_the_new_base() -> None:
    path = Path(20_000, slow_start=False)
    path.round(0.001, count=1)
    path.round(0.100, count=1)
    path.round(0.100, count=1)
    assert path.window == 16_000
    for _ in range(7):
        path.round(0.100, count=1)
        assert path.control.base_rtt_s == 0.001
    path.round(0.100, count=1)
    assert path.control.base_rtt_s == pytest.approx(0.100)
    path.round(0.100)
    assert path.window > 16_000


def test_a_bottleneck_of_its_own_is_never_queued_deeply() -> None:
    """A line of 10 MB/s and 10 ms: 100 KB fit on it, 140 KB with the queue that is allowed."""
    path = Path()
    windows = []
    for _ in range(500):
        path.round(max(0.010, path.window / 10e6))
        windows.append(path.window)
    assert max(windows) <= 256_000  # slow start overshoots by one doubling
    assert max(windows[20:]) <= 160_000
    assert min(windows[20:]) >= 100_000  # and the line is full


# --- loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost, cut", [(1, False), (8, False), (9, True), (30, True)])
def test_loss_that_chance_explains_cuts_nothing(lost: int, cut: bool) -> None:
    """Of 160 packets 2 % are 3.2; three deviations of a Poisson count above that are 3.2 + 3 sqrt(3.2) = 8.57."""
    path = Path(160_000, slow_start=False)
    path.round(count=1)
    path.control._acked_packets = 0
    path.round(lost=lost)
    assert (path.window < 160_000) is cut
    if cut:
        assert path.window == pytest.approx(0.7 * 173_000, rel=0.03)  # the round grew it first


def test_any_loss_cuts_while_there_is_a_queue() -> None:
    path = Path(160_000, slow_start=False)
    path.round(0.010, count=1)
    path.round(0.0125, count=1)  # 2.5 ms of queue, of 4
    packets = path.send(100)
    path.lose(packets[:1])
    assert path.window == 112_000


def test_losses_of_one_flight_cut_once() -> None:
    path = Path(100_000, slow_start=False)
    path.round(count=1)
    packets = path.send(100)
    path.now += 0.010
    path.lose(packets[:40])
    assert path.window == 70_000
    path.now += 0.001
    path.lose(packets[40:80])
    assert path.window == 70_000
    path.now += 0.001
    later = path.send(70)
    path.now += 0.010
    path.lose(later[:35])
    assert path.window == 49_000


def test_acknowledgements_of_what_was_sent_before_a_cut_add_nothing() -> None:
    path = Path(100_000, slow_start=False)
    packets = path.send(100)
    path.now += 0.010
    path.lose(packets[:50])
    path.acknowledge(packets[50:], 0.012)
    assert path.window == 70_000
    path.now += 0.001
    path.round(0.010)
    path.round(0.010)
    assert path.window > 70_000


def test_one_percent_of_random_loss_does_not_hold_it_back() -> None:
    """Reno would hover around 1.2 / sqrt(0.01) = 12 packets."""
    path = Path()
    windows = []
    sent = 0
    for _ in range(200):
        lost = sum(1 for number in range(path.window // SIZE) if (sent + number) * 7919 % 100 == 0)
        sent += path.window // SIZE
        path.round(max(0.010, path.window / 10e6), lost=lost)
        windows.append(path.window)
    assert sum(windows) / len(windows) >= 90_000


def test_loss_alone_stops_at_four_datagrams() -> None:
    path = Path(6_000, slow_start=False)
    for _ in range(5):
        packets = path.send(5)
        path.now += 0.01
        path.lose(packets)
        path.now += 0.01
    assert path.window == 4_000
    assert path.control.bytes_in_flight == 0


def test_a_cut_never_raises_the_window() -> None:
    path = Path(3_000, slow_start=False)
    packets = path.send(3)
    path.lose(packets)
    assert path.window == 3_000
    assert path.control.ssthresh == 3_000


def test_persistent_congestion_starts_over_and_recovers() -> None:
    path = Path(160_000, slow_start=False)
    packets = path.send(100)
    path.now += 1
    path.lose(packets)
    path.control.on_persistent_congestion()
    assert path.window == 2_000
    assert path.control.ssthresh == 112_000
    windows = []
    for _ in range(6):
        path.now += 0.01
        path.round()
        windows.append(path.window)
    assert windows == [4_000, 8_000, 16_000, 32_000, 64_000, pytest.approx(112_000, rel=0.02)]


def test_expired_packets_only_leave_the_flight() -> None:
    path = Path(50_000)
    packets = path.send(20)
    path.control.on_packets_expired(packets=packets[:5])
    assert path.control.bytes_in_flight == 15_000
    assert path.window == 50_000


# --- sharing --------------------------------------------------------------------------------------------------


def test_two_on_one_line_converge() -> None:
    """They see the same queue, so cuts coincide; growth by equal steps in between evens them out."""
    paths = [Path(20_000, slow_start=False), Path(180_000, slow_start=False)]
    ratios = []
    for _ in range(600):
        rtt_s = max(0.010, sum(path.window for path in paths) / 20e6)
        for path in paths:
            path.round(rtt_s)
        ratios.append(max(path.window for path in paths) / min(path.window for path in paths))
    assert ratios[0] > 4
    assert max(ratios[-100:]) < 1.5


# --- connections ----------------------------------------------------------------------------------------------


def connection(**options: Any) -> QuicConnection:
    return QuicConnection(configuration=configuration(True, **options))


def test_a_connection_gets_the_pacer_and_another_size() -> None:
    quic = connection()
    pace(quic)
    assert isinstance(quic._loss._pacer, BurstPacer)
    set_datagram_bytes(quic, 16384)
    assert quic._max_datagram_size == 16384
    assert quic._loss._pacer.burst_datagrams == 16
    control = quic._loss._cc
    assert isinstance(control, MeshCongestionControl)
    assert control.congestion_window == 10 * 16384
    control._cut(1.0, 0.0, 4)
    assert control.congestion_window == 4 * 16384


def test_other_controls_learn_the_size_too() -> None:
    quic = connection(congestion_control_algorithm="reno")
    set_datagram_bytes(quic, 9000)
    assert quic._loss._cc._max_datagram_size == 9000
    cap_window(quic, 5000)
    assert quic._loss._cc.congestion_window == 10 * 1200


@pytest.mark.parametrize("size", [0, 1199, 16385, 65507])
def test_sizes_that_would_break_packets_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        set_datagram_bytes(connection(), size)


def test_a_cap_holds() -> None:
    quic = connection()
    cap_window(quic, 100_000)
    control = quic._loss._cc
    assert control.congestion_window == 32 * 1200
    for turn in range(20):
        control.on_bytes_sent(control.congestion_window)
        control.on_run_acked(1, control.bytes_in_flight, 1.0 + turn, 1.0 + turn)
    assert control.congestion_window == 100_000
    cap_window(quic, 50_000)
    assert control.congestion_window == 50_000


def test_times_are_finite_from_the_start() -> None:
    control = MeshCongestionControl(max_datagram_size=SIZE)
    control.on_rtt_measurement(now=0.5, rtt=0.1)
    assert math.isfinite(control.queue_limit_s) and control.queue_s == 0.0


def test_another_path_is_measured_anew() -> None:
    control = MeshCongestionControl(max_datagram_size=1200)
    control.on_rtt_measurement(now=1.0, rtt=0.0002)
    control.congestion_window, control.ssthresh, control.bytes_in_flight = 4_000_000, 4_000_000, 90_000
    control.begin_path()
    assert (control.base_rtt_s, control.queue_s, control.ssthresh) == (None, 0.0, None)
    assert control.congestion_window == INITIAL_DATAGRAMS * 1200 and control.bytes_in_flight == 90_000
    control.on_rtt_measurement(now=2.0, rtt=0.06)
    assert control.base_rtt_s == 0.06, "what is twice as far is no queue"
