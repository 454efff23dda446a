"""What MeshQuic adds, on both of its foundations, in memory and simulated time."""

from random import Random

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.events import PingAcknowledged, StreamDataReceived
from aioquic.tls import Epoch

from meshnode.net import quic as module
from meshnode.net import tls
from meshnode.net.credit import STREAM_FIRST_BYTES
from meshnode.net.fast import FastQuic
from meshnode.net.quic import MOST_DATAGRAMS_QUEUED, MeshQuic, configuration, connection_type
from tests.net.mesh_pair import Pair, inject, stream_frame
from tests.net.nodes import IDENTITIES


@pytest.fixture(params=[False, True], ids=["stock", "fast"])
def kind(request: pytest.FixtureRequest) -> type[MeshQuic]:
    return connection_type(request.param)


@pytest.fixture
def pair(kind: type[MeshQuic]) -> Pair:
    return Pair(kind)


def test_the_foundations() -> None:
    assert connection_type(False) is MeshQuic
    fast = connection_type(True)
    assert issubclass(fast, MeshQuic) and issubclass(fast, FastQuic)
    assert connection_type(True) is fast


def test_keys_are_proven_and_the_exporter_is_shared(pair: Pair) -> None:
    assert pair.client.peer_id() == IDENTITIES[1].node_id
    assert pair.server.peer_id() == IDENTITIES[0].node_id
    assert pair.client.is_confirmed and pair.server.is_confirmed
    secret = pair.client.exporter("EXPORTER-test", 32)
    assert secret == pair.server.exporter("EXPORTER-test", 32)
    assert secret != pair.client.exporter("EXPORTER-other", 32)
    assert secret != Pair(type(pair.client)).client.exporter("EXPORTER-test", 32)


def test_no_exporter_before_the_handshake(kind: type[MeshQuic]) -> None:
    one = IDENTITIES[0]
    with pytest.raises(AssertionError):
        kind(configuration=configuration(tls.certificate(one), one.private_key, is_client=True)).exporter("x", 32)


def test_no_tickets_no_early_data_one_group_one_version(pair: Pair) -> None:
    for end in (pair.client, pair.server):
        assert end.tls.new_session_ticket_cb is None and end.tls.get_session_ticket_cb is None
        assert not end.tls.session_resumed
        assert [group.name for group in end.tls._supported_groups] == ["X25519"]
        assert len(end.configuration.supported_versions) == 1


def test_unidirectional_streams_are_not_for_us(pair: Pair) -> None:
    inject(pair, stream_frame(2, 0, b"x"))
    assert pair.server.ending is not None


def test_abandoned_streams_free_what_waited_and_end_at_both_sides(pair: Pair) -> None:
    stream_id = pair.client.open_stream()
    pair.client.send_stream_data(stream_id, bytes(2 << 20))
    pair.run(0.2)
    pair.client.abandon_stream(stream_id, 0x10)
    assert len(pair.client._streams[stream_id].sender._buffer) == 0
    pair.run(0.1)
    pair.server.abandon_stream(stream_id, 0x10)
    pair.run(0.1)
    assert not pair.client.has_stream(stream_id) and not pair.server.has_stream(stream_id)
    pair.client.abandon_stream(stream_id, 0x10)
    assert pair.client.unsent_bytes(stream_id) == 0


def test_datagrams_that_do_not_fit_are_refused_and_the_queue_is_bounded(pair: Pair) -> None:
    assert not pair.client.queue_datagram(bytes(1200))
    assert pair.client.queue_datagram(bytes(1160))
    accepted = sum(pair.client.queue_datagram(bytes(1000)) for _ in range(200))
    assert accepted == MOST_DATAGRAMS_QUEUED - 1
    pair.run(0.2)
    assert not pair.client._datagrams_pending
    pair.client.set_datagram_bytes(16384)
    assert pair.client.queue_datagram(bytes(16000)) and pair.client.queue_datagram(b"small")
    pair.client.set_datagram_bytes(1200)
    assert list(pair.client._datagrams_pending) == [b"small"], "one that fits no more would stop the queue"


def test_a_ping_is_answered_at_once(pair: Pair) -> None:
    pair.client.send_ping(5)
    pair.carry(pair.client, pair.server, [data for data, _ in pair.client.datagrams_to_send(pair.now)])
    pair.carry(pair.server, pair.client, [data for data, _ in pair.server.datagrams_to_send(pair.now)])
    answered = []
    while (event := pair.client.take_event()) is not None:
        answered.append(event)
    assert PingAcknowledged(uid=5) in answered


def test_keys_are_updated_in_time(kind: type[MeshQuic], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEY_UPDATE_PACKETS", 50)
    pair = Pair(kind)
    stream_id = pair.client.open_stream()
    phases = set()
    received = b""
    content = bytes(range(256)) * 1024
    for start in range(0, len(content), 4096):
        pair.client.send_stream_data(stream_id, content[start : start + 4096])
        pair.run(0.004)
        phases.add(pair.client._cryptos[Epoch.ONE_RTT].key_phase)
        received += pair.data(pair.server, stream_id)
        pair.server.raise_stream_limit(stream_id, len(received) + STREAM_FIRST_BYTES)
    assert phases == {0, 1}
    assert received == content


def test_urgent_streams_go_first_and_background_last(pair: Pair) -> None:
    background, usual, urgent = (pair.client.open_stream() for _ in range(3))
    for stream_id, priority in ((background, 1), (urgent, -1)):
        pair.client.rank_stream(stream_id, priority)
    for stream_id in (background, usual, urgent):
        pair.client.send_stream_data(stream_id, bytes(20_000))
    pair.run(0.002)
    order = []
    while (event := pair.server.take_event()) is not None:
        if isinstance(event, StreamDataReceived) and event.stream_id not in order:
            order.append(event.stream_id)
    assert order == [urgent, usual, background]


def test_a_probe_goes_out_though_the_window_is_full(pair: Pair) -> None:
    stream_id = pair.client.open_stream()
    pair.client.send_stream_data(stream_id, bytes(1 << 20))
    pair.drop = lambda _: True
    for step in range(50):
        pair.client.datagrams_to_send(pair.now + step / 1e6)
    assert pair.client.datagrams_to_send(pair.now + 1e-4) == []
    pair.client.probe()
    assert len(pair.client.datagrams_to_send(pair.now + 2e-4)) == 1


@pytest.mark.parametrize("offset", [1 << 14, (1 << 19) - 10, (1 << 62) - 2])
def test_handshake_data_far_ahead_binds_no_memory(kind: type[MeshQuic], offset: int) -> None:
    pair = Pair(kind)
    frame = b"\x06" + encode_uint_var(offset) + encode_uint_var(1) + b"x"
    inject(pair, frame)
    assert pair.server.ending is not None
    assert all(len(stream.receiver._buffer) == 0 for stream in pair.server._crypto_streams.values())


def test_a_stream_of_crumbs_is_noticed(pair: Pair) -> None:
    for number in range(300):
        inject(pair, b"".join(stream_frame(0, 1 + 2 * (20 * number + each), b"x") for each in range(20)))
    assert pair.server.most_gaps > 4096


def test_frames_of_a_hostile_peer_end_the_connection_or_do_nothing(kind: type[MeshQuic]) -> None:
    """Authenticated nonsense: every kind of frame, with small, large and largest numbers in it."""
    numbers = (0, 1, 4, 5, 63, 64, 16383, 1 << 20, (1 << 62) - 1)
    pair, ended = Pair(kind), 0
    for seed in range(150):
        chance = Random(seed)
        frame = bytes([chance.choice([*range(0x1F), 0x30, 0x31, 0x3F])])
        frame += b"".join(encode_uint_var(chance.choice(numbers)) for _ in range(chance.randrange(6)))
        inject(pair, frame + chance.randbytes(chance.randrange(60)))
        pair.run(0.003)
        if pair.server.ending is not None:
            pair, ended = Pair(kind), ended + 1
    assert 30 < ended < 150
