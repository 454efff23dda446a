"""The sieve: every reason for which an event is dropped, replays, crowds, and floods."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core import listings
from meshnode.core.listings import (
    LIES,
    MOST_A_NEAR_PREFIX,
    MOST_A_NODE,
    MOST_A_PREFIX,
    MOST_A_PUBLISHER,
    REASON_WORDS,
    Reason,
    Seen,
    Sieve,
    words,
)
from meshnode.identity import verify
from meshnode.wire.address import Address
from meshnode.wire.listings import Entry, Listing
from tests.wire.listing_samples import ALICE, BITS, BOB, NOW_S, changed, event, has_its_id, listing, tags_of
from tests.wire.samples import STEADY, Signer, cases, vectors


def sieve(seen: Seen | None = None, **options: Any) -> Sieve:
    return Sieve(verify, has_its_id, seen or Seen(), **({"work_bits": BITS} | options))


def publisher(number: int) -> bytes:
    return number.to_bytes(32, "big")


def at(*hosts: str) -> tuple[Entry, ...]:
    return (Entry(ALICE.node, tuple(Address(host, 9338) for host in hosts)),)


@cases("listings", "valid")
def test_valid(case: dict[str, Any]) -> None:
    found = sieve(work_bits=8).judge(case["event"], case["now_s"])
    assert isinstance(found, Listing)
    assert found.created_at == case["event"]["created_at"]


@cases("listings", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    judging = sieve(work_bits=8)
    assert judging.judge(case["event"], case["now_s"]) == case["reason"]
    assert judging.dropped == Counter({case["reason"]: 1})
    assert judging.kept == ()


def test_the_vectors_know_every_reason_that_lies_in_one_event() -> None:
    of_a_history = {Reason.REPLAYED, Reason.DUPLICATE, Reason.CROWDED}
    assert {case["reason"] for case in vectors("listings")["invalid"]} == set(Reason) - of_a_history


@pytest.mark.parametrize("raw", [None, [], {}, "x", {"id": 1}, {"tags": [[]]}], ids=repr)
def test_what_is_no_event_is_dropped(raw: Any) -> None:
    assert sieve().judge(raw, NOW_S) is Reason.MALFORMED


@STEADY
@given(st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3)))
def test_any_member_is_judged_without_a_fault(value: Any) -> None:
    good = event(listing())
    for name in good:
        found = sieve().judge(changed(good, **{name: value}), NOW_S)
        assert isinstance(found, Reason)


def test_a_tag_with_another_mesh_is_not_what_was_asked_for() -> None:
    here, there = listing(), listing(name="elsewhere")
    judging = sieve(mesh=here.mesh)
    assert judging.judge(event(there), NOW_S) is Reason.WRONG_TAG
    assert judging.judge(event(here), NOW_S) == here


def test_a_half_surrogate_is_forged_or_malformed_and_no_fault() -> None:
    said = event(listing())
    assert isinstance(
        Sieve(verify, lambda _: True, Seen(), work_bits=BITS).judge(changed(said, content="\ud800"), NOW_S), Reason
    )


def test_signatures_are_asked_last() -> None:
    asked: list[str] = []

    def note(*_: Any) -> bool:
        asked.append("signature")
        return True

    judging = Sieve(note, note, Seen(), work_bits=BITS)
    for raw in (
        event(listing(), bits=BITS - 1),
        event(listing(), kind=1),
        event(listing(created_at=NOW_S - 999)),
        event(listing(), content="x" * 20_000),
    ):
        assert isinstance(judging.judge(raw, NOW_S), Reason)
    assert asked == []


# --- the same again, and older ----------------------------------------------------------------------------------------


def test_the_same_from_another_relay_is_no_news() -> None:
    judging = sieve()
    raw = event(listing())
    assert judging.judge(raw, NOW_S) == listing()
    assert judging.judge(raw, NOW_S) is Reason.DUPLICATE
    assert judging.judge(changed(raw, content=raw["content"].replace("demo", "omed")), NOW_S) is Reason.FORGED
    assert len(judging.kept) == 1


def test_a_newer_one_takes_the_place_of_an_older_one() -> None:
    judging = sieve()
    for seconds in (5, 9, 7):
        judging.judge(event(listing(created_at=NOW_S + seconds, nodes=seconds)), NOW_S + 10)
    assert [each.nodes for each in judging.kept] == [9]
    assert judging.dropped == Counter({"replayed": 1})


def test_what_was_newer_before_is_remembered() -> None:
    seen = Seen()
    assert isinstance(sieve(seen).judge(event(listing(created_at=NOW_S + 9)), NOW_S), Listing)
    assert sieve(seen).judge(event(listing(created_at=NOW_S + 8)), NOW_S) is Reason.REPLAYED
    assert isinstance(sieve(seen).judge(event(listing(created_at=NOW_S + 9)), NOW_S), Listing)
    other = replace(listing(created_at=NOW_S), publisher=publisher(1))
    assert isinstance(sieve(seen).judge(event(other), NOW_S), Listing)


def test_memory_of_what_was_seen_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MOST_REMEMBERED", 3)
    seen = Seen()
    for number in range(5):
        seen.note(listing(publisher=publisher(number), created_at=NOW_S))
    old = [seen.is_older(listing(publisher=publisher(number), created_at=NOW_S - 1)) for number in range(5)]
    assert old == [False, False, True, True, True]


# --- crowds -----------------------------------------------------------------------------------------------------------


def kept_of(raws: list[dict[str, Any]]) -> tuple[int, Counter[str]]:
    judging = sieve()
    for raw in raws:
        judging.judge(raw, NOW_S)
    return len(judging.kept), judging.dropped


def test_one_publisher_has_few_places() -> None:
    many = [event(listing(Signer.named(f"{n}"), name=f"mesh-{n}"), Signer.named(f"{n}")) for n in range(7)]
    assert kept_of(many) == (MOST_A_PUBLISHER, Counter({"crowded": 7 - MOST_A_PUBLISHER}))


def test_one_node_has_few_places() -> None:
    assert kept_of([event(listing(publisher=publisher(n))) for n in range(5)])[0] == MOST_A_NODE


@pytest.mark.parametrize(
    ("hosts", "places"),
    [
        ([f"198.41.0.{n}" for n in range(1, 99)], MOST_A_PREFIX),
        ([f"2600:1:2:3{n:02x}::1" for n in range(99)], MOST_A_PREFIX),
        ([f"127.0.0.{n}" for n in range(1, 99)], MOST_A_NEAR_PREFIX),
        ([f"198.41.{n}.1" for n in range(1, 99)], 98),
    ],
    ids=["/24", "/56", "loopback", "many networks"],
)
def test_one_network_has_few_places(hosts: list[str], places: int) -> None:
    raws = []
    for number, host in enumerate(hosts):
        signer = Signer.named(f"{number}")
        raws.append(event(listing(signer, publisher=publisher(number), entries=at(host)), signer))
    assert kept_of(raws)[0] == places


def test_of_too_many_those_with_more_work_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MOST_KEPT", 3)
    judging = sieve()
    for number, bits in enumerate((4, 4, 5, 8, 4, 7)):
        signer = Signer.named(f"{number}")
        judging.judge(event(listing(signer, publisher=publisher(number)), signer, bits=bits), NOW_S)
    # What an event aimed at counts, however lucky it was.
    assert [each.publisher[-1] for each in judging.kept] == [2, 3, 5]
    assert judging.dropped == Counter({"crowded": 3})


def test_a_place_that_is_left_is_free_again() -> None:
    judging = sieve()
    for number in range(20):
        said = listing(created_at=NOW_S + number, entries=at(f"198.41.{number}.1"))
        assert isinstance(judging.judge(event(said), NOW_S), Listing)
    assert len(judging.kept) == 1
    assert isinstance(judging.judge(event(listing(BOB, publisher=publisher(1)), BOB), NOW_S), Listing)


def test_ten_thousand_listings_are_judged_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forged ones cost a hash each here; the bound is what counts."""
    judging = sieve()
    good = event(listing())
    raws = [changed(good, pubkey=publisher(number).hex()) for number in range(200)]
    begun = time.process_time()
    for number in range(10_000):
        judging.judge(raws[number % 200], NOW_S)
    assert judging.judge(good, NOW_S) is Reason.CROWDED
    assert judging.dropped == Counter({"forged": 10_000, "crowded": 1})
    assert judging.kept == ()
    assert time.process_time() - begun < 5


# --- words ------------------------------------------------------------------------------------------------------------


def test_every_reason_has_its_words() -> None:
    assert set(REASON_WORDS) == set(Reason)
    assert words(Counter(forged=2, expired=7, duplicate=90, future=0)) == ["7 expired", "2 forged events"]
    assert set(Reason) > LIES


def test_the_tags_of_these_tests_are_those_of_the_specification() -> None:
    assert [tag[0] for tag in tags_of(listing())] == ["d", "t", "t", "expiration"]
