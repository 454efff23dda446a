"""Two MeshQuic connections joined in memory, in simulated time."""

from __future__ import annotations

from collections.abc import Callable

from aioquic.buffer import encode_uint_var
from aioquic.quic.events import StreamDataReceived
from aioquic.tls import Epoch

from meshnode.net import tls
from meshnode.net.quic import MeshQuic, configuration
from tests.net.nodes import IDENTITIES

PEER = ("127.0.0.1", 1)


class Pair:
    """A client and a server joined by a line of one millisecond; `drop` decides what is lost on it."""

    def __init__(self, kind: type[MeshQuic], client: int = 0, server: int = 1) -> None:
        one, other = IDENTITIES[client], IDENTITIES[server]
        self.client = kind(configuration=configuration(tls.certificate(one), one.private_key, is_client=True))
        self.server = kind(
            configuration=configuration(tls.certificate(other), other.private_key, is_client=False),
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.now = 0.0
        self.carried: list[tuple[MeshQuic, int]] = []
        self.drop: Callable[[bytes], bool] = lambda _: False
        self.client.connect(PEER, 0.0)
        self.run(0.1)

    def run(self, seconds: float, step_s: float = 0.001) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step_s
            for sender, receiver in ((self.client, self.server), (self.server, self.client)):
                timer = sender.get_timer()
                if timer is not None and timer <= self.now:
                    sender.handle_timer(self.now)
                if sender._network_paths:
                    sent = [data for data, _ in sender.datagrams_to_send(self.now)]
                    self.carry(sender, receiver, sent)

    def carry(self, sender: MeshQuic, receiver: MeshQuic, datagrams: list[bytes]) -> None:
        self.carried += [(sender, len(data)) for data in datagrams]
        receiver.feed([data for data in datagrams if not self.drop(data)], PEER, self.now)

    def data(self, end: MeshQuic, stream_id: int) -> bytes:
        """Takes all events; returns the data of one stream."""
        pieces = []
        while (event := end.take_event()) is not None:
            if isinstance(event, StreamDataReceived) and event.stream_id == stream_id:
                pieces.append(event.data)
        return b"".join(pieces)


def stream_frame(stream_id: int, offset: int, data: bytes) -> bytes:
    return b"\x0e" + b"".join(map(encode_uint_var, (stream_id, offset, len(data)))) + data


def inject(pair: Pair, frames: bytes) -> int:
    """Have the client send a packet with these frames, as a hostile one could. Returns the size of the datagram."""
    crypto = pair.client._cryptos[Epoch.ONE_RTT]
    number = pair.client._packet_number
    pair.client._packet_number += 1
    header = bytes([0x41 | crypto.key_phase << 2]) + pair.client._peer_cid.cid + (number & 0xFFFF).to_bytes(2, "big")
    datagram = crypto.encrypt_packet(header, frames + bytes(max(0, 8 - len(frames))), number)
    pair.server.feed([datagram], PEER, pair.now)
    return len(datagram)
