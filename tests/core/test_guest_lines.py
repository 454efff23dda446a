import random

import pytest

from meshnode.core.guest_lines import GuestLines
from meshnode.core.guests import Stranger


def stranger(node: str, prefix: str = "p") -> Stranger:
    return Stranger(node.encode(), prefix)


def anywhere(model: str) -> bool:
    return True


def drain(lines: GuestLines[str]) -> list[str]:
    """Everyone in the order of their turns, one slot at a time."""
    order = []
    while found := lines.next(anywhere):
        order.append(found[1])
        lines.release()
    return order


def test_turns_go_by_prefix_and_then_by_node() -> None:
    lines: GuestLines[str] = GuestLines(slots=1, capacity=20)
    for node, prefix, ticket in (
        *(("a", "p", "a1"), ("a", "p", "a2"), ("b", "p", "b1"), ("c", "p", "c1"), ("c", "p", "c2")),
        *(("z", "q", "z1"), ("z", "q", "z2")),
    ):
        assert lines.stand(stranger(node, prefix), "m", ticket)
    assert drain(lines) == ["a1", "z1", "b1", "z2", "c1", "a2", "c2"]
    assert lines._lines == {} and lines.waiting == 0


def test_a_crowd_of_ids_in_one_prefix_does_not_keep_another_waiting() -> None:
    lines: GuestLines[str] = GuestLines(slots=1, capacity=200)
    for number in range(100):
        lines.stand(stranger(f"sybil{number}", "crowd"), "m", f"s{number}")
    lines.stand(stranger("honest", "home"), "m", "honest")
    assert drain(lines).index("honest") <= 1


def test_never_more_than_the_slots_and_a_model_without_room_is_passed_over() -> None:
    lines: GuestLines[str] = GuestLines(slots=2, capacity=9)
    for ticket, model in (("1", "full"), ("2", "free"), ("3", "free"), ("4", "free")):
        lines.stand(stranger(ticket, ticket), model, ticket)
    asked = []

    def room(model: str) -> bool:
        asked.append(model)
        return model == "free"

    assert [lines.next(room), lines.next(room), lines.next(room)] == [("free", "2"), ("free", "3"), None]
    assert asked.count("full") == 2  # once a turn, however many wait for it
    lines.release()
    assert lines.next(anywhere) == ("full", "1")  # it kept its place
    assert (lines.busy, lines.waiting) == (2, 1)


def test_waiting_is_bounded_and_may_end() -> None:
    lines: GuestLines[str] = GuestLines(slots=1, capacity=2)
    assert lines.stand(stranger("a"), "m", "1") and lines.stand(stranger("a"), "n", "2")
    assert not lines.stand(stranger("b"), "m", "3")
    assert lines.waits_for("n") and not lines.waits_for("o")
    assert lines.withdraw(stranger("a"), "2")
    assert not lines.withdraw(stranger("a"), "2") and not lines.withdraw(stranger("c"), "1")
    assert lines.stand(stranger("b"), "m", "3")
    assert lines.dismiss() == ["1", "3"]
    assert lines.waiting == 0 and lines.next(anywhere) is None


def test_without_slots_nobody_is_served() -> None:
    lines: GuestLines[str] = GuestLines(capacity=5)
    lines.stand(stranger("a"), "m", "1")
    assert lines.next(anywhere) is None
    with pytest.raises(ValueError, match="without an admitted ticket"):
        lines.release()


def test_any_order_of_events_keeps_the_counts() -> None:
    chance, lines = random.Random(3), GuestLines[int](slots=3, capacity=10)
    waiting: dict[int, Stranger] = {}
    running: set[int] = set()
    for ticket in range(3000):
        match chance.randrange(4):
            case 0 | 1:
                who = stranger(chance.choice("abcd"), chance.choice("pq"))
                if lines.stand(who, chance.choice("mn"), ticket):
                    waiting[ticket] = who
                else:
                    assert len(waiting) == 10
            case 2 if waiting:
                gone = chance.choice(sorted(waiting))
                assert lines.withdraw(waiting.pop(gone), gone)
            case 3 if running:
                running.remove(chance.choice(sorted(running)))
                lines.release()
        while found := lines.next(lambda model: chance.random() < 0.9):
            del waiting[found[1]]  # KeyError: admitted twice, or after it had left
            running.add(found[1])
        assert (lines.busy, lines.waiting) == (len(running), len(waiting))
        assert lines.busy <= 3
    assert {node for nodes in lines._lines.values() for node in nodes} == {who.node for who in waiting.values()}
