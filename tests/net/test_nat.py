"""The kind of NAT from what peers see."""

from __future__ import annotations

import itertools

import pytest

from meshnode.net.nat import Observation, classify, is_global
from meshnode.wire.address import Address
from meshnode.wire.registry import Nat

OWN = Address("192.168.1.7", 9337)
OUTSIDE = "11.7.1.2"
PEERS = [Address(f"11.7.{number}.2", 9337) for number in range(10, 20)]


def seen_by(*places: Address) -> list[Observation]:
    """The n-th peer sees the n-th of these."""
    return [Observation(peer, place) for peer, place in zip(PEERS, places, strict=False)]


def outside(*ports: int) -> list[Address]:
    return [Address(OUTSIDE, port) for port in ports]


def test_nobody_has_spoken() -> None:
    assert classify([], [OWN]) is Nat.UNKNOWN


def test_who_is_only_dialled_looks_at_its_own_addresses() -> None:
    at_home, outside_it = Address("10.0.0.5", 9338), Address("11.7.3.2", 9338)
    assert classify([], [at_home, outside_it]) is Nat.NONE
    assert classify([], [Address("2600::5", 9338)]) is Nat.UNKNOWN, "IPv4 may be translated all the same"


def test_one_peer_is_not_enough() -> None:
    assert classify(seen_by(*outside(9337)), [OWN]) is Nat.UNKNOWN


def test_one_peer_that_asks_from_many_ports_is_one_peer() -> None:
    places = [Observation(Address("11.7.10.2", port), Address(OUTSIDE, port)) for port in range(1, 9)]
    assert classify(places, [OWN]) is Nat.UNKNOWN


def test_all_see_the_same() -> None:
    assert classify(seen_by(*outside(4000, 4000)), [OWN]) is Nat.CONE


def test_all_see_something_else() -> None:
    assert classify(seen_by(*outside(4000, 4001, 4002)), [OWN]) is Nat.SYMMETRIC


def test_another_host_for_each_is_symmetric_too() -> None:
    places = [Address(f"11.8.0.{number}", 9337) for number in (1, 2, 3)]
    assert classify(seen_by(*places), [OWN]) is Nat.SYMMETRIC


@pytest.mark.parametrize("order", list(itertools.permutations(outside(4000, 4000, 666))))
def test_one_liar_changes_nothing(order: tuple[Address, ...]) -> None:
    assert classify(seen_by(*order), [OWN]) is Nat.CONE


def test_the_last_word_of_a_peer_counts() -> None:
    """Its former one is from before the router was restarted."""
    before, after = seen_by(*outside(4000, 4001)), seen_by(*outside(5000, 5000))
    assert classify([*before, *after], [OWN]) is Nat.CONE


def test_seen_as_it_is() -> None:
    public = Address(OUTSIDE, 9337)
    assert classify(seen_by(public), [public, OWN]) is Nat.NONE
    assert classify(seen_by(public, public), [public, OWN]) is Nat.NONE


def test_one_that_sees_the_own_address_does_not_outweigh_others() -> None:
    public = Address(OUTSIDE, 9337)
    assert classify(seen_by(public, *outside(1, 2)), [public]) is Nat.SYMMETRIC


def test_a_peer_on_the_local_network_says_nothing_of_the_router() -> None:
    neighbour = Observation(Address("192.168.1.9", 9337), OWN)
    assert classify([neighbour], [OWN]) is Nat.NONE
    assert classify([neighbour, *seen_by(*outside(4000))], [OWN]) is Nat.UNKNOWN
    assert classify([neighbour, *seen_by(*outside(4000, 4000))], [OWN]) is Nat.CONE
    assert classify([neighbour, *seen_by(*outside(4000, 4001))], [OWN]) is Nat.SYMMETRIC


def test_ipv6_does_not_hide_what_becomes_of_ipv4() -> None:
    six = Address("2a00::7", 9337)
    over_six = [Observation(Address(f"2a00::{number}", 9337), six) for number in (1, 2)]
    assert classify(over_six, [OWN, six]) is Nat.NONE
    assert classify([*over_six, *seen_by(*outside(4000, 4001))], [OWN, six]) is Nat.SYMMETRIC


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("11.7.1.2", True),
        ("2a00::1", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.1.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("239.1.2.3", False),
        ("255.255.255.255", False),
        ("203.0.113.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff0e::1", False),
        ("100::1", False),
    ],
)
def test_global(host: str, expected: bool) -> None:
    assert is_global(Address(host, 1)) is expected
