"""Reading runs of packets: what is taken, what is refused, and that the books are those of aioquic."""

from random import Random
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import Epoch

from meshnode.net import fast_receive
from meshnode.net.fast import FastQuic
from meshnode.net.fast_packets import integer
from tests.net.quic_pair import Pair

WINDOW = 1 << 22


class Stingy(FastQuic):
    """Never gives more credit than at the start, as for a reader that does not read."""

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        pass

    def _write_connection_limits(self, builder: Any, space: Any) -> None:
        pass


def made(server: type[QuicConnection] = FastQuic, client: type[QuicConnection] = FastQuic, **options: Any) -> Pair:
    return Pair(client, server, **{"max_data": WINDOW, "max_stream_data": WINDOW, **options})


def packets(pair: Pair, *writes: tuple[int, bytes], end: bool = False) -> list[bytes]:
    """What the client would send, kept back."""
    for stream_id, data in writes:
        pair.client.send_stream_data(stream_id, data, end_stream=end)
    datagrams: list[bytes] = []
    for turn in range(100):
        datagrams += [data for data, _ in pair.client.datagrams_to_send(pair.now + turn * 1e-7)]
        if pair.client._pacing_at is None:
            return datagrams
    raise AssertionError


def opened(pair: Pair, *stream_ids: int) -> None:
    """Streams that the server knows already."""
    for stream_id in stream_ids:
        pair.client.send_stream_data(stream_id, b"begun")
    pair.flush()
    pair.run(0.05)
    for stream_id in stream_ids:
        assert pair.arrived[pair.server][stream_id].data == b"begun"
        pair.arrived[pair.server][stream_id].data.clear()
    pair.events[pair.server].clear()


def books(quic: QuicConnection) -> dict[str, Any]:
    """Everything that a received packet may change."""
    space = quic._spaces[Epoch.ONE_RTT]
    return {
        "state": (quic._state, quic._close_pending),
        "ack_queue": list(space.ack_queue),
        "largest": space.largest_received_packet,
        "ack_at": space.ack_at,
        "seen": sorted(number for number in range(2000) if number in space.received_packets),
        "used": quic._local_max_data.used,
        "events": len(quic._events),
        "spin": (quic._spin_bit, quic._spin_highest_pn),
        "close_at": quic._close_at,
        "streams": {
            stream_id: (
                stream.receiver.highest_offset,
                stream.receiver._buffer_start,
                bytes(stream.receiver._buffer),
                stream.receiver.is_finished,
            )
            for stream_id, stream in quic._streams.items()
        },
    }


def taken_by_aioquic(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The datagrams that aioquic's own code gets from now on."""
    taken: list[bytes] = []
    original = QuicConnection.receive_datagram

    def counted(self: QuicConnection, data: bytes, addr: Any, now: float) -> None:
        taken.append(data)
        original(self, data, addr, now)

    monkeypatch.setattr(QuicConnection, "receive_datagram", counted)
    return taken


def test_a_run_becomes_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = made()
    opened(pair, 0)
    content = pair.random.randbytes(30_000)
    datagrams = packets(pair, (0, content))
    taken = taken_by_aioquic(monkeypatch)
    pair.deliver(pair.server, *datagrams)
    assert taken == []
    assert pair.events[pair.server] == [StreamDataReceived(content, False, 0)]


def test_events_keep_the_order_of_arrival() -> None:
    pair = made()
    opened(pair, 0, 4)
    one, two = packets(pair, (0, b"a" * 3000)), packets(pair, (4, b"b" * 3000))
    pair.deliver(pair.server, *one[:2], *two, *one[2:])
    kinds = [(event.stream_id, len(event.data)) for event in pair.events[pair.server]]
    assert [stream_id for stream_id, _ in kinds] == [0, 4, 0]
    assert sum(length for _, length in kinds) == 6000


@pytest.mark.parametrize("seed", range(12))
def test_the_books_are_those_of_aioquic(seed: int) -> None:
    """The same packets in the same odd order, to both: everything that is written down is the same."""
    found = []
    for server in (FastQuic, QuicConnection):
        random = Random(seed)
        pair = made(server, random=Random(seed))
        opened(pair, 0, 4)
        content = random.randbytes(40_000)
        datagrams = packets(pair, (0, content[:30_000])) + packets(pair, (4, content[30_000:]))
        numbers = list(range(len(datagrams)))
        numbers = [number for number in numbers if random.random() > 0.1] + random.choices(numbers, k=5)
        for _ in range(random.randint(0, 10)):
            at = random.randrange(len(numbers))
            numbers.insert(random.randrange(len(numbers)), numbers.pop(at))
        half = len(numbers) // 2
        pair.deliver(pair.server, *(datagrams[number] for number in numbers[:half]))
        pair.now += 0.0005
        pair.deliver(pair.server, *(datagrams[number] for number in numbers[half:]))
        pair.check_books()
        arrived = {stream_id: bytes(stream.data) for stream_id, stream in pair.arrived[pair.server].items()}
        found.append((books(pair.server), arrived))
    assert found[0] == found[1]


def test_packets_of_aioquic_are_read_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They carry the length of their data, ours do not."""
    pair = made(client=QuicConnection)
    opened(pair, 0)
    content = pair.random.randbytes(8_000)
    datagrams = packets(pair, (0, content))
    taken = taken_by_aioquic(monkeypatch)
    pair.deliver(pair.server, *datagrams)
    assert taken == []
    assert pair.arrived[pair.server][0].data == content


def test_all_else_goes_to_aioquic(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = made()
    opened(pair, 0)
    taken = taken_by_aioquic(monkeypatch)
    end = packets(pair, (0, b"x" * 5000), end=True)
    fresh = packets(pair, (4, b"y" * 100))
    pair.client.send_ping(1)
    ping = packets(pair)
    tiny = packets(pair, (8, b"z"))
    pair.deliver(pair.server, *end, *fresh, *ping, *tiny)
    assert taken == [end[-1], *fresh, *ping, *tiny]
    assert pair.arrived[pair.server][0].finished
    assert pair.arrived[pair.server][4].data == b"y" * 100
    assert pair.arrived[pair.server][8].data == b"z"


def test_packet_numbers_may_jump_within_a_run() -> None:
    """They are known to 2**15 from the one before, not from the first of the run (RFC 9000, appendix A.3)."""
    pair = made()
    opened(pair, 0)
    datagrams = []
    for number in range(4):
        datagrams += packets(pair, (0, bytes((number,)) * 100))
        pair.client._packet_number += 30_000
    pair.deliver(pair.server, *datagrams)
    assert len(pair.arrived[pair.server][0].data) == 400
    assert pair.server._spaces[Epoch.ONE_RTT].largest_received_packet > 60_000


def test_the_record_of_packets_stays_small() -> None:
    pair = made()
    opened(pair, 0)
    for _ in range(10):
        pair.client._loss._cc.congestion_window = 1 << 20
        pair.deliver(pair.server, *packets(pair, (0, bytes(100_000))))
    window = pair.server._spaces[Epoch.ONE_RTT].received_packets
    newest = pair.server._spaces[Epoch.ONE_RTT].largest_received_packet
    assert newest > 800
    assert window._lower == newest - window._size + 1
    assert len(window._received) < 5 * window._size


def test_a_stream_whose_receiving_part_is_over_gets_nothing() -> None:
    pair = made()
    opened(pair, 0)
    pair.server._streams[0].receiver.is_finished = True
    pair.deliver(pair.server, *packets(pair, (0, bytes(5000))))
    assert pair.events[pair.server] == []


# --- hostile input --------------------------------------------------------------------------------------------


def test_tampered_packets_change_nothing() -> None:
    pair = made()
    opened(pair, 0)
    (datagram,) = packets(pair, (0, b"secret" * 20))
    before = books(pair.server)
    for at in range(len(datagram)):
        for bit in (0x01, 0x04, 0x80):
            pair.server.receive_datagrams(
                [datagram[:at] + bytes((datagram[at] ^ bit,)) + datagram[at + 1 :]], ("client", 1), pair.now
            )
    for length in (0, 1, 8, 9, 20, 28, len(datagram) - 1):
        if length:
            pair.server.receive_datagrams([datagram[:length]], ("client", 1), pair.now)
    assert books(pair.server) == before
    pair.deliver(pair.server, datagram)
    assert pair.arrived[pair.server][0].data == b"secret" * 20


def test_replayed_packets_change_nothing() -> None:
    pair = made()
    opened(pair, 0)
    datagrams = packets(pair, (0, pair.random.randbytes(30_000)))
    pair.deliver(pair.server, *datagrams)
    before = books(pair.server)
    count = len(pair.events[pair.server])
    pair.now += 0.5  # somebody else's copies must not keep the connection alive
    pair.deliver(pair.server, *datagrams)
    pair.deliver(pair.server, *reversed(datagrams))
    for datagram in datagrams:
        pair.server.receive_datagram(datagram, ("client", 1), pair.now)
    assert books(pair.server) == before
    assert len(pair.events[pair.server]) == count


def test_one_packet_twice_in_one_run_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = made()
    opened(pair, 0)
    datagrams = packets(pair, (0, bytes(10_000)))
    frames = []
    original = fast_receive._Run._read_frame
    monkeypatch.setattr(
        fast_receive._Run, "_read_frame", lambda self, payload: frames.append(payload) or original(self, payload)
    )
    early, late = datagrams[:3], datagrams[3:]
    pair.deliver(pair.server, *(datagram for datagram in late for _ in range(3)))
    pair.deliver(pair.server, *early, *late)  # the early ones lead up to those that are known
    assert len(frames) == len(datagrams)
    assert len(pair.arrived[pair.server][0].data) == 10_000
    pair.check_books()


def test_data_on_a_stream_that_only_we_may_send_on_ends_the_connection() -> None:
    pair = made()
    pair.client.send_stream_data(2, b"one way")
    pair.flush()
    pair.run(0.05)
    stream = pair.server._streams[2]
    stream.max_stream_data_remote = WINDOW
    stream.sender.write(bytes(100))
    pair.flush(pair.server)
    pair.run(0.01)
    assert pair.client._close_event is not None
    assert pair.client._close_event.error_code == QuicErrorCode.STREAM_STATE_ERROR


def test_packets_from_elsewhere_are_not_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = made()
    opened(pair, 0)
    taken = taken_by_aioquic(monkeypatch)
    datagrams = packets(pair, (0, bytes(5000)))
    pair.server.receive_datagrams(datagrams[:2], ("elsewhere", 9), pair.now)
    assert taken == datagrams[:2]  # aioquic decides whether the client has moved


def odd_payload(random: Random) -> bytes:
    """A frame that is ordinary, nearly so, or not at all."""
    odd = random.random() < 0.15
    if odd and random.random() < 0.1:
        return random.randbytes(random.choice((2, 5, 30, 1200)))
    kind = 0x0C | random.choice((0, 2)) if not odd else 0x08 | random.randrange(8)
    frame = bytes((kind,)) + integer(random.choice((0, 0, 4) if not odd else (0, 0, 4, 1, 2, 3, 8, 400, 70_000)))
    if kind & 4:
        near, far = 5 + 100 * random.randrange(20), random.choice((19_000, 1 << 20, (1 << 62) - 1))
        frame += integer(far if odd and random.random() < 0.3 else near)
    data = random.randbytes(random.choice((100, 100, 200, 1000) if not odd else (0, 1, 15, 16, 100)))
    if kind & 2:
        frame += integer(max(len(data) + (random.choice((0, 0, -1, 1, 5000)) if odd else 0), 0))
    return frame + data + (random.choice((b"", b"", b"\0\0", b"\1", b"\x1c")) if odd else b"")


@pytest.mark.parametrize("seed", range(60))
def test_a_peer_with_odd_frames_fares_as_with_aioquic(seed: int) -> None:
    """Whoever has the keys may send anything: the same is accepted, and the same ends the connection."""
    found = []
    for server in (FastQuic, QuicConnection):
        random = Random(seed)
        pair = made(server, max_data=40_000, max_stream_data=20_000, random=Random(seed))
        opened(pair, 0, 4)
        log = []
        for _ in range(30):
            number = pair.client._packet_number
            pair.client._packet_number += random.choice((1, 1, 1, 2))
            payload = odd_payload(random).ljust(2, b"\0")
            reserved = 0x08 if random.random() < 0.01 else 0
            header = bytes((0x41 | reserved,)) + pair.server.host_cid + (number & 0xFFFF).to_bytes(2, "big")
            packet = pair.client._cryptos[Epoch.ONE_RTT].encrypt_packet(header, payload, number)
            try:
                pair.deliver(pair.server, packet)
            except AssertionError:
                log.append("data after the end")  # aioquic reports data and end of one stream separately
            pair.now += 0.0001
            log.append(books(pair.server))
            if pair.server._close_event is not None:
                break
        event = pair.server._close_event
        log.append(event and (event.error_code, event.frame_type, event.reason_phrase))
        log.append({key: (bytes(each.data), each.finished) for key, each in pair.arrived[pair.server].items()})
        found.append(log)
    assert found[0] == found[1]


def test_more_than_the_stream_allows_ends_the_connection() -> None:
    pair = made(Stingy, max_stream_data=20_000)
    opened(pair, 0)
    pair.client._streams[0].max_stream_data_remote = 1 << 30
    pair.deliver(pair.server, *packets(pair, (0, bytes(30_000))))
    assert pair.server._close_event is not None
    assert pair.server._close_event.error_code == QuicErrorCode.FLOW_CONTROL_ERROR
    assert len(pair.arrived[pair.server][0].data) <= 20_000


def test_more_than_the_connection_allows_ends_it() -> None:
    pair = made(Stingy, max_data=20_000)
    opened(pair, 0)
    pair.client._remote_max_data = 1 << 30
    pair.deliver(pair.server, *packets(pair, (0, bytes(30_000))))
    assert pair.server._close_event is not None
    assert pair.server._close_event.error_code == QuicErrorCode.FLOW_CONTROL_ERROR
    assert len(pair.arrived[pair.server][0].data) <= 20_000


def test_data_beyond_the_end_ends_the_connection() -> None:
    pair = made()
    opened(pair, 0)
    pair.deliver(pair.server, packets(pair, (0, bytes(5000)), end=True)[-1])  # the end is known, a gap before it is not
    sender = pair.client._streams[0].sender
    sender._buffer_fin = None
    pair.deliver(pair.server, *packets(pair, (0, bytes(1000))))
    assert pair.server._close_event is not None
    assert pair.server._close_event.error_code == QuicErrorCode.FINAL_SIZE_ERROR


def test_a_reader_that_does_not_read_bounds_the_sender() -> None:
    pair = made(Stingy, max_stream_data=50_000)
    pair.client.send_stream_data(0, bytes(500_000))
    pair.flush()
    pair.run(2.0)
    pair.check_books()
    assert len(pair.arrived[pair.server][0].data) == 50_000
    assert not pair.closed
    # Another stream passes.
    pair.client.send_stream_data(4, b"small")
    pair.flush()
    pair.run(0.01)
    assert pair.arrived[pair.server][4].data == b"small"


def test_a_sparse_offset_binds_no_more_than_the_window() -> None:
    pair = made(Stingy, max_stream_data=100_000)
    opened(pair, 0)
    datagrams = packets(pair, (0, bytes(90_000)))
    pair.deliver(pair.server, datagrams[-1])
    assert len(pair.server._streams[0].receiver._buffer) < 100_000
    assert pair.arrived[pair.server][0].data == b""
