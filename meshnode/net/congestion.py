"""How much may be under way: the congestion control "mesh". Arithmetic only, `now` is handed in.

`MeshCongestionControl`, chosen with `congestion_control_algorithm="mesh"`, is bounded by delay and forgives isolated
loss. aioquic's own controls cut the window on every lost packet, which on a link that loses one in a hundred leaves a
few packets per round trip, and on a link that loses nothing they never stop growing, so that an interactive stream
waits behind its own link's queue.

- *Delay.* The least round-trip time of each round (one window's worth of packets) is compared with the least ever
  seen on the path. What exceeds it is the queue; above `max(4 ms, base / 4)` the window is cut by 15 %, by half out of
  slow start, which has just doubled it. The least of a round is used because acknowledgement timers and busy event
  loops only ever add to a sample.
- *Loss.* The window is cut by 30 % when more packets are lost than 2 % chance loss explains (three standard deviations
  of a Poisson count above it), or when anything is lost while there is a queue. 2 % is also what BBR v2 tolerates.
- *Once per round trip.* A cut counts only evidence from packets that were sent after the previous cut: the loss of
  one of them, or a round that began with it and whose every sample, so also its last one, shows the delay.
- *Growth.* Doubling per round trip at first (slow start), then four datagrams per round trip, and a sixteenth of the
  window more while there is no queue at all. Only a window that is in use grows: what bounds a sender that is limited
  by its processor, by flow control or by having little to say would otherwise grow without meaning (RFC 9002,
  section 7.8). In use means that in this or the last round it was full at some moment of sending (half full in slow
  start, which must run ahead; both as in tcp_is_cwnd_limited of Linux).
- *Base.* A base that expires would creep upwards with the queue that this very link keeps up. It is forgotten only
  when the delay stays high although the window is at its floor: then the path has changed, or others fill its queue.

Two such links on one bottleneck see the same queue and are cut together; additive growth in between, that of four Reno
connections, makes them converge (Chiu and Jain 1989). Beside TCP that fills a deep queue it gives way down to its
floor, adopts the delay it finds there and then takes part; on a shallow queue it takes up to 2 % loss before it gives
way, as BBR v2 does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicSentPacket

from meshnode.net.pacing import BurstPacer

NAME = "mesh"

INITIAL_DATAGRAMS = 32
LEAST_DATAGRAMS = 2
"""After persistent congestion (RFC 9002, section 7.2)."""
LOSS_FLOOR_DATAGRAMS = 4
DELAY_FLOOR_DATAGRAMS = 16
"""Delay alone never makes the window smaller than this: it may be the doing of others."""

QUEUE_S = 0.004
QUEUE_SHARE = 1 / 4
DELAY_CUT = 0.85
SLOW_START_CUT = 0.5
LOSS_CUT = 0.7
TOLERATED_LOSS = 0.02
LOSS_DEVIATIONS = 3.0
LEAST_LOSSES = 3
LOSS_SAMPLE_PACKETS = 256
"""Losses are counted over about so many packets: when a round ends with more, both counts are halved."""
GROWTH_DATAGRAMS = 4
QUIET_GROWTH_SHARE = 16
FLOOR_ROUNDS = 8
"""So many rounds at the floor with a high delay, and the base is measured anew."""


class MeshCongestionControl(QuicCongestionControl):
    """See the module. Windows are bytes, times are seconds of one monotonic clock."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._max_datagram_size = max_datagram_size
        self.congestion_window = INITIAL_DATAGRAMS * max_datagram_size
        self.window_cap_bytes: int | None = None
        self.base_rtt_s: float | None = None
        self.queue_s = 0.0
        """The queue that the last round found."""
        self._cut_at = -math.inf
        self._growth = 0
        self._round_began_at = -math.inf
        self._round_over = False
        self._round_rtt_s = math.inf
        self._floor_rounds = 0
        self._full = self._last_full = False
        self._half_full = self._last_half_full = False
        self._acked_packets = self._lost_packets = 0

    @property
    def queue_limit_s(self) -> float:
        """The queue that is tolerated."""
        return max(QUEUE_S, (self.base_rtt_s or 0.0) * QUEUE_SHARE)

    def set_datagram_bytes(self, datagram_bytes: int) -> None:
        """The path carries datagrams of another size now; the window never falls below ten of them (RFC 9002, 7.2)."""
        self._max_datagram_size = datagram_bytes
        self._set_window(max(self.congestion_window, 10 * datagram_bytes))

    def begin_path(self) -> None:
        """What was learned is about another path (RFC 9000, 9.4)."""
        self.ssthresh = None
        self.base_rtt_s, self.queue_s = None, 0.0
        self._set_window(INITIAL_DATAGRAMS * self._max_datagram_size)
        self._cut_at = -math.inf
        self._round_rtt_s, self._floor_rounds, self._growth = math.inf, 0, 0
        self._acked_packets = self._lost_packets = 0

    # --- what aioquic reports ---------------------------------------------------------------------------------------

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        """One packet has left."""
        self.on_bytes_sent(packet.sent_bytes)

    def on_bytes_sent(self, sent_bytes: int) -> None:
        """The same for a burst."""
        self.bytes_in_flight += sent_bytes
        if 2 * self.bytes_in_flight >= self.congestion_window:
            self._half_full = True
            self._full = self._full or self.bytes_in_flight + self._max_datagram_size > self.congestion_window

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """One packet was acknowledged."""
        assert packet.sent_time is not None
        self.on_run_acked(1, packet.sent_bytes, packet.sent_time, packet.sent_time)

    def on_run_acked(self, packets: int, acked_bytes: int, first_sent_at: float, last_sent_at: float) -> None:
        """A run of packets was acknowledged; the outer two were sent at these times."""
        self.bytes_in_flight -= acked_bytes
        self._acked_packets += packets
        if last_sent_at >= self._round_began_at:
            self._round_over = True
        if first_sent_at <= self._cut_at or not self._in_use():
            return
        if self._in_slow_start:
            self._set_window(self.congestion_window + acked_bytes)
            return
        step = GROWTH_DATAGRAMS * self._max_datagram_size
        if self.queue_s < self.queue_limit_s / 4:
            step += self.congestion_window // QUIET_GROWTH_SHARE
        # `step` bytes for each window acknowledged; the remainder is kept, as single packets add less than a byte.
        self._growth += acked_bytes * step
        added, self._growth = divmod(self._growth, self.congestion_window)
        self._set_window(self.congestion_window + added)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """Packets whose fate no longer matters."""
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Packets were declared lost."""
        newest = -math.inf
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self._lost_packets += 1
            assert packet.sent_time is not None
            newest = max(newest, packet.sent_time)
        if newest > self._cut_at and (self._too_many_lost() or self.queue_s > self.queue_limit_s / 2):
            self._cut(now, LOSS_CUT, LOSS_FLOOR_DATAGRAMS)

    def on_persistent_congestion(self) -> None:
        """Nothing came through for several timeouts: start over, doubling up to where the last cut left the window."""
        self.congestion_window = LEAST_DATAGRAMS * self._max_datagram_size
        self._cut_at = -math.inf
        self._growth = 0

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """A sample, from the newest packet of an acknowledgement. It comes after that one's on_packet_acked calls."""
        if self.base_rtt_s is None or rtt < self.base_rtt_s:
            self.base_rtt_s = rtt
        self._round_rtt_s = min(self._round_rtt_s, rtt)
        if self._round_over:
            self._end_round(now)

    # --- decisions --------------------------------------------------------------------------------------------------

    @property
    def _in_slow_start(self) -> bool:
        return self.ssthresh is None or self.congestion_window < self.ssthresh

    def _in_use(self) -> bool:
        if self._in_slow_start:
            return self._half_full or self._last_half_full
        return self._full or self._last_full

    def _too_many_lost(self) -> bool:
        explained = TOLERATED_LOSS * (self._acked_packets + self._lost_packets)
        most = explained + LOSS_DEVIATIONS * math.sqrt(explained)
        return self._lost_packets >= LEAST_LOSSES and self._lost_packets > most

    def _end_round(self, now: float) -> None:
        assert self.base_rtt_s is not None
        self.queue_s = self._round_rtt_s - self.base_rtt_s
        if self.queue_s > self.queue_limit_s:
            self._delayed(now)
        else:
            self._floor_rounds = 0
        self._last_full, self._full = self._full, False
        self._last_half_full, self._half_full = self._half_full, False
        self._round_began_at, self._round_over, self._round_rtt_s = now, False, math.inf
        if self._acked_packets + self._lost_packets >= LOSS_SAMPLE_PACKETS:
            self._acked_packets //= 2
            self._lost_packets //= 2

    def _delayed(self, now: float) -> None:
        floor = DELAY_FLOOR_DATAGRAMS * self._max_datagram_size
        if self.congestion_window > floor:
            self._floor_rounds = 0
            self._cut(now, SLOW_START_CUT if self._in_slow_start else DELAY_CUT, DELAY_FLOOR_DATAGRAMS)
            return
        self._floor_rounds += 1
        if self._floor_rounds >= FLOOR_ROUNDS:
            self.base_rtt_s, self.queue_s, self._floor_rounds = self._round_rtt_s, 0.0, 0

    def _cut(self, now: float, factor: float, floor_datagrams: int) -> None:
        """Reduce the window; never raise it, when it is below the floor already."""
        floor = min(self.congestion_window, floor_datagrams * self._max_datagram_size)
        self.congestion_window = max(int(self.congestion_window * factor), floor)
        self.ssthresh = self.congestion_window
        self._cut_at = now
        # What is left of the queue will be known in a round trip; until then growth is cautious, and loss no proof.
        self.queue_s = self.queue_limit_s / 4
        self._growth = 0
        self._acked_packets = self._lost_packets = 0

    def _set_window(self, window: int) -> None:
        self.congestion_window = window if self.window_cap_bytes is None else min(window, self.window_cap_bytes)


def pace(connection: QuicConnection) -> None:
    """Give a new connection, of any class, a BurstPacer in place of aioquic's pacer."""
    connection._loss._pacer = BurstPacer(max_datagram_size=connection._max_datagram_size)


def set_datagram_bytes(connection: QuicConnection, datagram_bytes: int) -> None:
    """Change the size of the datagrams of a connection, once the path is known to carry it.

    `datagram_bytes` is the UDP payload, 1200 to 16384. aioquic writes stream lengths as two-byte integers, so packets
    of more than 16,414 bytes would be malformed; ValueError for anything outside.
    """
    if not 1200 <= datagram_bytes <= 16384:
        raise ValueError(f"a datagram of {datagram_bytes} bytes")
    connection._max_datagram_size = datagram_bytes
    loss = connection._loss
    loss._pacer._max_datagram_size = datagram_bytes
    if isinstance(loss._cc, MeshCongestionControl):
        loss._cc.set_datagram_bytes(datagram_bytes)
    elif hasattr(loss._cc, "_max_datagram_size"):
        loss._cc._max_datagram_size = datagram_bytes


def begin_path(connection: QuicConnection) -> None:
    """The connection goes on on a path of another kind: measure its round trip and its rate anew."""
    loss = connection._loss
    loss._rtt_initialized = False
    loss._rtt_min = math.inf
    if isinstance(loss._cc, MeshCongestionControl):
        loss._cc.begin_path()


def cap_window(connection: QuicConnection, window_bytes: int) -> None:
    """Bound the congestion window of a connection that uses "mesh", for instance by half of the socket buffers."""
    control = connection._loss._cc
    if isinstance(control, MeshCongestionControl):
        control.window_cap_bytes = window_bytes
        control.congestion_window = min(control.congestion_window, window_bytes)


register_congestion_control(NAME, MeshCongestionControl)
