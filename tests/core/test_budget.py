import pytest

from meshnode.core.budget import REFUSALS_OF_A_FLOOD, STATEMENTS_BURST, Bucket, PeerBudget


def test_a_bucket_fills_with_time_and_no_further_than_its_burst() -> None:
    bucket = Bucket(2.0, 4, now=0.0)
    assert [bucket.take(1, 0.0) for _ in range(5)] == [True] * 4 + [False]
    assert bucket.take(1, 0.5)
    assert not bucket.take(1, 0.9)
    assert [bucket.take(1, 1000.0) for _ in range(5)] == [True] * 4 + [False]


def test_a_refusal_costs_nothing() -> None:
    bucket = Bucket(1.0, 4, now=0.0)
    assert not bucket.take(5, 0.0)
    assert bucket.take(4, 0.0)


def test_credits_are_for_once_and_do_not_add_up() -> None:
    bucket = Bucket(1.0, 4, now=0.0)
    bucket.credit(10)
    bucket.credit(10)
    assert bucket.take(14, 0.0)
    assert not bucket.take(1, 0.0)
    assert not bucket.take(5, 100.0)


@pytest.mark.parametrize("members, least", [(2, 250), (1000, 4000)])
def test_the_burst_grows_with_the_mesh_the_rate_does_not(members: int, least: int) -> None:
    budget = PeerBudget(0.0)
    budget.resize(members)
    passed = sum(budget.statement(100, 0.0) for _ in range(10_000))
    assert least <= passed <= STATEMENTS_BURST + 4 * members
    assert sum(budget.statement(100, 1.0) for _ in range(1000)) <= 64


def test_what_was_asked_for_may_come() -> None:
    budget = PeerBudget(0.0)
    budget.asked_for(20_000, 20_000 * 320.0)
    assert all(budget.statement(320, 0.0) for _ in range(20_000))


def test_bytes_are_bounded_too() -> None:
    budget = PeerBudget(0.0)
    budget.resize(2)
    assert sum(1200 for _ in range(256) if budget.statement(1200, 0.0)) <= 270_000


def test_some_refusals_are_an_accident_many_are_not() -> None:
    budget = PeerBudget(0.0)
    assert not any(budget.is_flood(0.0) for _ in range(int(REFUSALS_OF_A_FLOOD)))
    assert budget.is_flood(0.0)
    assert not budget.is_flood(10.0)


def test_accusations_and_messages_have_budgets_of_their_own() -> None:
    budget = PeerBudget(0.0)
    assert sum(budget.accusation(0.0) for _ in range(2000)) == 256
    assert sum(budget.accusation(1.0) for _ in range(2000)) == 10
    assert sum(budget.message(0.0) for _ in range(2000)) == 800
