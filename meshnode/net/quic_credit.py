"""The flow control of a connection: limits that follow what the application takes (`credit.py`), in aioquic's frames.

aioquic doubles a limit once half of it has arrived, whoever reads. That rule is kept from applying; how limits are
written, acknowledged and repeated stays aioquic's.
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from meshnode.net.credit import connection_window
from meshnode.net.fast import FastQuic

AGAIN_S = 0.001


class QuicCredit(QuicConnection):
    """A connection whose limits rise when they are raised, and not by themselves."""

    _announcing = False
    """A limit rose and was not sent yet."""

    def raise_stream_limit(self, stream_id: int, limit_bytes: int) -> bool:
        """Let the peer send up to `limit_bytes` on a stream. False where that tells it nothing."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished or limit_bytes <= stream.max_stream_data_local:
            return False
        stream.max_stream_data_local = limit_bytes
        self._announce()
        return True

    def is_connection_limit_near(self, consumed_bytes: int) -> bool:
        """Whether the peer has used up half of what it may send on all streams together."""
        limit = self._local_max_data
        return 2 * (limit.value - limit.used) <= connection_window(consumed_bytes)

    def raise_connection_limit(self, waiting_bytes: int, consumed_bytes: int) -> bool:
        """Let the peer send on, if what waits for the application leaves room. True when it should hear of it.

        `waiting_bytes` have been delivered and not been taken, `consumed_bytes` were taken since the beginning.
        Bytes that arrived behind a gap count with the gap, as aioquic keeps memory for it.
        """
        limit = self._local_max_data
        window = connection_window(consumed_bytes)
        for stream in self._streams.values():
            receiver = stream.receiver
            if not receiver.is_finished:
                waiting_bytes += receiver.highest_offset - receiver._buffer_start
        wanted = limit.used + window - waiting_bytes
        if wanted - limit.value < window // 4:
            return False
        limit.value = wanted
        self._announce()
        return True

    def _announce(self) -> None:
        """Let the next turn of sending look for limits that rose."""
        self._announcing = True
        if isinstance(self, FastQuic):
            self.attend()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """What is to be sent now. A limit for which this turn had no room asks for another one.

        Nothing else would: a peer that waits for the limit sends nothing, and no timer runs for it.
        """
        datagrams = super().datagrams_to_send(now)
        if self._announcing:
            self._announcing = self._has_unsent_limits()
            if self._announcing:
                self._announce()
                self._pacing_at = min(self._pacing_at or now + AGAIN_S, now + AGAIN_S)
        return datagrams

    def _has_unsent_limits(self) -> bool:
        return self._local_max_data.value != self._local_max_data.sent or any(
            stream.max_stream_data_local != stream.max_stream_data_local_sent and not stream.receiver.is_finished
            for stream in self._streams.values()
        )

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        # Only the rule that doubles the limit looks at the highest offset.
        receiver = stream.receiver
        highest, receiver.highest_offset = receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder, space, stream)
        finally:
            receiver.highest_offset = highest

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit, streams = self._local_max_data, self._local_max_streams_bidi
        if limit.value == limit.sent and streams.value == streams.sent:
            return
        used, limit.used = limit.used, 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = used
