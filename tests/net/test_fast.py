"""The hot path against itself and against aioquic: the same bytes arrive, whatever the line and the streams do.

MESHNODE_LONG_TESTS=N repeats the randomised runs with N times as many seeds.
"""

import os
from collections import defaultdict
from random import Random

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted
from aioquic.tls import Epoch

from meshnode.net import fast
from meshnode.net.fast import FastQuic, connection_class, self_test, why_off
from meshnode.net.fast_receive import FastReceive
from tests.net.quic_pair import Line, Pair

SEEDS = 8 * int(os.environ.get("MESHNODE_LONG_TESTS", "1"))
COMBINATIONS = [(FastQuic, FastQuic), (FastQuic, QuicConnection), (QuicConnection, FastQuic)]


class Traffic:
    """Random writes, ends, resets and key updates on several streams of both ends; remembers what was written."""

    def __init__(self, pair: Pair, random: Random) -> None:
        self.pair = pair
        self.random = random
        self.written: dict[tuple[QuicConnection, int], bytearray] = defaultdict(bytearray)
        self.ended: set[tuple[QuicConnection, int]] = set()
        self.reset: dict[tuple[QuicConnection, int], int] = {}
        self.stopped: dict[tuple[QuicConnection, int], int] = {}
        self.streams = {
            pair.client: list(range(0, 4 * random.randint(1, 4), 4)),
            pair.server: list(range(1, 4 * random.randint(1, 3), 4)),
        }
        for end, ids in self.streams.items():
            for stream_id in ids:
                self.write(end, stream_id)

    def open(self, key: tuple[QuicConnection, int]) -> bool:
        end, stream_id = key
        return (
            key not in self.ended
            and key not in self.reset
            and (self.pair.other(end), stream_id) not in self.stopped
            and stream_id in end._streams
        )

    def write(self, end: QuicConnection, stream_id: int) -> None:
        data = self.random.randbytes(self.random.choice((1, 5, 64, 1000, 1400, 8_192, 40_000)))
        end.send_stream_data(stream_id, data)
        self.written[end, stream_id] += data

    def act(self) -> None:
        """One random thing."""
        pair, random = self.pair, self.random
        end = random.choice(pair.ends)
        stream_id = random.choice(self.streams[random.choice(pair.ends)])
        key = end, stream_id
        dice = random.random()
        if dice < 0.02:
            # aioquic keeps no old keys and does not wait for the peer, so that two updates that cross, or one whose
            # first packets are lost, can end a connection. That is the same with and without the hot path.
            if end is pair.client and not pair.line.loss:
                end.request_key_update()
        elif dice < 0.05:
            end.send_ping(1)
        elif not self.open(key):
            pass
        elif dice < 0.80:
            self.write(end, stream_id)
        elif dice < 0.90:
            end.send_stream_data(stream_id, b"", end_stream=True)
            self.ended.add(key)
        elif dice < 0.94:
            end.reset_stream(stream_id, 7)
            self.reset[key] = 7
        elif (
            dice < 0.96 and self.open((pair.other(end), stream_id)) and not end._streams[stream_id].receiver.is_finished
        ):
            end.stop_stream(stream_id, 9)
            self.stopped[key] = 9
        pair.flush(end)

    def finish(self) -> None:
        for end in self.pair.ends:
            for stream_id in [*self.streams[self.pair.client], *self.streams[self.pair.server]]:
                if self.open((end, stream_id)):
                    end.send_stream_data(stream_id, b"", end_stream=True)
                    self.ended.add((end, stream_id))
        self.pair.flush()

    def complete(self) -> bool:
        """Whether each direction that was used has come to its end, of whatever kind."""
        arrived = self.pair.arrived
        ends = [arrived[self.pair.other(end)][stream_id] for end, stream_id in self.written]
        return all(stream.finished or stream.reset_code is not None for stream in ends)

    def check(self) -> None:
        pair = self.pair
        assert not pair.closed
        for (end, stream_id), data in self.written.items():
            got = pair.arrived[pair.other(end)][stream_id]
            assert data.startswith(got.data), "other bytes arrived than were sent"
            if (end, stream_id) in self.reset or (pair.other(end), stream_id) in self.stopped:
                assert got.finished or got.reset_code in (7, 9)
            else:
                assert got.data == data
                assert got.finished


@pytest.mark.parametrize("client, server", COMBINATIONS)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happens_the_same_bytes_arrive(client: type, server: type, seed: int) -> None:
    random = Random(seed)
    line = Line(
        delay_s=random.choice((0.0002, 0.001, 0.005)),
        loss=random.choice((0.0, 0.01, 0.05, 0.1)),
        duplicates=random.choice((0.0, 0.05)),
        reordering=random.choice((0.0, 0.02, 0.3)),
        tampering=random.choice((0.0, 0.02)),
    )
    pair = Pair(
        client,
        server,
        random=random,
        line=line,
        max_data=random.choice((20_000, 200_000, 1 << 20)),
        max_stream_data=random.choice((10_000, 100_000, 1 << 20)),
        max_datagram_size=random.choice((1200, 1452, 9000)),
        congestion_control_algorithm=random.choice(("mesh", "reno", "cubic")),
    )
    traffic = Traffic(pair, random)
    pair.flush()
    for _ in range(random.choice((10, 60))):
        traffic.act()
        pair.run(random.choice((0.0001, 0.001, 0.01)))
        pair.check_books()
    traffic.finish()
    for _ in range(600):
        pair.run(0.1)
        pair.check_books()
        if traffic.complete():
            break
    assert traffic.complete()
    traffic.check()
    pair.run(1.0)
    pair.check_books()
    assert all(end._loss.bytes_in_flight == 0 for end in pair.ends)


def bulk(pair: Pair, size: int, **limits: float) -> float:
    """Send `size` bytes from the client and return how long that took on the clock of the pair."""
    content = pair.random.randbytes(size)
    pair.client.send_stream_data(0, content, end_stream=True)
    began_at = pair.now
    pair.flush()
    while not pair.arrived[pair.server][0].finished and pair.now < began_at + 60:
        pair.run(0.001)
    pair.check_books()
    assert pair.arrived[pair.server][0].data == content
    return pair.now - began_at


def test_the_hot_path_is_what_carries_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(FastQuic, FastQuic, max_data=1 << 22, max_stream_data=1 << 22)
    calls = {"slow": 0}
    slow = QuicConnection.receive_datagram

    def counted(self: QuicConnection, data: bytes, addr: object, now: float) -> None:
        calls["slow"] += self is pair.server
        slow(self, data, addr, now)

    monkeypatch.setattr(QuicConnection, "receive_datagram", counted)
    pair.record = True
    bulk(pair, 1_000_000)
    packets = len(pair.sent[pair.client])
    assert packets > 800
    assert calls["slow"] < packets / 20


def test_bytes_of_the_hot_path_are_what_aioquic_reads() -> None:
    """A lossless transfer to a stock receiver, in the order of sending, is acknowledged packet by packet."""
    pair = Pair(FastQuic, QuicConnection)
    bulk(pair, 300_000)
    pair.run(0.1)
    assert pair.client._loss.bytes_in_flight == 0
    assert pair.client._streams[0].sender.is_finished


def test_keys_are_updated_in_the_middle_of_bulk() -> None:
    pair = Pair(FastQuic, FastQuic, max_data=1 << 22, max_stream_data=1 << 22)
    content = pair.random.randbytes(2_000_000)
    pair.client.send_stream_data(0, content, end_stream=True)
    pair.flush()
    phases = []
    while not pair.arrived[pair.server][0].finished:
        pair.run(0.001)
        phase = pair.server._cryptos[Epoch.ONE_RTT].recv.key_phase
        if not phases or phase != phases[-1]:
            phases.append(phase)
            pair.client.request_key_update()
    assert pair.arrived[pair.server][0].data == content
    assert len(phases) > 5
    assert not pair.closed


def test_a_mixture_of_classes_as_the_endpoint_makes_them() -> None:
    """Another class between the hot path and its user, as net/quic.py puts one."""

    class Middle(QuicConnection):
        calls = 0

        def datagrams_to_send(self, now: float) -> list:
            Middle.calls += 1
            return super().datagrams_to_send(now)

    mixed = type("Mixed", (Middle, connection_class()), {})
    pair = Pair(mixed, mixed)
    bulk(pair, 100_000)
    assert Middle.calls
    assert isinstance(pair.client, FastReceive)


# --- the gates ------------------------------------------------------------------------------------------------


def test_it_is_on_where_it_was_tested() -> None:
    assert why_off() == ""
    assert connection_class() is FastQuic
    assert connection_class(False) is QuicConnection


@pytest.fixture
def forgotten():
    why_off.cache_clear()
    yield
    why_off.cache_clear()


def test_another_version_turns_it_off(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    monkeypatch.setattr(fast.aioquic, "__version__", "1.8.0")
    assert connection_class() is QuicConnection
    assert "1.8.0" in why_off()


def test_a_failed_self_test_turns_it_off(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    monkeypatch.setattr(fast, "self_test", lambda candidate: "other bytes")
    assert connection_class() is QuicConnection
    assert why_off() == "other bytes"


def test_an_exception_in_the_self_test_turns_it_off(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    def raising(candidate: type) -> str:
        raise AttributeError("_cryptos")

    monkeypatch.setattr(fast, "self_test", raising)
    assert connection_class() is QuicConnection
    assert "AttributeError: _cryptos" in why_off()


def test_the_self_test_finds_changed_bytes() -> None:
    class Wrong(FastQuic):
        def next_event(self):
            event = super().next_event()
            if hasattr(event, "data") and len(event.data) > 100:
                event.data = event.data[:-1] + b"x"
            return event

    assert "other bytes" in self_test(Wrong)


def test_the_self_test_finds_a_connection_that_hangs() -> None:
    class Mute(FastQuic):
        def _send_streams(self, now, pacer, datagrams):
            return False

        def datagrams_to_send(self, now: float) -> list:
            return [] if self._handshake_confirmed else super().datagrams_to_send(now)

    assert "no end" in self_test(Mute)


def test_the_handshake_is_aioquics() -> None:
    pair = Pair(FastQuic, FastQuic)
    assert all(any(isinstance(event, HandshakeCompleted) for event in pair.events[end]) for end in pair.ends)
