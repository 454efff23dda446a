"""Flushes: limits are kept, nothing waits for ever, everyone has a turn, and idle streams cost nothing."""

from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import DatagramFrameReceived, PingAcknowledged
from aioquic.tls import Epoch

from meshnode.net.fast import FastQuic
from meshnode.net.fast_recovery import StreamPacket
from meshnode.net.fast_send import PASS_EVERY_S
from tests.net.quic_pair import Line, Pair

WINDOW = 1 << 22


def made(client: type[QuicConnection] = FastQuic, server: type[QuicConnection] = FastQuic, **options: Any) -> Pair:
    return Pair(client, server, **{"max_data": WINDOW, "max_stream_data": WINDOW, **options})


def passes(monkeypatch: pytest.MonkeyPatch, connection: QuicConnection) -> list[float]:
    """When aioquic's own write pass ran for this connection, from now on."""
    times: list[float] = []
    original = QuicConnection.datagrams_to_send

    def counted(self: QuicConnection, now: float) -> Any:
        if self is connection:
            times.append(now)
        return original(self, now)

    monkeypatch.setattr(QuicConnection, "datagrams_to_send", counted)
    return times


def send(pair: Pair, stream_id: int, data: bytes, end: bool = False) -> None:
    pair.client.send_stream_data(stream_id, data, end_stream=end)


def test_bulk_is_written_here() -> None:
    pair = made()
    send(pair, 0, bytes(4_000_000))
    pair.flush()
    pair.run(0.02)
    packets = list(pair.client._spaces[Epoch.ONE_RTT].sent_packets.values())
    assert len(packets) > 100
    assert sum(isinstance(packet, StreamPacket) for packet in packets) > 0.9 * len(packets)


def test_timers_start_with_what_is_sent_here() -> None:
    pair = made()
    send(pair, 0, b"x" * 5000)
    pair.flush()
    pair.run(1.0)  # everything is acknowledged, and a pass has just been
    pair.client.datagrams_to_send(pair.now)
    now = pair.now + 0.0005
    send(pair, 0, b"y" * 100)
    assert len(pair.client.datagrams_to_send(now)) == 1
    assert pair.client._loss._time_of_last_sent_ack_eliciting_packet == now
    assert pair.client._close_at == now + pair.client._idle_timeout()
    timer = pair.client.get_timer()
    assert timer is not None and timer < now + 0.2


def test_streams_beyond_the_limit_of_the_peer_wait() -> None:
    pair = made()
    for stream_id in range(0, 4 * 130, 4):
        send(pair, stream_id, b"x" * 2000, end=True)
    assert pair.client._streams[4 * 128].is_blocked
    pair.flush(pair.client)
    assert pair.client._streams[4 * 128].sender.highest_offset == 0
    pair.run(1.0)
    for stream_id in range(0, 4 * 128, 4):
        pair.server.send_stream_data(stream_id, b"", end_stream=True)  # now the first ones can be forgotten
    pair.flush()
    pair.run(1.0)
    assert pair.arrived[pair.server][4 * 129].finished


def test_no_more_than_three_times_what_came_from_an_unproven_address() -> None:
    pair = made()
    path = pair.client._network_paths[0]
    path.is_validated, path.bytes_received, path.bytes_sent = False, 1000, 0
    send(pair, 0, bytes(100_000))
    assert sum(len(data) for data, _ in pair.client.datagrams_to_send(pair.now)) <= 3000


# --- ends -----------------------------------------------------------------------------------------------------


def test_an_end_alone_is_sent_at_once() -> None:
    pair = made()
    send(pair, 0, bytes(3000))
    pair.flush()
    pair.run(0.02)
    send(pair, 0, b"", end=True)
    pair.flush()
    pair.run(0.0015)
    assert pair.arrived[pair.server][0].finished


def test_nothing_of_a_stream_is_sent_after_its_reset() -> None:
    pair = made()
    send(pair, 0, bytes(3_000_000))
    pair.flush()
    pair.run(0.003)
    pair.client.reset_stream(0, 5)
    highest = pair.client._streams[0].sender.highest_offset
    pair.flush()
    assert pair.client._streams[0].sender.highest_offset == highest
    pair.run(0.1)
    assert pair.arrived[pair.server][0].reset_code == 5
    assert pair.client._loss.bytes_in_flight == 0


def test_a_reader_that_stops_the_stream_is_heard() -> None:
    pair = made()
    send(pair, 0, bytes(3_000_000))
    pair.flush()
    pair.run(0.003)
    pair.server.stop_stream(0, 6)
    pair.flush()
    pair.run(0.05)
    assert pair.arrived[pair.client][0].stop_code == 6
    assert pair.arrived[pair.server][0].reset_code == 6


def test_what_aioquic_reads_counts_at_once() -> None:
    """Not only with the next pass: here a request to stop, which has to be answered with a reset."""
    pair = made()
    send(pair, 0, bytes(100_000))
    pair.flush()
    pair.run(0.1)
    pair.server.stop_stream(0, 6)
    requests = [data for data, _ in pair.server.datagrams_to_send(pair.now)]
    pair.client.datagrams_to_send(pair.now)
    pair.deliver(pair.client, *requests)
    assert len(pair.client.datagrams_to_send(pair.now + 1e-5)) == 1
    assert not pair.client._streams[0].sender.reset_pending


def test_what_the_loss_timer_finds_is_sent_at_once() -> None:
    pair = made()
    for _ in range(3):
        send(pair, 0, b"x" * 500)
        datagrams = [data for data, _ in pair.client.datagrams_to_send(pair.now)]
        pair.now += 1e-5
    pair.deliver(pair.server, *datagrams)  # the last one only; two missing are not yet a loss
    pair.run(0.0021)
    loss_at = pair.client.get_timer()
    assert loss_at is not None and pair.client._spaces[Epoch.ONE_RTT].loss_time == loss_at
    pair.client.datagrams_to_send(loss_at - 1e-5)
    pair.client.handle_timer(loss_at)
    assert pair.client.datagrams_to_send(loss_at)


def test_what_is_lost_is_sent_again() -> None:
    pair = made(line=Line(loss=0.2))
    content = pair.random.randbytes(200_000)
    send(pair, 0, content, end=True)
    pair.flush()
    while not pair.arrived[pair.server][0].finished:
        pair.run(0.1)
    assert pair.arrived[pair.server][0].data == content


# --- sharing --------------------------------------------------------------------------------------------------


def test_bulk_streams_advance_together() -> None:
    pair = made()
    for stream_id in (0, 4, 8):
        send(pair, stream_id, bytes(900_000))
    pair.flush()
    shares = []
    while min(len(pair.arrived[pair.server][stream_id].data) for stream_id in (0, 4, 8)) < 400_000:
        pair.run(0.001)
        shares.append([len(pair.arrived[pair.server][stream_id].data) for stream_id in (0, 4, 8)])
    assert max(shares[-1]) < 1.3 * min(shares[-1])


def test_a_small_message_overtakes_bulk() -> None:
    pair = made()
    send(pair, 0, bytes(4_000_000))
    pair.flush()
    pair.run(0.005)
    waiting = pair.client._streams[0].sender
    assert not waiting.buffer_is_empty
    send(pair, 4, b"hello, with a little more than the least")
    pair.flush()
    pair.run(0.004)
    assert pair.arrived[pair.server][4].data.startswith(b"hello")
    assert not waiting.buffer_is_empty


def test_the_order_of_the_queue_decides() -> None:
    """net/quic.py ranks streams by moving them in aioquic's queue."""
    pair = made()
    for stream_id in (0, 4):
        send(pair, stream_id, bytes(50_000))
    pair.client._streams_queue.reverse()
    order = []
    for turn in range(6):
        before = [pair.client._streams[stream_id].sender.highest_offset for stream_id in (0, 4)]
        pair.client._loss._pacer.restriction = 1  # type: ignore[attr-defined]
        pair.client._pass_at = pair.now + 1  # type: ignore[attr-defined]
        assert len(pair.client.datagrams_to_send(pair.now + turn * 1e-6)) == 1
        after = [pair.client._streams[stream_id].sender.highest_offset for stream_id in (0, 4)]
        order.append(4 if after[1] > before[1] else 0)
    assert order == [4, 0, 4, 0, 4, 0]


def test_small_pieces_of_several_streams_share_a_packet() -> None:
    pair = made()
    for stream_id in (0, 4, 8, 12):
        send(pair, stream_id, b"token")
    assert len(pair.client.datagrams_to_send(pair.now)) == 1
    pair.run(0.01)
    for stream_id in (0, 4, 8, 12):
        send(pair, stream_id, b"token")
    assert len(pair.client.datagrams_to_send(pair.now + 0.0001)) == 1


def test_idle_streams_cost_no_walk_for_each_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = made()
    for stream_id in range(0, 404, 4):
        send(pair, stream_id, b"open")
    pair.flush()
    pair.run(0.1)
    calls = []
    original = QuicConnection._write_stream_limits

    def counted(self: QuicConnection, **arguments: Any) -> None:
        calls.append(self is pair.client)
        original(self, **arguments)

    monkeypatch.setattr(QuicConnection, "_write_stream_limits", counted)
    pair.record = True
    send(pair, 0, bytes(1_000_000), end=True)
    pair.flush()
    while not pair.arrived[pair.server][0].finished:
        pair.run(0.001)
    walks = sum(calls) / 101
    assert len(pair.sent[pair.client]) > 800
    assert walks < len(pair.sent[pair.client]) / 5


# --- aioquic's pass -------------------------------------------------------------------------------------------


def test_control_goes_out_beside_bulk() -> None:
    pair = made(max_datagram_frame_size=65535)
    send(pair, 0, bytes(4_000_000))
    pair.flush()
    pair.run(0.005)
    pair.client.send_ping(77)
    for number in range(20):
        pair.client.send_datagram_frame(bytes((number,)) * 1000)
    pair.flush()
    pair.run(0.01)
    assert not pair.client._streams[0].sender.buffer_is_empty
    assert any(isinstance(event, PingAcknowledged) and event.uid == 77 for event in pair.events[pair.client])
    assert sum(isinstance(event, DatagramFrameReceived) for event in pair.events[pair.server]) == 20


def test_what_a_burst_left_of_the_control_has_its_turn() -> None:
    pair = made(max_datagram_frame_size=65535)
    send(pair, 0, bytes(3000))
    for _ in range(20):
        pair.client.send_datagram_frame(bytes(1000))
    pair.client.datagrams_to_send(pair.now)
    assert pair.client._streams[0].sender.buffer_is_empty
    assert pair.client._datagrams_pending
    while pair.client._datagrams_pending:
        assert pair.client._pacing_at is not None and pair.client._pacing_at <= pair.now
        pair.now += 1e-6
        pair.client.datagrams_to_send(pair.now)
    pair.client.datagrams_to_send(pair.now + 1e-6)
    assert pair.client._pacing_at is None


def test_a_pass_is_not_owed_where_all_is_aioquics() -> None:
    """A timer in the past would keep the event loop busy."""
    pair = made()
    pair.run(1.0)
    pair.client.datagrams_to_send(pair.now)
    pair.client.datagrams_to_send(pair.now + 0.0001)
    assert pair.client.get_timer() == pytest.approx(pair.now + PASS_EVERY_S)
    pair.client.request_key_update()
    pair.client.datagrams_to_send(pair.now + 0.0002)
    timer = pair.client.get_timer()
    assert timer is not None and timer > pair.now + 1


def test_the_pass_is_left_out_while_nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = made()
    send(pair, 0, bytes(100))
    pair.client.datagrams_to_send(pair.now)
    times = passes(monkeypatch, pair.client)
    for turn in range(1, 9):
        send(pair, 0, bytes(100))
        assert len(pair.client.datagrams_to_send(pair.now + turn * 0.0001)) == 1
    assert len(times) == 1  # the last of them, as by then it is time for the next one
    assert times[0] == pytest.approx(pair.now + 0.0008)


def test_a_pass_that_is_owed_is_on_the_timer() -> None:
    """Credit that was returned without a word goes out in time."""
    pair = made()
    pair.server.send_stream_data(1, b"x" * 100)
    pair.flush()
    pair.run(0.2)
    now = pair.now
    pair.client.datagrams_to_send(now)
    pair.client._streams[1].max_stream_data_local += 12345
    assert pair.client.datagrams_to_send(now + 0.0001) == []
    timer = pair.client.get_timer()
    assert timer == pytest.approx(now + PASS_EVERY_S)
    assert len(pair.client.datagrams_to_send(now + PASS_EVERY_S)) == 1
    later = pair.client.get_timer()
    assert later is not None and later > now + 2 * PASS_EVERY_S


def test_credit_of_the_connection_is_seen() -> None:
    pair = made()
    pair.run(0.2)
    pair.client.datagrams_to_send(pair.now)
    pair.client._local_max_data.value += 12345
    assert len(pair.client.datagrams_to_send(pair.now + 0.0001)) == 1


def test_attend_brings_it_forward() -> None:
    pair = made()
    pair.server.send_stream_data(1, b"x" * 100)
    pair.flush()
    pair.run(0.2)
    pair.client.datagrams_to_send(pair.now)
    pair.client._streams[1].max_stream_data_local += 12345
    pair.client.attend()
    assert len(pair.client.datagrams_to_send(pair.now + 0.0001)) == 1


def test_an_idle_connection_has_no_timer_but_that_of_silence() -> None:
    pair = made()
    send(pair, 0, bytes(10_000))
    pair.flush()
    pair.run(1.0)
    for end in pair.ends:
        assert end.get_timer() == end._close_at


def test_closing_is_aioquics() -> None:
    pair = made()
    send(pair, 0, bytes(4_000_000))
    pair.flush()
    pair.client.close(error_code=3)
    pair.flush()
    pair.run(0.05)
    assert pair.client.datagrams_to_send(pair.now) == []
    assert pair.server._close_event is not None and pair.server._close_event.error_code == 3


def test_without_its_pacer_it_is_aioquic(monkeypatch: pytest.MonkeyPatch) -> None:
    from aioquic.quic.recovery import QuicPacketPacer

    pair = made()
    pair.client._loss._pacer = QuicPacketPacer(max_datagram_size=1200)
    times = passes(monkeypatch, pair.client)
    send(pair, 0, bytes(100_000), end=True)
    pair.flush()
    flushes = len(times)
    assert flushes
    pair.run(0.5)
    assert pair.arrived[pair.server][0].finished
