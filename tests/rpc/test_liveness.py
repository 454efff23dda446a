from meshnode.rpc.liveness import IDLE_S, OWED_FOR_S, TICK_S, Idleness, Watch


def ticks(watch: Watch, begin: float, seconds: float, *, owed: bool, heard_every: int = 0) -> float | None:
    """When the worker was called stalled, in seconds after `begin`."""
    for number in range(1, int(seconds / TICK_S) + 1):
        now = begin + number * TICK_S
        if heard_every and number % heard_every == 0:
            watch.heard(now)
        if watch.stalled(now, owed=owed):
            return now - begin
    return None


def test_a_worker_that_owes_a_reply_and_says_nothing_has_stalled() -> None:
    watch = Watch(2.0)
    watch.sent(10.0)
    found = ticks(watch, 10.0, 10, owed=True)
    assert found is not None and 2.0 < found < 3.0


def test_a_worker_that_says_so_may_take_its_time() -> None:
    watch = Watch(2.0)
    watch.sent(10.0)
    assert ticks(watch, 10.0, 600, owed=True, heard_every=2) is None


def test_one_that_owes_nothing_is_watched_for_a_while_after_the_last_command() -> None:
    """A stage whose result went on to another worker has no reply to give, and may be the one that stalls."""
    watch = Watch(2.0)
    watch.sent(10.0)
    assert ticks(watch, 10.0, 10, owed=False) is not None
    quiet = Watch(OWED_FOR_S + 1)
    quiet.sent(10.0)
    assert ticks(quiet, 10.0, 60, owed=False) is None
    assert not quiet.is_on
    quiet.sent(100.0)
    assert quiet.is_on


def test_silence_before_the_first_command_does_not_count() -> None:
    watch = Watch(2.0)
    assert not watch.is_on
    assert not watch.stalled(1000.0, owed=True)
    watch.sent(1000.0)
    assert not watch.stalled(1000.25, owed=True)


def test_what_the_own_loop_was_late_by_is_not_held_against_the_worker() -> None:
    watch = Watch(2.0)
    watch.sent(10.0)
    watch.heard(10.1)
    assert not watch.stalled(10.25, owed=True)
    assert not watch.stalled(40.0, owed=True)
    assert ticks(watch, 40.0, 10, owed=True) is not None


def test_a_server_is_stalled_when_it_is_found_idle_twice() -> None:
    idleness = Idleness()
    assert not idleness.stalled(0.0, working=False)
    assert not idleness.stalled(0.5, working=False)
    assert idleness.stalled(IDLE_S, working=False)


def test_work_in_between_begins_anew() -> None:
    idleness = Idleness()
    for now in range(20):
        assert not idleness.stalled(now * 0.6, working=now % 2 == 1)
