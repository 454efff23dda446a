"""Bursts and rates against numbers worked out by hand."""

import pytest

from meshnode.net.pacing import BurstPacer


def drain(pacer: BurstPacer, now: float) -> int:
    count = 0
    while pacer.next_send_time(now) is None:
        pacer.update_after_send(now)
        count += 1
        assert count < 1000
    return count


def test_bursts_are_short_first_and_then_full() -> None:
    pacer = BurstPacer(max_datagram_size=1452)
    assert drain(pacer, 1.0) == 16
    assert pacer.next_send_time(1.0) == 1.0  # again at once
    assert drain(pacer, 1.1) == 44
    assert drain(pacer, 1.2) == 44
    pacer.allowance(1.3)
    pacer.take(3)  # all there was to send
    assert drain(pacer, 1.4) == 16


@pytest.mark.parametrize("size, burst", [(1200, 44), (1452, 44), (9000, 29), (16384, 16)])
def test_bursts_of_large_datagrams_have_fewer(size: int, burst: int) -> None:
    assert BurstPacer(max_datagram_size=size).burst_datagrams == burst


def test_a_restriction_holds_back_and_ends() -> None:
    pacer = BurstPacer(max_datagram_size=1452)
    pacer.restriction = 2
    assert drain(pacer, 1.0) == 2
    pacer.restriction = None
    assert drain(pacer, 1.0) == 14


def test_short_paths_are_not_paced() -> None:
    pacer = BurstPacer(max_datagram_size=1000)
    pacer.update_rate(congestion_window=100_000, smoothed_rtt=0.0029)
    assert sum(drain(pacer, 1.0 + turn * 1e-5) for turn in range(10)) == 16 + 9 * 44


def test_long_paths_are_paced() -> None:
    """1 MB per 100 ms and a quarter more are 12.5 MB/s: 12.5 packets of 1000 bytes in each ms."""
    pacer = BurstPacer(max_datagram_size=1000)
    pacer.update_rate(congestion_window=1_000_000, smoothed_rtt=0.1)
    now, sent = 0.0, 0
    while now < 1.0:
        sent += drain(pacer, now)
        wait_until = pacer.next_send_time(now)
        assert wait_until is not None
        now = max(wait_until, now + 1e-5)
    assert 11_500 < sent < 13_000


def test_a_rate_that_says_wait_names_the_time() -> None:
    """1.25 MB/s. The bucket holds 16,000 bytes; half of it takes 6.4 ms."""
    pacer = BurstPacer(max_datagram_size=1000)
    pacer.update_rate(congestion_window=100_000, smoothed_rtt=0.1)
    assert drain(pacer, 10.0) == 16
    assert pacer.next_send_time(10.0) == pytest.approx(10.0064)
    assert pacer.next_send_time(10.004) is None  # it comes earlier than asked: 5,000 bytes are there
    assert drain(pacer, 10.004) == 5
    assert pacer.next_send_time(10.004) == pytest.approx(10.0104)


def test_what_was_sent_without_a_rate_is_no_debt() -> None:
    """A short path on which much was sent, and which becomes a long one: nothing has to be waited for."""
    pacer = BurstPacer(max_datagram_size=1000)
    for turn in range(1000):
        drain(pacer, 1.0 + turn * 1e-4)
    pacer.update_rate(congestion_window=100_000, smoothed_rtt=0.1)
    assert drain(pacer, 2.0) == 16
    pacer.update_rate(congestion_window=100_000, smoothed_rtt=0.001)
    assert [drain(pacer, 2.0001), drain(pacer, 2.0002)] == [16, 44]
