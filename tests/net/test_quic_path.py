"""Sizes of datagrams and places of peers, on both foundations."""

import pytest

from meshnode.net.quic import MeshQuic, connection_type
from tests.net.mesh_pair import Pair


@pytest.fixture(params=[False, True], ids=["stock", "fast"])
def kind(request: pytest.FixtureRequest) -> type[MeshQuic]:
    return connection_type(request.param)


@pytest.fixture
def pair(kind: type[MeshQuic]) -> Pair:
    return Pair(kind)


def test_larger_datagrams_are_tested_and_used(pair: Pair) -> None:
    results: list[bool] = []
    probe = pair.client.size_probe(16384, pair.now, results.append)
    assert [len(data) for data in probe] == [16384]
    in_flight = pair.client._loss.bytes_in_flight
    pair.carry(pair.client, pair.server, probe)
    pair.run(0.1)
    assert results == [True]
    assert in_flight < 16384, "the loss of a probe says nothing about congestion"
    pair.client.set_datagram_bytes(16384)
    stream_id = pair.client.open_stream()
    content = bytes(range(256)) * 800
    pair.client.send_stream_data(stream_id, content)
    pair.carried.clear()
    pair.run(0.1)
    assert pair.data(pair.server, stream_id) == content
    assert max(size for sender, size in pair.carried if sender is pair.client) == 16384


def test_a_probe_that_is_lost(pair: Pair) -> None:
    results: list[bool] = []
    pair.client.size_probe(9000, pair.now, results.append)
    window = pair.client._loss.congestion_window
    pair.run(2.0)
    assert results == [False]
    assert pair.client._loss.congestion_window == window
    assert pair.client.ending is None


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_path_under_validation_gets_three_times_what_came_from_it(pair: Pair, role: str) -> None:
    mover, follower = (pair.client, pair.server) if role == "client" else (pair.server, pair.client)
    stream_id = follower.open_stream()
    follower.begin_validation(60)
    follower.send_stream_data(stream_id, bytes(100_000))
    sent = sum(len(data) for _ in range(10) for data, _ in follower.datagrams_to_send(pair.now))
    assert 0 < sent <= 180
    follower.begin_validation(60)
    pair.run(0.2)
    assert follower.is_path_valid and not follower.path_failed
    assert len(pair.data(mover, stream_id)) == 100_000


def test_a_path_that_does_not_answer_is_given_up_and_the_connection_lives(pair: Pair) -> None:
    pair.client.begin_validation(100)
    pair.drop = lambda _: True
    pair.run(3.0)
    assert pair.client.path_failed
    pair.drop = lambda _: False
    stream_id = pair.client.open_stream()
    pair.client.send_stream_data(stream_id, b"still here")
    pair.run(2.0)
    assert pair.data(pair.server, stream_id) == b"still here"
