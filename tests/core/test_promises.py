import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.placement import HOST, Budget, DeviceBudget
from meshnode.core.promises import Promises, Shortage, needs_of
from meshnode.wire.splits import DeviceNeed

BUDGET = Budget(host_bytes=1000, devices=(DeviceBudget("GPU0", 500), DeviceBudget("GPU1", 300)))
ONE, TWO = b"1" * 16, b"2" * 16


def test_what_is_left() -> None:
    promises = Promises()
    assert promises.usable_bytes(BUDGET, taken={}) == {"GPU0": 500, "GPU1": 300, HOST: 1000}
    assert promises.make(ONE, {"GPU0": 200, "GPU1": 300}, promises.usable_bytes(BUDGET, taken={})) is None
    assert promises.usable_bytes(BUDGET, taken={HOST: 900, "GPU0": 100}) == {"GPU0": 200, "GPU1": 0, HOST: 100}
    assert promises.of(ONE) == promises.total_bytes() == {"GPU0": 200, "GPU1": 300}
    promises.end(ONE)
    promises.end(ONE)
    assert promises.total_bytes() == {} == promises.of(ONE)
    assert promises.usable_bytes(BUDGET, taken={HOST: 5000})[HOST] == 0


def test_a_shortage_is_told_and_nothing_kept() -> None:
    promises = Promises()
    usable = promises.usable_bytes(BUDGET, taken={})
    assert promises.make(ONE, {"GPU0": 100, "GPU1": 301}, usable) == Shortage("GPU1", 301, 300, 800)
    assert promises.make(ONE, {"GPU7": 1}, usable) == Shortage("GPU7", 1, 0, 0)
    assert promises.total_bytes() == {}


def test_two_plans_never_both_get_the_last_bytes() -> None:
    promises = Promises()
    assert promises.make(ONE, {HOST: 600}, promises.usable_bytes(BUDGET, taken={})) is None
    assert promises.make(TWO, {HOST: 600}, promises.usable_bytes(BUDGET, taken={})) == Shortage(HOST, 600, 400, 400)


def test_unified_memory_is_one() -> None:
    budget = Budget(host_bytes=1000, devices=(DeviceBudget("Metal", 800),), unified=True)
    promises = Promises()
    usable = promises.usable_bytes(budget, taken={HOST: 100}, unified=["Metal"])
    assert usable == {"Metal": 700, HOST: 900}
    assert promises.make(ONE, {"Metal": 500}, usable) is None
    assert promises.usable_bytes(budget, taken={HOST: 100}, unified=["Metal"]) == {"Metal": 200, HOST: 400}


@pytest.mark.parametrize(
    ("devices", "needed", "lent", "needs"),
    [
        ((), 10, ["a"], {"a": 10}),
        ((), 11, ["a", "b", "c"], {"a": 5, "b": 3, "c": 3}),
        (((1, 4), (0, 6)), 10, ["a", "b"], {"b": 4, "a": 6}),
        (((1, 4),), 10, ["a", "b"], {"b": 4}),
        (((2, 4),), 10, ["a", "b"], None),
        (((0, 4), (0, 4)), 10, ["a", "b"], None),
        (((0, 4), (1, 7)), 10, ["a", "b"], None),
    ],
)
def test_needs(
    devices: tuple[tuple[int, int], ...], needed: int, lent: list[str], needs: dict[str, int] | None
) -> None:
    found = needs_of([DeviceNeed(*each) for each in devices], needed, lent)
    assert found == needs
    assert found is None or list(found) == list(needs or {}), "in the order of the ask"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 999), st.booleans()), max_size=30))
def test_promises_never_exceed_what_there_is(steps: list[tuple[int, int, bool]]) -> None:
    promises = Promises()
    for plan, needed, ends in steps:
        name = bytes([plan]) * 16
        if ends:
            promises.end(name)
        elif not promises.of(name):
            promises.make(name, {"GPU0": needed, HOST: needed}, promises.usable_bytes(BUDGET, taken={HOST: 10}))
        total = promises.total_bytes()
        assert total.get("GPU0", 0) <= 500 and total.get(HOST, 0) <= 990
