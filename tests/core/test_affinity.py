import pytest

from meshnode.core.affinity import ENTRIES, EXPIRY_S, Affinity

FIRST = (11, 12, 13)
NEXT = (11, 12, 13, 14, 15)


def test_a_conversation_that_goes_on_is_recognised() -> None:
    table = Affinity()
    table.remember("m", FIRST, "a", 0.0, prompt_tokens=900)
    assert table.held("m", NEXT, 1000, 1.0) == {"a": 900}


def test_without_a_noted_length_messages_count_alike() -> None:
    table = Affinity()
    table.remember("m", FIRST, "a", 0.0)
    assert table.held("m", NEXT, 1000, 1.0) == {"a": 600}


@pytest.mark.parametrize(
    ("prefix", "held"),
    [
        ((11, 99), {"a": 500}),  # only the system prompt is shared
        ((11, 12, 99), {"a": 666}),  # the last message was edited
        ((91, 92, 93), {}),  # another first message changes all cumulative hashes
        ((), {}),
    ],
)
def test_what_is_shared_is_counted(prefix: tuple[int, ...], held: dict[str, int]) -> None:
    table = Affinity()
    table.remember("m", FIRST, "a", 0.0)
    assert table.held("m", prefix, 1000, 1.0) == held


def test_each_host_counts_with_its_longest_prefix() -> None:
    table = Affinity()
    table.remember("m", FIRST, "a", 0.0)
    table.remember("m", (11,), "b", 0.0)
    assert table.held("m", NEXT, 1000, 1.0) == {"a": 600, "b": 200}


def test_no_more_is_held_than_is_asked_for() -> None:
    table = Affinity()
    table.remember("m", FIRST, "a", 0.0, prompt_tokens=5000)
    assert table.held("m", FIRST, 700, 1.0) == {"a": 700}


def test_models_are_kept_apart() -> None:
    table = Affinity()
    table.remember("m", FIRST, "a", 0.0)
    assert table.held("other", FIRST, 1000, 1.0) == {}


def test_it_is_forgotten_after_half_an_hour() -> None:
    table = Affinity()
    table.remember("m", FIRST, "a", 0.0)
    assert table.held("m", FIRST, 1000, EXPIRY_S) == {"a": 1000}
    assert table.held("m", FIRST, 1000, EXPIRY_S + 1) == {}
    table.remember("m", FIRST, "a", EXPIRY_S)
    assert table.held("m", FIRST, 1000, EXPIRY_S + 1) == {"a": 1000}


def test_the_table_is_bounded_and_the_oldest_goes_first() -> None:
    table = Affinity()
    table.remember("m", (1,), "a", 0.0)
    table.remember("m", (2,), "a", 0.0)
    for value in range(100, 100 + ENTRIES - 2):
        table.remember("m", (value,), "a", 1.0)
    table.remember("m", (1,), "a", 2.0)
    table.remember("m", (3,), "a", 2.0)
    assert len(table) == ENTRIES
    assert [bool(table.held("m", (value,), 10, 2.0)) for value in (1, 2, 3)] == [True, False, True]


def test_a_prefix_that_all_hosts_hold_names_the_last_four() -> None:
    table = Affinity()
    for number, node in enumerate("abcdea"):
        table.remember("m", (1,), node, float(number))
    assert set(table.held("m", (1,), 10, 6.0)) == set("acde") - {"b"}


def test_of_a_long_conversation_both_ends_are_kept() -> None:
    table = Affinity()
    table.remember("m", tuple(range(64)), "a", 0.0)
    assert len(table) == 8
    assert table.held("m", (*range(63), 99), 6400, 1.0) == {"a": 6300}
    assert table.held("m", (*range(30), 99), 3100, 1.0) == {"a": 400}
