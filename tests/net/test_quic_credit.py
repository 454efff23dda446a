"""What a peer may send, on both foundations."""

from random import Random

import pytest
from aioquic.quic.connection import QuicConnection

from meshnode.net.credit import CONNECTION_FIRST_BYTES, STREAM_FIRST_BYTES
from meshnode.net.quic import MeshQuic, connection_type
from tests.net.mesh_pair import Pair, inject, stream_frame


@pytest.fixture(params=[False, True], ids=["stock", "fast"])
def kind(request: pytest.FixtureRequest) -> type[MeshQuic]:
    return connection_type(request.param)


@pytest.fixture
def pair(kind: type[MeshQuic]) -> Pair:
    return Pair(kind)


def test_a_reader_that_takes_nothing_stops_the_sender_at_one_window(pair: Pair) -> None:
    stream_id = pair.client.open_stream()
    pair.client.send_stream_data(stream_id, bytes(4 << 20))
    pair.run(0.5)
    assert len(pair.data(pair.server, stream_id)) == STREAM_FIRST_BYTES
    assert pair.server.raise_stream_limit(stream_id, STREAM_FIRST_BYTES + 100_000)
    assert not pair.server.raise_stream_limit(stream_id, STREAM_FIRST_BYTES), "limits never fall"
    pair.run(0.2)
    assert len(pair.data(pair.server, stream_id)) == 100_000
    assert pair.client.unsent_bytes(stream_id) == (4 << 20) - STREAM_FIRST_BYTES - 100_000


def test_all_streams_together_are_bounded_until_something_is_taken(pair: Pair) -> None:
    ids = [pair.client.open_stream() for _ in range(8)]
    for stream_id in ids:
        pair.client.send_stream_data(stream_id, bytes(1 << 20))
    pair.run(0.5)
    assert pair.server._local_max_data.used == CONNECTION_FIRST_BYTES
    assert pair.server.is_connection_limit_near(0)
    assert not pair.server.raise_connection_limit(CONNECTION_FIRST_BYTES, 0), "all of it waits for the application"
    assert pair.server.raise_connection_limit(CONNECTION_FIRST_BYTES - (1 << 19), 1 << 19)
    pair.run(0.2)
    assert pair.server._local_max_data.used > CONNECTION_FIRST_BYTES


def test_the_limits_survive_the_loss_of_their_frames(pair: Pair) -> None:
    stream_id = pair.client.open_stream()
    pair.client.send_stream_data(stream_id, bytes(1 << 20))
    pair.run(0.3)
    pair.server.raise_stream_limit(stream_id, 1 << 20)
    pair.drop = lambda _: True
    pair.run(0.01)
    pair.drop = lambda _: False
    pair.run(1.0)
    assert len(pair.data(pair.server, stream_id)) == 1 << 20


def reordering_bytes(quic: QuicConnection) -> int:
    return sum(len(stream.receiver._buffer) for stream in quic._streams.values())


def test_sparse_data_at_the_limit_binds_one_window(pair: Pair) -> None:
    """Each datagram claims the last byte that is allowed, hoping that the limit doubles."""
    sent = 0
    for _ in range(18):
        limit = pair.server._streams[0].max_stream_data_local if 0 in pair.server._streams else STREAM_FIRST_BYTES
        sent += inject(pair, stream_frame(0, limit - 1, b"x"))
        pair.run(0.003)
    assert sent < 1000
    assert pair.server.ending is None
    assert reordering_bytes(pair.server) <= STREAM_FIRST_BYTES


def test_sparse_data_on_all_streams_binds_what_the_connection_allows(pair: Pair) -> None:
    for number in range(300):
        if pair.server.ending is not None:
            break
        inject(pair, stream_frame(number * 4, STREAM_FIRST_BYTES - 1, b"x"))
        pair.server.raise_connection_limit(0, 0)
        pair.run(0.002)
    assert reordering_bytes(pair.server) <= CONNECTION_FIRST_BYTES


def test_a_limit_that_found_no_room_in_its_turn_is_sent_soon(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both would wait: the peer for the limit, and this end for the peer."""
    stream_id = pair.client.open_stream()
    pair.client.send_stream_data(stream_id, bytes(1 << 20))
    pair.run(0.5)
    assert pair.server.raise_stream_limit(stream_id, 1 << 20)
    monkeypatch.setattr(pair.server._loss._pacer, "next_send_time", lambda now: now + 100.0)
    monkeypatch.setattr(pair.server._loss._pacer, "allowance", lambda now: 0, raising=False)
    assert pair.server.datagrams_to_send(pair.now) == []
    monkeypatch.undo()
    timer = pair.server.get_timer()
    assert timer is not None and timer <= pair.now + 0.002
    pair.server.raise_connection_limit(0, 1 << 20)
    pair.run(0.2)
    assert len(pair.data(pair.server, stream_id)) == 1 << 20


def test_everything_arrives_over_a_lossy_line_with_limits_in_the_way(pair: Pair) -> None:
    chance = Random(7)
    pair.drop = lambda _: chance.random() < 0.05
    stream_id = pair.client.open_stream()
    content = chance.randbytes(3 << 20)
    pair.client.send_stream_data(stream_id, content)
    received = b""
    for _ in range(2000):
        pair.run(0.01)
        received += pair.data(pair.server, stream_id)
        pair.server.raise_stream_limit(stream_id, len(received) + STREAM_FIRST_BYTES)
        if pair.server.is_connection_limit_near(len(received)):
            pair.server.raise_connection_limit(0, len(received))
        if len(received) == len(content):
            break
    assert received == content
