import pytest

from meshnode.core.load import BELIEVED_AFTER_S, LAG_S, RECORDS, Load


def present(load: Load, reported: int, now: float) -> int:
    return load.present("n", "m", reported, now)


def start(load: Load, times: int) -> None:
    for _ in range(times):
        load.started("n", "m")


def end(load: Load, times: int) -> None:
    for _ in range(times):
        load.ended("n", "m")


def test_requests_sent_since_the_report_are_added() -> None:
    load = Load()
    assert present(load, 2, 0.0) == 2
    start(load, 3)
    assert present(load, 2, 0.1) == 5


def test_requests_that_the_report_has_already_are_not_counted_twice() -> None:
    load = Load()
    present(load, 2, 0.0)
    start(load, 3)
    assert present(load, 5, 1.0) == 5
    start(load, 1)
    assert present(load, 5, 1.1) == 6


def test_requests_that_ended_since_the_report_are_taken_off() -> None:
    load = Load()
    present(load, 0, 0.0)
    start(load, 3)
    assert present(load, 4, 1.0) == 4
    end(load, 3)
    assert present(load, 4, 1.1) == 1


def test_our_own_requests_are_the_least() -> None:
    load = Load()
    present(load, 0, 0.0)
    start(load, 4)
    assert present(load, 1, 0.1) == 4  # another's request was reported before ours arrived there


def test_a_report_that_stays_the_same_is_believed_in_the_end() -> None:
    load = Load()
    start(load, 3)
    assert present(load, 8, 0.0) == 8
    end(load, 3)
    assert present(load, 8, BELIEVED_AFTER_S) == 5
    assert present(load, 8, BELIEVED_AFTER_S + 0.1) == 8


def test_a_report_that_comes_late_does_not_speak_of_requests_that_are_over() -> None:
    """Eight of ours ran, and two of others; they are over when the report of all ten arrives."""
    load = Load()
    present(load, 0, 0.0)
    start(load, 8)
    present(load, 0, 0.5)
    end(load, 8)
    assert present(load, 10, 1.5) == 2
    assert present(load, 2, 3.0) == 0  # the others alone, but the eight may still have been meant
    assert present(load, 3, 1.5 + 2 * LAG_S + 0.1) == 3


def test_what_was_long_ago_is_in_no_report() -> None:
    load = Load()
    start(load, 8)
    present(load, 8, 0.0)
    end(load, 8)
    assert present(load, 5, 3 * LAG_S) == 5


def test_hosts_and_models_are_kept_apart() -> None:
    load = Load()
    start(load, 2)
    assert load.present("n", "other", 0, 0.0) == 0
    assert load.present("other", "m", 0, 0.0) == 0
    assert (load.ours("n", "m"), load.ours("other", "m")) == (2, 0)


def test_an_end_without_a_beginning_is_our_own_fault() -> None:
    load = Load()
    start(load, 1)
    end(load, 1)
    with pytest.raises(ValueError, match="never started"):
        load.ended("n", "m")


def test_accounts_are_bounded_and_those_in_use_are_kept() -> None:
    load = Load()
    start(load, 1)
    for number in range(RECORDS):
        load.present(f"gone{number}", "m", 0, 0.0)
    assert len(load) <= RECORDS
    assert load.ours("n", "m") == 1
