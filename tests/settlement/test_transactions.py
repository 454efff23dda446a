from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.settlement.answers import TransactionReceipt
from meshnode.settlement.fees import Fees
from meshnode.settlement.transactions import (
    Attempt,
    Seen,
    State,
    Transaction,
    advanced,
    gap,
    next_nonce,
)

FIRST, DEARER = Attempt(b"1" * 32, b"raw1", Fees(10, 1)), Attempt(b"2" * 32, b"raw2", Fees(20, 2))
MADE = Transaction(
    *("deposit:1#0", "deposit", 84532, bytes(20), 7, bytes(20), b"", 100_000, (), (FIRST,), 500),
    made_at=1.0,
)


def receipt(block: int, *, succeeded: bool = True, digest: bytes = b"b" * 32) -> TransactionReceipt:
    return TransactionReceipt(block, digest, succeeded, 90_000, 5, 0)


def seen(receipts: dict[bytes, TransactionReceipt] | None = None, *, final: int = 0, nonce: int = 0) -> Seen:
    return Seen(receipts or {}, final, nonce)


@pytest.mark.parametrize("state", ["prepared", "submitted", "mined"])
def test_in_a_block_it_is_mined_and_in_a_final_one_it_has_ended(state: State) -> None:
    before = replace(MADE, state=state)
    mined = advanced(before, seen({FIRST.digest: receipt(10)}, final=9))
    assert (mined.state, mined.block, mined.block_digest, mined.succeeded) == ("mined", 10, b"b" * 32, True)
    assert advanced(mined, seen({FIRST.digest: receipt(10)}, final=10)).state == "final"
    undone = advanced(before, seen({FIRST.digest: receipt(10, succeeded=False)}, final=10))
    assert undone.state == "failed" and not undone.succeeded


def test_a_reorganisation_takes_it_back() -> None:
    mined = advanced(MADE, seen({FIRST.digest: receipt(10)}))
    back = advanced(mined, seen())
    assert (back.state, back.block, back.block_digest) == ("submitted", 0, b"")
    again = advanced(back, seen({FIRST.digest: receipt(12, digest=b"c" * 32)}))
    assert (again.state, again.block, again.block_digest) == ("mined", 12, b"c" * 32)


def test_what_is_nowhere_stays_as_it_is() -> None:
    for state in ("prepared", "submitted"):
        made = replace(MADE, state=state)
        assert advanced(made, seen(final=100, nonce=7)) == made


def test_whichever_attempt_is_in_a_block_counts() -> None:
    made = replace(MADE, attempts=(FIRST, DEARER), state="submitted")
    assert advanced(made, seen({FIRST.digest: receipt(3)}, final=3, nonce=8)).state == "final"
    assert advanced(made, seen({DEARER.digest: receipt(3)}, final=3, nonce=8)).state == "final"


def test_a_nonce_that_something_else_used_is_lost_only_when_that_is_final() -> None:
    made = replace(MADE, state="submitted")
    assert advanced(made, seen(nonce=7)).state == "submitted"
    assert advanced(made, seen(nonce=8)).state == "replaced"


@pytest.mark.parametrize("state", ["final", "failed", "replaced"])
def test_what_has_ended_stays_ended(state: State) -> None:
    ended = replace(MADE, state=state, block=3)
    assert advanced(ended, seen(nonce=99)) == ended
    assert advanced(ended, seen({FIRST.digest: receipt(10)})) == ended


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 20), st.integers(0, 20)), max_size=12))
def test_whatever_is_seen_in_turn_it_ends_at_most_once_and_only_by_a_final_block(
    looks: list[tuple[bool, bool, int, int]],
) -> None:
    made = MADE
    for is_there, succeeded, block, final in looks:
        look = seen({FIRST.digest: receipt(block, succeeded=succeeded)} if is_there else {}, final=final)
        after = advanced(made, look)
        if not made.is_open:
            assert after == made
        elif not after.is_open:
            assert is_there and block <= final and (after.state == "final") == succeeded
        made = after


def test_the_next_nonce_is_above_all_that_is_under_way() -> None:
    assert next_nonce([], 5) == 5
    assert next_nonce([MADE], 5) == 8
    assert next_nonce([MADE], 20) == 20


def test_a_gap_stands_between_the_chain_and_the_first_that_waits() -> None:
    mined = replace(MADE, nonce=5, state="mined", block=4)
    assert gap([], 3) is None
    assert gap([MADE], 7) is None
    assert gap([MADE], 8) is None
    assert gap([MADE], 5) == 5
    assert gap([mined, MADE], 6) == 6
    assert gap([mined, replace(MADE, nonce=6)], 6) is None
