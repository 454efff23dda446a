from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshnode.core.fair_queue import FairQueue, QueueSnapshot

CALLERS = st.sampled_from("abc")


class Turns(RuleBasedStateMachine):
    """Any order of offers, releases, withdrawals and changes of size, against a record of who is where."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(slots=1, capacity=4)
        self.number = 0
        self.waiting: dict[int, str] = {}
        self.running: list[int] = []
        self.guests = 0
        self.gone: set[int] = set()

    def admitted(self, tickets: list[int]) -> None:
        for ticket in tickets:
            assert ticket not in self.running
            assert ticket not in self.gone
            caller = self.waiting.pop(ticket)  # KeyError: admitted without having waited, or twice
            assert ticket < min((other for other, who in self.waiting.items() if who == caller), default=ticket + 1)
            self.running.append(ticket)

    @rule(caller=CALLERS)
    def offer(self, caller: str) -> None:
        self.number += 1
        full = len(self.waiting) >= self.queue.capacity
        answer = self.queue.offer(caller, self.number)
        if answer:
            assert not self.waiting
            self.running.append(self.number)
        elif answer is None:
            assert full
        else:
            assert not full
            self.waiting[self.number] = caller

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.gone.add(ticket)
        self.admitted(self.queue.release())

    @rule()
    def a_stranger_comes(self) -> None:
        if not self.queue.has_guest_room:
            with pytest.raises(ValueError, match="without room"):
                self.queue.admit_guest()
            return
        assert not self.waiting and len(self.running) + self.guests < self.queue.slots
        self.queue.admit_guest()
        self.guests += 1
        assert self.guests < self.queue.slots or self.queue.slots == 1  # one slot is left for those who are nearer

    @precondition(lambda self: self.guests)
    @rule()
    def a_stranger_leaves(self) -> None:
        self.queue.guest_left()
        self.guests -= 1
        self.admitted(self.queue.release())

    @rule(slots=st.integers(0, 4))
    def resize(self, slots: int) -> None:
        self.admitted(self.queue.resize(slots))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.withdraw(self.waiting.pop(ticket), ticket)
        self.gone.add(ticket)

    @precondition(lambda self: self.running or self.gone)
    @rule(caller=CALLERS, data=st.data())
    def withdraw_what_does_not_wait(self, caller: str, data: Any) -> None:
        ticket = data.draw(st.sampled_from([*self.running, *sorted(self.gone)]))
        assert not self.queue.withdraw(caller, ticket)

    @invariant()
    def counts_agree(self) -> None:
        busy = len(self.running) + self.guests
        assert self.queue.snapshot() == QueueSnapshot(self.queue.slots, busy, len(self.waiting))
        assert self.queue.guests == self.guests
        assert len(self.waiting) <= self.queue.capacity

    @invariant()
    def nobody_waits_while_a_slot_is_free(self) -> None:
        assert not self.waiting or len(self.running) + self.guests >= self.queue.slots

    @invariant()
    def callers_leave_no_trace(self) -> None:
        assert set(self.queue._lines) == set(self.waiting.values())


Turns.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestTurns = Turns.TestCase


def order(queue: FairQueue[str], count: int) -> list[str]:
    return [ticket for _ in range(count) for ticket in queue.release()]


def test_one_busy_caller_does_not_starve_another() -> None:
    queue: FairQueue[str] = FairQueue(slots=1, capacity=100)
    assert queue.offer("busy", "b0") is True
    for number in range(1, 6):
        assert queue.offer("busy", f"b{number}") is False
    queue.offer("calm", "c1")
    queue.offer("third", "t1")
    queue.offer("calm", "c2")
    assert order(queue, 9) == ["b1", "c1", "t1", "b2", "c2", "b3", "b4", "b5"]


def test_a_caller_that_comes_again_stands_behind_those_who_wait() -> None:
    queue: FairQueue[str] = FairQueue(slots=1, capacity=100)
    queue.offer("a", "a0")
    queue.offer("a", "a1")
    queue.offer("b", "b1")
    assert queue.release() == ["a1"]
    queue.offer("a", "a2")
    assert order(queue, 2) == ["b1", "a2"]


def test_no_capacity_means_no_waiting() -> None:
    queue: FairQueue[str] = FairQueue(slots=1, capacity=0)
    assert queue.offer("a", "1") is True
    assert queue.offer("a", "2") is None
    assert queue.release() == []
    assert queue.offer("a", "3") is True


def test_more_slots_admit_several_at_once() -> None:
    queue: FairQueue[str] = FairQueue(slots=0, capacity=10)
    for caller in "abc":
        assert queue.offer(caller, caller) is False
    assert queue.resize(2) == ["a", "b"]
    assert queue.resize(0) == []
    assert queue.release() == []
    assert queue.release() == []
    assert queue.resize(1) == ["c"]


def test_a_release_too_many_is_our_own_fault() -> None:
    with pytest.raises(ValueError, match="without an admitted ticket"):
        FairQueue(slots=1, capacity=1).release()


def test_strangers_get_all_slots_but_one_and_none_while_somebody_waits() -> None:
    queue: FairQueue[str] = FairQueue(slots=3, capacity=9)
    queue.admit_guest()
    queue.admit_guest()
    assert not queue.has_guest_room  # the last one is for those who are nearer
    assert queue.offer("own", "1") is True
    assert queue.offer("own", "2") is False
    queue.guest_left()
    assert queue.release() == ["2"]
    assert not queue.has_guest_room
    queue.release()
    assert queue.has_guest_room


def test_where_there_is_one_slot_whoever_is_nearer_goes_next() -> None:
    queue: FairQueue[str] = FairQueue(slots=1, capacity=9)
    queue.admit_guest()
    assert queue.offer("own", "1") is False
    assert not queue.has_guest_room
    queue.guest_left()
    assert queue.release() == ["1"]
    with pytest.raises(ValueError, match="no stranger"):
        queue.guest_left()
