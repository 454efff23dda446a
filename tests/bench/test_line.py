"""What a line does to single pieces, on a clock that the test turns."""

from __future__ import annotations

from random import Random

import pytest

from bench.line import Line, LineShape


def line(**shape: float) -> Line:
    return Line(LineShape(**shape), Random(1))  # type: ignore[arg-type]


def test_without_faults_everything_comes_out_at_once() -> None:
    plain = line()
    assert [plain.due(now, 1000) for now in (1.0, 1.0, 2.5)] == [1.0, 1.0, 2.5]


def test_delay_is_added() -> None:
    late = line(delay_s=0.02)
    assert [late.due(now, 1) for now in (1.0, 1.5)] == pytest.approx([1.02, 1.52])


def test_jitter_spreads_evenly_and_keeps_the_order() -> None:
    shaky = line(delay_s=0.02, jitter_s=0.005)
    apart = [due - now for now in range(1000) if (due := shaky.due(now, 1)) is not None]
    assert min(apart) >= 0.015 and max(apart) <= 0.025
    assert sum(apart) / len(apart) == pytest.approx(0.02, abs=0.0005)
    assert max(apart) - min(apart) > 0.009
    close = [due for number in range(1000) if (due := shaky.due(2000 + number / 10_000, 1)) is not None]
    assert len(close) == 1000 and close == sorted(close)


def test_jitter_makes_nothing_early() -> None:
    shaky = line(delay_s=0.001, jitter_s=0.01)
    for now in range(200):
        due = shaky.due(now, 1)
        assert due is not None and due >= now


def test_so_many_are_lost() -> None:
    bad = line(loss=0.1)
    lost = sum(bad.due(number, 1) is None for number in range(10_000))
    assert 900 < lost < 1100


def test_a_rate_spaces_pieces_by_their_size() -> None:
    slow = line(delay_s=0.5, rate_bytes_per_s=1000)
    assert slow.due(10.0, 100) == pytest.approx(10.6)
    assert slow.due(10.0, 200) == pytest.approx(10.8)
    assert slow.due(20.0, 100) == pytest.approx(20.6), "an idle line is free again"


def test_what_the_queue_cannot_hold_is_lost() -> None:
    slow = line(rate_bytes_per_s=1000, queue_bytes=550)
    passed = [slow.due(1.0, 100) is not None for _ in range(10)]
    assert passed == [True] * 6 + [False] * 4, "five wait while one is on its way"
    assert slow.due(1.5, 100) is not None


def test_the_same_seed_gives_the_same_line() -> None:
    shape = LineShape(delay_s=0.01, jitter_s=0.005, loss=0.2)
    one, same, other = (Line(shape, Random(seed)) for seed in (7, 7, 8))
    dues = [[each.due(number, 1) for number in range(100)] for each in (one, same, other)]
    assert dues[0] == dues[1] != dues[2]


@pytest.mark.parametrize("wrong", [{"delay_s": -1}, {"loss": 1.5}, {"loss": -0.1}, {"rate_bytes_per_s": -1}])
def test_no_such_line(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no line"):
        line(**wrong)
