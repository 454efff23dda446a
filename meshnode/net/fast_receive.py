"""The hot path for incoming packets: runs of 1-RTT packets that each hold one STREAM frame.

`receive_datagrams` takes what one wakeup of the socket brought for one connection. Datagrams of the ordinary shape are
read here; at the first one of another shape everything read so far is written down, aioquic's `receive_datagram` gets
that datagram as it came, and the run goes on behind it. A datagram is thus handled by one of the two, never by both:
nothing of the connection changes before all that is checked here has passed.

The ordinary shape: short header with the active connection id, packet number of two bytes, the current key phase,
reserved bits zero, authentic, not seen before; one STREAM frame without FIN that fills the packet, of a stream that
exists and whose receiving part is open, with at least 16 bytes of data, within the limits of the stream and of the
connection. What arrives in order is put together to one event for each stream in turn; what does not goes through
the stream's own reassembly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicStreamFrame
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.tls import Epoch
from cryptography.exceptions import InvalidTag

from meshnode.net.fast_conditions import steady

SAMPLE_BYTES = 16
LEAST_PAYLOAD_BYTES = 1 + 3 * 8 + 16
"""Type, three integers of the largest size and some data: below this the parser would need checks at each step."""
INTEGER_MASKS = {1: 0x3F, 2: 0x3FFF, 4: 0x3FFF_FFFF, 8: 0x3FFF_FFFF_FFFF_FFFF}
"""The value bits of a variable-length integer, by its size in bytes (RFC 9000, section 16)."""


class FastReceive(QuicConnection):
    """A connection that reads runs of stream packets quickly."""

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """Handle one datagram."""
        self.receive_datagrams((data,), addr, now)

    def receive_datagrams(self, datagrams: Sequence[bytes], addr: Any, now: float) -> None:
        """Handle datagrams that came from one address, in the order of arrival. Never raises for what is in them."""
        index = 0
        while index < len(datagrams):
            if steady(self) and self._network_paths[0].addr == addr:
                index = _Run(self, now).read(datagrams, index)
                if index == len(datagrams):
                    return
            super().receive_datagram(datagrams[index], addr, now)
            self._received_otherwise()
            index += 1

    def _received_otherwise(self) -> None:
        """aioquic's own code has handled a datagram: anything may have changed."""


class _Run:
    """One pass over datagrams, with what was read but is not yet written down in the connection."""

    def __init__(self, connection: QuicConnection, now: float) -> None:
        self._connection = connection
        self._now = now
        self._space: QuicPacketSpace = connection._spaces[Epoch.ONE_RTT]
        # Packet numbers start..stop-1 were read in order, all newer than anything before.
        self._start = self._stop = -1
        self._first_byte = 0
        self._chunks: list[bytes] = []
        self._stream_id = -1

    def read(self, datagrams: Sequence[bytes], index: int) -> int:
        """Read from `index` on; returns the index of the first datagram that is not of the ordinary shape."""
        connection, space = self._connection, self._space
        keys = connection._cryptos[Epoch.ONE_RTT].recv
        assert keys.aead is not None and keys.hp is not None
        decrypt, nonce_base = keys.aead._aead.decrypt, keys.aead._iv
        mask_of = keys.hp._encryptor.update
        low_bits = keys.key_phase << 2 | 1  # reserved bits zero, two bytes of packet number
        connection_id = connection.host_cid
        number_at = 1 + len(connection_id)
        payload_at = number_at + 2
        sample_at = number_at + 4
        sample_end = sample_at + SAMPLE_BYTES
        expected = space.expected_packet_number
        newest = space.largest_received_packet
        heard = False
        for at in range(index, len(datagrams)):
            data = datagrams[at]
            if len(data) < sample_end or data[0] & 0xC0 != 0x40 or data[1:number_at] != connection_id:
                break
            # Header protection (RFC 9001, section 5.4).
            mask = mask_of(data[sample_at:sample_end])
            first_byte = data[0] ^ (mask[0] & 0x1F)
            if first_byte & 0x1F != low_bits:
                break
            truncated = (data[number_at] ^ mask[1]) << 8 | (data[number_at + 1] ^ mask[2])
            # Packet number (RFC 9000, appendix A.3).
            number = (expected & ~0xFFFF) | truncated
            if number <= expected - 0x8000 and number < (1 << 62) - 0x10000:
                number += 0x10000
            elif number > expected + 0x8000 and number >= 0x10000:
                number -= 0x10000
            header = b"%c%b%c%c" % (first_byte, connection_id, truncated >> 8, truncated & 0xFF)
            try:
                payload = decrypt((nonce_base ^ number).to_bytes(12, "big"), data[payload_at:], header)
            except InvalidTag:
                continue  # not from the peer, or damaged: as if it had never arrived
            if number != self._stop or number <= newest:
                # Not the successor of the one before, so the record has to be up to date for the question.
                self._write_numbers()
                newest = space.largest_received_packet
                if number in space.received_packets:
                    continue
            if not self._read_frame(payload):
                break
            if number != self._stop:
                self._start = number
            self._stop = number + 1
            self._first_byte = first_byte
            expected = max(expected, number + 1)
            heard = True
        else:
            at = len(datagrams)
        self._write_data()
        self._write_numbers()
        if heard:
            connection._close_at = self._now + connection._idle_timeout()
            connection._ack_eliciting_sent_since_receipt = False
            if space.ack_at is None:
                space.ack_at = self._now + connection._ack_delay
        return at

    def _read_frame(self, payload: bytes) -> bool:
        """Take the data of the one STREAM frame; False, with nothing changed, when there is anything else."""
        kind = payload[0]
        if kind & 0xF9 != 0x08 or len(payload) < LEAST_PAYLOAD_BYTES:  # STREAM without FIN
            return False
        size = 1 << (payload[1] >> 6)
        at = 1 + size
        stream_id = payload[1] if size == 1 else int.from_bytes(payload[1:at], "big") & INTEGER_MASKS[size]
        offset = 0
        if kind & 4:
            size = 1 << (payload[at] >> 6)
            offset = int.from_bytes(payload[at : at + size], "big") & INTEGER_MASKS[size]
            at += size
        if kind & 2:
            size = 1 << (payload[at] >> 6)
            length = int.from_bytes(payload[at : at + size], "big") & INTEGER_MASKS[size]
            at += size
            if length != len(payload) - at:
                return False
        stream = self._connection._streams.get(stream_id)
        if stream is None:
            return False
        receiver, limit = stream.receiver, self._connection._local_max_data
        end = offset + len(payload) - at
        added = end - receiver.highest_offset
        if added < 0:
            added = 0
        if (
            receiver.is_finished
            or receiver._final_size is not None
            or end > stream.max_stream_data_local
            or limit.used + added > limit.value
        ):
            return False
        limit.used += added
        if stream_id != self._stream_id:
            self._write_data()
            self._stream_id = stream_id
        if offset == receiver._buffer_start and not receiver._buffer:
            receiver._buffer_start = end
            receiver.highest_offset += added
            self._chunks.append(payload[at:])
        else:
            self._write_data()
            event = receiver.handle_frame(QuicStreamFrame(data=payload[at:], offset=offset))
            if event is not None:
                self._connection._events.append(event)
        return True

    def _write_data(self) -> None:
        """Report the data that was read in order, so that events keep the order of arrival."""
        if self._chunks:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._connection._events.append(StreamDataReceived(data, False, self._stream_id))
            self._chunks = []

    def _write_numbers(self) -> None:
        """Record the packets as received."""
        start, stop = self._start, self._stop
        if start < 0:
            return
        self._start = self._stop = -1
        connection, space, newest = self._connection, self._space, stop - 1
        space.ack_queue.add(start, stop)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        window = space.received_packets
        # Whatever is older than the window counts as received anyway; adding the newest moves the window.
        window._received.update(range(max(start, stop - window._size), stop))
        window.add(newest)
        if newest > space.largest_received_packet:
            space.largest_received_packet = newest
            space.largest_received_time = self._now
        space.expected_packet_number = max(space.expected_packet_number, stop)
        if newest > connection._spin_highest_pn:
            # A client sends the opposite of what it saw, a server the same (RFC 9000, section 17.4).
            connection._spin_bit = bool(self._first_byte & 0x20) != connection._is_client
            connection._spin_highest_pn = newest
