from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.deadlines import HUSKS, Deadlines


def taken(deadlines: Deadlines, now: float) -> list[object]:
    keys = []
    while (key := deadlines.take(now)) is not None:
        keys.append(key)
    return keys


def test_they_come_in_order_and_once() -> None:
    deadlines = Deadlines()
    for key, at in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        deadlines.set(key, at)
    assert deadlines.next_at() == 1.0
    assert taken(deadlines, 2.0) == ["a", "b"]
    assert taken(deadlines, 2.0) == []
    assert "c" in deadlines and "a" not in deadlines and len(deadlines) == 1


def test_the_newest_setting_counts() -> None:
    deadlines = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("a", 5.0)
    assert taken(deadlines, 4.0) == []
    deadlines.set_earlier("a", 7.0)
    assert deadlines.next_at() == 5.0
    deadlines.set_earlier("a", 2.0)
    assert taken(deadlines, 2.0) == ["a"]
    deadlines.set_earlier("a", 9.0)
    assert deadlines.next_at() == 9.0
    deadlines.cancel("a")
    deadlines.cancel("a")
    assert deadlines.next_at() is None


def test_a_lag_moves_all_of_them() -> None:
    deadlines = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("b", 2.0)
    deadlines.shift(3.0)
    assert taken(deadlines, 3.9) == []
    assert taken(deadlines, 5.0) == ["a", "b"]


def test_moving_leaves_no_growing_heap() -> None:
    deadlines = Deadlines()
    for turn in range(10_000):
        deadlines.set("a", float(turn))
    assert len(deadlines._heap) <= HUSKS + 3


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100) | st.none())))
def test_like_a_plain_dictionary(steps: list[tuple[int, float | None]]) -> None:
    deadlines, plain = Deadlines(), dict[int, float]()
    for key, at in steps:
        if at is None:
            deadlines.cancel(key)
            plain.pop(key, None)
        else:
            deadlines.set(key, at)
            plain[key] = at
    assert deadlines.next_at() == min(plain.values(), default=None)
    order = [plain[key] for key in taken(deadlines, 100.0)]  # type: ignore[index]
    assert order == sorted(plain.values())
