"""Two QUIC connections in memory, a line between them that loses, delays, reorders and repeats, and a clock of its own.

Everything is decided by one seeded random.Random, so a run can be repeated exactly.
"""

from __future__ import annotations

import heapq
import ssl
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset
from aioquic.tls import CipherSuite, Epoch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.net import fast
from meshnode.net.congestion import NAME, pace


@cache
def credentials() -> tuple[Ed25519PrivateKey, x509.Certificate]:
    key = Ed25519PrivateKey.generate()
    return key, fast._certificate(key)


def configuration(is_client: bool, **options: Any) -> QuicConfiguration:
    key, certificate = credentials()
    made = QuicConfiguration(
        is_client=is_client,
        alpn_protocols=["test"],
        **{"congestion_control_algorithm": NAME, "cipher_suites": [CipherSuite.AES_128_GCM_SHA256], **options},
    )
    made.certificate, made.private_key, made.verify_mode = certificate, key, ssl.CERT_NONE
    return made


@dataclass
class Line:
    """What happens to datagrams on the way."""

    delay_s: float = 0.001
    loss: float = 0.0
    duplicates: float = 0.0
    reordering: float = 0.0
    reordering_s: float = 0.002
    tampering: float = 0.0


@dataclass
class Arrivals:
    """What one end has received on one stream."""

    data: bytearray = field(default_factory=bytearray)
    finished: bool = False
    reset_code: int | None = None
    stop_code: int | None = None


class Pair:
    """A client and a server that have completed their handshake over a perfect line; then `line` applies."""

    def __init__(
        self,
        client: type[QuicConnection],
        server: type[QuicConnection],
        *,
        random: Random | None = None,
        line: Line | None = None,
        **options: Any,
    ) -> None:
        self.random = random or Random(0)
        self.line = Line()
        self.now = 100.0
        self.client = client(configuration=configuration(True, **options))
        self.server = server(
            configuration=configuration(False, **options),
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.ends = (self.client, self.server)
        self.addresses = {self.client: ("client", 1), self.server: ("server", 2)}
        for end in self.ends:
            pace(end)
        self.arrived: dict[QuicConnection, dict[int, Arrivals]] = {end: defaultdict(Arrivals) for end in self.ends}
        self.events: dict[QuicConnection, list[QuicEvent]] = {end: [] for end in self.ends}
        self.closed: dict[QuicConnection, ConnectionTerminated] = {}
        self.sent: dict[QuicConnection, list[bytes]] = {end: [] for end in self.ends}
        self.record = False
        self._flying: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self.client.connect(self.addresses[self.server], self.now)
        self.flush(self.client)
        self.deliver(self.server, *(item[3] for item in self._flying))
        self._flying.clear()
        self.run(0.2)
        assert self.client._handshake_confirmed and self.server._handshake_confirmed
        self.line = line or Line()

    def other(self, end: QuicConnection) -> QuicConnection:
        return self.server if end is self.client else self.client

    def flush(self, *ends: QuicConnection) -> None:
        """Send what is to be sent, burst by burst."""
        for end in ends or self.ends:
            for turn in range(1000):
                at = self.now + turn * 1e-7
                for data, address in end.datagrams_to_send(at):
                    assert address == self.addresses[self.other(end)]
                    assert len(data) <= end._max_datagram_size
                    self._transmit(end, data)
                end.get_timer()
                if end._pacing_at is None or end._pacing_at > at:
                    break
            else:
                raise AssertionError("it never stops sending")

    def _transmit(self, end: QuicConnection, data: bytes) -> None:
        if self.record:
            self.sent[end].append(data)
        line, random = self.line, self.random
        if random.random() < line.loss:
            return
        for _ in range(2 if random.random() < line.duplicates else 1):
            late_s = random.random() * line.reordering_s if random.random() < line.reordering else 0.0
            if random.random() < line.tampering:
                at = random.randrange(len(data))
                data = data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]
            self._count += 1
            target = self.ends.index(self.other(end))
            heapq.heappush(self._flying, (self.now + line.delay_s + late_s, self._count, target, data))

    def deliver(self, end: QuicConnection, *datagrams: bytes) -> None:
        """Hand datagrams to one end, as if they came from the other."""
        address = self.addresses[self.other(end)]
        if hasattr(end, "receive_datagrams"):
            end.receive_datagrams(datagrams, address, self.now)
        else:
            for data in datagrams:
                end.receive_datagram(data, address, self.now)
        self.take_events(end)

    def take_events(self, end: QuicConnection) -> None:
        while (event := end.next_event()) is not None:
            self.events[end].append(event)
            if isinstance(event, StreamDataReceived):
                stream = self.arrived[end][event.stream_id]
                assert not stream.finished and stream.reset_code is None
                stream.data += event.data
                stream.finished = event.end_stream
            elif isinstance(event, StreamReset):
                self.arrived[end][event.stream_id].reset_code = event.error_code
            elif isinstance(event, StopSendingReceived):
                self.arrived[end][event.stream_id].stop_code = event.error_code
            elif isinstance(event, ConnectionTerminated):
                self.closed[end] = event

    def step(self, until: float) -> None:
        """Go on to the next thing that happens."""
        timers = [timer for end in self.ends if (timer := end.get_timer()) is not None]
        upcoming = [*timers, *(item[0] for item in self._flying[:1]), until]
        self.now = max(self.now + 1e-6, min(upcoming))
        batches: tuple[list[bytes], list[bytes]] = ([], [])
        while self._flying and self._flying[0][0] <= self.now:
            _, _, target, data = heapq.heappop(self._flying)
            batches[target].append(data)
        for end, batch in zip(self.ends, batches, strict=True):
            if batch:
                self.deliver(end, *batch)
            timer = end.get_timer()
            if timer is not None and timer <= self.now:
                end.handle_timer(self.now)
                self.take_events(end)
            self.flush(end)

    def run(self, duration_s: float) -> None:
        """Let so much time pass."""
        until = self.now + duration_s
        while self.now < until:
            self.step(until)

    def check_books(self) -> None:
        """What aioquic's own code would never leave inconsistent."""
        for end in self.ends:
            space = end._spaces[Epoch.ONE_RTT]
            packets = list(space.sent_packets.values())
            assert [packet.packet_number for packet in packets] == sorted(packet.packet_number for packet in packets)
            assert list(space.sent_packets) == [packet.packet_number for packet in packets]
            assert space.ack_eliciting_in_flight == sum(packet.is_ack_eliciting for packet in packets)
            assert end._loss.bytes_in_flight == sum(packet.sent_bytes for packet in packets if packet.in_flight)
            assert sum(stream.sender.highest_offset for stream in end._streams.values()) <= end._remote_max_data_used
            assert end._remote_max_data_used <= end._remote_max_data
            assert end._local_max_data.used <= end._local_max_data.value
            assert len(space.ack_queue) <= 64
            for stream in end._streams.values():
                sender, receiver = stream.sender, stream.receiver
                assert sender.highest_offset <= max(stream.max_stream_data_remote, 0)
                assert receiver.highest_offset <= max(stream.max_stream_data_local, 0)
                assert sender._buffer_start <= sender._buffer_stop
                if sender.buffer_is_empty and sender._reset_error_code is None:
                    assert not len(sender._pending)
                    assert not sender._pending_eof
                if receiver.highest_offset > receiver._buffer_start:
                    assert receiver._buffer or receiver.is_finished
