import pytest

from meshnode.core.cooldown import FORGOTTEN_AFTER_S, RECORDS, Cooldowns, Cooling


def remaining(table: Cooldowns, now: float) -> float | None:
    found = table.cooling("n", "m", now)
    return None if found is None else found.remaining_s


def test_the_pause_doubles_with_each_failed_trial_up_to_half_a_minute() -> None:
    table = Cooldowns()
    now = 100.0
    pauses = []
    for _ in range(8):
        table.failed("n", "m", now)
        pause = remaining(table, now)
        assert pause is not None
        pauses.append(pause)
        now += pause
        assert remaining(table, now) is None
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_streams_that_break_together_are_one_failure() -> None:
    table = Cooldowns()
    for number in range(40):
        table.failed("n", "m", 100.0 + number / 1000)
    assert table.cooling("n", "m", 100.5) == Cooling(0.5, 1)


def test_one_trial_at_a_time() -> None:
    table = Cooldowns()
    table.failed("n", "m", 100.0)
    assert remaining(table, 101.0) is None
    table.started("n", "m")
    assert table.cooling("n", "m", 101.0) == Cooling(0.0, 1)
    table.ended("n", "m")  # without an outcome, as the caller left
    assert remaining(table, 102.0) is None


def test_a_trial_that_succeeds_clears_the_record() -> None:
    table = Cooldowns()
    table.failed("n", "m", 100.0)
    table.started("n", "m")
    table.succeeded("n", "m")
    assert remaining(table, 100.0) is None
    assert len(table) == 0
    table.ended("n", "m")
    table.failed("n", "m", 101.0)
    assert remaining(table, 101.0) == 1


def test_a_trial_during_the_pause_counts_when_it_fails() -> None:
    """The router offers a host that is cooling down when there is no other."""
    table = Cooldowns()
    table.failed("n", "m", 100.0)
    table.started("n", "m")
    table.failed("n", "m", 100.1)
    assert table.cooling("n", "m", 100.1) == Cooling(2.0, 2)


def test_old_failures_are_forgotten() -> None:
    table = Cooldowns()
    table.failed("n", "m", 0.0)
    table.failed("n", "m", 1.0)
    table.failed("n", "m", 3.0 + FORGOTTEN_AFTER_S + 0.1)
    assert table.cooling("n", "m", 3.0 + FORGOTTEN_AFTER_S + 0.1) == Cooling(1.0, 1)


def test_models_and_nodes_are_kept_apart() -> None:
    table = Cooldowns()
    table.failed("n", "m", 0.0)
    assert table.cooling("n", "other", 0.0) is None
    assert table.cooling("other", "m", 0.0) is None


def test_hosts_without_a_failure_leave_no_record() -> None:
    table = Cooldowns()
    table.started("n", "m")
    table.ended("n", "m")
    table.succeeded("n", "m")
    assert len(table) == 0


def test_the_table_is_bounded() -> None:
    table = Cooldowns()
    for number in range(RECORDS):
        table.failed(f"n{number}", "m", 0.0)
    table.failed("n0", "m", 0.0)
    table.failed("new", "m", 0.0)
    assert len(table) == RECORDS
    found = [table.cooling(node, "m", 0.0) is not None for node in ("n0", "n1", "new")]
    assert found == [True, False, True]


@pytest.mark.parametrize(
    ("cooling", "text"),
    [
        (Cooling(3.25, 1), "1 failure, left alone for 3.2 s"),
        (Cooling(0.0, 2), "2 failures, a trial runs"),
    ],
)
def test_the_reason_is_a_sentence(cooling: Cooling, text: str) -> None:
    assert str(cooling) == text
