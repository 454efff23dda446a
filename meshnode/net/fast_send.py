"""The hot path for outgoing packets: 1-RTT packets that each hold one STREAM frame.

A flush has two parts. aioquic's own write pass comes first and writes everything that is no stream data, one packet of
it while bulk data waits; then this module fills the rest of the burst with stream data, packet by packet, without
walking all streams for each. The pass is left out while nothing is visibly due for it, for at most `PASS_EVERY_S`:
credit that the application has returned, new connection ids and the like cannot be seen from here, and wait so long
at most (`get_timer` sees to it, `attend` shortens it).

Streams with data are kept in the set `_ready`, and served in the order of aioquic's queue (the longest unserved
first). The set is exact while only `send_stream_data` and this module act; whatever else may change a stream
(acknowledgements, losses, resets, frames read by aioquic's code) drops it, and the next flush asks all streams once.

A stream is handed over to aioquic's pass when it has anything to say besides data (STOP_SENDING, RESET_STREAM, a FIN
without data, its own end), and small pieces of several streams are, too, because aioquic packs them into one packet.
A small piece goes the same way while an acknowledgement is owed, which may ride on it (quic_acks.py).
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import QuicConnection
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from meshnode.net.congestion import pace
from meshnode.net.fast_conditions import steady
from meshnode.net.fast_packets import StreamWriter
from meshnode.net.fast_recovery import FastRecovery
from meshnode.net.pacing import BurstPacer
from meshnode.net.recovery import recover

PASS_EVERY_S = 0.001
TIMER_SLACK_S = 0.0002
"""Owners may run a timer so much too early."""
LEAST_TURN_DATAGRAMS = 4
MOST_DATAGRAMS_A_PASS = 8


class FastSend(QuicConnection):
    """A connection that writes stream data quickly."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        recover(self, FastRecovery)
        pace(self)
        self._ready: set[QuicStream] | None = None
        self._pass_at = 0.0
        self._pass_owed = False

    def attend(self) -> None:
        """Let the next flush look at everything, not only at what is visibly due."""
        self._pass_at = 0.0

    # --- what may change streams ------------------------------------------------------------------------------------

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Queue data on a stream, as aioquic does."""
        super().send_stream_data(stream_id, data, end_stream)
        if self._ready is not None:
            self._ready.add(self._streams[stream_id])

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """Abandon the sending part of a stream, as aioquic does."""
        self._ready = None
        super().reset_stream(stream_id, error_code)

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        """Ask the peer to stop sending on a stream, as aioquic does."""
        self._ready = None
        super().stop_stream(stream_id, error_code)

    def handle_timer(self, now: float) -> None:
        """Timeouts of acknowledgements, losses and silence."""
        self._ready = None
        super().handle_timer(now)

    def _received_otherwise(self) -> None:
        self._ready = None

    def get_timer(self) -> float | None:
        """When to call `handle_timer` and flush; in the past when the flush before was cut short."""
        timer = super().get_timer()
        if timer is None or not self._pass_owed:
            return timer
        return min(timer, self._pass_at)

    # --- a flush ----------------------------------------------------------------------------------------------------

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """The next burst, with its addresses."""
        if not steady(self) or not isinstance(self._loss._pacer, BurstPacer):
            self._ready, self._pass_owed = None, False
            return super().datagrams_to_send(now)
        pacer = self._loss._pacer
        bulk, due = self._survey(now)
        datagrams: list[tuple[bytes, Any]] = []
        cut_short = False
        if due or now + TIMER_SLACK_S >= self._pass_at:
            if bulk:
                pacer.restriction = min(1 + len(self._datagrams_pending), MOST_DATAGRAMS_A_PASS)
            try:
                datagrams = super().datagrams_to_send(now)
            finally:
                pacer.restriction = None
                self._ready = None
            self._pass_at, self._pass_owed = now + PASS_EVERY_S, False
            cut_short = self._pacing_at is not None
            if not steady(self):
                return datagrams
            _, due = self._survey(now)
        else:
            self._pass_owed = True
        self._pacing_at = None
        waiting = self._send_streams(now, pacer, datagrams)
        if waiting or (cut_short and due):
            self._pacing_at = pacer.next_send_time(now) or now
        return datagrams

    def _survey(self, now: float) -> tuple[bool, bool]:
        """Whether some stream has a packet's worth of data, and whether aioquic's pass has something to write."""
        space = self._spaces[Epoch.ONE_RTT]
        due = bool(
            (space.ack_at is not None and space.ack_at <= now)
            or self._ping_pending
            or self._probe_pending
            or self._datagrams_pending
            or self._handshake_done_pending
            or self._streams_blocked_pending
            or self._network_paths[0].remote_challenges
            or self._local_max_data.value != self._local_max_data.sent
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
        )
        if self._ready is None:
            self._ready = set()
            for stream in self._streams_queue:
                sender, receiver = stream.sender, stream.receiver
                if sender.reset_pending or receiver.stop_pending or (sender.is_finished and receiver.is_finished):
                    due = True
                if not sender.buffer_is_empty:
                    self._ready.add(stream)
        bulk, small = False, 0
        for stream in self._ready:
            sender = stream.sender
            if sender.buffer_is_empty:
                due = due or sender.reset_pending
            elif not len(sender._pending):
                due = True  # a FIN alone, or a flag that aioquic has not lowered yet
            elif sender._pending[0].stop - sender._pending[0].start >= self._max_datagram_size:
                bulk = True
            else:
                small += 1
        return bulk, due or small > 1 or (small > 0 and space.ack_at is not None)

    def _send_streams(self, now: float, pacer: BurstPacer, datagrams: list[tuple[bytes, Any]]) -> bool:
        """Fill the burst. True when it ended before the data did, and only the burst was in the way."""
        ready = self._ready
        if not ready:
            return False
        allowance = pacer.allowance(now)
        writer = StreamWriter(self, now, datagrams)
        order = list(ready) if len(ready) == 1 else [stream for stream in self._streams_queue if stream in ready]
        waiting = False
        # Everyone has a turn; who has more to say than that goes on with what the others leave.
        turn = max(allowance // len(ready), LEAST_TURN_DATAGRAMS)
        for limit in (turn, allowance):
            waiting = False
            for stream in order:
                if writer.write(stream, min(limit, allowance - len(writer.packets))):
                    waiting = True
            if not waiting or len(writer.packets) >= allowance:
                break
        if writer.packets:
            pacer.take(len(writer.packets))
            writer.finish()
            for stream in writer.served:
                if len(self._streams_queue) > 1:
                    self._streams_queue.remove(stream)
                    self._streams_queue.append(stream)
                if stream.sender.buffer_is_empty:
                    ready.discard(stream)
        return waiting
