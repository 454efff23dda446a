"""Building 1-RTT packets that each hold one STREAM frame, for one flush of the hot path.

A packet is a short header with a packet number of two bytes, and one STREAM frame with an offset and without a length,
which therefore fills the packet (RFC 9000, sections 17.3.1 and 19.8). Limits of the stream, of the connection and of
the congestion window hold; FIN goes with the last byte of a stream that has ended.
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import QuicConnection
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from meshnode.net.congestion import MeshCongestionControl
from meshnode.net.fast_recovery import StreamPacket

TAG_BYTES = 16
STREAM_WITH_OFFSET = 0x0C
FIN = 0x01


class StreamWriter:
    """Builds packets of one flush; `finish` records them in the connection."""

    def __init__(self, connection: QuicConnection, now: float, datagrams: list[tuple[bytes, Any]]) -> None:
        self._connection = connection
        self._now = now
        self._datagrams = datagrams
        self.packets: list[StreamPacket] = []
        self.served: dict[QuicStream, None] = {}
        self._bytes = 0
        keys = connection._cryptos[Epoch.ONE_RTT].send
        assert keys.aead is not None and keys.hp is not None
        self._encrypt, self._nonce_base = keys.aead._aead.encrypt, keys.aead._iv
        self._mask_of = keys.hp._encryptor.update
        # Fixed bit, spin bit, key phase, packet number of two bytes (RFC 9000, section 17.3.1).
        self._first_byte = 0x40 | connection._spin_bit << 5 | keys.key_phase << 2 | 1
        control = connection._loss._cc
        self._window_left = control.congestion_window - control.bytes_in_flight

    def write(self, stream: QuicStream, most: int) -> bool:
        """Send up to `most` packets of one stream. True when only `most` ended it."""
        connection, sender = self._connection, stream.sender
        if stream.is_blocked or sender.buffer_is_empty or sender.reset_pending:
            return False
        pending = sender._pending
        # The limits of the stream and of the connection; the latter counts only bytes that were never sent before.
        limit = min(
            sender.highest_offset + connection._remote_max_data - connection._remote_max_data_used,
            stream.max_stream_data_remote,
        )
        waiting = False
        while len(pending):
            span = pending[0]
            position = self._write_span(stream, span.start, min(span.stop, limit), most)
            if position > span.start:
                most -= -(-(position - span.start) // self._room)
                pending.subtract(span.start, position)
                self.served[stream] = None
                if position > sender.highest_offset:
                    connection._remote_max_data_used += position - sender.highest_offset
                    sender.highest_offset = position
            if position < span.stop:
                waiting = most <= 0 and position < limit and self._window_left >= connection._max_datagram_size
                break
        if not len(pending) and not sender._pending_eof:
            sender.buffer_is_empty = True
        return waiting

    def _write_span(self, stream: QuicStream, start: int, stop: int, most: int) -> int:
        """Send up to `most` packets of the bytes from `start` to `stop`; returns where they end."""
        connection, sender, now = self._connection, stream.sender, self._now
        encrypt, nonce_base, mask_of = self._encrypt, self._nonce_base, self._mask_of
        first_byte, connection_id = self._first_byte, connection._peer_cid.cid
        address = connection._network_paths[0].addr
        sent: dict[int, Any] = connection._spaces[
            Epoch.ONE_RTT
        ].sent_packets  # a StreamPacket has all that is asked for
        datagrams, packets = self._datagrams, self.packets
        # Any size of integer will do for the offset (RFC 9000, section 16): four bytes, or eight in long streams.
        offset_bytes, offset_bits = (4, 0x8000_0000) if stop < 1 << 30 else (8, 0xC000_0000_0000_0000)
        frame_start = bytes((STREAM_WITH_OFFSET,)) + integer(stream.stream_id or 0)
        overhead = 1 + len(connection_id) + 2 + len(frame_start) + offset_bytes + TAG_BYTES
        self._room = room = connection._max_datagram_size - overhead
        fin_at = sender._buffer_fin
        base = sender._buffer_start
        number = connection._packet_number
        left = self._window_left
        position = start
        with memoryview(sender._buffer) as buffer:
            while most > 0 and position < stop:
                end = min(position + room, stop)
                size = overhead + end - position
                if size > left:
                    break
                fin = end == fin_at
                if fin:
                    frame_start = bytes((STREAM_WITH_OFFSET | FIN,)) + frame_start[1:]
                    sender._pending_eof = False
                header = b"%c%b%c%c" % (first_byte, connection_id, number >> 8 & 0xFF, number & 0xFF)
                sealed = encrypt(
                    (nonce_base ^ number).to_bytes(12, "big"),
                    b"".join(
                        (
                            frame_start,
                            (position | offset_bits).to_bytes(offset_bytes, "big"),
                            buffer[position - base : end - base],
                        )
                    ),
                    header,
                )
                # Header protection (RFC 9001, section 5.4): the sample begins four bytes after the packet number does.
                mask = mask_of(sealed[2:18])
                datagrams.append(
                    (
                        b"%c%b%c%c%b"
                        % (
                            first_byte ^ (mask[0] & 0x1F),
                            connection_id,
                            (number >> 8 & 0xFF) ^ mask[1],
                            (number & 0xFF) ^ mask[2],
                            sealed,
                        ),
                        address,
                    )
                )
                packet = StreamPacket(number, now, size, sender, position, end, fin)
                packets.append(packet)
                sent[number] = packet
                number += 1
                most -= 1
                left -= size
                position = end
        self._bytes += self._window_left - left
        self._window_left = left
        connection._packet_number = number
        return position

    def finish(self) -> None:
        """Tell loss recovery, congestion control, the path and the idle timer of what was sent."""
        connection, now = self._connection, self._now
        loss = connection._loss
        control: Any = loss._cc
        if isinstance(control, MeshCongestionControl):
            control.on_bytes_sent(self._bytes)
        else:
            for packet in self.packets:
                control.on_packet_sent(packet=packet)
        connection._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight += len(self.packets)
        loss._time_of_last_sent_ack_eliciting_packet = now
        connection._network_paths[0].bytes_sent += self._bytes
        if not connection._ack_eliciting_sent_since_receipt:
            connection._close_at = now + connection._idle_timeout()
            connection._ack_eliciting_sent_since_receipt = True


def integer(value: int) -> bytes:
    """A variable-length integer in its shortest form (RFC 9000, section 16)."""
    if value < 1 << 6:
        return bytes((value,))
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")
