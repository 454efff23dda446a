import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.claiming import (
    Batch,
    Claim,
    ClaimPolicy,
    Fee,
    Stand,
    Unclaimed,
    block_tag_for,
    gas_micros,
    halves,
    plan,
    share_micros,
    without_drained,
)

CHEAP = Fee(wei_per_gas=5_000_000, eth_micros=3_000_000_000)
"""0.005 gwei at 3,000 dollars: a claim alone costs 0.0016 dollars."""
DEAR = Fee(wei_per_gas=50_000_000_000, eth_micros=3_000_000_000)
DAY_S = 86_400.0


def channel(number: int) -> bytes:
    return number.to_bytes(32, "big")


def item(number: int, micros: int, *, age_s: float = 0, deadline_s: float | None = None, claimed: int = 0) -> Unclaimed:
    return Unclaimed(channel(number), claimed + micros, claimed, 1000 - age_s, DAY_S, deadline_s)


def planned(*items: Unclaimed, fee: Fee = CHEAP, is_shutdown: bool = False) -> list[list[tuple[int, str]]]:
    batches = plan(items, fee, 1000, ClaimPolicy(), is_shutdown)
    return [[(int.from_bytes(claim.channel, "big"), claim.reason) for claim in batch] for batch in batches]


def test_what_gas_costs() -> None:
    assert gas_micros(105_075, CHEAP) == 1577
    assert gas_micros(1, CHEAP) == 1  # rounded up
    assert share_micros(1, CHEAP) == 1577
    assert share_micros(25, CHEAP) == 367  # 24,418 gas each
    assert share_micros(1, Fee(5_000_000, 3_000_000_000, data_wei=10**12)) == 4577
    assert share_micros(25, Fee(0, 3_000_000_000)) == 0


def test_a_claim_waits_until_its_fee_is_small() -> None:
    assert planned(item(1, 157_699)) == []
    assert planned(item(1, 157_700)) == [[(1, "value")]]
    assert planned() == []


def test_company_makes_it_cheaper() -> None:
    alone = item(1, 40_000)
    assert planned(alone) == []
    together = planned(*(item(number, 40_000) for number in range(1, 26)))
    assert [len(batch) for batch in together] == [25]
    # One that is claimed anyhow pays part of the way for others.
    assert planned(item(1, 100_000), item(2, 100_000)) == [[(1, "value"), (2, "value")]]


def test_age_amount_withdrawal_and_the_end_do_not_wait() -> None:
    assert planned(item(1, 5000, age_s=DAY_S / 4)) == [[(1, "age")]]
    assert planned(item(1, 5000, age_s=DAY_S / 4 - 1)) == []
    assert planned(item(1, 500_000), fee=Fee(10**9, 3_000_000_000)) == [[(1, "amount")]]
    assert planned(item(1, 5000, deadline_s=9000)) == [[(1, "withdraw")]]
    assert planned(item(1, 5000), is_shutdown=True) == [[(1, "shutdown")]]


def test_nothing_is_claimed_that_costs_more_than_it_brings() -> None:
    for forced in (item(1, 1576, age_s=DAY_S), item(1, 1576, deadline_s=9000)):
        assert planned(forced) == []
    assert planned(item(1, 1576), is_shutdown=True) == []
    assert planned(item(1, 1577), is_shutdown=True) == [[(1, "shutdown")]]
    assert planned(item(1, 900_000, deadline_s=9000), fee=DEAR) == []
    assert planned(item(1, 0, deadline_s=9000), item(2, 0, age_s=DAY_S)) == []


def test_the_most_urgent_go_first() -> None:
    batches = planned(
        item(1, 800_000),
        item(2, 5000, age_s=DAY_S),
        item(3, 5000, age_s=2 * DAY_S),
        item(4, 5000, deadline_s=9000),
        item(5, 5000, deadline_s=8000),
        item(6, 200_000),
        item(7, 300_000),
    )
    assert batches == [
        [(5, "withdraw"), (4, "withdraw"), (1, "amount"), (3, "age"), (2, "age"), (7, "value"), (6, "value")]
    ]


def test_batches_are_bounded_and_the_last_one_is_weighed_on_its_own() -> None:
    batches = planned(*(item(number, 40_000) for number in range(1, 56)))
    assert [len(batch) for batch in batches] == [25, 25]  # five of 40,000 do not pay for a batch of their own
    assert [len(batch) for batch in planned(*(item(number, 60_000) for number in range(1, 56)))] == [25, 25, 5]


@given(
    st.lists(st.tuples(st.integers(0, 700_000), st.floats(0, 2 * DAY_S), st.none() | st.floats(0, 9999)), max_size=120),
    st.integers(0, 10**9),
    st.booleans(),
)
def test_every_batch_is_worth_while_and_no_channel_comes_twice(
    rows: list[tuple[int, float, float | None]], wei_per_gas: int, is_shutdown: bool
) -> None:
    fee = Fee(wei_per_gas, 3_000_000_000)
    items = [item(number, row[0], age_s=row[1], deadline_s=row[2]) for number, row in enumerate(rows)]
    worth = {each.channel: each.claimable_micros for each in items}
    batches = plan(items, fee, 1000, ClaimPolicy(), is_shutdown)
    claims = [claim for batch in batches for claim in batch]
    assert len({claim.channel for claim in claims}) == len(claims)
    for batch in batches:
        assert 1 <= len(batch) <= 25
        for claim in batch:
            ratio = 100 if claim.reason == "value" else 1
            assert worth[claim.channel] >= ratio * share_micros(len(batch), fee)
            assert worth[claim.channel] > 0
    missed = [each for each in items if each.channel not in {claim.channel for claim in claims}]
    if is_shutdown:
        assert all(each.claimable_micros < max(1, share_micros(1, fee)) for each in missed)


def claims(*numbers: int) -> Batch:
    return tuple(Claim(channel(number), 500, "value") for number in numbers)


def test_a_drained_channel_is_dropped() -> None:
    stands = {
        channel(1): Stand(500, 0),
        channel(2): Stand(499, 0),  # withdrawn, or its deposit was undone
        channel(3): Stand(900, 500),  # claimed already
    }
    kept, dropped = without_drained(claims(1, 2, 3, 4), stands)
    assert kept == claims(1, 4)
    assert dropped == claims(2, 3)


@given(st.integers(1, 25), st.sets(st.integers(0, 24)))
def test_halves_find_whoever_makes_a_batch_fail(size: int, bad: set[int]) -> None:
    batch, simulations = claims(*range(size)), 0
    good: list[Claim] = []
    left = [batch]
    while left:
        each = left.pop()
        simulations += 1
        if not any(int.from_bytes(claim.channel, "big") in bad for claim in each):
            good += each
        else:
            left += halves(each)
    assert sorted(good, key=lambda claim: claim.channel) == [
        claim for number, claim in enumerate(batch) if number not in bad
    ]
    assert simulations < 2 * size


@pytest.mark.parametrize(
    ("micros", "tag"),
    [(0, "latest"), (1_000_000, "latest"), (1_000_001, "safe"), (100_000_000, "safe"), (100_000_001, "finalized")],
)
def test_larger_deposits_wait_for_more(micros: int, tag: str) -> None:
    assert block_tag_for(micros) == tag
