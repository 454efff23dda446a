"""Packets of the hot path: their shape, and the limits that they keep."""

from typing import Any

import pytest
from aioquic.buffer import Buffer

from meshnode.net.fast import FastQuic
from meshnode.net.fast_packets import integer
from tests.net.quic_pair import Pair


def made(**options: Any) -> Pair:
    return Pair(FastQuic, FastQuic, **{"max_data": 1 << 22, "max_stream_data": 1 << 22, **options})


def send(pair: Pair, stream_id: int, data: bytes, end: bool = False) -> None:
    pair.client.send_stream_data(stream_id, data, end_stream=end)


@pytest.mark.parametrize("value", [0, 63, 64, 16383, 16384, (1 << 30) - 1, 1 << 30, (1 << 62) - 1])
def test_integers_are_those_of_the_standard(value: int) -> None:
    buffer = Buffer(capacity=8)
    buffer.push_uint_var(value)
    assert integer(value) == buffer.data


def test_datagrams_are_full_and_the_last_one_has_the_rest() -> None:
    pair = made(max_datagram_size=1452)
    send(pair, 0, bytes(10_000), end=True)
    sent_before = pair.client._network_paths[0].bytes_sent
    sizes = [len(data) for data, _ in pair.client.datagrams_to_send(pair.now)]
    assert pair.client._network_paths[0].bytes_sent == sent_before + sum(sizes)
    # A pass is due, so the first packet is aioquic's; the others hold 1452 - 34 bytes of data.
    assert set(sizes[:-1]) == {1452}
    assert sizes[-1] < 1452
    assert len(sizes) == 8


def test_the_connection_limit_holds_over_all_streams() -> None:
    pair = made(max_data=20_000)
    pair.server._write_connection_limits = lambda **_: None  # type: ignore[method-assign]
    for stream_id in (0, 4, 8):
        send(pair, stream_id, bytes(15_000))
    pair.flush()
    pair.run(0.5)
    assert not pair.closed
    assert sum(len(pair.arrived[pair.server][stream_id].data) for stream_id in (0, 4, 8)) == 20_000


def test_the_congestion_window_holds() -> None:
    pair = made()
    send(pair, 0, bytes(2_000_000))
    control = pair.client._loss._cc
    while len(pair.arrived[pair.server][0].data) < 2_000_000:
        pair.flush()
        assert control.bytes_in_flight <= control.congestion_window
        pair.run(0.0005)
    pair.check_books()


def test_a_window_that_is_full_makes_no_turns() -> None:
    pair = made()
    pair.client._loss._cc.congestion_window = 12_000
    send(pair, 0, bytes(100_000))
    pair.flush(pair.client)
    assert pair.client._pacing_at is None
    assert 12_000 - 1200 < pair.client._loss._cc.bytes_in_flight <= 12_000


def test_a_burst_that_ends_with_the_window_makes_no_turn() -> None:
    """Sixteen datagrams are the first burst, and here also the window."""
    pair = made()
    send(pair, 0, b"x" * 100)
    pair.flush()
    pair.run(1.0)
    pair.client._loss._cc.congestion_window = 16 * 1200
    send(pair, 0, bytes(100_000))
    assert len(pair.client.datagrams_to_send(pair.now)) == 16
    assert pair.client._pacing_at is None


def test_a_stream_that_may_not_send_makes_no_turns() -> None:
    pair = made(max_stream_data=5_000)
    pair.server._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
    send(pair, 0, bytes(100_000))
    pair.flush(pair.client)
    assert pair.client._pacing_at is None
    assert pair.client._streams[0].sender.highest_offset == 5_000
    pair.run(0.5)
    assert len(pair.arrived[pair.server][0].data) == 5_000


def test_the_end_rides_on_the_last_data() -> None:
    pair = made()
    send(pair, 0, bytes(30_000), end=True)
    pair.flush(pair.client)
    sender = pair.client._streams[0].sender
    assert sender.buffer_is_empty and not sender._pending_eof
    pair.run(0.05)
    assert pair.arrived[pair.server][0].finished
    assert sender.is_finished


@pytest.mark.parametrize("stream_id", [0, 64 * 4, 5000 * 4])
def test_long_stream_ids_and_long_streams_fit(stream_id: int) -> None:
    """Identifiers of one, two and four bytes; offsets beyond 2**30 take eight bytes instead of four."""
    pair = made(max_data=1 << 40, max_stream_data=1 << 40)
    for end in pair.ends:
        end._remote_max_streams_bidi = 1 << 20
        end._local_max_streams_bidi.value = end._local_max_streams_bidi.sent = 1 << 20
    send(pair, stream_id, b"begin")
    pair.flush()
    pair.run(0.05)
    assert pair.arrived[pair.server][stream_id].data == b"begin"
    far = (1 << 30) - 5_000
    sender = pair.client._streams[stream_id].sender
    receiver = pair.server._streams[stream_id].receiver
    sender._buffer_start = sender._buffer_stop = sender.highest_offset = far
    receiver._buffer_start = receiver.highest_offset = far
    content = pair.random.randbytes(10_000)
    send(pair, stream_id, content)
    pair.flush()
    pair.run(0.05)
    assert pair.arrived[pair.server][stream_id].data == b"begin" + content
