from meshnode.net.credit import (
    CONNECTION_FIRST_BYTES,
    CONNECTION_MOST_BYTES,
    STREAM_FIRST_BYTES,
    STREAM_MOST_BYTES,
    StreamCredit,
    connection_window,
)

HALF = STREAM_FIRST_BYTES // 2


def test_nothing_is_said_before_half_a_window_was_taken() -> None:
    credit = StreamCredit(0.0)
    assert not credit.take(HALF - 1, 1.0, 0.01)
    assert credit.limit_bytes == STREAM_FIRST_BYTES
    assert credit.take(1, 1.0, 0.01)
    assert credit.limit_bytes == HALF + STREAM_FIRST_BYTES


def test_a_slow_reader_keeps_the_first_window() -> None:
    credit, now = StreamCredit(0.0), 0.0
    for _ in range(100):
        now += 1.0
        assert credit.take(HALF, now, 0.01)
    assert credit.window_bytes == STREAM_FIRST_BYTES
    assert credit.limit_bytes - credit.taken_bytes == STREAM_FIRST_BYTES


def test_a_reader_who_waits_for_the_network_gets_a_wider_window_up_to_a_bound() -> None:
    credit, now = StreamCredit(0.0), 0.0
    for _ in range(12):
        now += 0.05
        credit.take(credit.window_bytes, now, 0.1)
    assert credit.window_bytes == STREAM_MOST_BYTES
    assert credit.limit_bytes - credit.taken_bytes == STREAM_MOST_BYTES


def test_the_window_reaches_the_product_of_bandwidth_and_delay() -> None:
    """A path of 100 MB/s and 50 ms: each round trip brings a window, or as much as the path carries."""
    credit, now = StreamCredit(0.0), 0.0
    for _ in range(100):
        carried = min(credit.limit_bytes - credit.taken_bytes, 5_000_000)
        now += 0.05
        credit.take(carried, now, 0.05)
    assert credit.window_bytes >= 5_000_000


def test_a_stranger_binds_little_and_a_peer_in_use_more() -> None:
    assert connection_window(0) == CONNECTION_FIRST_BYTES
    assert connection_window(1 << 20) == CONNECTION_FIRST_BYTES + (4 << 20)
    assert connection_window(1 << 40) == CONNECTION_MOST_BYTES
