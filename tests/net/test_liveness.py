import pytest

from meshnode.net.liveness import (
    HINTED_PROBES,
    IDLE_QUIET_S,
    PROBE_LEAST_S,
    PROBE_MOST_S,
    QUIET_S,
    SILENT_LEAST_S,
    Liveness,
)


class Run:
    """Drives a Liveness along simulated time."""

    def __init__(self, rtt_s: float = 0.001) -> None:
        self.liveness = Liveness(0.0)
        self.rtt_s = rtt_s
        self.at = 0.0
        self.probes: list[float] = []
        self.silent_at: float | None = None

    def until(self, end: float) -> None:
        """Poll whenever asked, up to `end`; nothing is heard meanwhile."""
        while self.at <= end:
            now = self.at
            step = self.liveness.poll(now, self.rtt_s)
            if step.probe:
                self.probes.append(now)
            if step.silent:
                assert self.silent_at is None
                self.silent_at = now
            assert step.at > now
            self.at = step.at


def test_a_quiet_peer_is_probed_and_then_called_silent() -> None:
    run = Run()
    run.until(5.0)
    assert run.probes[0] == QUIET_S
    gaps = [after - before for before, after in zip(run.probes, run.probes[1:], strict=False)]
    assert gaps[0] == pytest.approx(PROBE_LEAST_S)
    assert max(gaps) <= PROBE_MOST_S + 1e-9
    assert run.silent_at == pytest.approx(QUIET_S + SILENT_LEAST_S, abs=0.002)
    assert len([at for at in run.probes if at > 2.0]) >= 11, "it goes on asking, to notice the peer's return"


def test_a_peer_that_is_heard_is_left_alone() -> None:
    liveness, now = Liveness(0.0), 0.0
    for _ in range(100):
        now += 0.1
        assert not liveness.heard(now)
        assert not liveness.poll(now, 0.001).probe
    assert not liveness.suspicious


def test_an_idle_peer_is_asked_later_and_judged_alike() -> None:
    liveness = Liveness(0.0)
    first = liveness.poll(0.0, 0.001, quiet_s=IDLE_QUIET_S)
    assert (first.at, first.probe) == (IDLE_QUIET_S, False)
    assert liveness.poll(IDLE_QUIET_S, 0.001, quiet_s=IDLE_QUIET_S).probe
    assert not liveness.poll(IDLE_QUIET_S + SILENT_LEAST_S - 0.01, 0.001, quiet_s=IDLE_QUIET_S).silent
    assert liveness.poll(IDLE_QUIET_S + SILENT_LEAST_S, 0.001, quiet_s=IDLE_QUIET_S).silent


def test_an_answer_ends_the_suspicion_and_the_silence() -> None:
    run = Run()
    run.until(0.7)
    assert run.liveness.suspicious
    assert not run.liveness.heard(0.7)
    assert not run.liveness.suspicious
    run.until(3.0)
    assert run.silent_at == pytest.approx(0.7 + QUIET_S + SILENT_LEAST_S, abs=0.1)
    assert run.liveness.silent
    assert run.liveness.heard(3.1)
    assert not run.liveness.silent
    assert not run.liveness.heard(3.2)


def test_a_far_peer_gets_more_time() -> None:
    run = Run(rtt_s=0.3)
    run.until(10.0)
    assert run.silent_at == pytest.approx(QUIET_S + 8 * 0.3, abs=0.01)
    assert run.probes[1] - run.probes[0] == pytest.approx(0.6)


def test_a_hint_shortens_it_but_only_with_unanswered_probes() -> None:
    run = Run()
    run.until(0.1)
    assert run.liveness.hint(0.1)
    assert not run.liveness.hint(0.1), "news only once"
    run.at = 0.1
    run.until(1.0)
    assert run.silent_at is not None
    assert 0.1 < run.silent_at < 0.3
    assert len([at for at in run.probes if at < run.silent_at]) >= HINTED_PROBES


def test_a_forged_hint_does_nothing_to_a_peer_that_answers() -> None:
    liveness, now = Liveness(0.0), 0.0
    for _ in range(200):
        now += 0.05
        liveness.hint(now)
        step = liveness.poll(now, 0.001)
        assert not step.silent
        if step.probe:
            liveness.heard(now + 0.001)
    assert not liveness.silent


def test_the_lag_of_the_own_event_loop_is_not_held_against_the_peer() -> None:
    liveness = Liveness(0.0)
    assert not liveness.poll(4.0, 0.001, late_s=3.8).probe, "asleep for 3.8 of the 4 seconds"
    assert liveness.poll(4.2, 0.001).probe
    assert not liveness.poll(6.2, 0.001, late_s=1.9).silent
    assert not liveness.poll(7.0, 0.001).silent
    assert liveness.poll(7.2, 0.001).silent


def test_what_was_not_heard_while_nobody_asked_does_not_count() -> None:
    liveness = Liveness(0.0)
    liveness.watch(100.0)
    assert not liveness.poll(100.0, 0.001).probe
    assert liveness.poll(100.0 + QUIET_S, 0.001).probe
